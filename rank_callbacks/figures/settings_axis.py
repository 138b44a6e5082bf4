"""The axis of a hyperparameter, over the values that runs chose."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from rank_callbacks.figures.looks import axis, plain
from rank_callbacks.figures.thinning import thinned

__all__ = ["SettingsAxis"]

# Values that differ by more are on a log axis.
_WIDE = 8.0
_MOST_TICKS = 8
# How far left of the least positive value 0 stands, whatever the values' own distance.
_LEAST_STEP, _MOST_STEP = 3.0, 10.0


class SettingsAxis:
    """Linear, logarithmic with 0 at its left edge under a tick of its own, or of categories where a value is no number.

    Args:
        values: Of all runs. True and False are categories as well.

    Example:
        >>> settings = SettingsAxis([0, 0.01, 0.1])
        >>> settings.place(0.1), settings.place(0), settings.zero_apart
        (0.1, 0.001, True)
    """

    def __init__(self, values: Iterable[float | str]) -> None:
        chosen = set(values)
        self._numbers = sorted(value for value in chosen if not isinstance(value, str | bool))
        self._categories = len(self._numbers) < len(chosen)
        self.values: list[float | str] = sorted(chosen, key=str) if self._categories else [*self._numbers]
        positive = [value for value in self._numbers if value > 0]
        self._log = bool(positive) and self._numbers[0] >= 0 and positive[-1] > _WIDE * positive[0]
        self.zero_apart = self._log and not self._categories and self._numbers[0] == 0
        self._edge = positive[0] / _usual_step(positive) if self.zero_apart else 0.0

    def place(self, value: float | str) -> float | str:
        """Where on the axis a value stands."""
        if self._categories:
            return plain(str(value))
        return self._edge if self.zero_apart and value == 0 else value

    def drawn(self, title: str) -> dict[str, Any]:
        """The axis for plotly: the values themselves are its ticks, or some of many."""
        if self._categories:
            return axis(title, type="category", categoryorder="array", categoryarray=[*map(self.place, self.values)])
        shown = thinned(self.values, _MOST_TICKS)
        ticks = {"tickvals": [*map(self.place, shown)], "ticktext": [f"{value:g}" for value in shown]}
        return axis(title, type="log" if self._log else "linear", tickmode="array", **ticks)


def _usual_step(positive: list[float]) -> float:
    """The geometric mean of the ratios of neighbours, within limits."""
    ratios = [math.log(high / low) for low, high in pairwise(positive)]
    return min(_MOST_STEP, max(_LEAST_STEP, math.exp(sum(ratios) / max(1, len(ratios)))))
