"""Spectra of many matrices, shared out over the processes of a training run by cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from typing import TypeAlias, TypeVar

import torch
from pytorch_lightning import Trainer
from torch import Tensor

from rank_callbacks.functional import singular_values_of_each, spectrum_cost

__all__ = ["check_not_sharded", "owners", "shared_singular_values"]

_Name = TypeVar("_Name", bound=Hashable)
_Spectra: TypeAlias = "Callable[[Mapping[_Name, Tensor]], dict[_Name, Tensor]]"
_SHARDING = {"FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy", "XLAFSDPStrategy"}


def owners(costs: Mapping[_Name, float], processes: int) -> dict[_Name, int]:
    """Which process takes which matrix, so that none takes much longer than another.

    The dearest matrix goes first, each to the process that has the least to do: at most 4/3 of the best possible time.

    Example:
        >>> owners({"a": 3.0, "b": 2.0, "c": 2.0}, processes=2)
        {'a': 0, 'b': 1, 'c': 1}
    """
    busy = [0.0] * processes
    taken: dict[_Name, int] = {}
    for name in sorted(costs, key=lambda name: costs[name], reverse=True):
        taken[name] = busy.index(min(busy))
        busy[taken[name]] += costs[name]
    return taken


def shared_singular_values(
    matrices: Mapping[_Name, Tensor], trainer: Trainer, spectra: _Spectra[_Name] = singular_values_of_each
) -> dict[_Name, Tensor]:
    """Singular values of matrices that are alike on all processes, each computed on one of them.

    A collective operation: every process of the trainer must call it with the same names and shapes. A matrix whose
    spectrum fails, for want of memory say, is NaN on every process; none is left waiting.

    Args:
        matrices: By name.
        trainer: Of the run.
        spectra: What computes the singular values of some matrices by name.

    Returns:
        By name, on the CPU: shape ``(r,)``, float64, descending.
    """
    if not matrices:
        return {}
    owner = owners({name: spectrum_cost(tuple(matrix.shape)) for name, matrix in matrices.items()}, trainer.world_size)
    mine = _or_nan({name: matrix for name, matrix in matrices.items() if owner[name] == trainer.global_rank}, spectra)
    lengths = [_length(matrix) for matrix in matrices.values()]
    parts = [
        mine[name] if name in mine else torch.zeros(n, dtype=torch.float64) for name, n in zip(matrices, lengths, strict=True)
    ]
    # Not to the root device of a single process: mps has no float64, and singular values of its matrices are on the CPU.
    device = trainer.strategy.root_device if trainer.world_size > 1 else parts[0].device
    together = torch.cat([part.to(device) for part in parts])
    if trainer.world_size > 1:
        together = trainer.strategy.reduce(together, reduce_op="sum")
    return dict(zip(matrices, together.cpu().split(lengths), strict=True))


def check_not_sharded(trainer: Trainer) -> None:
    """Refuse a strategy that leaves no process with a whole matrix.

    Raises:
        ValueError: For FSDP, model parallelism and DeepSpeed.
    """
    if not _SHARDING.isdisjoint(kind.__name__ for kind in type(trainer.strategy).__mro__):
        raise ValueError(
            f"{type(trainer.strategy).__name__} shards parameters over processes, which is not supported yet. "
            "Train with one device or strategy='ddp'."
        )


def _or_nan(matrices: Mapping[_Name, Tensor], spectra: _Spectra[_Name]) -> dict[_Name, Tensor]:
    try:
        return spectra(matrices)
    except RuntimeError:  # out of memory, or LAPACK did not converge: in one of them, so each is tried by itself
        if len(matrices) == 1:
            return {name: torch.full((_length(m),), torch.nan, dtype=torch.float64) for name, m in matrices.items()}
        return {name: values for key in matrices for name, values in _or_nan({key: matrices[key]}, spectra).items()}


def _length(matrix: Tensor) -> int:
    *blocks, rows, columns = matrix.shape
    return math.prod(blocks) * min(rows, columns)
