"""What is left at the end of each run: one row a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TypeAlias

from rank_callbacks.compare.run import Run
from rank_callbacks.figures.selection import OVER_LAYERS
from rank_callbacks.tags import Tag

__all__ = ["Cell", "accuracy_name", "final_accuracy", "final_table", "in_order_of", "last_readings", "mean_over_layers"]

# A number, text, or None for what a run has not.
Cell: TypeAlias = "float | str | None"

_MEAN = "mean_over_layers"
_MEASURES = {
    "effective rank": ("weight_rank", "effective_rank"),
    "NC1": ("neural_collapse", "nc1_pinv"),
    "TCV ratio": ("rank_collapse", "tcv_ratio_input"),
    "distance to rank K": ("rank_collapse", "distance_to_rank_k"),
    "joint certificate": ("rank_collapse", "certificate_joint"),
}
# Of data that the network was not trained on first.
_HELD_OUT = ("test", "val")


def final_table(
    runs: Sequence[Run], x: str = "weight_decay", accuracy: str | None = None
) -> tuple[list[str], list[list[Cell]]]:
    """The headings and the rows of a table of all runs, by ``x``: what each reads at its end.

    After the name, ``x`` and the accuracy come the mean over layers of the effective rank of weights, NC1 of the penultimate
    features, the means over layers of the TCV ratio of inputs and of the distance to rank K with its joint certificate, both
    in the unit of the weights, and the share of the time of training that all monitors take together. None stands for what a
    run has not logged; NaN is NaN.

    Args:
        runs: To be shown, each in a row of its own, whatever is wrong with it.
        x: A hyperparameter.
        accuracy: Name of the metric; None for the one that ``accuracy_name`` finds.

    Example:
        >>> run = Run("a", "csv", {"weight_decay": 0.1}, [], {"accuracy": [(0, 0.2), (9, 0.9)]}, {})
        >>> columns, rows = final_table([run])
        >>> columns[:4], rows[0][:4]
        (['run', 'weight_decay', 'accuracy', 'effective rank'], ['a', 0.1, 0.9, None])
    """
    name = accuracy or accuracy_name(runs)
    columns = ["run", x, name or "accuracy", *_MEASURES, "share of time"]
    return columns, [_row(run, x, name) for run in in_order_of(runs, x)]


def _row(run: Run, x: str, accuracy: str | None) -> list[Cell]:
    last = last_readings(run)
    measured = [_measured(last, *measure) for measure in _MEASURES.values()]
    return [run.name, run.hyperparameters.get(x), final_accuracy(run, accuracy), *measured, _share_of_time(last)]


def _measured(last: Mapping[Tag, float], group: str, measure: str) -> float | None:
    """Of the penultimate layer, which only neural collapse has, or the mean over layers."""
    penultimate = last.get(Tag(group, measure, "penultimate"))
    return mean_over_layers(last, group, measure) if penultimate is None else penultimate


def mean_over_layers(last: Mapping[Tag, float], group: str, measure: str) -> float | None:
    """As it was logged, or of the layers where it was not; None without any.

    Args:
        last: Readings of one run.
        group: First part of the tags.
        measure: Second part.
    """
    logged = last.get(Tag(group, measure, _MEAN))
    if logged is not None:
        return logged
    of_layers = [value for tag, value in last.items() if tag[:2] == (group, measure) and tag.layer not in OVER_LAYERS]
    return fmean(of_layers) if of_layers else None


def _share_of_time(last: Mapping[Tag, float]) -> float | None:
    shares = [value for tag, value in last.items() if tag[:2] == ("monitor", "share_of_training")]
    return math.fsum(shares) if shares else None


def last_readings(run: Run) -> dict[Tag, float]:
    """The reading of each tag at its last step; of the same step twice, after a restart, the later.

    Args:
        run: With its rows in any order.
    """
    return {row.tag: row.value for row in sorted(run.rows, key=lambda row: row.step)}


def accuracy_name(runs: Sequence[Run]) -> str | None:
    """The metric whose name holds "acc": of a test set first, then of a validation set, then the one that most runs have.

    Only those count that at least half of the runs with any have. None without any.

    Args:
        runs: To be compared.

    Example:
        >>> accuracy_name([Run("a", "csv", {}, [], {"train_acc": [(1, 0.9)], "val_acc": [(1, 0.8)]}, {})])
        'val_acc'
    """
    names = [name for run in runs for name in run.metrics if "acc" in name.lower()]
    with_any = sum(any("acc" in name.lower() for name in run.metrics) for run in runs)
    usual = [name for name in names if 2 * names.count(name) >= with_any]
    return min(usual or names, key=lambda name: (_place(name), -names.count(name), name), default=None)


def _place(name: str) -> int:
    return next((place for place, data in enumerate(_HELD_OUT) if data in name.lower()), len(_HELD_OUT))


def final_accuracy(run: Run, name: str | None) -> float | None:
    """The last value of that metric; None if the run has none.

    Args:
        run: With its metrics in any order of steps.
        name: Of the metric.
    """
    values = run.metrics.get(name or "", ())
    return max(values, key=lambda at: at[0])[1] if values else None


def in_order_of(runs: Sequence[Run], x: str) -> list[Run]:
    """By a hyperparameter: numbers, then text, then runs without it; by name where it is the same.

    Args:
        runs: In any order.
        x: The hyperparameter.
    """
    return sorted(runs, key=lambda run: (*_order(run.hyperparameters.get(x)), run.name))


def _order(value: Cell) -> tuple[int, float, str]:
    if value is None:
        return 2, 0.0, ""
    if isinstance(value, str) or math.isnan(value):
        return 1, 0.0, str(value)
    return 0, float(value), ""
