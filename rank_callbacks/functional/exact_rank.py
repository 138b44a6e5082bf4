"""The exact rank of a matrix of floating-point numbers: its rank at the tolerance of its own rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from rank_callbacks.functional.rank import numerical_rank, rounding_noise, rounding_rtol
from rank_callbacks.functional.spectrum import lower_gram, roots_of_eigenvalues, singular_values

__all__ = ["exact_rank", "factor_tolerances", "rank_from_gram"]

# Of λ₁, which sets the tolerance: some per cent are enough.
_POWER_ITERATIONS = 4


def exact_rank(matrix: Tensor, tolerance: Tensor | None = None) -> int:
    """Rank at the tolerance n·ε, or at the rounding noise of the matrix's type where that is larger.

    NumPy's max(m, n)·ε would grow with the number of rows, and of 50,000 hide what their sum of outer products still shows.

    Args:
        matrix: Shape ``(m, n)``, any real floating type.
        tolerance: What a singular value must exceed to count, such as ``factor_tolerances`` gives, instead.

    Returns:
        The rank; min(m, n) for a matrix that is not finite, of which no less is known.

    Example:
        >>> exact_rank(torch.outer(torch.arange(5.0), torch.ones(9)))
        1
    """
    if matrix.numel() == 0:
        return 0
    if matrix.dtype == torch.float64:  # squares would lose half of its digits
        rtol, floor = (_rtol(matrix), 0.0) if tolerance is None else (0.0, tolerance)
        rank = numerical_rank(singular_values(matrix), rtol, floor)
        return min(matrix.shape) if rank.isnan() else int(rank)
    return rank_from_gram(lower_gram(matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT), matrix, tolerance)


def factor_tolerances(deltas: Tensor, inputs: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """What a singular value of Δ, and one of X, must exceed to show in the rank of the gradient G = ΔᵀX.

    Rank counts in G above τ = max(m, n)·ε·σ₁(G). By Weyl's inequality σ_{k+1}(G) ≤ ‖Δ‖₂·σ_{k+1}(X), so at most as many of
    G's exceed τ as of X's exceed τ/‖Δ‖₂. Relative to σ₁(X) that is less than max(m, n)·ε wherever Δᵀ cancels the leading
    direction of X, as the gradients of a batch do that sum to zero. Norms are bounded on the safe side: ‖Δ‖_F above ‖Δ‖₂, and
    a few power iterations below σ₁(G).

    Args:
        deltas: Output gradients Δ of shape ``(b, m)``.
        inputs: Inputs X of shape ``(b, n)``.

    Returns:
        The tolerances of Δ and of X. None for types narrower than float32, whose own rounding noise lies above them, and for
        float64, in which all that training resolves lies above the tolerance of ``exact_rank``.
    """
    if {deltas.dtype, inputs.dtype} != {torch.float32} or len(deltas) == 0:
        return None, None
    norm_of_deltas, norm_of_inputs = (torch.linalg.vector_norm(factor).double() for factor in (deltas, inputs))
    if not (norm_of_deltas * norm_of_inputs).isfinite() or norm_of_deltas == 0 or norm_of_inputs == 0:
        return None, None
    least = rounding_rtol((deltas.shape[1], inputs.shape[1]), deltas.dtype) * _spectral_norm_of_product(deltas, inputs)
    return least / norm_of_inputs, least / norm_of_deltas


def _spectral_norm_of_product(left: Tensor, right: Tensor, iterations: int = 2) -> Tensor:
    """‖LᵀR‖₂ from below, by power iteration."""
    vector = torch.randn(right.shape[1], generator=torch.Generator(right.device).manual_seed(0), device=right.device)
    for _ in range(iterations):
        vector = _unit(right.mT @ (left @ _unit(left.mT @ (right @ vector))))
    return torch.linalg.vector_norm((left.mT @ (right @ _unit(vector))).double())


def _unit(vector: Tensor) -> Tensor:
    wide = vector.double()
    return (wide / torch.linalg.vector_norm(wide).clamp_min(torch.finfo(torch.float64).tiny)).to(vector.dtype)


def rank_from_gram(gram: Tensor, matrix: Tensor, tolerance: Tensor | None = None) -> int:
    """Exact rank of a matrix whose smaller Gram matrix is ``gram``, by Sylvester's law of inertia.

    As many singular values are above τ as the factorisation LDLᵀ of ``gram`` − τ²·1 has positive pivots: four times faster
    than eigenvalues, and as exact.

    Args:
        gram: Shape ``(r, r)``, float64, of which the lower triangle is read.
        matrix: The matrix, whose shape and type set the tolerance.
        tolerance: The tolerance instead.

    Returns:
        The rank; r where ``gram`` is not finite.
    """
    if len(gram) == 0 or not gram.trace().isfinite():
        return len(gram)
    least = _default_square(gram, matrix) if tolerance is None else tolerance.square()
    if gram.device.type != "cpu":
        return int((roots_of_eigenvalues(gram).square() > least).sum())
    shifted = gram - least * torch.eye(len(gram), dtype=gram.dtype)
    factors, pivots, _ = torch.linalg.ldl_factor_ex(shifted)
    # A negative pivot marks one of two rows whose block has one positive and one negative eigenvalue.
    return int(((factors.diagonal() > 0) & (pivots > 0)).sum() + (pivots < 0).sum() // 2)


def _default_square(gram: Tensor, matrix: Tensor) -> Tensor:
    square = _rtol(matrix) ** 2 * _largest_eigenvalue(gram)
    if matrix.dtype.itemsize > 2:  # the tolerance of wider types covers their noise anyway
        return square
    return torch.maximum(square, rounding_noise(matrix).square())


def _rtol(matrix: Tensor) -> float:
    return rounding_rtol((1, matrix.shape[1]), matrix.dtype)


def _largest_eigenvalue(gram: Tensor) -> Tensor:
    """From below, by power iteration from the largest column."""
    whole = gram.tril() + gram.tril(-1).mT
    vector = whole[:, whole.diagonal().argmax()]
    for _ in range(_POWER_ITERATIONS):
        vector = whole @ (vector / torch.linalg.vector_norm(vector).clamp_min(torch.finfo(torch.float64).tiny))
    return torch.linalg.vector_norm(vector)
