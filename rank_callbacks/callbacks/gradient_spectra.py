"""The singular values of gradients, each by the cheapest exact route that it allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from rank_callbacks.functional import (
    OuterProductSpectrum,
    leading_subspace,
    low_rank_singular_values,
    outer_product_spectrum,
    rounding_rtol,
    singular_values_of_each,
)
from rank_callbacks.matrices.sharded import shard_of

__all__ = ["factor_spectra", "leading_left_vectors", "sketched_or_full"]

# A sketch or a b x b problem is cheaper than a full spectrum while the bound is below this share of min(m, n).
_SMALL = 1 / 3
# Columns of a block beyond the vectors that are wanted, and products with AᵀA: as in ``leading_subspace``.
_OVERSAMPLING = 8
_ITERATIONS = 4


def factor_spectra(
    gradients: Mapping[str, Tensor], factors: Mapping[str, tuple[Tensor, Tensor]], vectors: int
) -> dict[str, OuterProductSpectrum]:
    """Spectra of those gradients that are, to rounding, the sum of few outer products."""
    found = {}
    for name, (inputs, deltas) in factors.items():
        gradient = gradients[name]
        if vectors <= len(inputs) <= _SMALL * min(gradient.shape) and gradient.dtype != torch.float64:
            product = outer_product_spectrum(deltas, inputs, vectors)
            # There is more under loss scaling, in mixed precision, or if something else adds to the gradient.
            if _missed(gradient, inputs, deltas) <= _tolerance(gradient, product.singular_values):
                found[name] = product
    return found


def sketched_or_full(bounds: Mapping[str, int | None], gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Singular values of gradients, by a sketch where the bound is small and the sketch proves itself."""
    sketched = {name: _sketched(gradient, bounds.get(name)) for name, gradient in gradients.items()}
    full = singular_values_of_each({name: gradients[name] for name, values in sketched.items() if values is None})
    return {name: full[name] if values is None else values for name, values in sketched.items()}


def leading_left_vectors(gradient: Tensor, rank: int) -> tuple[Tensor, Callable[[Tensor], Tensor] | None]:
    """The leading left singular vectors of a gradient; of one cut along its rows those rows of them that lie here.

    Returns:
        Shape ``(m, rank)``, or ``(mine, rank)``, float64; and what adds up over the processes, a collective operation, None
        where each has all rows.
    """
    shard = shard_of(gradient)
    if shard is None:
        return leading_subspace(gradient, rank, torch.Generator(gradient.device).manual_seed(0)).double(), None
    rows = shard.rows.double()
    width = min(rank + _OVERSAMPLING, *gradient.shape)
    generator = torch.Generator(rows.device).manual_seed(0)
    block = torch.randn(rows.shape[1], width, generator=generator, device=rows.device, dtype=torch.float64)
    for _ in range(_ITERATIONS):
        block = torch.linalg.qr(shard.total(rows.mT @ (rows @ block))).Q
    image = rows @ block
    squares, turn = torch.linalg.eigh(shard.total(image.mT @ image))
    turn = turn.flip(-1)[:, :rank]
    if shard.by_columns:
        return block @ turn, None
    return image @ turn / squares.flip(-1)[:rank].clamp_min(torch.finfo(torch.float64).tiny).sqrt(), shard.total


def _sketched(gradient: Tensor, bound: int | None) -> Tensor | None:
    # A sketch cannot certify the last digits of float64.
    if bound is None or bound > _SMALL * min(gradient.shape) or gradient.dim() > 2 or gradient.dtype == torch.float64:
        return None
    values, residual = low_rank_singular_values(gradient, bound, torch.Generator(gradient.device).manual_seed(0))
    return values if residual <= _tolerance(gradient, values) else None


def _missed(gradient: Tensor, inputs: Tensor, deltas: Tensor) -> Tensor:
    """What ΔᵀX leaves of a gradient, in the mean over probes its Frobenius norm. Norms alone would not tell."""
    probe = torch.randn(gradient.shape[1], generator=torch.Generator(gradient.device).manual_seed(0), device=gradient.device)
    return torch.linalg.vector_norm(gradient.float() @ probe - deltas.float().mT @ (inputs.float() @ probe))


def _tolerance(gradient: Tensor, values: Tensor) -> Tensor:
    return rounding_rtol(tuple(gradient.shape), gradient.dtype) * values[0]
