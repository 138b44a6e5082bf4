"""What all monitors share: when they report, what that costs, and what of it a checkpoint keeps."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import LightningModule, Trainer

from rank_callbacks.callbacks.background import Background
from rank_callbacks.callbacks.cadence import Cadence, EveryNSteps
from rank_callbacks.callbacks.lightning import Callback, choosing_monitors
from rank_callbacks.writers import Report, leave_summaries, write_report

__all__ = ["Monitor"]

# A monitor that differs in one of these from that of a checkpoint starts anew.
_TOLD_APART_BY = ("measures", "layers", "conv", "change", "num_classes", "group", "data")


class Monitor(Callback):
    """A callback that reports at a cadence and knows what it costs.

    Args:
        every_n_steps: Steps between reports, a schedule, or ``"auto"``.
        max_overhead: Share of the wall time for all monitors that choose their cadence.
        at_start: Whether the first report that ``"auto"`` takes is at step 0.
        shortest: Steps between reports that ``"auto"`` does not go below.
        part: Of the monitor's share that what each report must do may take.

    Raises:
        ValueError: If an argument is not one of these; and when fitting starts if another monitor has the same ``group``.
    """

    group: str  # first part of its tags

    def __init__(
        self,
        every_n_steps: EveryNSteps,
        max_overhead: float,
        at_start: bool = True,
        shortest: int | None = None,
        part: float = 1.0,
    ) -> None:
        super().__init__()
        self.cadence = Cadence(every_n_steps, max_overhead, shortest or 1, at_start, part)
        self._stopwatch = self.cadence.stopwatch
        self._background = Background()

    @property
    def state_key(self) -> str:
        """Name of this monitor's state in checkpoints, which one of another group, other layers or measures does not take."""
        settings = {name: getattr(self, name) for name in _TOLD_APART_BY if hasattr(self, name)}
        return self._generate_state_key(**{name: _said(one) for name, one in settings.items()})

    def state_dict(self) -> dict[str, Any]:
        """The chosen cadence."""
        return {"cadence": self.cadence.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was written."""
        self.cadence.load_state_dict(state_dict["cadence"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit when another starts."""
        if stage == "fit":
            self.cadence.forget()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse two monitors that would log the same tags."""
        callbacks: list[object] = getattr(trainer, "callbacks", [])
        alike = [type(one).__name__ for one in callbacks if isinstance(one, Monitor) and one.group == self.group]
        if len(alike) > 1:
            kinds = " and ".join(alike)
            raise ValueError(f"Expected each monitor to have a group= of its own, got {self.group!r} of {kinds}.")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.cadence.restart(type(self).__name__, choosing_monitors(trainer), self._expected_seconds(pl_module))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the report that is under way, and leave no thread behind."""
        self._write(trainer, self._background.rescue())
        self._background.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave no thread behind, and no more in ``trainer.callback_metrics`` than a launched process can send home."""
        self._background.close()
        leave_summaries(trainer)

    def _expected_seconds(self, pl_module: LightningModule) -> float:
        """What a report will take, as far as is known before the first."""
        return 0.0

    def _write_finished(self, trainer: Trainer, is_waited_for: bool = False) -> None:
        """Write the report that was finished in the background, if one was; of several processes all must come by."""
        self._write(trainer, self._background.collect(is_waited_for))

    def _write(self, trainer: Trainer, report: Report | None) -> None:
        """Write a report, and with it what the monitor costs."""
        if report is None:
            return
        with self._stopwatch:
            cost = self.cadence.cost(self.group, report.step) | self._background.cost(self.group)
            write_report(trainer, report._replace(scalars={**report.scalars, **cost}))


def _said(setting: object) -> object:
    """What a setting says of itself in every process and run alike."""
    plain = setting is None or isinstance(setting, (str, int, list, tuple))
    return setting if plain else getattr(setting, "__qualname__", type(setting).__name__)
