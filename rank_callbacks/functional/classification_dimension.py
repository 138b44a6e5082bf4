"""How many directions of its features a classifier needs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rank_callbacks.functional.labels import labelled_rows

__all__ = ["classification_dimension"]

# Dimensions that are looked at before the search asks whether it is over.
_DIMENSIONS_AT_ONCE = 16
# Logits that stay in the cache while dimensions are added to them.
_LOGITS_AT_ONCE = 2**17


class _Head(NamedTuple):
    """A linear classifier in the basis of principal components."""

    start: Tensor  # logits of no dimension, (K,)
    columns: Tensor  # what one unit of each component adds, (D, K)


def classification_dimension(
    features: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    share: float = 0.95,
    centered: bool = False,
) -> Tensor:
    """The least e for which the classifier is right on the first e principal components as often as on all, times ``share``.

    Features are projected onto the e leading eigenvectors of their covariance, W·V_e·V_eᵀ·h + b, and e = 0, 1, 2, ... is
    searched in order: accuracy does not rise at every step. It is exact, at N·K operations a step besides the eigenvectors.

    Between 0 and D; 0 also where the classifier is never right. NaN where features or classifier are not finite.
    Eigenvectors of equal eigenvalues, zero among them, are in no order of their own.

    Args:
        features: Inputs h of the classifier, of shape ``(N, D)``, any real floating type; float64 inside.
        labels: Classes 0..K−1, of shape ``(N,)``.
        weight: W of shape ``(K, D)``.
        bias: b of shape ``(K,)``.
        share: Of the accuracy on all of the features; above 0, up to 1.
        centered: Whether only what differs from the mean is projected, V_e·V_eᵀ·(h − μ) + μ. The paper's code projects the
            features as they are, with the eigenvectors of their centred covariance.

    Returns:
        The dimension, a float64 scalar.

    Raises:
        ValueError: If shapes or labels do not fit, or ``share`` is out of range.

    Example:
        >>> features = torch.tensor([[5.0, 0.1, 0.0], [-5.0, 0.1, 0.1], [5.0, -0.1, 0.1], [-5.0, 0.0, 0.0]])
        >>> classifier = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
        >>> classification_dimension(features, torch.tensor([0, 1, 0, 1]), classifier)
        tensor(1., dtype=torch.float64)

    Reference:
        Rank diminishing in deep neural networks (Feng et al., 2022), https://arxiv.org/abs/2206.06072
    """
    _check(features, weight, bias, share)
    labels = labelled_rows(labels, len(weight), len(features)).classes.to(features.device)
    if len(labels) != len(features):
        raise ValueError(f"Expected one class a row for {len(features)} rows, got soft labels of {len(labels)} classes.")
    features, weight = features.detach().double(), weight.detach().double()
    offset = weight.new_zeros(len(weight)) if bias is None else bias.detach().double()
    whole = features @ weight.mT + offset
    if not whole.isfinite().all() or not features.isfinite().all():
        return whole.new_tensor(torch.nan)
    needed = share * int((whole.argmax(1) == labels).sum())
    scores, head = _components(features, weight, offset, centered)
    return whole.new_tensor(_first_dimension(scores, head, labels, needed))


def _check(features: Tensor, weight: Tensor, bias: Tensor | None, share: float) -> None:
    if features.dim() != 2 or weight.dim() != 2 or features.shape[1] != weight.shape[1] or features.numel() == 0:
        raise ValueError(
            f"Expected features of shape (N, D) and weight of shape (K, D), got {tuple(features.shape)} and "
            f"{tuple(weight.shape)}."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"Expected bias of shape ({len(weight)},), got {tuple(bias.shape)}.")
    if not 0 < share <= 1:
        raise ValueError(f"Expected share to be above 0 and up to 1, got {share}.")


def _components(features: Tensor, weight: Tensor, offset: Tensor, centered: bool) -> tuple[Tensor, _Head]:
    """The principal components of the features, of shape ``(N, D)``, and the classifier of these."""
    mean = features.mean(0)
    differences = features - mean
    vectors = torch.linalg.eigh(differences.mT @ differences).eigenvectors.flip(-1)
    start = offset + weight @ mean if centered else offset
    return (differences if centered else features) @ vectors, _Head(start, vectors.mT @ weight.mT)


def _first_dimension(scores: Tensor, head: _Head, labels: Tensor, needed: float) -> int:
    dimensions = scores.shape[1]
    logits = head.start.repeat(len(scores), 1)
    if (logits.argmax(1) == labels).sum() >= needed:
        return 0
    for start in range(0, dimensions, _DIMENSIONS_AT_ONCE):
        block = slice(start, min(start + _DIMENSIONS_AT_ONCE, dimensions))
        enough = _right_by_dimension(logits, scores[:, block], head.columns[block], labels) >= needed
        if enough.any():
            return block.start + 1 + int(enough.int().argmax())
    return dimensions  # all of them are the features, but for rounding


def _right_by_dimension(logits: Tensor, scores: Tensor, columns: Tensor, labels: Tensor) -> Tensor:
    """How many rows are right after each of these dimensions is added to ``logits``, which is done in place."""
    right = torch.zeros(len(columns), dtype=torch.int64, device=logits.device)
    rows = max(1, _LOGITS_AT_ONCE // logits.shape[1])
    for part, components, classes in zip(logits.split(rows), scores.split(rows), labels.split(rows), strict=True):
        for place, column in enumerate(columns):
            part.addr_(components[:, place], column)
            right[place] += (part.max(1).indices == classes).sum()  # on a CPU faster than argmax
    return right
