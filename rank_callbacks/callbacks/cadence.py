"""How often a monitor reports: as told, or as often as a share of the training's time affords."""

from __future__ import annotations

import math
import time
from collections import deque
from statistics import median
from typing import Any, Literal, TypeAlias

from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn

from rank_callbacks.callbacks.processes import of_first_process
from rank_callbacks.callbacks.schedule import Schedule, every
from rank_callbacks.callbacks.stopwatch import Stopwatch
from rank_callbacks.tags import Tag

__all__ = ["Cadence", "EveryNSteps", "affordable"]

EveryNSteps: TypeAlias = "int | Schedule | Literal['auto']"

# Below it a chart gains nothing.
_SHORTEST = 50
# The first steps pay for what is built once: this many are timed before anything is said.
_TIMED = 10
# Reports that may correct the choice: the first pays for what is built once as well, so that one that took no longer than
# these seconds is followed by another as soon as steps are timed.
_CORRECTIONS, _REPEATED = 2, 0.5
# A report may take longer than those before it.
_MARGIN = 1.25
# Above this share of the time an explicit cadence is worth a warning, once so many steps have shown it.
_WORTH_A_WARNING, _SHOWN_BY = 0.05, 50


def affordable(report: float, step: float, share: float, shortest: int = _SHORTEST) -> int:
    """The least round number of steps (1, 2 or 5 times a power of ten) of whose time a report takes at most a share.

    Args:
        report: Seconds that a report takes.
        step: Seconds that a training step takes.
        share: Of the training's time that reports may take.
        shortest: Steps that it does not go below.

    Example:
        >>> affordable(report=0.4, step=0.02, share=0.01), affordable(report=1e-6, step=0.02, share=0.01)
        (2000, 50)
    """
    least = max(shortest, report / (share * max(step, 1e-9)))
    power = 10 ** math.floor(math.log10(least))
    return int(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least - 1e-9))


