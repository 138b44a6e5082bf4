"""Which layers take their turn to be measured whole, where there is no time for all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["Turns"]

# Of the cost model, until a measurement corrects it: it was fitted on one machine.
_FIRST_CORRECTION = 1.3
# Seconds: of less the time is that of calls, not of spectra, and would make dear ones look dearer.
_TELLING = 2e-3


class Turns:
    """Chooses the layers that were measured longest ago, as many as some seconds are enough for.

    Example:
        >>> turns = Turns()
        >>> costs = {"a": 1.0, "b": 1.0, "c": 1.0}
        >>> turns.due(costs, seconds=3.0)
        ['a', 'b']
        >>> turns.measured(["a", "b"], step=100, expected=2.0, seconds=2.0)
        >>> turns.due(costs, seconds=1.0), turns.age(["a", "b"], step=150), turns.age(costs, step=150)
        (['c'], 50, 150)
    """

    def __init__(self) -> None:
        self._steps: dict[str, int] = {}
        self._correction = _FIRST_CORRECTION

    def due(self, costs: Mapping[str, float], seconds: float) -> list[str]:
        """The names whose turn it is; a dear one is waited for rather than passed over."""
        names = []
        for name in sorted(costs, key=lambda name: self._steps.get(name, -1)):
            seconds -= self._correction * costs[name]
            if seconds < 0:
                break
            names.append(name)
        return names

    def measured(self, names: Iterable[str], step: int, expected: float, seconds: float) -> None:
        """Note that these were measured, and how long it took against what was expected.

        Args:
            names: Of the layers.
            step: Of the report.
            expected: Seconds by the cost model; those of small layers alone tell nothing of large ones.
            seconds: That it took.
        """
        self._steps.update(dict.fromkeys(names, step))
        if expected >= _TELLING:
            self._correction = seconds / expected

    def age(self, names: Iterable[str], step: int) -> int:
        """Steps since the one that was measured longest ago; since the start for one that never was."""
        return max((step - self._steps.get(name, 0) for name in names), default=0)
