"""A report to Weights & Biases: one row, however many values it holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rank_callbacks.tags import Tag
from rank_callbacks.writers.loggers import AnyLogger
from rank_callbacks.writers.matrix_spectrum import MatrixSpectrum
from rank_callbacks.writers.table import Table

__all__ = ["define_metrics", "send_alert", "write_charts", "write_to_wandb"]

# A chart that moves: Weights & Biases draws data and layout alone, and would show buttons that do nothing.
_MOVING = {"sliders", "updatemenus"}


def write_to_wandb(
    logger: AnyLogger,
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


def define_metrics(logger: AnyLogger, tags: Iterable[Tag]) -> None:
    """Draw each group over the trainer's step, and keep the least and largest rank that any layer ever had in the summary.

    All other readings keep their last value there, under their plain names.
    """
    tags = list(tags)
    prefix = f"{logger._prefix}-" if logger._prefix else ""
    for group in dict.fromkeys(tag.group for tag in tags):
        logger.experiment.define_metric(f"{prefix}{group}/*", step_metric="trainer/global_step")
    for tag in tags:
        if tag.layer in {"min_over_layers", "max_over_layers"}:
            logger.experiment.define_metric(f"{prefix}{tag}", step_metric="trainer/global_step", summary=tag.layer[:3])


def write_charts(logger: AnyLogger, step: int, figures: Mapping[str, Mapping[str, Any]], tables: Mapping[str, Table]) -> None:
    """Write plotly figures, as plain data, and tables in one row. Of a chart that moves, where it stands now."""
    import wandb
    from plotly.graph_objects import Figure

    media: dict[str, Any] = {}
    for name, figure in figures.items():
        layout = {key: value for key, value in figure["layout"].items() if key not in _MOVING}
        media[name] = wandb.Plotly(Figure({"data": figure["data"], "layout": layout}))
    for name, table in tables.items():
        media[name] = wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows])
    logger.log_metrics(media, step=step)


def send_alert(logger: AnyLogger, title: str, text: str, is_error: bool) -> None:
    """Send an alert to where the user has asked Weights & Biases to send them."""
    # Of equal titles the next is dropped for a minute, even if that is said to be 0 seconds; monitors report at the same step.
    logger.experiment.alert(title=title, text=text, level="ERROR" if is_error else "WARN", wait_duration=0.001)
