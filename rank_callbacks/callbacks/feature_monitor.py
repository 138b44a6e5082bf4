"""What the monitors of features share: when they look, at what, and how they leave no hook behind."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar

import torch
from pytorch_lightning import LightningModule, Trainer
from torch.optim import Optimizer

from rank_callbacks.callbacks.cadence import EveryNSteps
from rank_callbacks.callbacks.lightning import is_last_validation, last_step, step_axis
from rank_callbacks.callbacks.monitor import Monitor
from rank_callbacks.callbacks.probe import check_forward, check_loader, outputs_of, probe_batches, undisturbed
from rank_callbacks.callbacks.readings import check_scalars
from rank_callbacks.callbacks.schedule import Windows
from rank_callbacks.callbacks.sharing import check_data_parallel
from rank_callbacks.callbacks.validation import warn_without_validation

__all__ = ["Data", "FeatureMonitor"]

Data: TypeAlias = "Literal['train', 'val'] | Iterable[Any]"


class _Hooks(Protocol):
    def close(self) -> None: ...


Hooks = TypeVar("Hooks", bound=_Hooks)


class FeatureMonitor(Monitor, Generic[Hooks]):
    """A monitor of what passes through layers: in windows of training, in runs of validation, or on a loader.

    A subclass says what a look is: ``_open`` sets hooks, ``_before_batch`` and ``_after_batch`` are called around each of its
    batches, ``_report`` at its end, and ``_forget`` when it is over, however it ended.

    Args:
        data: ``"train"``, ``"val"``, or a loader.
        every_n_steps: Steps between reports, a schedule, or ``"auto"``. With ``data="val"`` the first run of validation
            after so many steps is looked at, each with a schedule, and the last.
        max_overhead: Share of the wall time for all monitors that choose their cadence.
        window: Training steps before each report that are looked at.
        group: First part of the tags.
        scalars: ``"auto"`` or ``"all"``.

    Raises:
        ValueError: If an argument is not one of these; and when fitting starts if the strategy is refused, two monitors have
            the same ``group``, or ``data`` is a loader and the module has no ``forward``.
    """

    _instead = "choose data='train'"  # of validation that a training does not have

    def __init__(
        self,
        data: Data,
        every_n_steps: EveryNSteps,
        max_overhead: float,
        window: int | None,
        group: str,
        scalars: Literal["auto", "all"],
    ) -> None:
        super().__init__(every_n_steps, max_overhead, at_start=False, shortest=window)
        if isinstance(data, str) and data not in {"train", "val"}:
            raise ValueError(f"Expected data to be 'train', 'val' or a loader, got {data!r}.")
        check_loader(data)
        check_scalars(scalars)
        self.data = data
        # A loader is looked at in one step.
        self.windows = Windows(self.cadence.schedule, window if isinstance(data, str) else 1)
        self.group = group
        self.scalars = scalars
        self._hooks: Hooks | None = None
        self._warned: set[str] = set()
        self._stepped = self._checked = self._is_last = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit; validation inside a fit does not come here."""
        super().setup(trainer, pl_module, stage)
        self._start_anew()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot be measured before any training is paid for."""
        super().on_fit_start(trainer, pl_module)
        self._check_strategy(trainer)
        self._check_model(pl_module)
        if self.data == "val":
            warn_without_validation(trainer, type(self).__name__, self._instead)
        elif not isinstance(self.data, str):
            check_forward(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and learn when training ends."""
        super().on_train_start(trainer, pl_module)
        self.windows.restart(last_step(trainer))

    @torch.no_grad()
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Open a window where one must begin to end on schedule, or look at the loader."""
        self.cadence.begin_step(step_axis(trainer))
        if self.data == "val":
            return
        with self._stopwatch:
            is_probe = not isinstance(self.data, str)
            if not (is_probe or self._checked):
                self._check_batch(batch)
                self._checked = True
            if self._hooks is None and self.windows.begin(step_axis(trainer)):
                self._hooks = self._open(pl_module)
                if is_probe:
                    self._probe(trainer, pl_module, self._hooks)
                    self._end(trainer, self._hooks, self.windows.is_last(step_axis(trainer)))
            if self._hooks is not None:
                self._before_batch(self._hooks, batch)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Note that the batch ends a step."""
        self._stepped = True

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Take what the batch left, and report at the end of the window."""
        stepped, self._stepped = self._stepped, False
        if self._hooks is not None:
            with self._stopwatch:
                self._after_batch(self._hooks, batch)
                if stepped and self.windows.end(step_axis(trainer)):
                    self._end(trainer, self._hooks, self.windows.is_last(step_axis(trainer)))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the hooks, if this run of validation is looked at."""
        if self.data != "val" or trainer.sanity_checking:
            return
        self._is_last = is_last_validation(trainer)
        if self.cadence.due_at_validation(step_axis(trainer), self._is_last):
            self._check_strategy(trainer)
            with self._stopwatch:
                self._hooks = self._open(pl_module)

    @torch.no_grad()
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Refuse the first batch of the sanity check, or tell what the batch is."""
        if self.data == "val" and trainer.sanity_checking and batch_idx == dataloader_idx == 0:
            self._check_batch(batch)
        if self.data == "val" and self._hooks is not None and dataloader_idx == 0:
            with self._stopwatch:
                self._before_batch(self._hooks, batch)

    @torch.no_grad()
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take what the batch left."""
        if self.data == "val" and self._hooks is not None and dataloader_idx == 0:
            with self._stopwatch:
                self._after_batch(self._hooks, batch)

    @torch.no_grad()
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report."""
        if self.data == "val" and self._hooks is not None:
            with self._stopwatch:
                self._end(trainer, self._hooks, self._is_last)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no hook behind."""
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave no hook behind."""
        self._close()
        super().teardown(trainer, pl_module, stage)

    def _probe(self, trainer: Trainer, pl_module: LightningModule, hooks: Hooks) -> None:
        with undisturbed(pl_module), trainer.precision_plugin.forward_context():
            for batch in probe_batches(trainer, self.data):
                self._before_batch(hooks, batch)
                outputs_of(pl_module, batch)
                self._after_batch(hooks, batch)

    def _start_anew(self) -> None:
        self._warned.clear()
        self._stepped = self._checked = False
        self.windows.restart()
        self._close()

    def _end(self, trainer: Trainer, hooks: Hooks, is_last: bool) -> None:
        if is_last or self.cadence.affords(self._seconds_of_report(hooks)):
            self._report(trainer, hooks)
            self.cadence.reported(step_axis(trainer))
        self._close()

    def _seconds_of_report(self, hooks: Hooks) -> float:
        """What a report of what the hooks have seen will take, as far as is known."""
        return 0.0

    def _close(self) -> None:
        if self._hooks is not None:
            self._hooks.close()
        self._hooks = None
        self._forget()

    def _check_strategy(self, trainer: Trainer) -> None:
        """Refuse a strategy under which a process does not see all that passes for its samples."""
        check_data_parallel(trainer)

    def _check_model(self, pl_module: LightningModule) -> None:
        """Refuse a model in which the look would find nothing."""
        raise NotImplementedError

    def _check_batch(self, batch: object) -> None:
        """Refuse the first batch, of training or of the sanity check."""

    def _open(self, pl_module: LightningModule) -> Hooks:
        raise NotImplementedError

    def _before_batch(self, hooks: Hooks, batch: object) -> None:
        raise NotImplementedError

    def _after_batch(self, hooks: Hooks, batch: object) -> None:
        raise NotImplementedError

    def _report(self, trainer: Trainer, hooks: Hooks) -> None:
        raise NotImplementedError

    def _forget(self) -> None:
        raise NotImplementedError
