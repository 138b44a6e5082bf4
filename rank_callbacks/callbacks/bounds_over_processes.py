"""Bounds of the gradient that processes average, from those of each process's batch."""

from __future__ import annotations

import torch

from rank_callbacks.callbacks.processes import process_count, summed_over_processes
from rank_callbacks.gradient_bounds import BoundTable, GradientBound

__all__ = ["bounds_over_processes", "no_bounds"]


def bounds_over_processes(bounds: BoundTable) -> BoundTable:
    """The bounds of the averaged gradient: those of every process's batch, added up. A collective operation."""
    if process_count() == 1:
        return bounds
    local = torch.tensor([torch.nan if row.bound is None else row.bound for row in bounds], dtype=torch.float64)
    total = summed_over_processes(local).tolist()
    return BoundTable(_capped(row, bound, process_count()) for row, bound in zip(bounds, total, strict=True))


def no_bounds(bounds: BoundTable) -> BoundTable:
    """The same rows without bounds, where layers are split between processes."""
    return BoundTable(row._replace(bound=None, reason="no bound is known under tensor parallelism") for row in bounds)


def _capped(row: GradientBound, total: float, processes: int) -> GradientBound:
    if row.bound is None or total != total:
        return row._replace(bound=None)
    *blocks, rows, columns = row.shape
    whole = min(rows, columns) * torch.Size(blocks).numel()
    if total >= whole:
        return row._replace(bound=whole, reason="its own shape")
    return row._replace(bound=int(total), reason=f"{row.reason}, in each of {processes} processes")
