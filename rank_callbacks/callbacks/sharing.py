"""Spectra of many matrices, shared out over the processes of a training run by cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import torch
from torch import Tensor

from rank_callbacks.callbacks.gathering import gathered, singular_values_of_gram
from rank_callbacks.callbacks.processes import process_count, process_index, summed_over_processes
from rank_callbacks.functional import singular_values_of_each, spectrum_cost

if TYPE_CHECKING:
    from pytorch_lightning import Trainer
    from torch.distributed.device_mesh import DeviceMesh

__all__ = [
    "check_data_parallel",
    "check_not_sharded",
    "check_shards",
    "is_tensor_parallel",
    "owners",
    "shared_singular_values",
]

_Name = TypeVar("_Name", bound=Hashable)
_Spectra: TypeAlias = "Callable[[Mapping[_Name, Tensor]], dict[_Name, Tensor]]"
_SHARDING = "ModelParallelStrategy"
_OPAQUE = {"FSDPStrategy", "DeepSpeedStrategy", "XLAFSDPStrategy"}


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
    matrices: Mapping[_Name, Tensor], spectra: _Spectra[_Name] = singular_values_of_each
) -> dict[_Name, Tensor]:
    """Singular values of matrices that are alike on all processes, or sharded over them, each computed on one.

    A collective operation: every process must call it with the same names and shapes. A matrix whose spectrum fails, for
    want of memory say, is NaN on every process; none is left waiting. Where ``torch.distributed`` is not initialised this
    process measures all. A sharded matrix, a DTensor, is brought to the process that measures it, or its Gram matrix alone
    where that is less.

    Args:
        matrices: By name.
        spectra: What computes the singular values of some matrices by name.

    Returns:
        By name, on the CPU: shape ``(r,)``, float64, descending.

    Example:
        >>> shared_singular_values({"diagonal": torch.tensor([[3.0, 0.0], [0.0, 4.0]])})
        {'diagonal': tensor([4., 3.], dtype=torch.float64)}
    """
    if not matrices:
        return {}
    owner = owners({name: spectrum_cost(tuple(matrix.shape)) for name, matrix in matrices.items()}, process_count())
    mine = _measured(matrices, owner, spectra)
    lengths = [_length(matrix) for matrix in matrices.values()]
    parts = [
        mine[name].cpu() if name in mine else torch.zeros(n, dtype=torch.float64)
        for name, n in zip(matrices, lengths, strict=True)
    ]
    together = summed_over_processes(torch.cat(parts))
    return dict(zip(matrices, together.split(lengths), strict=True))


def check_not_sharded(trainer: Trainer) -> None:
    """Refuse a strategy that leaves no process with a whole matrix.

    Raises:
        ValueError: For FSDP, model parallelism and DeepSpeed.
    """
    if _strategies(trainer) & {*_OPAQUE, _SHARDING}:
        raise ValueError(
            f"{type(trainer.strategy).__name__} shards parameters over processes, of which this monitor needs all. "
            "Train with one device or strategy='ddp'."
        )


def check_shards(trainer: Trainer) -> None:
    """Refuse a strategy whose shards cannot be told apart into matrices.

    Raises:
        ValueError: For the first FSDP and DeepSpeed. ``ModelParallelStrategy`` has what FSDP2 and tensor parallelism make.
    """
    if _strategies(trainer) & _OPAQUE:
        raise ValueError(
            f"{type(trainer.strategy).__name__} flattens parameters before it shards them over processes. Train with "
            "ModelParallelStrategy and fully_shard (FSDP2) in configure_model(), with strategy='ddp' or with one device."
        )


def check_data_parallel(trainer: Trainer) -> None:
    """Refuse a strategy under which a process does not see all that passes through a layer for its samples.

    Raises:
        ValueError: For tensor parallelism, and as ``check_shards``.
    """
    check_shards(trainer)
    if is_tensor_parallel(trainer):
        raise ValueError(
            "Under tensor parallelism a process sees but a part of what passes through a layer, of which this monitor needs "
            "all. Train with tensor_parallel_size=1."
        )


def is_tensor_parallel(trainer: Trainer) -> bool:
    """Whether the processes split layers between them, and not samples alone."""
    if _SHARDING not in _strategies(trainer):
        return False
    mesh: DeviceMesh = trainer.strategy.device_mesh  # type: ignore[attr-defined]
    return mesh["tensor_parallel"].size() > 1


def _strategies(trainer: Trainer) -> set[str]:
    return {kind.__name__ for kind in type(trainer.strategy).__mro__}


def _measured(matrices: Mapping[_Name, Tensor], owner: Mapping[_Name, int], spectra: _Spectra[_Name]) -> dict[_Name, Tensor]:
    """The spectra that this process owns."""
    come = gathered(matrices, owner)
    mine = {name: matrix for name, matrix in matrices.items() if owner[name] == process_index() and name not in come}
    mine.update({name: one.matrix for name, one in come.items() if one.matrix is not None})
    grams = {name: one.lower_gram for name, one in come.items() if one.lower_gram is not None}
    failed = {name: _nan(matrices[name]) for name, one in come.items() if one.failed}
    return failed | _or_nan(mine, spectra, matrices) | _or_nan(grams, _of_grams, matrices)


def _of_grams(triangles: Mapping[_Name, Tensor]) -> dict[_Name, Tensor]:
    return {name: singular_values_of_gram(triangle) for name, triangle in triangles.items()}


def _or_nan(
    tensors: Mapping[_Name, Tensor], spectra: _Spectra[_Name], matrices: Mapping[_Name, Tensor]
) -> dict[_Name, Tensor]:
    try:
        return spectra(tensors)
    except RuntimeError:  # out of memory, or LAPACK did not converge: in one of them, so each is tried by itself
        if len(tensors) == 1:
            return {name: _nan(matrices[name]) for name in tensors}
        return {name: values for key in tensors for name, values in _or_nan({key: tensors[key]}, spectra, matrices).items()}


def _nan(matrix: Tensor) -> Tensor:
    return torch.full((_length(matrix),), torch.nan, dtype=torch.float64)


def _length(matrix: Tensor) -> int:
    *blocks, rows, columns = matrix.shape
    return math.prod(blocks) * min(rows, columns)
