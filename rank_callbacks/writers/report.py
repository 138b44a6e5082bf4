"""One step's readings, written once to every logger that a trainer has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from io import BytesIO
from types import MappingProxyType
from typing import NamedTuple, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from pytorch_lightning import Trainer

from rank_callbacks.tags import Tag
from rank_callbacks.writers.loggers import AnyLogger, write_to_loggers
from rank_callbacks.writers.matrix_spectrum import MatrixSpectrum
from rank_callbacks.writers.table import Table
from rank_callbacks.writers.tensorboard import write_to_tensorboard
from rank_callbacks.writers.wandb import write_to_wandb

__all__ = ["Listener", "Report", "leave_summaries", "log_report", "write_report"]

# Bytes; the rest of the pipe is for Lightning.
_MOST_SENT = 48 * 1024
_WRITTEN: WeakKeyDictionary[Trainer, set[Tag]] = WeakKeyDictionary()


class Report(NamedTuple):
    """The readings of one step.

    Args:
        step: Batches after which the optimizer has stepped: the axis of Lightning's own training metrics.
        scalars: Numbers by tag.
        spectra: Singular values by tag, in the order of the layers.
        tables: Rows under named columns, by tag.
    """

    step: int
    scalars: Mapping[Tag, float]
    spectra: Mapping[Tag, MatrixSpectrum]
    tables: Mapping[Tag, Table] = MappingProxyType({})


@runtime_checkable
class Listener(Protocol):
    """A callback that is told of every report of every monitor of its trainer."""

    def receive_report(self, trainer: Trainer, report: Report) -> None:
        """Hear of a report before it is written, on every process."""


def write_report(trainer: Trainer, report: Report) -> None:
    """Write a report to each of the trainer's loggers, and its scalars to ``trainer.callback_metrics``.

    TensorBoard gets one batched summary, with tables as Markdown in its text dashboard; Weights & Biases one row with a
    histogram for each spectrum, and tables; every other logger the scalars. Loggers are written to by the first process alone;
    ``callback_metrics``, which ``EarlyStopping`` and ``ModelCheckpoint`` read, is filled on all. A logger that fails makes a
    warning, and training goes on. Callbacks with a method ``receive_report`` hear of the report first.
    """
    # One storage for all: Lightning sends each storage by itself where it launched this process.
    values = torch.tensor(list(report.scalars.values()))
    trainer.callback_metrics.update({str(tag): value for tag, value in zip(report.scalars, values.unbind(), strict=True)})
    _WRITTEN.setdefault(trainer, set()).update(report.scalars)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # its connector sets it
        if isinstance(callback, Listener):
            callback.receive_report(trainer, report)
    if trainer.is_global_zero:
        log_report(trainer.loggers, report)


def leave_summaries(trainer: Trainer) -> None:
    """Take readings of single layers out of ``trainer.callback_metrics`` where a launched process could not send them home.

    ``ddp_spawn``, ``ddp_fork`` and ``ddp_notebook`` send it when training is over, through a pipe of 64 KiB that nobody
    empties before the process ends: with more it would never end.
    """
    launcher = getattr(trainer.strategy, "launcher", None)
    if any(kind.__name__ == "_MultiProcessingLauncher" for kind in type(launcher).__mro__):
        sent = BytesIO()
        torch.save(dict(trainer.callback_metrics), sent)
        for tag in _WRITTEN.pop(trainer, ()) if sent.tell() > _MOST_SENT else ():
            if not tag.layer.endswith("_over_layers") and tag.group != "monitor":
                trainer.callback_metrics.pop(str(tag), None)


def log_report(loggers: Iterable[AnyLogger], report: Report) -> None:
    """Write a report to each of some loggers, as ``write_report`` does to those of a trainer."""

    def to_tensorboard(logger: AnyLogger) -> None:
        write_to_tensorboard(logger, report.step, report.scalars, report.spectra, report.tables)

    def to_wandb(logger: AnyLogger) -> None:
        write_to_wandb(logger, report.step, report.scalars, report.spectra, report.tables)

    def to_other(logger: AnyLogger) -> None:
        logger.log_metrics({str(tag): value for tag, value in report.scalars.items()}, step=report.step)

    write_to_loggers(loggers, tensorboard=to_tensorboard, wandb=to_wandb, other=to_other)
