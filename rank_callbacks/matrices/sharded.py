"""Tensors that lie in parts on several processes (DTensor, of FSDP2 and tensor parallelism): all that we know of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard, cast

import torch
from torch import Tensor, distributed, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

__all__ = [
    "Shard",
    "check_whole",
    "filters_in_parts",
    "is_sharded",
    "like",
    "read_on_first",
    "row_shard",
    "settled",
    "shard_of",
    "stand_in",
    "whole",
]


class Shard(NamedTuple):
    """This process's part of a matrix that is cut along its rows or along its columns, in the order of the processes.

    Args:
        rows: The part, of shape ``(mine, n)``: of a matrix cut along its columns the transpose.
        by_columns: Whether ``rows`` are columns of the matrix.
        length: Rows that all parts have together.
        most: Rows that the first part has, and no other more; the last parts may have fewer, or none.
        processes: The processes that have a part, by their number among all.
        group: Their group.
    """

    rows: Tensor
    by_columns: bool
    length: int
    most: int
    processes: list[int]
    group: Any

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over the processes that have a part. A collective operation."""
        total = tensor.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total, group=self.group)
        return total


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor. Of a sharded one a collective operation that every process must take part in, in the same order."""
    return tensor.full_tensor() if _is_distributed(tensor) else tensor


def settled(tensor: Tensor) -> Tensor:
    """The tensor, still in parts if it is cut along one dimension over several processes, and else all of it.

    All of it is at hand where every process has a copy, and is gathered where it is cut along two.
    """
    if not _is_distributed(tensor):
        return tensor
    if not _cuts(tensor):
        return tensor.to_local()
    return tensor if _only_cut(tensor) and tensor.numel() else whole(tensor)


def shard_of(matrix: Tensor) -> Shard | None:
    """This process's part of a settled matrix; None if the process has all of it."""
    cut = _only_cut(matrix) if _is_distributed(matrix) and matrix.dim() == 2 else None
    if cut is None:
        return None
    mesh_dim, dim = cut
    local = cast("DTensor", matrix).to_local()
    group = cast("DTensor", matrix).device_mesh.get_group(mesh_dim)
    processes = distributed.get_process_group_ranks(group)
    most = -(-matrix.shape[dim] // len(processes))
    return Shard(local if dim == 0 else local.mT, dim == 1, matrix.shape[dim], most, processes, group)


def row_shard(matrix: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """What this process has of a matrix, oriented so that the rows are what is cut, and a sum over the processes.

    For algorithms that touch a tall matrix A only through sums over its rows, such as AᵀA and Aᵀ(AX).

    Args:
        matrix: Shape ``(m, n)``, sharded or not.

    Returns:
        Shape ``(mine, n)``, or of a matrix cut along its columns the transpose, ``(mine, m)``; and a function that adds a
        tensor up over the processes that have a part, a collective operation. The matrix itself and the identity where the
        process has all of it.

    Example:
        >>> rows, total = row_shard(torch.eye(2))
        >>> total(rows.mT @ rows)
        tensor([[1., 0.],
                [0., 1.]])
    """
    matrix = settled(matrix)
    shard = shard_of(matrix)
    return (matrix, _identity) if shard is None else (shard.rows, shard.total)


def filters_in_parts(kernel: Tensor, transposed: bool) -> Tensor | None:
    """A settled kernel (C_out, C_in, *k) as the matrix C_out x C_in·k, still in parts; None if it has no such parts.

    Args:
        kernel: Cut over processes.
        transposed: Whether its first two dimensions are the other way round.
    """
    mesh_dim, dim = _cut_of(kernel)
    is_even = kernel.shape[dim] % cast("DTensor", kernel).device_mesh.size(mesh_dim) == 0
    of_matrix = 1 - dim if transposed else dim
    if dim > 1 or (of_matrix == 1 and not is_even):  # Columns that are dealt out by k at a time lie otherwise than by one.
        return None
    local = cast("DTensor", kernel).to_local()
    local = local.transpose(0, 1) if transposed else local
    rows = kernel.shape[transposed]
    return _joined(kernel, local.flatten(1), (rows, kernel.numel() // rows), of_matrix)


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """The tensor in the parts that ``other``, a settled one of its shape, is in."""
    if not _is_distributed(other):
        return whole(tensor)
    if _is_distributed(tensor):
        return tensor
    mesh_dim, dim = _cut_of(other)
    mesh = other.device_mesh
    most = -(-tensor.shape[dim] // mesh.size(mesh_dim))
    start = min(mesh.get_local_rank(mesh_dim) * most, tensor.shape[dim])
    mine = tensor.narrow(dim, start, min(most, tensor.shape[dim] - start)).to(other.device)
    return _joined(other, mine, tuple(tensor.shape), dim)


def read_on_first(tensor: Tensor) -> Tensor:
    """All of a tensor in the memory of the first process's host; of a sharded one the others get an empty tensor.

    Of a sharded tensor a collective operation.
    """
    if not _is_distributed(tensor):
        return tensor
    everything = whole(tensor)
    return everything.cpu() if distributed.get_rank() == 0 else everything.new_empty(0, device="cpu")


def stand_in(tensor: Tensor) -> Tensor:
    """A tensor of the same shape and type to ask for names of views: without numbers if reading them meant to gather."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") if _is_distributed(tensor) else tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether the tensor knows of parts on other processes, be it cut or copied."""
    return _is_distributed(tensor)


def check_whole(model: nn.Module, what: str) -> None:
    """Refuse a model whose parameters lie in parts on several processes.

    Args:
        model: Any module.
        what: What needs them whole, to begin the message with.

    Raises:
        ValueError: If one is sharded.
    """
    for name, parameter in model.named_parameters():
        if _is_distributed(parameter):
            raise ValueError(f"{what} needs whole parameters, and {name} is sharded. Load the model unsharded on one process.")


def _is_distributed(tensor: Tensor) -> TypeGuard[DTensor]:
    return hasattr(tensor, "placements")  # Without the import of DTensor, which not every build of torch has.


def _placed(tensor: DTensor) -> list[tuple[int, Any]]:
    """Dimensions of the mesh that have several processes, and how the tensor lies along them."""
    return [(dim, p) for dim, p in enumerate(tensor.placements) if tensor.device_mesh.size(dim) > 1]


def _cuts(tensor: DTensor) -> list[tuple[int, Any]]:
    return [(dim, placement) for dim, placement in _placed(tensor) if not placement.is_replicate()]


def _only_cut(tensor: DTensor) -> tuple[int, int] | None:
    """The dimension of the mesh, and that of the tensor, of a tensor that is cut once and in order."""
    cuts = _cuts(tensor)
    # A kind derived from it deals rows out in another order.
    if len(cuts) != 1 or type(cuts[0][1]).__name__ != "Shard":
        return None
    return cuts[0][0], cuts[0][1].dim


def _cut_of(tensor: Tensor) -> tuple[int, int]:
    cut = _only_cut(cast("DTensor", tensor))
    if cut is None:
        raise ValueError(f"Expected a tensor that is cut along one dimension, got {cast('DTensor', tensor).placements}.")
    return cut


def _joined(tensor: Tensor, local: Tensor, shape: tuple[int, ...], dim: int) -> Tensor:
    """The tensor of this shape whose parts are ``local``, cut along ``dim`` over the processes that ``tensor`` is."""
    tensor, (mesh_dim, _) = cast("DTensor", tensor), _cut_of(tensor)
    mesh = tensor.device_mesh
    cut: Any = type(tensor.placements[mesh_dim])
    placements = [p if p.is_replicate() else cut(dim) for p in tensor.placements]  # one process alone may be "cut" as well
    stride = torch.empty(shape, device="meta").stride()
    return type(tensor).from_local(local, mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride)


def _identity(tensor: Tensor) -> Tensor:
    return tensor
