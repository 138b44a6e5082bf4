"""The readings of all monitors, arranged in the dashboards that people already have open."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from pytorch_lightning import LightningModule, Trainer

from rank_callbacks.callbacks.history import History
from rank_callbacks.callbacks.lightning import Callback, step_axis
from rank_callbacks.figures import Figure, Finding, collapse, depth_profile, findings
from rank_callbacks.tags import Tag
from rank_callbacks.writers import Report, Table
from rank_callbacks.writers.loggers import write_to_each
from rank_callbacks.writers.stock_dashboards import write_hyperparameter_columns, write_layout
from rank_callbacks.writers.wandb import define_metrics, send_alert, write_charts

__all__ = ["RankDashboard"]

# Of a monitor that has no ``measures`` of its own.
_MEASURES = {"RankCollapseMonitor": ["relative_distance_to_rank_k", "tcv_ratio_input"]}
# More columns than that a monitor make a table that nobody reads.
_MOST_COLUMNS = 3
# In its first reports a monitor's share of the time says nothing yet: training has hardly begun.
_REPORTS_BEFORE_COST = 5


class RankDashboard(Callback):
    """Arranges what the monitors beside it read in TensorBoard, Weights & Biases and the terminal.

    The monitors write their readings without it. It adds, where the logger is there:

    ==================================  ========================================================================  ==========
    where                               what                                                                      when
    ==================================  ========================================================================  ==========
    TensorBoard, Custom Scalars         a category a group; for each measure the mean over layers in the band of  reports
                                        least and largest, and a chart of all layers
    TensorBoard, HParams                a row a run: hyperparameters, weight decay, and ranks that are live       fit start
    Weights & Biases, run summary       the least ``min_over_layers`` and the largest ``max_over_layers`` of the  reports
                                        run; of all else the last value
    Weights & Biases, section a group   ``<group>/depth_profile`` of the effective rank, as plotly chart;         fit end
                                        ``rank_collapse/collapse``; ``monitor/final_readings``, a table
    progress bar                        readings named in ``progress_bar``                                        reports
    warnings and ``wandb.alert``        with ``alerts=True`` what deserves a look, once each: see                 reports
                                        ``rank_callbacks.figures.findings``
    ==================================  ========================================================================  ==========

    **When.** With every report of every monitor, whatever the order of callbacks; HParams when fitting starts, before the
    Trainer writes its own, of which TensorBoard would take ``hp_metric`` alone; charts and the table when fitting ends.

    **Cost.** 2 µs a reading, with ``alerts=True`` 10 µs; a chart some 0.1 s, at the end. It keeps up to 120 readings of a tag,
    a few kilobytes a tag in checkpoints.

    **Distributed.** The first process writes. The progress bar's values are on all.

    **Harmless.** Weights and random state are those of training without it. A logger that fails makes a warning.

    A layout of custom scalars that your own code writes before the first report is replaced, one that it writes later
    replaces this one; columns of HParams that your own code asks for with ``log_hyperparams(..., metrics)`` go to
    ``columns`` instead.

    Args:
        progress_bar: Tags to show beside the progress, whole (``"weight_rank/effective_rank/mean_over_layers"``), or without
            the group for those of all groups (``"effective_rank/mean_over_layers"``).
        alerts: Whether to warn of findings.
        columns: Names of scalars that the HParams table is to have before the ranks, such as ``"val_accuracy"``.

    Raises:
        ValueError: If ``progress_bar`` or ``columns`` is one text instead of several, or a name in ``progress_bar`` has no
            ``/``.

    Example:
        >>> dashboard = RankDashboard(progress_bar=("effective_rank/mean_over_layers",), alerts=True, columns=["val_accuracy"])
    """

    def __init__(self, progress_bar: Sequence[str] = (), alerts: bool = False, columns: Sequence[str] = ()) -> None:
        super().__init__()
        for name, value in (("progress_bar", progress_bar), ("columns", columns)):
            if isinstance(value, str):
                raise ValueError(f"Expected {name} to be a list of names, got the text {value!r}. Write [{value!r}].")
        for tag in progress_bar:
            if "/" not in tag:
                raise ValueError(
                    f"Expected tags such as 'effective_rank/mean_over_layers' in progress_bar, got {tag!r} without a '/'."
                )
        self.progress_bar = tuple(progress_bar)
        self.alerts = alerts
        self.columns = tuple(columns)
        self._history = History()
        self._announced: set[tuple[str, str, str]] = set()

    def state_dict(self) -> dict[str, Any]:
        """Readings so far, and what has been warned of."""
        return {"history": self._history.state(), "announced": [list(place) for place in sorted(self._announced)]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was written."""
        self._history.restore(state_dict["history"])
        self._announced = {(group, layer, severity) for group, layer, severity in state_dict["announced"]}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit when another starts."""
        if stage == "fit":
            self._history, self._announced = History(), set()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the HParams dashboard its columns."""
        hyperparameters = _hyperparameters(trainer, pl_module)
        if hyperparameters:
            columns = list(dict.fromkeys([*self.columns, *_rank_columns(trainer)]))
            write_to_each(trainer, tensorboard=lambda logger: write_hyperparameter_columns(logger, hyperparameters, columns))

    def receive_report(self, trainer: Trainer, report: Report) -> None:
        """Arrange what one monitor has read, just before it is written."""
        known = set(self._history.tags())
        self._history.add(report.step, report.scalars)
        new = [tag for tag in report.scalars if tag not in known]
        if new:
            tags = self._history.tags()
            write_to_each(
                trainer,
                tensorboard=lambda logger: write_layout(logger, tags, report.step),
                wandb=lambda logger: define_metrics(logger, new),
            )
        shown = {str(tag): value for tag, value in report.scalars.items() if self._is_shown(str(tag))}
        trainer.progress_bar_metrics.update(shown)
        if self.alerts and trainer.is_global_zero:
            self._alert(trainer, report)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what training has made of the ranks, after every monitor's last report."""
        if self._history.tags():
            write_to_each(trainer, wandb=partial(self._write_charts, step=step_axis(trainer)))
            self._warn_of_what_was_not_shown()

    def _is_shown(self, tag: str) -> bool:
        return any(f"/{tag}".endswith(f"/{name}") for name in self.progress_bar)

    def _warn_of_what_was_not_shown(self) -> None:
        tags = [f"/{tag}" for tag in self._history.tags()]
        for name in self.progress_bar:
            if not any(tag.endswith(f"/{name}") for tag in tags):
                means = sorted(tag[1:] for tag in tags if tag.endswith("/mean_over_layers"))
                warnings.warn(
                    f"Expected a reading named {name!r} for the progress bar, got none. Choose from {', '.join(means)}.",
                    stacklevel=2,
                )

    def _alert(self, trainer: Trainer, report: Report) -> None:
        new = list(self._new_findings(report.scalars))
        if not new:
            return
        text = "\n".join(finding.text for finding in new)
        warnings.warn(text, stacklevel=2)
        is_error = any(finding.severity == "error" for finding in new)
        title = f"Ranks at step {report.step}"
        write_to_each(trainer, wandb=lambda logger: send_alert(logger, title, text, is_error))

    def _new_findings(self, scalars: Mapping[Tag, float]) -> Iterator[Finding]:
        """What deserves a look and has not been told yet; at most one of a severity in a group and layer."""
        places: dict[tuple[str, str], list[Tag]] = {}
        for tag in scalars:
            places.setdefault((tag.group, tag.layer), []).append(tag)
        for (group, layer), tags in places.items():
            rows = self._history.ends(tags)
            if group == "monitor" and len(rows) < _REPORTS_BEFORE_COST * len(tags):
                continue
            for finding in findings(rows):
                if (group, layer, finding.severity) not in self._announced:
                    self._announced.add((group, layer, finding.severity))
                    yield finding

    def _write_charts(self, logger: Any, step: int) -> None:  # ruff: ignore[any-type] - WandbLogger of either package
        columns = ("group", "measure", "layer", "first", "last", "step")
        table = Table(columns, [[*tag, first, last, at] for tag, first, last, at in self._history.first_and_last()])
        write_charts(logger, step, self._figures(), {"monitor/final_readings": table})

    def _figures(self) -> dict[str, Figure]:
        """Whatever can be drawn: a chart refuses readings that say nothing."""
        rows = self._history.rows()
        groups = dict.fromkeys(tag.group for tag in self._history.tags() if tag.measure == "effective_rank")
        charts = {f"{group}/depth_profile": partial(depth_profile, rows, group) for group in groups}
        figures: dict[str, Figure] = {}
        for name, draw in [*charts.items(), ("rank_collapse/collapse", partial(collapse, rows))]:
            try:
                figures[name] = draw()
            except ValueError:
                continue
        return figures


