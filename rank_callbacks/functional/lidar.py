"""LiDAR: the rank of what tells objects apart, against what their views have in common with those of others."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rank_callbacks.functional.second_moments import (
    SecondMoments,
    merged_second_moments,
    no_second_moments,
    packed_second_moments,
    second_moments,
    unpacked_second_moments,
)
from rank_callbacks.functional.spectrum import lower_gram

__all__ = [
    "ViewMoments",
    "check_lidar",
    "lidar",
    "merged_view_moments",
    "moment_lidar",
    "no_view_moments",
    "packed_view_moments",
    "unpacked_view_moments",
    "view_moments",
]

# Squared relative error of a mean in float64, with a margin of 4.
_ROUNDING = 1e-30
# Of its trace, what rounding may leave of an eigenvalue of Σ_w that is 0.
_DROWNED = 1e-12


class ViewMoments(NamedTuple):
    """What LiDAR needs to know of the features of several views of each of many objects.

    Args:
        objects: The moments of the objects' mean features.
        freedom: Number of views less one, summed over objects; a scalar.
        within: Σ (h − h̄_object)(h − h̄_object)ᵀ over all views; shape ``(D, D)``. Only its lower triangle is filled.

    All float64.
    """

    objects: SecondMoments
    freedom: Tensor
    within: Tensor


def lidar(views: Tensor, delta: float = 1e-4, epsilon: float = 1e-8) -> Tensor:
    """LiDAR, the effective rank of the linear discriminant problem that tells objects apart by their views.

    exp(−Σ p ln p) with p_i = (λ_i + epsilon) / Σ_j (λ_j + epsilon), λ the D eigenvalues of Σ_w^−½ Σ_b Σ_w^−½. Σ_b is the
    covariance of the n objects' mean features, with n − 1; Σ_w that of views about the mean of their object, with n (q − 1),
    plus delta·I. Constants and p are those of stable-pretraining; reptrix has a delta of 1e-6. The delta is absolute: scale
    the features, and the reading changes.

    Between 1 and D. Without epsilon at most n − 1; with it features that have collapsed until the λ are no larger than epsilon
    read as much as D. 0 where all objects have the same mean but for rounding. NaN with fewer than two objects or views, and
    with features that are not finite.

    Args:
        views: Shape ``(n, q, D)``, any real type: q views, augmentations of one sample, of each of n objects.
        delta: What is added to the diagonal of Σ_w, above 0.
        epsilon: What is added to every eigenvalue, from 0.

    Returns:
        A scalar, float64.

    Raises:
        ValueError: If ``views`` has another number of dimensions, ``delta`` is not above 0 or ``epsilon`` below it.

    Example:
        >>> centers = torch.tensor([[[4.0, 0.0]], [[-4.0, 0.0]], [[0.0, 4.0]], [[0.0, -4.0]]])
        >>> lidar(centers + torch.tensor([[0.5, 0.5], [-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5]]))
        tensor(2., dtype=torch.float64)

    Reference:
        LiDAR: sensing linear probing performance in joint embedding SSL architectures (Thilak et al., 2023),
        https://arxiv.org/abs/2312.04000
    """
    return moment_lidar(view_moments(views), delta, epsilon)


def moment_lidar(moments: ViewMoments, delta: float = 1e-4, epsilon: float = 1e-8) -> Tensor:
    """LiDAR of the views that the moments are of: see ``lidar``.

    Raises:
        ValueError: If ``delta`` is not above 0 or ``epsilon`` below it.
    """
    check_lidar(delta, epsilon)
    objects, freedom, within = moments
    between = _symmetric(objects.scatter) / (objects.count - 1)
    within = _symmetric(within) / freedom
    if not (objects.count >= 2) & between.isfinite().all() & within.isfinite().all():
        return between.new_tensor(torch.nan)
    values = _discriminant_values(between, within, delta) + epsilon
    share = values / values.sum()
    apart = between.trace() > _ROUNDING * (objects.mean.square().sum() + within.trace())
    return torch.where(apart, torch.special.entr(share).sum().exp(), 0.0)


def view_moments(views: Tensor) -> ViewMoments:
    """The moments of a batch of objects, each with all its views.

    Args:
        views: Shape ``(n, q, D)``, any real type.

    Raises:
        ValueError: If ``views`` has another number of dimensions.
    """
    if views.dim() != 3:
        raise ValueError(f"Expected views of shape (objects, views, features), got {tuple(views.shape)}.")
    objects, number, width = views.shape
    if views.numel() == 0:
        return no_view_moments(width, views.device)
    views = views.detach()
    means = views.mean(1, dtype=torch.float64)
    within = lower_gram((views - means[:, None]).flatten(0, 1))
    return ViewMoments(second_moments(means), means.new_tensor(objects * (number - 1)), within)


def no_view_moments(num_features: int, device: torch.device | None = None) -> ViewMoments:
    """The moments of no objects."""
    objects = no_second_moments(num_features, device)
    return ViewMoments(objects, objects.count, objects.scatter)


def merged_view_moments(one: ViewMoments, other: ViewMoments) -> ViewMoments:
    """The moments of the union of two sets of objects. Exact but for rounding: see ``merged_second_moments``."""
    objects = merged_second_moments(one.objects, other.objects)
    return ViewMoments(objects, one.freedom + other.freedom, one.within + other.within)


def packed_view_moments(moments: ViewMoments) -> Tensor:
    """Moments as one vector: what processes and metrics exchange.

    Returns:
        Shape ``(2 + D + 2·D²,)``, float64.
    """
    return torch.cat([packed_second_moments(moments.objects), moments.freedom[None], moments.within.flatten()])


def unpacked_view_moments(vector: Tensor, num_features: int) -> ViewMoments:
    """The moments that ``packed_view_moments`` made a vector of."""
    square = num_features**2
    objects, freedom, within = vector.split([1 + num_features + square, 1, square])
    moments = unpacked_second_moments(objects, num_features)
    return ViewMoments(moments, freedom.squeeze(0), within.view(num_features, num_features))


def check_lidar(delta: float, epsilon: float) -> None:
    """Refuse constants with which LiDAR is not defined.

    Raises:
        ValueError: If ``delta`` is not above 0 or ``epsilon`` below it.
    """
    if not (delta > 0 and epsilon >= 0):
        raise ValueError(f"Expected delta to be above 0 and epsilon from 0, got delta={delta} and epsilon={epsilon}.")


def _discriminant_values(between: Tensor, within: Tensor, delta: float) -> Tensor:
    """Eigenvalues of (within + delta)^−½ · between · (within + delta)^−½, none below 0."""
    if delta < _DROWNED * within.trace():
        squares, vectors = torch.linalg.eigh(within)
        hidden = squares <= len(squares) * torch.finfo(squares.dtype).eps * squares[-1]
        root = vectors * (squares.masked_fill(hidden, 0) + delta).rsqrt()
        return torch.linalg.eigvalsh(root.mT @ between @ root).clamp_min(0)
    factor = torch.linalg.cholesky(within + delta * torch.eye(len(within), dtype=within.dtype, device=within.device))
    # L⁻¹ B L⁻ᵀ has the same eigenvalues, and needs no roots of within.
    half = torch.linalg.solve_triangular(factor, between, upper=False)
    whitened = torch.linalg.solve_triangular(factor, half.mT, upper=False)
    return torch.linalg.eigvalsh(whitened).clamp_min(0)


def _symmetric(lower: Tensor) -> Tensor:
    return lower.tril() + lower.tril(-1).mT
