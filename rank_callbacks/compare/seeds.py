"""Runs that differ in their seed alone, and their rows of a table as one."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from rank_callbacks.compare.final import Cell, in_order_of
from rank_callbacks.compare.run import Run
from rank_callbacks.figures.interval import half_width

__all__ = ["SEED", "Spread", "alike", "over_seeds"]

# What a seed is called, if nobody says otherwise.
SEED = "seed"


class Spread(NamedTuple):
    """A cell of several runs; NaN and infinity are not among them.

    Args:
        mean: Of the runs.
        half: Half of the 95 % interval of the mean, by Student's t; None of a single run.
        runs: How many have a number.
    """

    mean: float
    half: float | None
    runs: int


def alike(runs: Sequence[Run], x: str = "weight_decay", seed: str = SEED) -> list[list[Run]]:
    """Runs together that have all hyperparameters but the seed in common; in each group the least seed first.

    Runs of one setting that logged no seed are together as well: chance alone tells them apart.

    Args:
        runs: In the order of the groups.
        x: What they are compared by: runs that differ in it are never together.
        seed: The hyperparameter that may differ.

    Example:
        >>> settings = [{"weight_decay": 0.1, "seed": 1}, {"weight_decay": 0.1, "seed": 0}, {"weight_decay": 0, "seed": 0}]
        >>> runs = [Run(name, "csv", setting, [], {}, {}) for name, setting in zip("abc", settings)]
        >>> [[run.name for run in group] for group in alike(runs)]
        [['b', 'a'], ['c']]
    """
    together: dict[object, list[Run]] = defaultdict(list)
    for run in runs:
        together[frozenset(pair for pair in run.hyperparameters.items() if pair[0] != seed or seed == x)].append(run)
    return [in_order_of(group, seed) for group in together.values()]


def over_seeds(rows: Sequence[Sequence[Cell]], groups: Sequence[Sequence[Run]]) -> list[list[Cell | Spread]]:
    """Rows of runs that are together as one row of means; any other keeps its own.

    Args:
        rows: Of ``final_table``: the name of the run, its setting and numbers.
        groups: As ``alike`` makes them, of runs with which nothing is wrong.
    """
    first = {run.name: group[0].name for group in groups for run in group}
    together: dict[str, list[Sequence[Cell]]] = defaultdict(list)
    for row in rows:
        name = str(row[0])
        together[first.get(name, name)].append(row)
    return [_row(name, alike_rows) for name, alike_rows in together.items()]


def _row(name: str, rows: Sequence[Sequence[Cell]]) -> list[Cell | Spread]:
    if len(rows) == 1:
        return list(rows[0])
    _, setting, *numbers = zip(*rows, strict=True)
    return [f"{name} and {len(rows) - 1} more", setting[0], *map(_spread, numbers)]


def _spread(cells: Sequence[Cell]) -> Cell | Spread:
    known = [float(cell) for cell in cells if isinstance(cell, float | int)]
    values = [value for value in known if math.isfinite(value)]
    if not values:
        return known[0] if known else None
    return Spread(fmean(values), half_width(values), len(values))
