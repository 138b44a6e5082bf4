"""Measures of feature rank and of neural collapse as torchmetrics metrics: updated by batches, merged over processes."""

from rank_callbacks.metrics.alpha_req import AlphaReQ
from rank_callbacks.metrics.class_distance import ClassDistanceNormalizedVariance
from rank_callbacks.metrics.class_means import ClassMeanEquiangularity, ClassMeanEquinorm
from rank_callbacks.metrics.class_metric import ClassMetric
from rank_callbacks.metrics.classifier_metric import ClassifierMetric
from rank_callbacks.metrics.effective_rank import EffectiveRank
from rank_callbacks.metrics.feature_metric import FeatureMetric
from rank_callbacks.metrics.lidar import LiDAR
from rank_callbacks.metrics.minority import MinorityCollapse
from rank_callbacks.metrics.moment_metric import MomentMetric
from rank_callbacks.metrics.nearest_center import NearestCenterMismatch
from rank_callbacks.metrics.numerical_rank import NumericalRank
from rank_callbacks.metrics.participation_ratio import ParticipationRatio
from rank_callbacks.metrics.rankme import RankMe
from rank_callbacks.metrics.saturation import LayerSaturation
from rank_callbacks.metrics.self_duality import SelfDuality
from rank_callbacks.metrics.stable_rank import StableRank
from rank_callbacks.metrics.variation import TotalClusterVariation
from rank_callbacks.metrics.within_class_variability import WithinClassVariability

__all__ = [
    "AlphaReQ",
    "ClassDistanceNormalizedVariance",
    "ClassMeanEquiangularity",
    "ClassMeanEquinorm",
    "ClassMetric",
    "ClassifierMetric",
    "EffectiveRank",
    "FeatureMetric",
    "LayerSaturation",
    "LiDAR",
    "MinorityCollapse",
    "MomentMetric",
    "NearestCenterMismatch",
    "NumericalRank",
    "ParticipationRatio",
    "RankMe",
    "SelfDuality",
    "StableRank",
    "TotalClusterVariation",
    "WithinClassVariability",
]
