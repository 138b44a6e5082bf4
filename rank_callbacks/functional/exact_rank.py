"""The exact rank of a matrix of floating-point numbers: its rank at the tolerance of its own rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from rank_callbacks.functional.rank import numerical_rank, rounding_noise, rounding_rtol
from rank_callbacks.functional.spectrum import lower_gram, roots_of_eigenvalues, singular_values

__all__ = ["exact_rank", "rank_from_gram"]

# Of λ₁, which sets the tolerance: some per cent are enough.
_POWER_ITERATIONS = 4


def exact_rank(matrix: Tensor) -> int:
    """Rank at the tolerance n·ε, or at the rounding noise of the matrix's type where that is larger.

    NumPy's max(m, n)·ε would grow with the number of rows, and of 50,000 hide what their sum of outer products still shows.

    Args:
        matrix: Shape ``(m, n)``, any real floating type.

    Returns:
        The rank; min(m, n) for a matrix that is not finite, of which no less is known.

    Example:
        >>> exact_rank(torch.outer(torch.arange(5.0), torch.ones(9)))
        1
    """
    if matrix.numel() == 0:
        return 0
    if matrix.dtype == torch.float64:  # squares would lose half of its digits
        rank = numerical_rank(singular_values(matrix), _rtol(matrix))
        return min(matrix.shape) if rank.isnan() else int(rank)
    return rank_from_gram(lower_gram(matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT), matrix)


def rank_from_gram(gram: Tensor, matrix: Tensor) -> int:
    """Exact rank of a matrix whose smaller Gram matrix is ``gram``, by Sylvester's law of inertia.

    As many singular values are above τ as the factorisation LDLᵀ of ``gram`` − τ²·1 has positive pivots: four times faster
    than eigenvalues, and as exact.

    Args:
        gram: Shape ``(r, r)``, float64, of which the lower triangle is read.
        matrix: The matrix, whose shape and type set the tolerance.

    Returns:
        The rank; r where ``gram`` is not finite.
    """
    if len(gram) == 0 or not gram.trace().isfinite():
        return len(gram)
    tolerance = _rtol(matrix) ** 2 * _largest_eigenvalue(gram)
    if matrix.dtype.itemsize <= 2:  # the tolerance of wider types covers their noise anyway
        tolerance = torch.maximum(tolerance, rounding_noise(matrix).square())
    if gram.device.type != "cpu":
        return int((roots_of_eigenvalues(gram).square() > tolerance).sum())
    shifted = gram - tolerance * torch.eye(len(gram), dtype=gram.dtype)
    factors, pivots, _ = torch.linalg.ldl_factor_ex(shifted)
    # A negative pivot marks one of two rows whose block has one positive and one negative eigenvalue.
    return int(((factors.diagonal() > 0) & (pivots > 0)).sum() + (pivots < 0).sum() // 2)


def _rtol(matrix: Tensor) -> float:
    return rounding_rtol((1, matrix.shape[1]), matrix.dtype)


def _largest_eigenvalue(gram: Tensor) -> Tensor:
    """From below, by power iteration from the largest column."""
    whole = gram.tril() + gram.tril(-1).mT
    vector = whole[:, whole.diagonal().argmax()]
    for _ in range(_POWER_ITERATIONS):
        vector = whole @ (vector / torch.linalg.vector_norm(vector).clamp_min(torch.finfo(torch.float64).tiny))
    return torch.linalg.vector_norm(vector)
