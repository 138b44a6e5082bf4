"""Spectra and subspaces of matrices whose rank is known to be small: gradients of layers that saw few rows."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rank_callbacks.functional.exact_rank import exact_rank, factor_tolerances, rank_from_gram
from rank_callbacks.functional.matrix_norm import matrix_norm, multipliable, unit_of
from rank_callbacks.functional.spectrum import roots_of_eigenvalues, roots_of_squares, widened

__all__ = ["LowRankSpectrum", "OuterProductSpectrum", "leading_subspace", "low_rank_singular_values", "outer_product_spectrum"]

# Columns of the sketch beyond the rank: what makes a random range miss a direction with negligible probability.
_OVERSAMPLING = 8
# Rows cast to float64 at a time, to stay in the cache.
_ROWS_AT_ONCE = 128


class LowRankSpectrum(NamedTuple):
    """Singular values that a sketch has found, and what it has missed.

    Args:
        singular_values: Shape ``(min(m, n),)``, float64, descending; 0 beyond those that were looked for.
        residual: Frobenius norm of the part of the matrix outside the sketched range, a scalar. No singular value is
            further than this from the truth.
    """

    singular_values: Tensor
    residual: Tensor


def low_rank_singular_values(matrix: Tensor, rank: int, generator: torch.Generator) -> LowRankSpectrum:
    """Singular values of a matrix of at most a known rank, from a random sketch of its range that certifies itself.

    With Q an orthonormal basis of AΩ, Ω Gaussian of rank + 8 columns, the values are those of B = QᵀA, and
    sqrt(‖A‖_F² − ‖B‖_F²) is what they miss: about 3e-8·‖A‖_F where the rank is right. 4·m·n·rank operations in float64
    instead of the m·n² of a full spectrum.

    Args:
        matrix: Shape ``(m, n)``, any real floating type.
        rank: What the rank does not exceed, from 0.
        generator: Source of Ω, on the matrix's device; the global one would change the training run.

    Returns:
        Values and residual, both NaN where the matrix is not finite and 0 where it is zero or empty.

    Example:
        >>> outer = torch.outer(torch.tensor([3.0, 4.0]), torch.ones(100))
        >>> low_rank_singular_values(outer, 1, torch.Generator().manual_seed(0)).singular_values.round(decimals=4)
        tensor([50.,  0.], dtype=torch.float64)

    Reference:
        Finding structure with randomness (Halko, Martinsson and Tropp, 2011), https://arxiv.org/abs/0909.4061
    """
    wide = (matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT).detach()
    norm = matrix_norm(wide)
    size = float(norm)
    if size == 0 or not math.isfinite(size):
        return LowRankSpectrum(norm.new_full((len(wide),), size - size), norm.new_tensor(size - size))
    unit = unit_of(size)
    factor = multipliable(wide, unit)
    basis = torch.linalg.qr((factor @ _gaussian(factor, rank + _OVERSAMPLING, generator)).double()).Q
    inside = torch.zeros(basis.shape[1], wide.shape[1], dtype=torch.float64, device=wide.device)
    energy = inside.new_zeros(())
    for rows, chunk in zip(basis.split(_ROWS_AT_ONCE), wide.split(_ROWS_AT_ONCE), strict=True):
        chunk = chunk.double() if unit == 1 else chunk.double() / unit
        inside.addmm_(rows.mT, chunk)
        energy += torch.linalg.vector_norm(chunk).square()
    residual = (energy - torch.linalg.vector_norm(inside).square()).clamp_min(0).sqrt()
    return LowRankSpectrum(unit * _padded(roots_of_eigenvalues(inside @ inside.mT), len(wide)), unit * residual)


class OuterProductSpectrum(NamedTuple):
    """What two thin factors tell of their product, the gradient ΔᵀX.

    Args:
        singular_values: Shape ``(min(m, n),)``, float64, descending; 0 beyond the b-th.
        left_vectors: Leading left singular vectors, of shape ``(m, k)``, float64.
        input_rank: Rank of the inputs X, as far as it can show in the gradient.
        delta_rank: Rank of the output gradients Δ, likewise.
    """

    singular_values: Tensor
    left_vectors: Tensor
    input_rank: int
    delta_rank: int


def outer_product_spectrum(deltas: Tensor, inputs: Tensor, vectors: int = 0) -> OuterProductSpectrum:
    """Spectrum of ΔᵀX, the gradient of a linear layer, from b x b problems alone.

    With XXᵀ = RRᵀ, R its Cholesky factor, the singular values are the roots of the eigenvalues of Rᵀ(ΔΔᵀ)R. 2·b²·(m + n)
    operations in float64 and one b x b eigenvalue problem. Values below 2e-8·‖Δ‖₂‖X‖₂ cannot be told from 0:
    1e-7·σ₁, but 1e-6·σ₁ and more where Δᵀ cancels the leading direction of X, say a mean of ten standard deviations.

    Args:
        deltas: Output gradients Δ of shape ``(b, m)``, any real floating type.
        inputs: Inputs X of shape ``(b, n)``.
        vectors: How many left singular vectors k to give, at most min(b, m, n).

    Returns:
        Spectrum and ranks; values are NaN where a factor is not finite.

    Example:
        >>> outer_product_spectrum(torch.tensor([[3.0, 4.0]]), torch.ones(1, 4)).singular_values
        tensor([10.,  0.], dtype=torch.float64)
    """
    if len(inputs) == 0:  # an empty sum
        inputs, deltas = (factor.new_zeros(1, factor.shape[1]) for factor in (inputs, deltas))
    wide_inputs, wide_deltas = widened(inputs), widened(deltas)
    grams = wide_inputs @ wide_inputs.mT, wide_deltas @ wide_deltas.mT
    tolerances = reversed(factor_tolerances(deltas, inputs))
    ranks = [
        exact_rank(factor, tolerance) if factor.dtype == torch.float64 else rank_from_gram(gram, factor, tolerance)
        for gram, factor, tolerance in zip(grams, (inputs, deltas), tolerances, strict=True)
    ]
    length = min(deltas.shape[1], inputs.shape[1])
    if not (grams[0].sum() + grams[1].sum()).isfinite():
        nan = torch.full((length,), torch.nan, dtype=torch.float64, device=inputs.device)
        return OuterProductSpectrum(nan, nan.new_full((deltas.shape[1], vectors), torch.nan), *ranks)
    root = _root(grams[0])
    problem = root.mT @ grams[1] @ root
    if vectors == 0:
        left = wide_deltas.new_zeros(wide_deltas.shape[1], 0)
        return OuterProductSpectrum(_padded(roots_of_eigenvalues(problem), length), left, *ranks)
    squares, right = torch.linalg.eigh(problem)
    left = wide_deltas.mT @ (root @ right.flip(-1)[:, :vectors])
    left = left / torch.linalg.vector_norm(left, dim=0).clamp_min(torch.finfo(torch.float64).tiny)
    return OuterProductSpectrum(_padded(roots_of_squares(squares), length), left, *ranks)


def _root(gram: Tensor) -> Tensor:
    """R with RRᵀ = ``gram``: the Cholesky factor, or one from eigenvalues where ``gram`` is singular."""
    factor, info = torch.linalg.cholesky_ex(gram)
    if info == 0:
        return factor
    squares, vectors = torch.linalg.eigh(gram)
    return vectors * squares.clamp_min(0).sqrt()


def leading_subspace(matrix: Tensor, rank: int, generator: torch.Generator, iterations: int = 3) -> Tensor:
    """The leading left singular vectors of a matrix, by block power iteration.

    Exact in the limit; the angle to the true subspace shrinks by (σ_{r+8}/σ_r)² an iteration. 4·m·n·(r + 8) operations each.

    Args:
        matrix: Shape ``(m, n)``, finite, any real floating type.
        rank: How many vectors r; at most min(m, n).
        generator: Source of the starting block, on the matrix's device.
        iterations: Three leave errors that a chart does not show at the gaps of real gradients.

    Returns:
        Shape ``(m, r)``, float64 for a float64 matrix and float32 otherwise, with orthonormal columns.

    Example:
        >>> diagonal = torch.diag(torch.tensor([3.0, 2.0, 1e-3]))
        >>> leading_subspace(diagonal, 1, torch.Generator().manual_seed(0)).abs().round(decimals=3).flatten()
        tensor([1., 0., 0.])
    """
    matrix = matrix.detach()
    matrix = multipliable(matrix, unit_of(float(matrix_norm(matrix))))
    block = matrix @ _gaussian(matrix, rank + _OVERSAMPLING, generator)
    for _ in range(iterations):
        block = matrix @ (matrix.mT @ torch.linalg.qr(block).Q)
    basis = torch.linalg.qr(block).Q
    inside = basis.mT @ matrix
    return basis @ torch.linalg.eigh(inside @ inside.mT).eigenvectors.flip(-1)[:, :rank]


def _gaussian(matrix: Tensor, columns: int, generator: torch.Generator) -> Tensor:
    """A Gaussian block to multiply ``matrix`` by."""
    size = (matrix.shape[1], min(columns, *matrix.shape))
    return torch.randn(size, generator=generator, device=matrix.device).to(matrix.dtype)  # float64 would take 6 times longer


def _padded(values: Tensor, length: int) -> Tensor:
    return torch.cat([values[:length], values.new_zeros(max(0, length - len(values)))])
