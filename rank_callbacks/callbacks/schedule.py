"""When a monitor measures: schedules, functions of the step that say yes or no."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Schedule", "Windows", "every", "log_spaced"]

Schedule = Callable[[int], bool]

# Enough batches of 128 that ten classes have a hundred samples each.
_WINDOW = 8


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


class Windows:
    """Windows of steps, each of which ends at a scheduled step, and one that ends with training where no other is open.

    Training that is shorter than a window is a window.

    Args:
        every_n_steps: Steps between the ends of windows, or a schedule.
        length: Steps in a window; None for 8, or ``every_n_steps`` if that is less.

    Raises:
        ValueError: If ``every_n_steps`` is below 1, or ``length`` does not fit in it.

    Example:
        >>> windows = Windows(every_n_steps=100, length=8)
        >>> windows.restart(last=299)
        >>> [step for step in range(300) if windows.begin(step)]
        [93, 193, 292]
        >>> windows.end(298), windows.end(299)
        (False, True)
    """

    def __init__(self, every_n_steps: int | Schedule, length: int | None = None) -> None:
        self.schedule = every_n_steps if callable(every_n_steps) else every(every_n_steps)
        longest = math.inf if callable(every_n_steps) else every_n_steps
        self.length = int(min(_WINDOW, longest)) if length is None else length
        if self.length < 1 or self.length % 1 or self.length > longest:
            raise ValueError(f"Expected window to be a whole number of steps from 1 to every_n_steps, got {length}.")
        self.restart()

    def restart(self, last: float = math.inf) -> None:
        """Training begins, and ends with step ``last``, which Lightning makes negative where it is not known."""
        self._first: int | None = None
        self._last = last if last >= 0 else math.inf

    def begin(self, step: int) -> bool:
        """Whether a window begins at ``step``, once a step however many batches accumulate in it; never inside another."""
        is_open = self._first is not None and not self.end(step - 1)
        due = self.schedule(step + self.length - 1) or step == max(self._last - self.length + 1, 0)
        begins = due and not is_open
        self._first = step if begins else self._first
        return begins

    def is_last(self, step: int) -> bool:
        """Whether training ends with ``step``, as far as is known."""
        return step >= self._last

    def end(self, step: int) -> bool:
        """Whether ``step`` is the last of the window that began last."""
        return self._first is not None and step >= self._first + min(self.length - 1, self._last)
