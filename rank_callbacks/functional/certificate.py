"""Neural rank collapse: what bounds the distance of a weight to rank K, and the rank that SGD with weight decay leaves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from rank_callbacks.functional.class_moments import ClassMoments

__all__ = [
    "RankCollapseCertificates",
    "alignment_bound",
    "class_mean_alignment",
    "class_mean_alignments",
    "class_mean_gradient",
    "rank_collapse_certificates",
    "sgd_rank_bound",
]

# Rows of W, and the same of M.
_Pairs: TypeAlias = "Iterable[tuple[Tensor, ...]]"
# 512 KiB in float64.
_NUMBERS_AT_ONCE = 2**16
# Of Σ‖δ_i‖‖z_i‖, what mixed precision may round a gradient by.
_ROUNDING = 1e-2


class RankCollapseCertificates(NamedTuple):
    """Upper bounds of the Frobenius distance from W to rank K, each above the one before.

    Args:
        joint: ‖λW + M‖_F / λ.
        sharp: (‖C‖_F + ‖R‖_F) / λ.
        loose: (√(Σ‖δ_i − δ̄_k‖² · Σ‖z_i − z̄_k‖²) / S + ‖R‖_F) / λ.
        stationarity_residual: ‖R‖_F / ‖λW‖_F, 0 at a critical point. At 1 or above the bounds say nothing.

    Scalars, float64.
    """

    joint: Tensor
    sharp: Tensor
    loose: Tensor
    stationarity_residual: Tensor


def class_mean_gradient(inputs: ClassMoments, deltas: ClassMoments, steps: float) -> Tensor:
    """The part of a gradient that class means make: M = (1/S) Σ_k n_k δ̄_k z̄_kᵀ, of rank at most K.

    Args:
        inputs: Of the rows z_i that went into the layer in a window of training, by class.
        deltas: Of the gradients δ_i of its output, row by row the same, as autograd gives them: scaled by the loss's own mean.
        steps: How many gradients were averaged, S: optimizer steps, times processes.

    Returns:
        Shape ``(m, n)``, float64.

    Raises:
        ValueError: If the two do not have the same number of rows in each class.
    """
    return _mean_deltas(inputs, deltas, steps) @ inputs.means


def rank_collapse_certificates(
    weight: Tensor, gradient: Tensor, inputs: ClassMoments, deltas: ClassMoments, weight_decay: float, steps: float
) -> RankCollapseCertificates:
    """How far a weight can be from rank K, told from the spread within classes and the weight decay.

    Let G = (1/S) Σ_i δ_i z_iᵀ be the gradient of the loss without its penalty, M the part that class means make, C = G − M the
    part within classes and R = G + λW the residual of stationarity. Then λ(W − Z) = R − C with Z = −M/λ of rank at most K, so
    for any weight, loss, activation and optimizer

        distance ≤ ‖λW + M‖_F/λ ≤ (‖C‖_F + ‖R‖_F)/λ ≤ (√(Σ‖δ_i − δ̄_k‖² Σ‖z_i − z̄_k‖²)/S + ‖R‖_F)/λ.

    At a critical point R = 0, and what is left is a constant times the variability within classes, over the weight decay.
    (λ is the weight decay of PyTorch's optimizers: the penalty is (λ/2)‖W‖².)

    Args:
        weight: W, shape ``(m, n)``.
        gradient: G, shape ``(m, n)``, averaged over the same steps as the moments.
        inputs: As in ``class_mean_gradient``.
        deltas: Likewise.
        weight_decay: λ.
        steps: S.

    Returns:
        Three bounds and the residual. All infinite for λ = 0; NaN where something is not finite. ``loose`` is NaN where
        ‖C‖_F exceeds its bound: then the gradient is not made of these rows alone.

    Raises:
        ValueError: If ``weight_decay`` is negative, or the moments do not fit one another.

    Reference:
        Provable emergence of deep neural collapse and low-rank bias (Zangrando et al., 2026), https://arxiv.org/abs/2402.03991
    """
    if weight_decay < 0:
        raise ValueError(f"Expected weight_decay from 0, got {weight_decay}.")
    weighted = _mean_deltas(inputs, deltas, steps)
    squares = weighted.new_zeros(4)
    for wide, slope, some in _row_parts(weight, gradient, weighted):
        penalty, mean = weight_decay * wide, some @ inputs.means  # all of M would take twice the memory of W
        parts = (slope - mean, slope + penalty, penalty + mean, wide)
        squares += torch.stack([part.flatten().dot(part.flatten()) for part in parts])
    within, residual, joint, norm = squares.sqrt()
    most_within = (inputs.variations.sum() * deltas.variations.sum()).sqrt() / steps
    rounding = _ROUNDING * (_energy(inputs) * _energy(deltas)).sqrt() / steps
    most_within = torch.where(within <= most_within + rounding, torch.maximum(most_within, within), torch.nan)
    times_decay = torch.stack([joint, within + residual, most_within + residual, residual / norm])
    if not weight_decay:
        times_decay += torch.inf  # a gradient of 0 bounds nothing either
    return RankCollapseCertificates(*(times_decay / weight_decay))


def class_mean_alignment(weight: Tensor, means: Tensor) -> Tensor:
    """How much a weight is a multiple of the part of its gradient that class means make: −⟨W, M⟩ / (‖W‖_F ‖M‖_F).

    In [−1, 1]; 1 is neural rank collapse. Needs no weight decay. NaN where either is zero.

    Args:
        weight: W, shape ``(m, n)``.
        means: M, of ``class_mean_gradient``.
    """
    return _alignments(weight, means)[0]


def alignment_bound(weight: Tensor, means: Tensor) -> Tensor:
    """Upper bound of the Frobenius distance from W to rank K: the distance to the nearest multiple of M.

    min_c ‖W − cM‖_F = ‖W‖_F √(1 − a²), a the class-mean alignment. Holds for any optimizer, also without weight decay. ‖W‖_F
    where M is zero; NaN where something is not finite.

    Args:
        weight: W, shape ``(m, n)``.
        means: M, of ``class_mean_gradient``.
    """
    return _alignments(weight, means)[1]


def class_mean_alignments(weight: Tensor, inputs: ClassMoments, deltas: ClassMoments, steps: float) -> tuple[Tensor, Tensor]:
    """``class_mean_alignment`` and ``alignment_bound`` of a weight and M, of which but a few rows are there at a time.

    Args:
        weight: W, shape ``(m, n)``.
        inputs: As in ``class_mean_gradient``.
        deltas: Likewise.
        steps: S.

    Raises:
        ValueError: As ``class_mean_gradient``.
    """
    return _alignments(weight, _mean_deltas(inputs, deltas, steps), inputs.means)


def _alignments(weight: Tensor, left: Tensor, right: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Both of W and M, which is ``left``, or ``left @ right`` of two: each in units in which squares do not vanish."""
    unit, left_unit = _unit(weight), _unit(left)
    factor = None if right is None else right / _unit(right)

    def parts() -> _Pairs:
        for wide, some in _row_parts(weight, left):
            mean = some / left_unit
            yield wide / unit, mean if factor is None else mean @ factor

    product, norm, square = _products(parts())
    return -product / ((norm * square).sqrt()), unit * _distance_to_multiple(parts(), product, square)


def _unit(matrix: Tensor) -> Tensor:
    """The size of the largest entry; 1 for zeros."""
    largest = torch.linalg.vector_norm(matrix.detach(), math.inf).double() if matrix.numel() else torch.zeros(())
    return torch.where(largest > 0, largest, 1.0)


def _distance_to_multiple(parts: _Pairs, product: Tensor, square: Tensor) -> Tensor:
    """min_c ‖W − cM‖_F, given ⟨W, M⟩ and ‖M‖²."""
    multiple = torch.where(square > 0, product / square, 0)
    return torch.stack([torch.linalg.matrix_norm(wide - multiple * mean) for wide, mean in parts]).norm()


def _mean_deltas(inputs: ClassMoments, deltas: ClassMoments, steps: float) -> Tensor:
    """n_k δ̄_k/S in the columns, shape ``(m, K)``: what times the z̄_k is M."""
    if not torch.equal(inputs.counts, deltas.counts):
        raise ValueError("Expected as many inputs as output gradients in each class, got different numbers.")
    return (deltas.means * (inputs.counts / steps)[:, None]).mT


def _products(parts: _Pairs) -> Tensor:
    """⟨W, M⟩, ‖W‖² and ‖M‖²."""
    pairs = ((wide.flatten(), mean.flatten()) for wide, mean in parts)
    return torch.stack([torch.stack([one.dot(two), one.dot(one), two.dot(two)]) for one, two in pairs]).sum(0)


def _row_parts(*matrices: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of all matrices, in float64, as many at once as stay in a core's cache."""
    rows = max(1, _NUMBERS_AT_ONCE // max(1, matrices[0].shape[1]))
    for parts in zip(*(matrix.detach().split(rows) for matrix in matrices), strict=True):
        yield tuple(part.double() for part in parts)


def _energy(moments: ClassMoments) -> Tensor:
    """Σ_i ‖z_i‖²."""
    return moments.variations.sum() + moments.counts @ moments.means.square().sum(1)


def sgd_rank_bound(
    shape: tuple[int, int], rows: float, learning_rate: float, weight_decay: float, epsilon: float = 1e-3
) -> float:
    """The rank that SGD with weight decay leaves in a weight, up to a relative distance of ε.

    min(m·B·ln(2/ε) / (lr·wd), the smaller side), m how often the layer is applied to a sample and B the batch. For SGD without
    momentum at a constant learning rate, once ‖W_{t−1}‖/‖W_t‖ is near 1; in PyTorch's convention the penalty is (wd/2)‖W‖².

    Args:
        shape: Of the weight.
        rows: m·B, outer products in the gradient of one step.
        learning_rate: lr.
        weight_decay: wd.
        epsilon: ε, in (0, 2): distance of W/‖W‖_F to that rank.

    Returns:
        The bound; NaN where lr or wd is 0.

    Raises:
        ValueError: If ``epsilon`` is not in (0, 2), or another argument is negative.

    Example:
        >>> round(sgd_rank_bound((10_000, 10_000), rows=6, learning_rate=0.1, weight_decay=8e-3, epsilon=0.6))
        9030

    Reference:
        SGD with weight decay secretly minimizes the ranks of your neural networks (Galanti et al., 2025),
        https://arxiv.org/abs/2206.05794
    """
    if not 0 < epsilon < 2 or min(rows, learning_rate, weight_decay) < 0:
        raise ValueError(
            f"Expected epsilon in (0, 2) and rows, learning_rate and weight_decay from 0, got {epsilon}, {rows}, "
            f"{learning_rate} and {weight_decay}."
        )
    if learning_rate * weight_decay == 0:
        return math.nan
    return min(rows * math.log(2 / epsilon) / (learning_rate * weight_decay), *shape)
