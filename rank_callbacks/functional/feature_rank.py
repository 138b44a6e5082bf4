"""Measures of the rank of features that ask for more than a spectrum, or for the spectrum of centred features."""

from __future__ import annotations

import torch
from torch import Tensor

from rank_callbacks.functional.rank import energy_rank, relative_to_largest

__all__ = ["alpha_req", "check_alpha_req", "corrected_participation_ratio", "saturation"]

# Fewer points do not make a line: as for ``alpha``.
_FEWEST_POINTS = 10
# Of tr S², what rounding leaves of a difference that is 0: features of float32 in a simplex leave 1e-14.
_ROUNDING = 1e-12


def alpha_req(singular_values: Tensor, first: int = 11, last: int = 100) -> Tensor:
    """α-ReQ, the exponent α of the decay of the spectrum of the covariance, λ_i ∝ i^−α.

    Weighted least squares of ln λ_i on −ln i with intercept, λ = σ², over i from ``first`` to ``last``, counted from 1, with
    weights 1/i: the constants of reptrix and of Stringer's estimator. Near 1 the features are said to transfer best; above,
    few directions dominate, below, the spectrum is flat. Values that are zero have no logarithm and are left out. NaN with
    fewer than 10 that are not, so for layers narrower than ``first`` + 9, and where a singular value is not finite.

    Args:
        singular_values: Shape ``(..., r)``, descending: those of centred features.
        first: First index of the fit, from 1.
        last: Last index of the fit, at least ``first`` + 9; r where that is less.

    Returns:
        Shape ``(...)``, float64.

    Raises:
        ValueError: If ``first`` is below 1, or ``last`` leaves fewer than 10 indices.

    Example:
        >>> alpha_req(torch.arange(1, 201).double().pow(-0.5))
        tensor(1.0000, dtype=torch.float64)

    Reference:
        α-ReQ: assessing representation quality in self-supervised learning by measuring eigenspectrum decay
        (Agrawal et al., 2022),
        https://proceedings.neurips.cc/paper_files/paper/2022/hash/70596d70542c51c8d9b4e423f4bf2736-Abstract-Conference.html
    """
    check_alpha_req(first, last)
    fitted = singular_values[..., first - 1 : last].double()
    place = torch.arange(first, first + fitted.shape[-1], dtype=torch.float64, device=fitted.device)
    slope = _weighted_slope(-place.log(), 2 * fitted.log(), torch.where(fitted > 0, 1 / place, 0))
    sound = ((fitted > 0).sum(-1) >= _FEWEST_POINTS) & singular_values.isfinite().all(-1)
    return torch.where(sound, slope, torch.nan)


def saturation(singular_values: Tensor, num_features: int, energy: float = 0.99) -> Tensor:
    """Share of the dimensions of a layer that its features fill, as delve counts them.

    k / D, k = #{j : Σ_{i≤j} σ² < energy·Σσ²}, at least 1. That is one less than ``energy_rank``: 1 for (.98, .02), 9 for ten
    equal values. delve's code also means to count at least one, and one more where those hold less than energy − .02, but cuts
    a tensor that it has cut before, so that neither happens: rank one reads 0 there and 1/D here. All else agrees. 0 for a
    zero or empty spectrum, NaN where a singular value is not finite.

    Args:
        singular_values: Shape ``(..., r)``, descending: those of centred features.
        num_features: D, the width of the layer, from 1.
        energy: The share of variance, in (0, 1].

    Returns:
        Shape ``(...)``, float64, in [0, 1].

    Raises:
        ValueError: If ``num_features`` is below 1 or ``energy`` not in (0, 1].

    Example:
        >>> saturation(torch.tensor([3.0, 1.0, 1.0, 0.0]), num_features=4)
        tensor(0.5000, dtype=torch.float64)

    Reference:
        Feature space saturation during training (Richter et al., 2020), https://arxiv.org/abs/2006.08679
    """
    if num_features < 1:
        raise ValueError(f"Expected num_features to be a whole number from 1, got {num_features}.")
    count = energy_rank(singular_values, energy)
    return torch.where(count > 1, count - 1, count) / num_features


def corrected_participation_ratio(singular_values: Tensor, num_samples: int | Tensor) -> Tensor:
    """Participation ratio of the covariance that the features were drawn from, freed of the bias of few samples.

    With S = Σ (h_i − h̄)(h_i − h̄)ᵀ / ν, ν = N − 1, and Σ the true covariance, for Gaussian features

        E[tr S²] = (1 + 1/ν) tr Σ² + (tr Σ)² / ν  and  E[(tr S)²] = (tr Σ)² + 2 tr Σ² / ν,

    so t = ν² (tr S² − (tr S)² / ν) / ((ν − 1)(ν + 2)) estimates tr Σ² and (tr S)² − 2t/ν estimates (tr Σ)², both without bias.
    Their quotient (tr S)² / t − 2/ν estimates (tr Σ)² / tr Σ². The plain ratio of isotropic features reads half of that with
    as many samples as features, and a fifth less with four times as many.

    At least 1, as for rank one. It scatters about the truth and can exceed D, which the plain ratio cannot. 0 for a zero or
    empty spectrum. NaN with fewer than 3 samples, where t is not positive since the samples are too few to tell, and where a
    singular value is not finite.

    Args:
        singular_values: Shape ``(..., r)``, descending: those of the N x D matrix of centred features.
        num_samples: N, one number or of shape ``(...)``.

    Returns:
        Shape ``(...)``, float64.

    Example:
        >>> corrected_participation_ratio(torch.tensor([3.0, 3.0, 0.0]), num_samples=9)
        tensor(2.6667, dtype=torch.float64)

    Reference:
        Some tests concerning the covariance matrix in high dimensional data (Srivastava, 2005),
        https://doi.org/10.14490/jjss.35.251
    """
    squares = relative_to_largest(singular_values).square()
    trace, square = squares.sum(-1), squares.square().sum(-1)
    freedom = torch.as_tensor(num_samples, dtype=torch.float64, device=squares.device) - 1
    excess = square - trace**2 / freedom
    corrected = freedom**2 / ((freedom - 1) * (freedom + 2)) * excess
    told = (freedom >= 2) & (excess > _ROUNDING * square)
    ratio = torch.where(told, trace**2 / corrected - 2 / freedom, torch.nan)
    return torch.where((trace == 0) & (freedom >= 2), 0.0, ratio)


def check_alpha_req(first: int, last: int) -> None:
    """Refuse a range of indices that no decay can be fitted to.

    Raises:
        ValueError: If ``first`` is below 1, or ``last`` leaves fewer than 10 indices.
    """
    if first < 1 or last < first + _FEWEST_POINTS - 1:
        raise ValueError(f"Expected first to be from 1 and last at least first + 9, got first={first} and last={last}.")


def _weighted_slope(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Slope of the weighted least-squares line; where a weight is 0, y may be infinite."""
    share = weights / weights.sum(-1, keepdim=True)
    y = torch.where(weights > 0, y, 0)
    x = x - (share * x).sum(-1, keepdim=True)
    return (share * x * y).sum(-1) / (share * x * x).sum(-1)
