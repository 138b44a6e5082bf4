"""Every metric next to the function of all samples at once that it must agree with."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from rank_callbacks import functional
from rank_callbacks.functional import ClassMoments, class_moments
from rank_callbacks.metrics import (
    ClassDistanceNormalizedVariance,
    ClassMeanEquiangularity,
    ClassMeanEquinorm,
    MinorityCollapse,
    NearestCenterMismatch,
    SelfDuality,
    TotalClusterVariation,
    WithinClassVariability,
)

CLASSES, WIDTH = 4, 6
SIZES = (23, 9, 1, 7)
VARIANTS = ("pinv", "svds", "pinv_sample_mean", "fuzziness", "quotient")


class Case(NamedTuple):
    metric: Callable[..., Metric]
    twin: Callable[[Tensor, Tensor, nn.Linear], Tensor]


def of_moments(measure: Callable[[ClassMoments], Tensor]) -> Callable[[Tensor, Tensor, nn.Linear], Tensor]:
    """A function of moments as one of features and labels, which have no class without samples."""
    scatter = measure.__name__.startswith("nc1")
    return lambda features, labels, head: measure(class_moments(features, labels, head.out_features, scatter=scatter))


def duality(measure: Callable[[ClassMoments, Tensor], Tensor]) -> Callable[[Tensor, Tensor, nn.Linear], Tensor]:
    return lambda features, labels, head: measure(class_moments(features, labels, head.out_features), head.weight)


def mismatch(features: Tensor, labels: Tensor, head: nn.Linear) -> Tensor:
    wide = features.double()
    bias = 0 if head.bias is None else head.bias.double()
    predictions = (wide @ head.weight.double().T + bias).argmax(1)
    centers = class_moments(features, labels, head.out_features)
    return functional.nearest_center_mismatch(wide, predictions, centers.means.where(centers.seen[:, None], torch.nan))


def merging(features: Tensor, labels: Tensor, head: nn.Linear) -> Tensor:
    counts = torch.bincount(labels, minlength=head.out_features)
    return functional.minority_collapse(head.weight, (counts > 0) & (2 * counts <= counts.max()))


def case(metric: type[Metric], twin: Callable[[Tensor, Tensor, nn.Linear], Tensor], **options: object) -> Case:
    return Case(lambda head, **more: metric(head.out_features, head.in_features, **options, **more), twin)


def headed(metric: type[Metric], twin: Callable[[Tensor, Tensor, nn.Linear], Tensor], **options: object) -> Case:
    return Case(lambda head, **more: metric(head.out_features, head.in_features, head, **options, **more), twin)


CASES = {
    "tcv": case(TotalClusterVariation, of_moments(functional.total_cluster_variation)),
    "ratio": case(TotalClusterVariation, of_moments(functional.cluster_variation_ratio), ratio=True),
    **{
        f"nc1_{variant}": case(WithinClassVariability, of_moments(getattr(functional, f"nc1_{variant}")), variant=variant)
        for variant in VARIANTS
    },
    "equinorm": case(ClassMeanEquinorm, of_moments(functional.class_mean_equinorm)),
    "equiangularity": case(ClassMeanEquiangularity, of_moments(functional.class_mean_equiangularity)),
    "cdnv": case(ClassDistanceNormalizedVariance, of_moments(functional.class_distance_normalized_variance)),
    "duality": headed(SelfDuality, duality(functional.self_duality)),
    "duality_zhu": headed(SelfDuality, duality(functional.self_duality_zhu), variant="zhu"),
    "mismatch": headed(NearestCenterMismatch, mismatch),
    "minority": headed(MinorityCollapse, merging),
}
# What one update can serve, and what needs the scatter of features.
CHEAP = {"tcv", "ratio", "nc1_quotient", "equinorm", "equiangularity", "cdnv", "duality", "duality_zhu", "minority"}
SCATTERED = {"nc1_pinv", "nc1_svds", "nc1_pinv_sample_mean", "nc1_fuzziness"}


def linear(seed: int = 1) -> nn.Linear:
    """A classifier that is the same in every process."""
    layer = nn.Linear(WIDTH, CLASSES)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


def samples(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Shuffled features of imbalanced classes, one of a single sample, float64."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(CLASSES), torch.tensor(SIZES))
    centers = torch.randn(CLASSES, WIDTH, generator=generator, dtype=torch.float64)
    features = centers[labels] + torch.randn(len(labels), WIDTH, generator=generator, dtype=torch.float64) + 3
    order = torch.randperm(len(labels), generator=generator)
    return features[order], labels[order]
