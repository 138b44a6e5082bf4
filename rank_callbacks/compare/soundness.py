"""Which runs can be compared, and what is wrong with the others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from rank_callbacks.compare.final import last_readings
from rank_callbacks.compare.run import Run
from rank_callbacks.figures.selection import OVER_LAYERS

__all__ = ["problems", "sound"]

# What means, fits and fronts are made of: one that is NaN at the end spoils them.
_NEEDED = {
    ("weight_rank", "effective_rank"),
    ("rank_collapse", "relative_distance_to_rank_k"),
    ("rank_collapse", "tcv_ratio_input"),
}
_MOST_NAMES = 3


def problems(runs: Sequence[Run], x: str = "weight_decay") -> dict[str, list[str]]:
    """What is wrong with each run, in words, by its name: its own notes, and what only the others show.

    A run without a finite ``x``, without readings, with other layers than most, or with a NaN or infinity among its last
    effective ranks, distances or TCV ratios has a problem of its own. A run that has none has an empty list.

    Args:
        runs: To be compared.
        x: The hyperparameter that they are compared by.

    Example:
        >>> problems([Run("a", "csv", {}, [], {}, {})])["a"]
        ['no hyperparameter weight_decay', 'no readings of any monitor']
    """
    layers = {run.name: _layers(run) for run in runs}
    usual = Counter(of_run for of_run in layers.values() if of_run).most_common(1)
    most = usual[0][0] if usual else frozenset()
    return {run.name: [*run.notes, *_found(run, x, layers[run.name], most)] for run in runs}


def sound(runs: Sequence[Run], x: str = "weight_decay") -> list[Run]:
    """The runs with which nothing is wrong: only they enter means, fits and fronts.

    Args:
        runs: To be compared.
        x: The hyperparameter that they are compared by.
    """
    wrong = problems(runs, x)
    return [run for run in runs if not wrong[run.name]]


def _layers(run: Run) -> frozenset[str]:
    """Layers whose weights are measured."""
    weights = {"weight_rank", "rank_collapse"}
    return frozenset(row.tag.layer for row in run.rows if row.tag.group in weights and row.tag.layer not in OVER_LAYERS)


def _found(run: Run, x: str, layers: frozenset[str], most: frozenset[str]) -> Iterator[str]:
    if x not in run.hyperparameters:
        yield f"no hyperparameter {x}"
    elif isinstance(value := run.hyperparameters[x], float) and not math.isfinite(value):
        yield f"the hyperparameter {x} is {value}"
    if not run.rows:
        yield "no readings of any monitor"
    elif layers != most:
        yield f"other layers than most runs: {_difference(layers, most)}"
    last = last_readings(run)
    broken = {tag.layer for tag, value in last.items() if tag[:2] in _NEEDED and not math.isfinite(value)}
    if broken:
        yield f"readings that are NaN or infinite at the end: {_some(sorted(broken - OVER_LAYERS or broken))}"


def _difference(layers: frozenset[str], most: frozenset[str]) -> str:
    more, fewer = sorted(layers - most), sorted(most - layers)
    parts = [f"has {_some(more)}" if more else "", f"lacks {_some(fewer)}" if fewer else ""]
    return ", ".join(part for part in parts if part)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_MOST_NAMES]) + (f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else "")
