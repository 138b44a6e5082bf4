"""A cell of the table of runs, as text."""

from __future__ import annotations

import math

from rank_callbacks.compare.final import Cell
from rank_callbacks.compare.seeds import Spread

__all__ = ["ABOUT_SEEDS", "cell_text"]

ABOUT_SEEDS = "± is half of the 95 % interval of the mean over seeds, by Student's t; in brackets the number of runs."


def cell_text(cell: Cell | Spread, heading: str) -> str:
    """Four digits of a number, two of how far it is certain; a dash for None.

    Args:
        cell: Of ``final_table`` or ``over_seeds``.
        heading: Of its column; a share is in percent.

    Example:
        >>> cell_text(Spread(166.66, 0.8945, 3), "effective rank"), cell_text(None, "NC1"), cell_text(0.0123, "share of time")
        ('166.7 ± 0.89 (3)', '–', '1.23%')
    """
    if cell is None:
        return "–"
    if isinstance(cell, Spread):
        within = "" if cell.half is None else f" ± {_number(cell.half, heading, 2)}"
        return f"{_number(cell.mean, heading, 4)}{within} ({cell.runs})"
    return str(cell) if isinstance(cell, str | bool) else _number(cell, heading, 4)


def _number(value: float, heading: str, digits: int) -> str:
    if math.isnan(value):
        return "NaN"
    return f"{value:.2%}" if heading == "share of time" else f"{value:.{digits}g}"
