"""What a monitor costs: its own time, against that of the training."""

from __future__ import annotations

import time

from rank_callbacks.tags import Tag

__all__ = ["Stopwatch"]


class Stopwatch:
    """Adds up the wall time spent inside ``with stopwatch:`` blocks. A block inside a block is part of it.

    Example:
        >>> stopwatch = Stopwatch()
        >>> with stopwatch:
        ...     cost = stopwatch.cost("weight_rank", step=100)
        >>> [str(tag) for tag in cost]
        ['monitor/seconds/weight_rank', 'monitor/share_of_training/weight_rank']
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Set everything to zero: training begins."""
        self._began = self._entered = time.perf_counter()
        self._all_reports = self._this_report = 0.0
        self._told = False
        self._depth = 0

    @property
    def total(self) -> float:
        """Seconds spent inside, all reports together."""
        running = time.perf_counter() - self._entered if self._depth else 0.0
        return self._all_reports + running

    @property
    def elapsed(self) -> float:
        """Seconds since training began."""
        return time.perf_counter() - self._began

    def __enter__(self) -> None:
        self._depth += 1
        if self._depth == 1:
            self._entered = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth:
            return
        elapsed = time.perf_counter() - self._entered
        self._all_reports += elapsed
        # What follows the telling, the writing, counts in the total alone.
        self._this_report = 0.0 if self._told else self._this_report + elapsed
        self._told = False

    def cost(self, monitor: str, step: int) -> dict[Tag, float]:
        """Seconds that this report took so far, and the share of all reports in the time since training began.

        To be called inside the block. There is no share before the first step.
        """
        now = time.perf_counter()
        running = now - self._entered
        self._told = True
        cost = {Tag("monitor", "seconds", monitor): self._this_report + running}
        if step > 0:
            share = (self._all_reports + running) / (now - self._began)
            cost[Tag("monitor", "share_of_training", monitor)] = share
        return cost
