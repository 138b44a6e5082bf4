"""The ranks of weights and gradients in a training loop of one's own, without Lightning's Trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from rank_callbacks.callbacks.cadence import Cadence
from rank_callbacks.callbacks.gradient_readings import GradientReadings, Taken
from rank_callbacks.callbacks.processes import process_index
from rank_callbacks.callbacks.weight_readings import WeightReadings
from rank_callbacks.writers import Report, log_report
from rank_callbacks.writers.loggers import attempt

__all__ = ["RankObserver"]

Log = Callable[[int, dict[str, float]], None]

# Modules that wrap the user's own, whose names would get a prefix.
_WRAPPERS = {"DistributedDataParallel", "_FabricModule"}


class RankObserver:
    """Reads the ranks of weights and gradients in a loop of your own, plain PyTorch or Fabric: ``with`` it, and train.

    **When.** Hooks of the optimizer tell it of every step. A report at step s is of the weights after s steps, and of the
    gradient that the optimizer used in the step after: accumulated and averaged, unscaled, and clipped if the loop clips.
    Weights are reported once more at the end of the ``with`` block, unless it ends with an exception. A batch whose step a
    GradScaler skips counts in the bound of the next. An optimizer that is given a closure, as LBFGS, computes its gradient
    after the hook: what is read is the one before.

    **Logs** what ``WeightRankMonitor`` and ``GradientRankMonitor`` log, computed by the same code, in the same tags.

    **Cost, distributed, NaN.** As theirs; on a GPU the host waits for each report. Every process must have an observer; the
    first writes. With FSDP2 give the model as it is after ``fully_shard``.

    Args:
        model: That is trained, before or after ``DistributedDataParallel``, ``torch.compile`` or Fabric's ``setup``.
        optimizer: That trains it.
        log: What becomes of the readings: a function of the step and of values by tag, such as
            ``lambda step, values: wandb.log(values, step)``; or loggers of Lightning, such as ``fabric.loggers``, of which
            TensorBoard's gets spectra for the Ranks tab. What fails in it is a warning, and training goes on. None to read
            ``observer.readings`` alone.
        weights: Measures of weights; none with ``()``.
        gradients: Measures of gradients; none with ``()``.
        layers: Which matrices: None for all, glob patterns of names, or a function of the name.
        every_n_steps: Steps between reports, a schedule, or ``"auto"``.
        conv: How a convolution kernel is a matrix.
        method: How spectra of weights are read: see ``WeightRankMonitor``.
        step: Optimizer steps that were taken before, in a run that goes on.
        max_overhead: Share of the wall time, of weights and gradients together.

    Raises:
        ValueError: If an argument is not one of these, a pattern matches nothing or the model has no matrix.

    Example:
        >>> model = nn.Linear(4, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with RankObserver(model, optimizer, weights=["effective_rank"], every_n_steps=2) as observer:
        ...     for _ in range(4):
        ...         model(torch.randn(8, 4)).square().mean().backward()
        ...         optimizer.step()
        ...         optimizer.zero_grad()
        >>> observer.step, "weight_rank/effective_rank/weight" in observer.readings
        (4, True)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        log: Log | Any | None = None,  # ruff: ignore[any-type]
        weights: Sequence[str] = ("effective_rank", "stable_rank", "numerical_rank"),
        gradients: Sequence[str] = ("numerical_rank", "effective_rank", "stable_rank", "energy_at_rank_8"),
        layers: str | Sequence[str] | Callable[[str], bool] | None = None,
        every_n_steps: int | Callable[[int], bool] | Literal["auto"] = "auto",
        conv: str = "filters",
        method: Literal["auto", "exact", "krylov"] = "auto",
        step: int = 0,
        max_overhead: float = 0.01,
    ) -> None:
        self.model, self.optimizer = _unwrapped(model), getattr(optimizer, "optimizer", optimizer)
        self.step = step
        self.readings: dict[str, float] = {}
        self._log = log
        self._weights = WeightReadings(weights, layers, conv, False, "auto", method) if weights else None
        self._gradients = GradientReadings(gradients, layers, conv, 8, False, False, False, "auto") if gradients else None
        self._budgeted = every_n_steps == "auto" and method == "auto"
        self._of_weights = Cadence(every_n_steps, max_overhead, part=0.5 if self._budgeted else 1.0)
        self._of_gradients = Cadence(every_n_steps, max_overhead)
        self._last_report: int | None = None
        self._handles: list[Any] = []
        if self._weights:
            self._weights.matrices(self.model)
        if self._gradients:
            self._gradients.check(self.model)

    def __enter__(self) -> RankObserver:
        """Set the hooks, and report the weights as they are."""
        both = int(self._weights is not None) + int(self._gradients is not None)
        self._of_weights.restart("RankObserver of weights", both)
        self._of_gradients.restart("RankObserver of gradients", both)
        self._begin_step()  # what fails here leaves no hook of the optimizer
        self._handles = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
        ]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Report what training has made of the weights, and leave no hook behind."""
        self.close()
        if kind is None and self._weights:
            self._report_weights(self._weights, seconds=None)

    def close(self) -> None:
        """Leave no hook behind."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._gradients:
            self._gradients.close()

    @torch.no_grad()
    def _begin_step(self) -> None:
        for cadence in (self._of_weights, self._of_gradients):
            cadence.begin_step(self.step)
        if self._weights and self._of_weights(self.step):
            self._report_weights(self._weights, self._of_weights.credit() if self._budgeted else None)
        if self._gradients and self._of_gradients(self.step):
            with self._of_gradients.stopwatch:
                self._gradients.open(self.model, self.step)

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, *_: object) -> None:
        if self._gradients and self._gradients.is_open:
            with self._of_gradients.stopwatch:
                # A GradScaler leaves its scale to optimizers that undo it inside their step.
                scale = getattr(optimizer, "grad_scale", None)
                taken = self._gradients.take(self.model, optimizer, 1.0 if scale is None else float(scale))
                if taken is not None:
                    self._gradients.measure(self.model, taken._replace(dtype=_narrow_type(taken)))

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, *_: object) -> None:
        if self._gradients and self._gradients.has_measured:
            cadence = self._of_gradients
            with cadence.stopwatch:
                found = self._gradients.read(self.step)
                scalars = found.scalars | cadence.cost("gradient_rank", self.step)
                self._write(Report(self.step, scalars, found.spectra, found.tables))
                self._gradients.close()
            cadence.reported(self.step)
        self.step += 1
        self._begin_step()

    @torch.no_grad()
    def _report_weights(self, weights: WeightReadings, seconds: float | None) -> None:
        if self.step == self._last_report:
            return
        self._last_report, cadence = self.step, self._of_weights
        with cadence.stopwatch:
            found = weights.read(self.model, self.step, seconds)
            scalars = found.scalars | cadence.cost("weight_rank", self.step)
            self._write(Report(self.step, scalars, found.spectra))
        cadence.reported(self.step, found.seconds)

    def _write(self, report: Report) -> None:
        values = {str(tag): value for tag, value in report.scalars.items()}
        self.readings |= values
        if self._log is None or process_index() > 0:
            return
        if callable(self._log) and not hasattr(self._log, "log_metrics"):
            attempt(lambda log: log(report.step, values), self._log)
        else:
            log_report(self._log if isinstance(self._log, (list, tuple)) else [self._log], report)


def _narrow_type(taken: Taken) -> torch.dtype | None:
    """To which autocast has rounded what gradients are made of; None if it is as wide as they are."""
    rounded = [rows.dtype for rows in taken.tensors() if rows.is_floating_point() and rows.dtype.itemsize < 4]
    return min(rounded, key=lambda dtype: torch.finfo(dtype).bits, default=None)


def _unwrapped(model: nn.Module) -> nn.Module:
    while type(model).__name__ in _WRAPPERS:
        model = model.module  # type: ignore[assignment]
    return model
