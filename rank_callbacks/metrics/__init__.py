"""Measures of neural collapse as torchmetrics metrics: updated by batches, merged over processes."""

from rank_callbacks.metrics.class_distance import ClassDistanceNormalizedVariance
from rank_callbacks.metrics.class_means import ClassMeanEquiangularity, ClassMeanEquinorm
from rank_callbacks.metrics.class_metric import ClassMetric
from rank_callbacks.metrics.classifier_metric import ClassifierMetric
from rank_callbacks.metrics.minority import MinorityCollapse
from rank_callbacks.metrics.nearest_center import NearestCenterMismatch
from rank_callbacks.metrics.self_duality import SelfDuality
from rank_callbacks.metrics.variation import TotalClusterVariation
from rank_callbacks.metrics.within_class_variability import WithinClassVariability

__all__ = [
    "ClassDistanceNormalizedVariance",
    "ClassMeanEquiangularity",
    "ClassMeanEquinorm",
    "ClassMetric",
    "ClassifierMetric",
    "MinorityCollapse",
    "NearestCenterMismatch",
    "SelfDuality",
    "TotalClusterVariation",
    "WithinClassVariability",
]
