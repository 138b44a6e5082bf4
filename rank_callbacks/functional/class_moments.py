"""Class means and within-class scatter of labelled features, batch by batch and without loss of digits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rank_callbacks.functional.labels import LabelledRows, labelled_rows

__all__ = [
    "ClassMoments",
    "batch_moments",
    "check_classes",
    "class_moments",
    "contrast_basis",
    "merged_moments",
    "no_moments",
    "packed_moments",
    "unpacked_moments",
]

# Rows are taken in parts of so many numbers, 2 MiB in float64, which stay in a core's cache.
_NUMBERS_AT_ONCE = 2**18


class ClassMoments(NamedTuple):
    """What the measures of neural collapse need to know of labelled features.

    Args:
        counts: Number of samples in each class, n_k, or their weight; shape ``(K,)``.
        means: Class means h̄_k; shape ``(K, D)``. Zero for a class without samples.
        variations: Within-class variation Σ_{i∈k} ‖h_i − h̄_k‖² of each class; shape ``(K,)``.
        scatter: Within-class scatter Σ_k Σ_{i∈k} (h_i − h̄_k)(h_i − h̄_k)ᵀ in the coordinates of ``basis``; shape ``(q, q)``.
            None if not asked for.
        basis: Orthonormal columns, shape ``(D, q)``, whose span holds every difference of class means; None where the
            coordinates are those of the features, q = D.

    All float64.
    """

    counts: Tensor
    means: Tensor
    variations: Tensor
    scatter: Tensor | None = None
    basis: Tensor | None = None

    @property
    def seen(self) -> Tensor:
        """Which classes have samples; shape ``(K,)``."""
        return self.counts > 0


def class_moments(
    features: Tensor, labels: Tensor, num_classes: int, scatter: bool = False, ignore_index: int | None = None
) -> ClassMoments:
    """The moments of labelled features that are all at hand.

    N·D operations; with ``scatter`` 2·N·D·K more, since NC1 needs the scatter in the (K − 1)-dimensional space of class-mean
    contrasts alone, or 2·N·D² where there are fewer features than classes. No more memory than the moments themselves.

    Args:
        features: Shape ``(*, D)``, any real floating type; ``*`` are N rows.
        labels: Integers of shape ``(*,)``, or one-hot or soft labels of shape ``(*, K)``: see ``labelled_rows``.
        num_classes: K, from 2.
        scatter: Whether the within-class scatter is needed, as by the ``nc1_`` measures of matrices.
        ignore_index: A label that means none.

    Returns:
        The moments. NaN or infinite features leave NaN in them.

    Raises:
        ValueError: If ``num_classes`` is below 2, or the labels do not fit: see ``labelled_rows``.

    Example:
        >>> moments = class_moments(torch.tensor([[0.0, 1.0], [0.0, 3.0], [5.0, 5.0]]), torch.tensor([0, 0, 1]), num_classes=2)
        >>> moments.means, moments.variations
        (tensor([[0., 2.],
                [5., 5.]], dtype=torch.float64), tensor([2., 0.], dtype=torch.float64))
    """
    return _of_rows(features, labels, num_classes, ignore_index, scatter, features.shape[-1] >= num_classes)


def batch_moments(
    features: Tensor, labels: Tensor, num_classes: int, scatter: bool = False, ignore_index: int | None = None
) -> ClassMoments:
    """The moments of one batch of many, for ``merged_moments``: as ``class_moments``, but the scatter is D x D.

    Raises:
        ValueError: As ``class_moments``.
    """
    return _of_rows(features, labels, num_classes, ignore_index, scatter, in_contrasts=False)


def check_classes(num_classes: int) -> None:
    """Refuse a number of classes of which collapse means nothing.

    Raises:
        ValueError: If it is below 2 or not whole.
    """
    if num_classes < 2 or num_classes % 1:
        raise ValueError(f"Expected num_classes to be a whole number from 2, got {num_classes}.")


def no_moments(num_classes: int, num_features: int, scatter: bool, device: torch.device | None = None) -> ClassMoments:
    """The moments of no samples."""
    means = torch.zeros(num_classes, num_features, dtype=torch.float64, device=device)
    square = means.new_zeros(num_features, num_features) if scatter else None
    return ClassMoments(means.new_zeros(num_classes), means, means.new_zeros(num_classes), square)


def merged_moments(one: ClassMoments, other: ClassMoments) -> ClassMoments:
    """The moments of the union of two sets of samples. Exact but for rounding: every term that is added is positive.

    Both need scatters of all features, or the union has none.

    Reference:
        Algorithms for computing the sample variance (Chan, Golub and LeVeque, 1983),
        https://doi.org/10.1080/00031305.1983.10483115
    """
    # A batch may hold few of many classes.
    seen = other.seen.nonzero().flatten()
    before, added = one.counts[seen], other.counts[seen]
    share = added / (before + added)
    # Where a side has no samples its mean is no place to measure a distance from.
    apart = torch.where((before > 0)[:, None], other.means[seen] - one.means[seen], 0)
    means = torch.where((before > 0)[:, None], one.means[seen] + share[:, None] * apart, other.means[seen])
    pull = before * share
    variations = one.variations[seen] + other.variations[seen] + pull * apart.square().sum(1)
    union = ClassMoments(
        one.counts + other.counts, one.means.index_copy(0, seen, means), one.variations.index_copy(0, seen, variations)
    )
    if one.scatter is None or other.scatter is None or one.basis is not None or other.basis is not None:
        return union
    steps = apart * pull[:, None].sqrt()
    return union._replace(scatter=(one.scatter + other.scatter).addmm_(steps.mT, steps))


def packed_moments(moments: ClassMoments) -> Tensor:
    """Moments, with their scatter of all features if they have one, as one vector: what processes and metrics exchange.

    Returns:
        Shape ``(K·(D + 2),)``, and D² more with a scatter; float64.
    """
    parts = (moments.counts, moments.variations, moments.means, moments.scatter)
    return torch.cat([part.flatten() for part in parts if part is not None])


def unpacked_moments(vector: Tensor, num_classes: int, num_features: int) -> ClassMoments:
    """The moments that ``packed_moments`` made a vector of."""
    numbers = num_classes * num_features
    counts, variations, means, scatter = vector.tensor_split([num_classes, 2 * num_classes, 2 * num_classes + numbers])
    square = scatter.view(num_features, num_features) if len(scatter) else None
    return ClassMoments(counts, means.view(num_classes, num_features), variations, square)


def contrast_basis(means: Tensor) -> Tensor:
    """An orthonormal basis of the space in which vectors differ from one another.

    Args:
        means: Shape ``(k, D)``.

    Returns:
        Shape ``(D, min(D, k - 1))``, float64.
    """
    return torch.linalg.qr((means[1:] - means[:1]).mT).Q


def _of_rows(
    features: Tensor, labels: Tensor, num_classes: int, ignore_index: int | None, scatter: bool, in_contrasts: bool
) -> ClassMoments:
    check_classes(num_classes)
    rows = features.detach().reshape(-1, features.shape[-1])
    pairs = labelled_rows(labels, num_classes, len(rows), ignore_index)
    if len(pairs.classes) == 0:
        return no_moments(num_classes, rows.shape[1], scatter, rows.device)
    # A common mean, however large, costs no digits of what is measured from one of the rows.
    origin = pairs.of(rows, slice(1))[0].double()
    counts, offsets = _counts_and_offsets(rows, origin, pairs, num_classes)
    seen = counts > 0
    basis = contrast_basis(offsets[seen]) if scatter and in_contrasts else None
    variations, square = _variations(rows, origin, offsets, pairs, scatter, basis)
    return ClassMoments(counts, torch.where(seen[:, None], origin + offsets, 0), variations, square, basis)


def _counts_and_offsets(rows: Tensor, origin: Tensor, pairs: LabelledRows, num_classes: int) -> tuple[Tensor, Tensor]:
    """How many rows a class has, and how far its mean lies from ``origin``."""
    sums = torch.zeros(num_classes, rows.shape[1], dtype=torch.float64, device=rows.device)
    counts = sums.new_zeros(num_classes)
    for part in _parts(pairs, rows.shape[1]):
        shifted = _shifted(pairs.of(rows, part), origin)
        if pairs.weights is not None:
            shifted *= pairs.weights[part, None]
        sums.index_add_(0, pairs.classes[part], shifted)
    ones = sums.new_ones(len(pairs.classes))
    counts.index_add_(0, pairs.classes, ones if pairs.weights is None else pairs.weights)
    return counts, sums / counts.clamp_min(torch.finfo(torch.float64).tiny)[:, None]


def _shifted(rows: Tensor, origin: Tensor) -> Tensor:
    """A copy in float64, less the origin."""
    return rows.to(torch.float64, copy=True).sub_(origin)


def _variations(
    rows: Tensor, origin: Tensor, offsets: Tensor, pairs: LabelledRows, scatter: bool, basis: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Σ‖h − h̄_k‖² of each class, and the scatter in the coordinates of ``basis``."""
    width = offsets.shape[1] if basis is None else basis.shape[1]
    square = offsets.new_zeros(width, width) if scatter else None
    variations = offsets.new_zeros(len(offsets))
    for part in _parts(pairs, rows.shape[1]):
        centred = _shifted(pairs.of(rows, part), origin).sub_(offsets[pairs.classes[part]])
        if pairs.weights is not None:
            centred *= pairs.weights[part, None].sqrt()
        variations.index_add_(0, pairs.classes[part], torch.linalg.vector_norm(centred, dim=1).square())
        if square is not None:
            centred = centred if basis is None else centred @ basis
            square.addmm_(centred.mT, centred)
    return variations, square


def _parts(pairs: LabelledRows, width: int) -> list[slice]:
    step = max(1, _NUMBERS_AT_ONCE // max(1, width))
    return [slice(start, start + step) for start in range(0, len(pairs.classes), step)]
