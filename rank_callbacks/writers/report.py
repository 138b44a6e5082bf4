"""One step's readings, written once to every logger that a trainer has."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import Logger

from rank_callbacks.tags import Tag
from rank_callbacks.writers.matrix_spectrum import MatrixSpectrum
from rank_callbacks.writers.table import Table
from rank_callbacks.writers.tensorboard import write_to_tensorboard
from rank_callbacks.writers.wandb import write_to_wandb

__all__ = ["Report", "write_report"]


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


def write_report(trainer: Trainer, report: Report) -> None:
    """Write a report to each of the trainer's loggers, and its scalars to ``trainer.callback_metrics``.

    TensorBoard gets one batched summary, with tables as Markdown in its text dashboard; Weights & Biases one row with a
    histogram for each spectrum, and tables; every other logger the scalars. Loggers are written to by the first process alone;
    ``callback_metrics``, which ``EarlyStopping`` and ``ModelCheckpoint`` read, is filled on all.
    """
    trainer.callback_metrics.update({str(tag): torch.tensor(value) for tag, value in report.scalars.items()})
    if trainer.is_global_zero:
        for logger in trainer.loggers:
            _write(logger, report)


def _write(logger: Logger, report: Report) -> None:
    # By name: pytorch_lightning and lightning.pytorch each have their own classes.
    kinds = {kind.__name__ for kind in type(logger).__mro__}
    if "TensorBoardLogger" in kinds:
        write_to_tensorboard(logger, report.step, report.scalars, report.spectra, report.tables)
    elif "WandbLogger" in kinds:
        write_to_wandb(logger, report.step, report.scalars, report.spectra, report.tables)
    else:
        logger.log_metrics({str(tag): value for tag, value in report.scalars.items()}, step=report.step)
