"""What arranges our readings in TensorBoard's own dashboards: a layout of custom scalars, and columns of HParams."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rank_callbacks.tags import Tag
from rank_callbacks.writers.loggers import AnyLogger

__all__ = ["custom_scalars_layout", "write_hyperparameter_columns", "write_layout"]

_MEAN_MIN_MAX = ("mean_over_layers", "min_over_layers", "max_over_layers")


def custom_scalars_layout(tags: Iterable[Tag], prefix: str = "") -> dict[str, dict[str, list[Any]]]:
    """A category a group: for each measure the mean over layers in its band, and a chart of all layers. Costs stand last.

    Args:
        tags: What has been read.
        prefix: What the logger writes before each tag.

    Returns:
        What ``SummaryWriter.add_custom_scalars`` takes.

    Example:
        >>> custom_scalars_layout([Tag("weight_rank", "stable_rank", "fc.weight")])
        {'weight_rank': {'stable_rank by layer': ['Multiline', ['weight_rank/stable_rank/(?!(mean|min|max)_over_layers$)']]}}
    """
    layers: dict[tuple[str, str], list[str]] = {}
    for tag in tags:
        layers.setdefault((tag.group, tag.measure), []).append(tag.layer)
    layout: dict[str, dict[str, list[Any]]] = {}
    for (group, measure), names in sorted(layers.items(), key=lambda item: item[0][0] == "monitor"):
        charts = layout.setdefault(group, {})
        if set(_MEAN_MIN_MAX) <= set(names):
            band = [f"{prefix}{Tag(group, measure, name)}" for name in _MEAN_MIN_MAX]
            charts[f"{measure}: mean, least and largest over layers"] = ["Margin", band]
        if not set(names) <= set(_MEAN_MIN_MAX):
            any_layer = re.escape(f"{prefix}{group}/{measure}/") + "(?!(mean|min|max)_over_layers$)"
            charts[f"{measure} by {'monitor' if group == 'monitor' else 'layer'}"] = ["Multiline", [any_layer]]
    return layout


def write_layout(logger: AnyLogger, tags: Iterable[Tag], step: int) -> None:
    """Arrange TensorBoard's custom-scalars dashboard. Of several layouts in a run TensorBoard takes the last."""
    from torch.utils.tensorboard.summary import custom_scalars

    layout = custom_scalars_layout(tags, f"{logger._prefix}-" if logger._prefix else "")
    logger.experiment._get_file_writer().add_summary(custom_scalars(layout), step)


def write_hyperparameter_columns(logger: AnyLogger, hyperparameters: Mapping[str, Any], columns: Sequence[str]) -> None:
    """Give TensorBoard's HParams dashboard columns of scalars that fill as they are logged.

    Of several such records in a run TensorBoard takes the first: this must come before the Trainer writes its own, which names
    ``hp_metric`` alone. No scalar is written, as ``log_hyperparams`` would.
    """
    from lightning_fabric.utilities.logger import _convert_params, _flatten_dict
    from torch.utils.tensorboard.summary import hparams

    prefix = f"{logger._prefix}-" if logger._prefix else ""
    names = [f"{prefix}{column}" for column in columns] + ["hp_metric"] * bool(logger._default_hp_metric)
    parameters = logger._sanitize_params(_flatten_dict(_convert_params(dict(hyperparameters))))
    # The third record would say that the run has ended well.
    experiment, session, _ = hparams(parameters, dict.fromkeys(names, 0.0))
    for record in (experiment, session):
        logger.experiment._get_file_writer().add_summary(record, 0)
