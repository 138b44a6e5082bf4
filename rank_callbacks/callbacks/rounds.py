"""Which layers a window looks at, where there is no memory for what it would hold of all."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn

from rank_callbacks.callbacks.readings import tagged
from rank_callbacks.tags import Tag

__all__ = ["Rounds", "allowance"]

# Bytes that nobody misses beside a process with PyTorch, and the share of the parameters' own that a large model allows.
_LEAST, _SHARE = 4 * 2**20, 0.02


def allowance(model: nn.Module) -> float:
    """Bytes that a monitor may hold through a training step: 4 MiB, or 2 % of the parameters' own if that is more.

    Parameters and their gradients take twice the latter, so that the monitor stays below one per cent of the training's peak.

    Example:
        >>> allowance(nn.Linear(8, 8)) / 2**20
        4.0
    """
    return max(_LEAST, _SHARE * sum(one.numel() * one.element_size() for one in model.parameters()))


class Rounds:
    """Goes around the layers of a model, window by window, with as many in each as some bytes are enough for.

    The largest go first, as far as it is known which those are; one that is too large for all has a window of its own. With
    room for all, each window is of all layers.

    Args:
        room: Bytes that a window may hold.

    Example:
        >>> rounds = Rounds(room=100)
        >>> for _ in range(3):
        ...     rounds.begin()
        ...     print([name for name, size in {"a": 80, "b": 40, "c": 20}.items() if rounds.admits(name, size)])
        ...     rounds.end(step=1)
        ['a', 'c']
        ['b']
        ['a', 'c']
    """

    def __init__(self, room: float = math.inf) -> None:
        self.room = room
        self._done: set[str] = set()
        self._sizes: dict[str, float] = {}
        self._steps: dict[str, int] = {}
        self._latest: dict[str, dict[str, Tensor]] = {}
        self._goes_round = self._been_round = False
        self.begin()

    def begin(self, sizes: Mapping[str, float] | None = None) -> None:
        """A window begins.

        Args:
            sizes: Of layers, as far as they are known before any is seen.
        """
        self._sizes.update(sizes or {})
        self._now: set[str] = set()
        self._left = self.room
        self.waiting: set[str] = set()
        for name, size in sorted(self._sizes.items(), key=lambda item: item[1], reverse=True):
            self.admits(name, size)

    def admits(self, name: str, size: float) -> bool:
        """Whether the window looks at a layer, of which it will hold so many bytes."""
        self._sizes[name] = size
        if name in self._now:
            return True
        if name in self._done or (self._now and size > self._left):
            self.waiting.add(name)
            return False
        self._now.add(name)
        self._left -= size
        return True

    def end(self, step: int) -> None:
        """The window was reported at this step: what it left out comes next, and all again if there is nothing."""
        self._done |= self._now
        self._goes_round |= bool(self.waiting)
        self._steps.update(dict.fromkeys(self._now, step))
        if self.waiting <= self._done:
            self._done, self._been_round = set(), True

    def tagged(self, group: str, values: Mapping[str, Mapping[str, Tensor]], per_layer: bool, step: int) -> dict[Tag, float]:
        """The readings of a window, and what they are over all layers: of the latest of each, once each has one.

        Args:
            group: First part of the tags.
            values: By measure, then by layer.
            per_layer: Whether to give the value at each layer.
            step: Of the report, after ``end``.
        """
        if not self._goes_round:
            return tagged(group, values, per_layer)
        for measure, of_layers in values.items():
            self._latest.setdefault(measure, {}).update(of_layers)
        scalars = tagged(group, self._latest, per_layer=False) if self._been_round else {}
        age = step - min(self._steps.values(), default=step) if self._been_round else step
        return scalars | _each(group, values, per_layer) | {Tag("monitor", "spectrum_age", group): float(age)}


def _each(group: str, values: Mapping[str, Mapping[str, Tensor]], per_layer: bool) -> dict[Tag, float]:
    return {
        Tag(group, measure, layer): float(value)
        for measure, of_layers in values.items()
        for layer, value in of_layers.items()
        if per_layer
    }
