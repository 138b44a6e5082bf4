"""Mean and scatter of features, batch by batch and without loss of digits, and the spectrum that they hold."""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from rank_callbacks.functional.spectrum import lower_gram, roots_of_eigenvalues, singular_values

__all__ = [
    "SecondMoments",
    "feature_singular_values",
    "merged_second_moments",
    "moment_singular_values",
    "no_second_moments",
    "packed_second_moments",
    "second_moments",
    "unpacked_second_moments",
]

# Rows are taken in parts of so many: their float64 copy stays in the cache.
_ROWS_AT_ONCE = 2048


class SecondMoments(NamedTuple):
    """What measures of rank need to know of features: enough for the singular values of the N x D matrix of all of them.

    Args:
        count: Number of rows, N; a scalar.
        mean: Mean feature h̄; shape ``(D,)``. Zero without rows.
        scatter: Σ (h_i − h̄)(h_i − h̄)ᵀ; shape ``(D, D)``. Symmetric, so only its lower triangle is filled: what stands above
            the diagonal is not to be read.

    All float64. Features of type float64 beyond 1e±150 over- or underflow in the scatter; narrower types cannot.
    """

    count: Tensor  # type: ignore[assignment]  # hides tuple.count
    mean: Tensor
    scatter: Tensor


def second_moments(features: Tensor) -> SecondMoments:
    """The moments of a batch of features.

    N·D² operations in float64, as only the lower blocks of the scatter are multiplied. Products in float32 would take two
    thirds of the time and hide singular values below 1e-4 of the largest.

    Args:
        features: Shape ``(*, D)``, any real type; ``*`` are N rows.

    Returns:
        The moments. Features that are not finite leave NaN in the scatter.

    Example:
        >>> count, mean, scatter = second_moments(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        >>> mean, scatter
        (tensor([2., 5.], dtype=torch.float64), tensor([[2., 0.],
                [0., 0.]], dtype=torch.float64))
    """
    rows = features.detach().reshape(-1, features.shape[-1])
    if len(rows) == 0:
        return no_second_moments(rows.shape[1], rows.device)
    mean = _mean(rows)
    # Narrower types are widened as they are centred.
    parts = (lower_gram(part - mean) for part in rows.split(_ROWS_AT_ONCE))
    return SecondMoments(mean.new_tensor(len(rows)), mean, reduce(Tensor.add_, parts))


def no_second_moments(num_features: int, device: torch.device | None = None) -> SecondMoments:
    """The moments of no rows."""
    mean = torch.zeros(num_features, dtype=torch.float64, device=device)
    return SecondMoments(mean.new_zeros(()), mean, mean.new_zeros(num_features, num_features))


def merged_second_moments(one: SecondMoments, other: SecondMoments) -> SecondMoments:
    """The moments of the union of two sets of rows. Exact but for rounding: every term that is added is positive.

    Reference:
        Algorithms for computing the sample variance (Chan, Golub and LeVeque, 1983),
        https://doi.org/10.1080/00031305.1983.10483115
    """
    total = one.count + other.count
    share = other.count / total.clamp_min(1)
    apart = other.mean - one.mean
    step = apart * (one.count * share).sqrt()
    return SecondMoments(total, one.mean + share * apart, (one.scatter + other.scatter).addr_(step, step))


def packed_second_moments(moments: SecondMoments) -> Tensor:
    """Moments as one vector: what processes and metrics exchange.

    Returns:
        Shape ``(1 + D + D²,)``, float64.
    """
    return torch.cat([part.flatten() for part in moments])


def unpacked_second_moments(vector: Tensor, num_features: int) -> SecondMoments:
    """The moments that ``packed_second_moments`` made a vector of."""
    count, mean, scatter = vector.split([1, num_features, num_features**2])
    return SecondMoments(count.squeeze(0), mean, scatter.view(num_features, num_features))


def moment_singular_values(moments: SecondMoments, centered: bool = False) -> Tensor:
    """Singular values of the N x D matrix of features that the moments are of, √λ of Σ h_i h_iᵀ or of the scatter.

    A value below about 1e-7 of the largest cannot be told from 0 and is 0: see ``singular_values``, method ``gram``.

    Args:
        moments: Of N rows of D features.
        centered: Whether the mean feature is subtracted from every row.

    Returns:
        Shape ``(D,)``, float64, descending, zeros beyond rank: more than the min(N, D) of a matrix of few rows, which shows in
        ``rankme`` and ``condition_number``. NaN throughout without rows, for centred ones with fewer than two, and where
        features are not finite.

    Example:
        >>> moments = second_moments(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        >>> moment_singular_values(moments, centered=True)
        tensor([1.4142, 0.0000], dtype=torch.float64)
    """
    gram = moments.scatter if centered else moments.scatter.addr(moments.mean, moments.count * moments.mean)
    return torch.where(moments.count > int(centered), roots_of_eigenvalues(gram), torch.nan)


def feature_singular_values(features: Tensor, centered: bool = False) -> Tensor:
    """Singular values of a matrix of features that are all at hand, from the Gram matrix of its smaller side.

    As ``moment_singular_values`` of its moments, to 1e-10 of the leading values, but with more features than rows it costs
    N²·D operations instead of N·D².

    Args:
        features: Shape ``(*, D)``, any real type; ``*`` are N rows.
        centered: Whether the mean feature is subtracted from every row, in float64.

    Returns:
        Shape ``(min(N, D),)``, float64, descending. NaN throughout where features are not finite, and for one centred row;
        empty without rows.

    Example:
        >>> feature_singular_values(torch.tensor([[1.0, 5.0, 0.0], [3.0, 5.0, 0.0]]), centered=True)
        tensor([1.4142, 0.0000], dtype=torch.float64)
    """
    rows = features.detach().reshape(-1, features.shape[-1])
    if not centered:
        return singular_values(rows if rows.is_floating_point() else rows.double(), method="gram")
    if len(rows) < 2:
        return torch.full((min(rows.shape),), torch.nan, dtype=torch.float64, device=rows.device)
    return singular_values(rows - _mean(rows), method="gram")


def _mean(rows: Tensor) -> Tensor:
    """In float64; where all rows are alike the row itself, to the last digit, so that nothing is left of them centred."""
    origin = rows[:1].double()
    sums = (torch.sub(part, origin).sum(0) for part in rows.split(_ROWS_AT_ONCE))
    return origin[0] + reduce(Tensor.add_, sums) / len(rows)
