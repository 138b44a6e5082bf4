"""What a run has read so far, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from rank_callbacks.rows import Row
from rank_callbacks.tags import Tag

__all__ = ["History"]

# A chart has no more points than that on a screen.
_MOST_SPREAD = 112
# As many as findings look at together, and some for NaN that come and go.
_RECENT = 8
_Point: TypeAlias = "tuple[int, float]"


class History:
    """The readings of a run by tag: the first, the latest, and evenly fewer of those between as the run grows long.

    Example:
        >>> history = History()
        >>> for step in range(1000):
        ...     history.add(step, {Tag("weight_rank", "stable_rank", "fc.weight"): 2.0})
        >>> steps = [row.step for row in history.rows()]
        >>> steps[:3], steps[-1], len(steps) <= 120
        ([0, 16, 32], 999, True)
    """

    def __init__(self) -> None:
        self._readings: dict[Tag, _Readings] = {}

    def add(self, step: int, scalars: Mapping[Tag, float]) -> None:
        """Keep a report's readings."""
        for tag, value in scalars.items():
            self._readings.setdefault(tag, _Readings()).add((step, value))

    def tags(self) -> list[Tag]:
        """What has been read so far, in the order in which it was first."""
        return list(self._readings)

    def rows(self) -> list[Row]:
        """All that is kept, as figures take it; the run has no name."""
        return [Row("", step, tag, value) for tag, readings in self._readings.items() for step, value in readings.kept()]

    def ends(self, tags: Iterable[Tag]) -> list[Row]:
        """The first reading of some tags, and the eight latest."""
        return [Row("", step, tag, value) for tag in tags for step, value in self._readings[tag].ends()]

    def first_and_last(self) -> Iterator[tuple[Tag, float, float, int]]:
        """Each tag with its first value, its last, and the last one's step."""
        for tag, readings in self._readings.items():
            first, *_, last = [*readings.ends()[:1], *readings.ends()]
            yield tag, first[1], last[1], last[0]

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs, in plain types."""
        return {str(tag): vars(readings) for tag, readings in self._readings.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint has."""
        self._readings = {Tag.parse(tag): _Readings(**deepcopy(readings)) for tag, readings in state.items()}


@dataclass
class _Readings:
    """One tag's points: every so many, from the first on, and the latest."""

    every: int = 1
    count: int = 0
    spread: list[_Point] = field(default_factory=list)
    recent: list[_Point] = field(default_factory=list)

    def add(self, point: _Point) -> None:
        if self.count % self.every == 0:
            self.spread.append(point)
        self.count += 1
        self.recent = [*self.recent, point][-_RECENT:]
        if len(self.spread) > _MOST_SPREAD:
            self.spread = self.spread[::2]
            self.every *= 2

    def kept(self) -> list[_Point]:
        return self.spread + self.recent[-self._since_spread() :] if self._since_spread() else list(self.spread)

    def ends(self) -> list[_Point]:
        return self.recent if self.count <= _RECENT else self.spread[:1] + self.recent

    def _since_spread(self) -> int:
        """How many of the latest points are not among those that are spread."""
        return min((self.count - 1) % self.every, _RECENT)
