"""Products of Jacobians with many vectors at a time, and Jacobians whole, for all outputs of a function together."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["NamedFunction", "Outputs", "by_columns", "by_rows", "differentiable", "pullback", "pushed"]

# Tangents at a time: more gain no speed, and each holds activations of its own.
_TANGENTS = 256
# Of Jacobians at a time: 1 GiB in float64.
_NUMBERS_AT_ONCE = 2**27

Outputs: TypeAlias = "dict[str | None, Tensor]"
NamedFunction: TypeAlias = Callable[[Tensor], Outputs]


@contextmanager
def differentiable() -> Generator[None]:
    """No fused attention, which has no derivative in forward mode; no inference mode, whose tensors autograd refuses."""
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.inference_mode(False), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def by_rows(function: NamedFunction, sample: Tensor, sizes: Mapping[str | None, int]) -> Outputs:
    """Each Jacobian, by a product with its transpose a row."""
    return {
        name: pullback(function, sample, name)(torch.eye(size, dtype=sample.dtype, device=sample.device))
        for name, size in sizes.items()
    }


def by_columns(function: NamedFunction, sample: Tensor, sizes: Mapping[str | None, int]) -> Outputs:
    """A matrix with the singular values of each Jacobian, by products for all columns, as many rows as fit at a time."""
    triangles: Outputs = {}
    for group in _groups(sizes, sample.numel()):
        for (name, _), block in zip(group, _blocks(function, sample, group), strict=True):
            rows = torch.cat([triangles[name], block]) if name in triangles else block
            # RᵀR = JᵀJ: the triangle has the singular values of all rows so far.
            triangles[name] = torch.linalg.qr(rows, mode="r").R if rows.shape[0] > rows.shape[1] else rows
    return triangles


def _groups(sizes: Mapping[str | None, int], columns: int) -> list[list[tuple[str | None, slice]]]:
    """Which rows of which Jacobians to hold at a time."""
    most = max(1, _NUMBERS_AT_ONCE // columns)
    groups: list[list[tuple[str | None, slice]]] = [[]]
    room = most
    for name, size in sizes.items():
        for start in range(0, size, most):
            stop = min(start + most, size)
            if stop - start > room:
                groups.append([])
                room = most
            groups[-1].append((name, slice(start, stop)))
            room -= stop - start
    return groups


def _blocks(function: NamedFunction, sample: Tensor, group: list[tuple[str | None, slice]]) -> list[Tensor]:
    """These rows of Jacobians, each of shape ``(rows, d)``, float64."""

    def rows_of_group(inputs: Tensor) -> tuple[Tensor, ...]:
        outputs = function(inputs)
        return tuple(outputs[name].flatten()[rows] for name, rows in group)

    basis = _basis(sample, sum(rows.stop - rows.start for _, rows in group))
    columns: list[list[Tensor]] = [[] for _ in group]
    for tangents in basis:
        for held, products in zip(columns, pushed(rows_of_group, sample, tangents), strict=True):
            held.append(products)
    return [torch.cat(held).mT for held in columns]


def _basis(sample: Tensor, rows: int) -> Iterator[Tensor]:
    """All unit vectors, as many at a time as there is room for ``rows`` numbers of each."""
    inputs = sample.numel()
    width = max(1, min(_TANGENTS, _NUMBERS_AT_ONCE // rows))
    for start in range(0, inputs, width):
        units = sample.new_zeros(min(width, inputs - start), inputs)
        units.diagonal(start).fill_(1)
        yield units


def pushed(function: Callable[[Tensor], tuple[Tensor, ...]], sample: Tensor, tangents: Tensor) -> tuple[Tensor, ...]:
    """J of each output times each row of ``tangents``, of shape ``(rows, D)``, float64."""
    push = vmap(lambda tangent: jvp(function, (sample,), (tangent,))[1])
    parts = [push(part) for part in tangents.view(-1, *sample.shape).split(_TANGENTS)]
    return tuple(torch.cat(pieces).double() for pieces in zip(*parts, strict=True))


def pullback(function: NamedFunction, sample: Tensor, name: str | None) -> Callable[[Tensor], Tensor]:
    """A function that gives each row of cotangents times J of one output, of shape ``(rows, d)``, float64."""
    pull = vmap(vjp(lambda inputs: function(inputs)[name].flatten(), sample)[1])

    def pulled(cotangents: Tensor) -> Tensor:
        parts = cotangents.to(sample.dtype).split(_TANGENTS)
        return torch.cat([pull(part)[0].flatten(1).double() for part in parts])

    return pulled
