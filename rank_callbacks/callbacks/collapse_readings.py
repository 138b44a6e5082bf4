"""What is read of neural collapse from the class moments of one layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from rank_callbacks import functional
from rank_callbacks.functional import ClassMoments

__all__ = ["DEFAULT_MEASURES", "MEASURES", "readings_of_classifier", "readings_of_moments"]

_OfMoments: TypeAlias = "Callable[[ClassMoments], Tensor]"
_OF_MOMENTS: dict[str, _OfMoments] = {
    name: getattr(functional, name)
    for name in (
        "nc1_pinv",
        "nc1_quotient",
        "nc1_svds",
        "nc1_pinv_sample_mean",
        "nc1_fuzziness",
        "class_mean_equinorm",
        "class_mean_equiangularity",
        "class_distance_normalized_variance",
        "total_cluster_variation",
        "cluster_variation_ratio",
    )
}
_OF_CLASSIFIER = (
    "self_duality",
    "self_duality_zhu",
    "classifier_equinorm",
    "classifier_equiangularity",
    "minority_collapse",
    "nearest_center_mismatch",
)
MEASURES = (*_OF_MOMENTS, *_OF_CLASSIFIER)
_VARIANTS = {"nc1_svds", "nc1_pinv_sample_mean", "nc1_fuzziness", "self_duality_zhu"}
# One sample a class has no spread, whatever the class.
_NEED_TWO_SAMPLES = {name for name in MEASURES if name.startswith("nc1_")} | {
    "class_distance_normalized_variance",
    "total_cluster_variation",
    "cluster_variation_ratio",
}
DEFAULT_MEASURES = [name for name in MEASURES if name not in _VARIANTS]


def readings_of_moments(moments: ClassMoments, measures: Sequence[str]) -> dict[str, Tensor]:
    """Those of ``measures`` that the features of any layer have: NaN for spread where no class has two samples."""
    readings = {name: _OF_MOMENTS[name](moments) for name in measures if name in _OF_MOMENTS}
    if not (moments.counts > 1).any():
        readings |= dict.fromkeys(_NEED_TWO_SAMPLES & readings.keys(), moments.counts.new_tensor(torch.nan))
    return readings | {"samples_per_class": moments.counts.min()}


def readings_of_classifier(
    moments: ClassMoments, weight: Tensor, measures: Sequence[str], minority: Sequence[int] | None
) -> dict[str, Tensor]:
    """Those of ``measures`` that a classifier has, given the moments of what goes into it.

    Args:
        moments: Of the penultimate features.
        weight: Of the classifier, shape ``(K, D)``.
        measures: Names.
        minority: Classes of ``minority_collapse``; None for those with at most half the samples of the largest.
    """
    few = _minority(moments, minority)
    readings: dict[str, Callable[[], Tensor]] = {
        "self_duality": lambda: functional.self_duality(moments, weight),
        "self_duality_zhu": lambda: functional.self_duality_zhu(moments, weight),
        "classifier_equinorm": lambda: functional.equinorm(weight),
        "classifier_equiangularity": lambda: functional.equiangularity(weight),
        "minority_collapse": lambda: functional.minority_collapse(weight, few),
    }
    if few.sum() < 2:
        del readings["minority_collapse"]
    if moments.means.shape != weight.shape:  # a projection of tokens, which the classifier sees one by one
        del readings["self_duality"], readings["self_duality_zhu"]
    return {name: reading() for name, reading in readings.items() if name in measures}


def _minority(moments: ClassMoments, minority: Sequence[int] | None) -> Tensor:
    if minority is None:
        return moments.seen & (moments.counts <= moments.counts.max() / 2)
    classes = torch.arange(len(moments.counts), device=moments.counts.device)
    return torch.isin(classes, torch.tensor(list(minority), device=classes.device))
