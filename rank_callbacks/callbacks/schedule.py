"""When a monitor measures: schedules, functions of the step that say yes or no."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Schedule", "every", "log_spaced"]

Schedule = Callable[[int], bool]


@dataclass(frozen=True)
class every:
    """Yes at step 0 and at every n-th step after it.

    Args:
        n: Steps between two measurements, from 1.

    Raises:
        ValueError: If ``n`` is below 1 or not whole.

    Example:
        >>> [step for step in range(300) if every(100)(step)]
        [0, 100, 200]
    """

    n: int

    def __post_init__(self) -> None:
        if self.n < 1 or self.n % 1:
            raise ValueError(f"Expected every_n_steps to be a whole number from 1, got {self.n}.")

    def __call__(self, step: int) -> bool:
        """Whether to measure at ``step``."""
        return step % self.n == 0


@dataclass(frozen=True)
class log_spaced:
    """Yes at step 0 and at steps evenly spaced on a logarithmic axis: often at first, when ranks move fast.

    Args:
        per_decade: Measurements between a step and its tenfold, from 1.

    Raises:
        ValueError: If ``per_decade`` is below 1.

    Example:
        >>> [step for step in range(1000) if log_spaced(per_decade=3)(step)]
        [0, 1, 2, 5, 10, 22, 46, 100, 215, 464]
    """

    per_decade: int = 10

    def __post_init__(self) -> None:
        if self.per_decade < 1:
            raise ValueError(f"Expected per_decade to be a whole number from 1, got {self.per_decade}.")

    def __call__(self, step: int) -> bool:
        """Whether to measure at ``step``."""
        if step == 0:
            return True
        nearest = round(self.per_decade * math.log10(step))
        return any(round(10 ** (place / self.per_decade)) == step for place in (nearest - 1, nearest, nearest + 1))
