"""A trainer's loggers by kind, written to so that no failure of theirs ends the training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeAlias

from pytorch_lightning import Trainer

__all__ = ["AnyLogger", "Write", "attempt", "kind_of", "write_to_each", "write_to_loggers"]

AnyLogger: TypeAlias = Any  # a logger of either Lightning package
Write: TypeAlias = Callable[[AnyLogger], None]


def kind_of(logger: AnyLogger) -> Literal["tensorboard", "wandb", "other"]:
    """Which of the loggers that can show more than numbers this is.

    By name of its class: pytorch_lightning and lightning.pytorch each have their own.
    """
    names = {kind.__name__ for kind in type(logger).__mro__}
    if "TensorBoardLogger" in names:
        return "tensorboard"
    return "wandb" if "WandbLogger" in names else "other"


def write_to_each(trainer: Trainer, **writes: Write) -> None:
    """Write to each of the trainer's loggers, in the first process alone: see ``write_to_loggers``."""
    if trainer.is_global_zero:
        write_to_loggers(trainer.loggers, **writes)


def write_to_loggers(loggers: Iterable[AnyLogger], **writes: Write) -> None:
    """Write to each of some loggers. A failure is a warning, not the end of the training.

    Args:
        loggers: Of either Lightning package.
        writes: What to do with a logger by its kind: ``tensorboard``, ``wandb``, ``other``. A kind that is not named is left
            alone.
    """
    for logger in loggers:
        write = writes.get(kind_of(logger))
        if write is not None:
            attempt(write, logger)


def attempt(write: Write, logger: AnyLogger) -> None:
    """Write to a logger; a failure is a warning."""
    try:
        write(logger)
    except Exception as failure:  # a full disk, a lost server: whatever it is, days of training are worth more
        warnings.warn(f"{type(logger).__name__} could not be written to, and training goes on: {failure!r}", stacklevel=2)
