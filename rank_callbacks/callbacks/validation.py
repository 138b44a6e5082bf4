"""What a monitor of validation asks of a training."""

from __future__ import annotations

import warnings

from pytorch_lightning import Trainer

__all__ = ["costs_training", "warn_without_validation"]


def warn_without_validation(trainer: Trainer, monitor: str, instead: str = "") -> None:
    """Warn that a monitor will have nothing to read, if the fit that starts has no validation.

    Args:
        trainer: Of the run.
        monitor: Its name.
        instead: What else could be done, after "or".
    """
    if not trainer.enable_validation:
        other = f", or {instead}" if instead else ""
        warnings.warn(
            f"{monitor} will read nothing, for this training has no validation. Give it validation data and the module a "
            f"validation_step, with limit_val_batches above 0{other}.",
            stacklevel=2,
        )


def costs_training(trainer: Trainer) -> bool:
    """Whether an error would end a training that has been paid for: in a fit, after the sanity check."""
    return trainer.state.fn == "fit" and not trainer.sanity_checking
