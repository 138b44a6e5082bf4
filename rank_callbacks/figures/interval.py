"""How far the mean of a few runs may be from the mean of many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import stdev

__all__ = ["half_width", "t_quantile"]

# fmt: off
_FIRST = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)
# fmt: on


def t_quantile(degrees: int) -> float:
    """The 97.5 % quantile of Student's t: of a table up to 30 degrees of freedom, beyond by its expansion, to 0.001.

    Args:
        degrees: Of freedom, from 1.

    Raises:
        ValueError: If there is no degree of freedom.

    Example:
        >>> t_quantile(4), round(t_quantile(100), 3)
        (2.776, 1.984)
    """
    if degrees < 1:
        raise ValueError(f"Expected one degree of freedom or more, got {degrees}.")
    return _FIRST[degrees - 1] if degrees <= len(_FIRST) else 1.96 + 2.373 / degrees + 2.82 / degrees**2


def half_width(values: Sequence[float]) -> float | None:
    """Half of the 95 % interval of the mean, t · s / √n, for values that spread normally; None for a single one.

    Args:
        values: Of runs that differ in nothing but their seed.

    Example:
        >>> round(half_width([1.0, 2.0, 3.0]), 3)
        2.484
    """
    return t_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
