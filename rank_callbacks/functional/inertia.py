"""Numerical rank without a spectrum: how many eigenvalues are positive, by Sylvester's law of inertia."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rank_callbacks.functional.matrix_norm import Total, itself, matrix_norm
from rank_callbacks.functional.spectrum import lower_gram, roots_of_eigenvalues, singular_values

__all__ = ["positive_eigenvalues", "rank_by_inertia"]

# Below this share of the norm a Gram matrix cannot tell a singular value of float64 from its own rounding.
_LEAST_OF_FLOAT64, _LEAST = 1e-5, 1e-6


def rank_by_inertia(matrix: Tensor, threshold: Tensor | float, *, total: Total | None = None) -> Tensor:
    """How many singular values stand above a threshold, #{σ > τ}: the positive eigenvalues of AᵀA − τ²·1.

    Those are counted from a factorisation LDLᵀ in float64, three to four times faster than a spectrum, and as exact: a
    singular value nearer to τ than 1e-15·σ₁²/τ may count or not. Thresholds below 1e-6·‖A‖_F, or 1e-5·‖A‖_F of float64, take
    a spectrum. In float32 two factorisations, a margin apart, would be needed for a proof, and cost as much.

    For the library's numerical rank τ is max(rtol·σ₁, noise). With a lower bound θ of σ₁ in its place, such as
    ``leading_spectrum`` gives, τ is too low by (1 − θ/σ₁)·τ: a singular value that lies between is counted too, so that the
    count is never too low, and too high only by such near ties.

    Args:
        matrix: Shape ``(m, n)``, any real floating type.
        threshold: τ, in the unit of the matrix, from 0.
        total: Sum of a tensor over all processes, if each has some of the rows: then 8·n² bytes are summed, of the columns'
            Gram matrix whatever the shape. To gather the rows is the smaller transfer where m < 4·n.

    Returns:
        A float64 scalar: a count, in a type that has a NaN. NaN where the matrix or the threshold is not finite.

    Raises:
        ValueError: If ``threshold`` is negative.

    Example:
        >>> rank_by_inertia(torch.diag(torch.tensor([3.0, 2.0, 1.0])), 1.5)
        tensor(2., dtype=torch.float64)

    Reference:
        Matrix computations, section 8.4 (Golub and Van Loan, 2013), https://doi.org/10.56021/9781421407944
    """
    level = float(threshold)
    if level < 0:
        raise ValueError(f"Expected threshold to be a number from 0, got {level}.")
    matrix = matrix.detach()
    size = float((total or itself)(matrix_norm(matrix)))
    if not (math.isfinite(size) and math.isfinite(level)):
        return torch.tensor(torch.nan, dtype=torch.float64, device=matrix.device)
    if size == 0 or level >= size:
        return torch.zeros((), dtype=torch.float64, device=matrix.device)
    if level < size * (_LEAST_OF_FLOAT64 if matrix.dtype == torch.float64 else _LEAST) and total is None:
        return (singular_values(matrix) > level).sum().double()
    tall = matrix if total is not None or matrix.shape[0] >= matrix.shape[1] else matrix.mT
    gram = (total or itself)(lower_gram(_safe(tall, size)))
    unit = size if tall.dtype == torch.float64 else 1.0
    if level < _LEAST * size:
        return (roots_of_eigenvalues(gram) > level / unit).sum().double()
    return positive_eigenvalues(gram, (level / unit) ** 2)


def positive_eigenvalues(symmetric: Tensor, shift: float = 0.0) -> Tensor:
    """How many eigenvalues of a symmetric matrix are above a number.

    Args:
        symmetric: Shape ``(n, n)``, float64, finite, of which the lower triangle is read.
        shift: The number.

    Returns:
        A float64 scalar.

    Example:
        >>> positive_eigenvalues(torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double())
        tensor(1., dtype=torch.float64)
    """
    if symmetric.device.type != "cpu":  # what says where the blocks of D are is LAPACK's own
        return (torch.linalg.eigvalsh(symmetric, UPLO="L") > shift).sum().double()
    shifted = symmetric.clone()
    shifted.diagonal().sub_(shift)
    factors, pivots, _ = torch.linalg.ldl_factor_ex(shifted)
    # A negative pivot marks one of two rows whose block has one positive and one negative eigenvalue.
    return ((factors.diagonal() > 0) & (pivots > 0)).sum().double() + (pivots < 0).sum().double() / 2


def _safe(tall: Tensor, size: float) -> Tensor:
    """Squares of float64 can over- and underflow; those of narrower types, in float64, cannot."""
    return tall / size if tall.dtype == torch.float64 else tall
