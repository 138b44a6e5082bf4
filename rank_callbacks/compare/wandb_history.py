"""Rows of Weights & Biases' history, from a file or from its server."""

from __future__ import annotations

from collections.abc import Mapping

from rank_callbacks.compare.log import Series

__all__ = ["add_row"]

_TRAINERS_STEP = "trainer/global_step"


def add_row(scalars: Series, row: Mapping[str, object]) -> None:
    """Add the numbers of a row to what is known: at the trainer's step if it has one, and else at that of Weights & Biases.

    Args:
        scalars: Value by step, by name; changed in place.
        row: Values by name, as JSON has them. Text, tables and pictures are left out.

    Example:
        >>> scalars: Series = {}
        >>> add_row(scalars, {"_step": 3, "trainer/global_step": 50, "loss": "Infinity", "note": "text"})
        >>> scalars
        {'loss': {50: inf}}
    """
    step = row.get(_TRAINERS_STEP, row.get("_step"))
    if not isinstance(step, int | float):
        return
    for name, value in row.items():
        number = _number(value)
        if number is not None and name != _TRAINERS_STEP and not name.startswith("_"):
            scalars.setdefault(name, {})[int(step)] = number


def _number(value: object) -> float | None:
    """A number, or one of the three that JSON has not, which Weights & Biases writes as text."""
    is_number = isinstance(value, int | float) or (isinstance(value, str) and value in {"NaN", "Infinity", "-Infinity"})
    return float(value) if is_number else None  # type: ignore[arg-type]
