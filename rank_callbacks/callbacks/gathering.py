"""Spectra of sharded matrices: what travels to the process that measures one, the Gram matrix or the parts."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, distributed

from rank_callbacks.callbacks.processes import process_index, summed_over_processes
from rank_callbacks.functional import rounding_noise
from rank_callbacks.functional.spectrum import lower_gram, roots_of_eigenvalues, takes_gram
from rank_callbacks.matrices.sharded import Shard, shard_of

__all__ = ["Gathered", "gathered", "sends_gram", "shared_rounding_noise", "singular_values_of_gram"]

_Name = TypeVar("_Name", bound=Hashable)


class Gathered(NamedTuple):
    """What has come to the process that measures a matrix; to the others nothing.

    Args:
        matrix: All of it.
        lower_gram: The lower triangle of its smaller Gram matrix, row after row, float64.
        failed: Whether a process could not do its part, for want of memory say.
    """

    matrix: Tensor | None = None
    lower_gram: Tensor | None = None
    failed: bool = False


def gathered(matrices: Mapping[_Name, Tensor], owner: Mapping[_Name, int]) -> dict[_Name, Gathered]:
    """Bring each sharded matrix, or its Gram matrix where that is less, to the process that owns it.

    A collective operation. A process that fails says so before any of the others waits for it.

    Args:
        matrices: By name; those that are not sharded are left out.
        owner: Which process measures each.
    """
    shards = {name: shard for name, matrix in matrices.items() if (shard := shard_of(matrix)) is not None}
    return {name: _gathered(shard, owner[name]) for name, shard in shards.items()}


def sends_gram(shape: tuple[int, int], dtype: torch.dtype, processes: int) -> bool:
    """Whether the triangle of an n x n Gram matrix is less to receive than the other parts of an m x n matrix.

    8·n·(n + 1)/2 bytes of float64 against those of the P − 1 parts of ⌈m/P⌉ rows. Only where one process with the whole
    matrix would take the Gram matrix as well: then both give the same singular values.

    Args:
        shape: ``(m, n)``, cut along m.
        dtype: Of the matrix.
        processes: P, that it is cut over.

    Example:
        >>> sends_gram((50257, 768), torch.float32, processes=2), sends_gram((768, 3072), torch.float32, processes=2)
        (True, False)
    """
    length, width = shape
    parts = (processes - 1) * -(-length // processes) * width * dtype.itemsize
    return width <= length and takes_gram(shape, dtype) and 4 * width * (width + 1) < parts


def singular_values_of_gram(triangle: Tensor) -> Tensor:
    """Singular values of the matrix whose Gram matrix has this lower triangle, row after row."""
    width = int((2 * len(triangle)) ** 0.5)  # n(n + 1)/2 numbers
    gram = triangle.new_zeros(width, width).masked_scatter_(_lower(triangle, width), triangle)
    return roots_of_eigenvalues(gram)


def shared_rounding_noise(matrix: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """``rounding_noise`` of a matrix, or the largest of a block-diagonal one's; of a sharded one a collective operation.

    Returns:
        A scalar on the CPU, float64.
    """
    shard = shard_of(matrix)
    if shard is None:
        return rounding_noise(matrix, dtype).amax().cpu()
    squares = shard.rows.abs().double().square()
    longest = squares.new_zeros(len(shard.processes))
    if len(squares):
        longest[shard.processes.index(process_index())] = squares.sum(1).amax()
    sums = shard.total(torch.cat([longest, squares.sum(0)]))
    row, column = sums[: len(longest)].amax().sqrt(), sums[len(longest) :].amax().sqrt()
    # The formula wants the largest row and column alone, which of a matrix of one number are equal.
    return rounding_noise(((row + column) / 2).reshape(1, 1), dtype or matrix.dtype).cpu()


def _gathered(shard: Shard, owner: int) -> Gathered:
    takes_part = owner in shard.processes  # or the owner has a copy from others
    ready = _ready(shard, owner) if takes_part else None
    if summed_over_processes(torch.tensor(float(takes_part and ready is None))) > 0:
        return Gathered(failed=True)
    if ready is None:
        return Gathered()
    if ready.is_gram:
        distributed.reduce(ready.sent, dst=owner, group=shard.group)
        return Gathered(lower_gram=ready.sent) if owner == process_index() else Gathered()
    # As bytes, since not every backend knows every type.
    parts = None if ready.room is None else list(ready.room.view(torch.uint8))
    distributed.gather(ready.sent.view(torch.uint8), parts, dst=owner, group=shard.group)
    if ready.room is None:
        return Gathered()
    matrix = ready.room.unflatten(1, (shard.most, -1)).flatten(0, 1)[: shard.length]
    return Gathered(matrix.mT if shard.by_columns else matrix)


class _Ready(NamedTuple):
    """What a process sends of a matrix, its numbers one after the other, and at its owner room for those of each process."""

    sent: Tensor
    is_gram: bool
    room: Tensor | None = None


def _ready(shard: Shard, owner: int) -> _Ready | None:
    """None if this process has no memory for it."""
    rows, processes = shard.rows, len(shard.processes)
    try:
        if sends_gram((shard.length, rows.shape[1]), rows.dtype, processes):
            gram = lower_gram(rows)
            return _Ready(gram.masked_select(_lower(gram, len(gram))), is_gram=True)
        sent = torch.nn.functional.pad(rows, (0, 0, 0, shard.most - len(rows))).flatten()
        room = rows.new_empty(processes, len(sent)) if owner == process_index() else None
    except RuntimeError:
        return None
    return _Ready(sent, is_gram=False, room=room)


def _lower(tensor: Tensor, width: int) -> Tensor:
    return torch.ones(width, width, dtype=torch.bool, device=tensor.device).tril_()
