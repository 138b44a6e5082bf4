"""Few of many, evenly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

__all__ = ["thinned"]

T = TypeVar("T")


def thinned(values: Sequence[T], at_most: int) -> list[T]:
    """``at_most`` of the values, evenly spaced by place; the first and the last among them.

    Args:
        values: In order.
        at_most: From 2.

    Example:
        >>> thinned(range(0, 100, 10), 4)
        [0, 30, 60, 90]
    """
    last = len(values) - 1
    if last < at_most:
        return list(values)
    return [values[round(place * last / (at_most - 1))] for place in range(at_most)]
