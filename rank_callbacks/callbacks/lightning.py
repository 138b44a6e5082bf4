"""What ties the monitors to Lightning: a base class for both of its packages, and its axis of steps."""

from __future__ import annotations

import math
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

__all__ = ["Callback", "choosing_monitors", "is_last_validation", "last_step", "loss_scale", "step_axis"]

if TYPE_CHECKING:
    from pytorch_lightning import Callback, Trainer
else:
    # Each package has a class of its own, and their command lines accept nothing but subclasses of it.
    _homes = ["pytorch_lightning"] + (["lightning.pytorch"] if find_spec("lightning") else [])
    Callback = type("Callback", tuple(import_module(home).Callback for home in _homes), {"__module__": __name__})


def step_axis(trainer: Trainer) -> int:
    """Batches after which the optimizer has stepped: the axis on which Lightning logs training metrics."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def last_step(trainer: Trainer) -> float:
    """The last step that training will take on that axis, if nothing stops it earlier; negative or infinite if not known."""
    return trainer.estimated_stepping_batches - 1


def is_last_validation(trainer: Trainer) -> bool:
    """Whether no run of validation follows in this fit, as far as is known; outside a fit each is the last."""
    if trainer.state.fn != "fit":
        return True
    batches = trainer.num_training_batches
    between = min(trainer.val_check_batch or batches, batches)
    if between == batches:
        between *= trainer.check_val_every_n_epoch or 1
    if math.isinf(between):  # of unknown length, but the end of the last epoch is the end
        epochs = trainer.current_epoch + (trainer.check_val_every_n_epoch or 1)
        return trainer.is_last_batch and 0 < (trainer.max_epochs or 0) <= epochs
    done = trainer.global_step / max(len(trainer.optimizers), 1)
    return 0 <= last_step(trainer) + 1 - done < between / trainer.accumulate_grad_batches


def choosing_monitors(trainer: Trainer) -> int:
    """How many monitors of this trainer choose by themselves when they report, and share the time for it."""
    callbacks: list[object] = getattr(trainer, "callbacks", [])
    return sum(getattr(getattr(callback, "cadence", None), "is_auto", False) for callback in callbacks)


def loss_scale(trainer: Trainer) -> float:
    """What a GradScaler multiplies the loss by in this step."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler.get_scale() if scaler else 1.0
