"""The readings that a chart shows, out of the long table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from rank_callbacks.rows import Row

__all__ = ["OVER_LAYERS", "Values", "at_or_before", "final", "found", "layers_of", "nothing", "select"]

# By run, then by step, then by layer.
Values: TypeAlias = "dict[str, dict[int, dict[str, float]]]"

OVER_LAYERS = frozenset({"mean_over_layers", "min_over_layers", "max_over_layers"})

_MONITORS = {
    "weight_rank": "WeightRankMonitor",
    "gradient_rank": "GradientRankMonitor",
    "update_rank": "GradientRankMonitor(update=True)",
    "moment_rank": "GradientRankMonitor(moments=True)",
    "feature_rank": "FeatureRankMonitor",
    "neural_collapse": "NeuralCollapseMonitor",
    "rank_collapse": "RankCollapseMonitor",
    "network_rank": "NetworkRankMonitor",
    "truncation": "TruncationMonitor",
}


def select(rows: Iterable[Row], group: str, measure: str, means: bool = False) -> Values:
    """Values of one measure by run, by step in order, and by layer; none where no reading has such a tag.

    Args:
        rows: The long table.
        group: First part of the tags.
        measure: Second part.
        means: Whether to have ``mean_over_layers`` and its like as well, which are no layers.
    """
    values: Values = {}
    for run, step, (its_group, its_measure, layer), value in rows:
        if its_measure == measure and its_group == group and (means or layer not in OVER_LAYERS):
            values.setdefault(run, {}).setdefault(step, {})[layer] = value
    return {run: dict(sorted(of_run.items())) for run, of_run in values.items()}


def found(rows: Sequence[Row], group: str, measure: str) -> Values:
    """What ``select`` finds, if it finds something.

    Raises:
        ValueError: If it does not; with the callback to add.
    """
    values = select(rows, group, measure)
    if not values:
        raise nothing(rows, group, measure)
    return values


def nothing(rows: Sequence[Row], group: str, measure: str) -> ValueError:
    """The error of a chart without readings: with the measures, the argument or the callback that would make it one."""
    message = f"Expected readings with tags {group}/{measure}/<layer>, got none."
    others = sorted({tag.measure for _, _, tag, _ in rows if tag.group == group and tag.layer not in OVER_LAYERS})
    monitor = _MONITORS.get(group, f"a monitor with group={group!r}")
    if others:
        return ValueError(f"{message} The runs have these measures of {group}: {', '.join(others)}.")
    if any(tag.group == group for _, _, tag, _ in rows):
        alone = "The runs have the mean over layers alone, as of many layers"
        return ValueError(f'{message} {alone}. Give {monitor} scalars="all".')
    return ValueError(f"{message} Add {monitor} to the trainer's callbacks.")


def layers_of(by_step: Iterable[Mapping[str, float]]) -> list[str]:
    """Every layer of these reports once, in the order in which they appear."""
    seen: dict[str, float] = {}
    for report in by_step:
        seen.update(report)
    return list(seen)


def at_or_before(of_run: dict[int, dict[str, float]], step: int | None) -> tuple[int, dict[str, float]] | None:
    """A run's last report up to a step, the latest of all for None; None if there is none so early."""
    past = [before for before in of_run if step is None or before <= step]
    return (max(past), of_run[max(past)]) if past else None


def final(of_run: dict[int, dict[str, float]]) -> dict[str, float]:
    """The last value of each layer, NaN among them, of reports in order."""
    return {layer: value for report in of_run.values() for layer, value in report.items()}
