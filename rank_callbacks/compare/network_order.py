"""Where layers stand in the network, as far as a log tells."""

from __future__ import annotations

from collections.abc import Sequence

from rank_callbacks.compare.run import Run
from rank_callbacks.figures.selection import OVER_LAYERS

__all__ = ["layer_places"]

# Its logger writes readings in the order of a report, which is that of the network. That of a CSV sorts them by name, and
# Weights & Biases shuffles them.
_IN_ORDER = "tensorboard"


def layer_places(runs: Sequence[Run], group: str = "weight_rank") -> dict[str, float]:
    """The place of each layer in the first report of the run that has most of them; empty if no log tells.

    Args:
        runs: With their rows by step, and as they were read at each.
        group: First part of the tags whose layers are wanted.

    Example:
        >>> from rank_callbacks.rows import Row
        >>> from rank_callbacks.tags import Tag
        >>> rows = [Row("a", 0, Tag("weight_rank", "stable_rank", layer), 1.0) for layer in ("net.body", "classifier")]
        >>> layer_places([Run("a", "tensorboard", {}, rows, {}, {})])
        {'net.body': 0.0, 'classifier': 1.0}
    """
    none: list[str] = []
    most = max((_layers(run, group) for run in runs if run.kind == _IN_ORDER), key=len, default=none)
    return {layer: float(place) for place, layer in enumerate(most)}


def _layers(run: Run, group: str) -> list[str]:
    """Of the measure that has most of them at the first report: some are read of few layers at a time."""
    of_measures: dict[str, list[str]] = {}
    first: int | None = None
    for _, step, (its_group, measure, layer), _ in run.rows:
        if its_group == group and layer not in OVER_LAYERS:
            first = step if first is None else first
            if step > first:
                break
            of_measures.setdefault(measure, []).append(layer)
    none: list[str] = []
    return max(of_measures.values(), key=len, default=none)
