"""A report to Weights & Biases: one row, however many values it holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rank_callbacks.tags import Tag
from rank_callbacks.writers.matrix_spectrum import MatrixSpectrum
from rank_callbacks.writers.table import Table

__all__ = ["write_to_wandb"]


def write_to_wandb(
    logger: Any,  # ruff: ignore[any-type] - WandbLogger of either Lightning package
    step: int,
    scalars: Mapping[Tag, float],
    spectra: Mapping[Tag, MatrixSpectrum],
    tables: Mapping[Tag, Table],
) -> None:
    """Write scalars, tables, and each spectrum as a histogram of its singular values; a spectrum with a NaN has none."""
    import wandb

    histograms = {
        str(tag): wandb.Histogram(values.tolist()) for tag, (values, _) in spectra.items() if np.isfinite(values).all()
    }
    media = histograms | {
        str(tag): wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows])
        for tag, table in tables.items()
    }
    logger.log_metrics({str(tag): value for tag, value in scalars.items()} | media, step=step)