class Cadence:
    """Says at which steps a monitor reports, and keeps account of what that costs.

    Told ``"auto"``, it times the first ten training steps and the first reports, and chooses the shortest of 50, 100, 200,
    500, ... steps at which reports take at most the monitor's part of ``max_overhead`` of the wall time: monitors of one
    training that choose for themselves share it evenly. The choice of the first process holds for all, and is kept in
    checkpoints. Told a number or a schedule, it keeps to it, and warns once where that takes more than 5 % of the time.

    Args:
        every_n_steps: ``"auto"``, a number of steps, or a schedule: a function of the step.
        max_overhead: Share of the training's time.
        shortest: Steps between reports that ``"auto"`` does not go below.
        at_start: Whether ``"auto"`` reports at step 0.
        part: Of its share that reports may take; the rest is ``credit`` for what need not be done at each.

    Raises:
        ValueError: If an argument is not one of these.
    """

    def __init__(
        self,
        every_n_steps: EveryNSteps,
        max_overhead: float,
        shortest: int = _SHORTEST,
        at_start: bool = True,
        part: float = 1.0,
    ) -> None:
        if isinstance(every_n_steps, str) and every_n_steps != "auto":
            raise ValueError(
                f"Expected every_n_steps to be 'auto', a whole number from 1 or a schedule, got {every_n_steps!r}."
            )
        if not 0 < max_overhead <= 1:
            raise ValueError(f"Expected max_overhead to be a share of the time, above 0 and up to 1, got {max_overhead}.")
        self.is_auto = every_n_steps == "auto"
        self.schedule: int | Schedule = self if isinstance(every_n_steps, str) else every_n_steps
        self._told_to = self.schedule if callable(self.schedule) else every(self.schedule)
        self.max_overhead = max_overhead
        self.stopwatch = Stopwatch()
        self._shortest = max(_SHORTEST, shortest)
        self._at_start, self._part = at_start, part
        self.forget()

    def forget(self) -> None:
        """Another training is about to start."""
        self.every_n_steps: int | None = None
        self._last_report: int | None = None
        self._corrections = _CORRECTIONS
        self._told = False
        self._said: int | None = None
        self.restart("", 1)

    def restart(self, monitor: str, monitors: int, expected: float = 0.0) -> None:
        """Training begins, or goes on from a checkpoint.

        Args:
            monitor: Name for messages.
            monitors: How many choose for themselves in this training, and share the time.
            expected: Seconds that a report will take, as far as is known.
        """
        self._monitor = monitor
        self.share = self.max_overhead / max(monitors, 1)
        self._cost = expected
        self.stopwatch.restart()
        self._steps: deque[float] = deque(maxlen=4 * _TIMED)
        self._step: int | None = None
        self._noted = self._charged = 0.0
        self._repeat: int | None = None

    def begin_step(self, step: int) -> None:
        """Note that a batch of this step begins, and choose once enough have."""
        if step == self._step or (self._told and not self.is_auto):
            return
        now = time.perf_counter() - self.stopwatch.total
        if self._step is not None:
            self._steps.append(now - self._noted)
        self._noted, self._step = now, step
        if self.is_auto and self.every_n_steps is None and len(self._steps) >= _TIMED:
            self._choose()

    def __call__(self, step: int) -> bool:
        """Whether to report at ``step``."""
        if not self.is_auto:
            return self._told_to(step)
        if step == 0:
            return self._at_start
        if step == self._repeat:
            return True
        return self.every_n_steps is not None and step % self.every_n_steps == 0

    def due_at_validation(self, step: int, is_last: bool) -> bool:
        """Whether to report at this run of validation, the first after so many steps; a schedule is for each."""
        every_n_steps = self.every_n_steps if self.is_auto else self.schedule
        if is_last or callable(every_n_steps):
            return True
        if every_n_steps is None or (self._last_report is None and not self.is_auto):
            return self._last_report is None
        return step - (self._last_report or 0) >= every_n_steps

    def affords(self, seconds: float) -> bool:
        """Whether a first report of so many seconds is within the share of the time so far; if not, it is put off.

        A collective operation.
        """
        if not self.is_auto or self._last_report is not None:
            return True
        affords = of_first_process(seconds <= self.share * self.stopwatch.elapsed)
        if not affords and len(self._steps) >= _TIMED:
            self._cost = seconds
            self._choose()
        return affords

    def credit(self) -> float:
        """Seconds that the monitor's share of the time so far leaves beyond what the next report must take, here."""
        return self.share * self.stopwatch.elapsed - self.stopwatch.total - self._cost

    def reported(self, step: int, beyond: float = 0.0) -> None:
        """Note that a report ends; correct the choice by what it cost, or warn. A collective operation.

        Args:
            step: Of the report.
            beyond: Seconds of what it did beyond what each report must, within ``credit``.
        """
        total = self.stopwatch.total
        self._cost, self._charged = total - self._charged - beyond, total
        self._last_report = step
        if not self.is_auto:
            self._warn(step)
        elif self._corrections and len(self._steps) >= _TIMED:
            self._corrections -= 1
            self._choose()

    def cost(self, monitor: str, step: int) -> dict[Tag, float]:
        """What a report of this step has taken so far, as ``Stopwatch.cost``, and the cadence once it is chosen."""
        chosen = {Tag("monitor", "every_n_steps", monitor): float(self.every_n_steps)} if self.every_n_steps else {}
        return self.stopwatch.cost(monitor, step) | chosen

    def state_dict(self) -> dict[str, Any]:
        """The choice, and the step of the last report."""
        return {"every_n_steps": self.every_n_steps, "last_report": self._last_report}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep to the choice of the training that a checkpoint is of."""
        self.every_n_steps, self._last_report = state["every_n_steps"], state["last_report"]
        self._corrections = 0 if self.every_n_steps else _CORRECTIONS

    def _choose(self) -> None:
        step = median(self._steps)
        share = self._part * self.share
        self.every_n_steps = of_first_process(affordable(_MARGIN * self._cost, step, share, self._shortest))
        is_first = self._last_report == 0 and self._repeat is None
        if is_first and self.every_n_steps > self._shortest and of_first_process(self._cost <= _REPEATED):
            self._repeat = self._step
        elif self._last_report is not None and self.every_n_steps != self._said:
            self._said = self.every_n_steps
            rank_zero_info(
                f"{self._monitor} reports every {self.every_n_steps} steps: a report takes {1e3 * self._cost:.3g} ms, a step "
                f"{1e3 * step:.3g} ms, and reports may take {self.share:.2%} of the time."
            )

    def _warn(self, step: int) -> None:
        share = self.stopwatch.total / max(self.stopwatch.elapsed, 1e-9)
        if self._told or step < _SHOWN_BY or len(self._steps) < _TIMED or share <= max(_WORTH_A_WARNING, self.max_overhead):
            return
        self._told = True
        n = affordable(_MARGIN * self._cost, median(self._steps), self.max_overhead)
        rank_zero_warn(
            f"{self._monitor} has taken {share:.0%} of the training's time by step {step}. every_n_steps={n} would keep it "
            f"below {self.max_overhead:.0%}, 'auto' chooses for you, and a max_overhead= above {share:.2f} says that it may."
        )