def _hyperparameters(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """What module and data were saved with, and the optimizer's weight decay where they do not name one."""
    found: dict[str, Any] = {}
    for source in (pl_module, getattr(trainer, "datamodule", None)):
        if source is not None and source._log_hyperparams:
            found.update(source.hparams_initial)
    found = {name: value for name, value in found.items() if not name.startswith("_")}  # those are LightningCLI's own
    decays = [
        group["weight_decay"]
        for optimizer in trainer.optimizers
        for group in optimizer.param_groups
        if "weight_decay" in group
    ]
    return ({"weight_decay": float(max(decays))} if decays else {}) | found


def _rank_columns(trainer: Trainer) -> list[str]:
    """Means over layers: of each monitor's first measure, then of each one's second, for TensorBoard shows five unasked."""
    asked: list[tuple[str, Sequence[str]]] = []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # its connector sets it
        name = type(callback).__name__
        group = getattr(callback, "group", None)
        measures = getattr(callback, "measures", _MEASURES.get(name))
        if group and measures and type(callback).__module__.startswith("rank_callbacks."):
            asked.append((group, measures))
    return [
        str(Tag(group, measures[place], "mean_over_layers"))
        for place in range(_MOST_COLUMNS)
        for group, measures in asked
        if place < len(measures)
    ]
