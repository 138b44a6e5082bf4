"""Runs that differ in their seed alone, as one row of a table."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from statistics import fmean, stdev
from typing import TypeAlias

from rank_callbacks.compare.final import Cell
from rank_callbacks.compare.run import Run

__all__ = ["Spread", "over_seeds"]

# A mean, the standard deviation, and the number of runs; NaN and infinity are not among them.
Spread: TypeAlias = "tuple[float, float, int]"


def over_seeds(
    rows: Sequence[Sequence[Cell]], runs: Sequence[Run], sound: Collection[str], seed: str = "seed"
) -> list[list[Cell | Spread]]:
    """Rows of runs that have all hyperparameters but the seed in common, as mean and standard deviation over them.

    Args:
        rows: Of ``final_table``: the name of the run, its setting and numbers.
        runs: Whose rows they are.
        sound: Names of the runs with which nothing is wrong; any other keeps a row of its own.
        seed: The hyperparameter that may differ.
    """
    settings = {
        run.name: frozenset((name, value) for name, value in run.hyperparameters.items() if name != seed) for run in runs
    }
    together: dict[object, list[Sequence[Cell]]] = defaultdict(list)
    for row in rows:
        name = str(row[0])
        together[settings[name] if name in sound else name].append(row)
    return [_row(alike) for alike in together.values()]


def _row(rows: Sequence[Sequence[Cell]]) -> list[Cell | Spread]:
    if len(rows) == 1:
        return list(rows[0])
    name, setting, *numbers = zip(*rows, strict=True)
    return [f"{name[0]} and {len(rows) - 1} more", setting[0], *map(_spread, numbers)]


def _spread(cells: Sequence[Cell]) -> Cell | Spread:
    known = [float(cell) for cell in cells if isinstance(cell, float | int)]
    values = [value for value in known if math.isfinite(value)]
    if not values:
        return known[0] if known else None
    return fmean(values), stdev(values) if len(values) > 1 else math.nan, len(values)
