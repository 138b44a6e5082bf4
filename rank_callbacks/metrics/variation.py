"""How far features lie from the mean of their class, as a metric."""

from __future__ import annotations

from torch import Tensor

from rank_callbacks.functional import cluster_variation_ratio, total_cluster_variation
from rank_callbacks.metrics.class_metric import ClassMetric

__all__ = ["TotalClusterVariation"]


class TotalClusterVariation(ClassMetric):
    """Total cluster variation, TCV: the mean squared distance of a feature to the mean of its class.

    (1/N) Σ_k Σ_{i∈k} ‖h_i − h̄_k‖² = tr Σ_W. In [0, ∞), in the unit of the features squared. 0 where every class is a point, as
    it is with one sample a class. Classes without samples count for nothing. NaN without samples or with features that are not
    finite.

    With ``ratio`` the share of the features' variance that lies within classes: tr Σ_W / (tr Σ_W + tr Σ_B), classes weighted
    by their size. In [0, 1]: 0 where every class is a point of its own, 1 where classes cannot be told apart, NaN where all
    features are one point.

    As input to ``forward`` and ``update`` the metric accepts:

        - ``features``: shape ``(*, num_features)``, any real type; ``*`` are rows.
        - ``labels``: integers of shape ``(*,)``, or one-hot or soft labels of shape ``(*, num_classes)``.

    As output of ``forward`` and ``compute`` it gives a scalar, float64.

    Args:
        num_classes: K, from 2.
        num_features: Numbers in a feature, D, from 1.
        ratio: Whether to give the share of variance.
        ignore_index: A label that means none.
        kwargs: Those of ``torchmetrics.Metric``.

    Raises:
        ValueError: If ``num_classes`` or ``num_features`` is too small.

    Example:
        >>> import torch
        >>> features, labels = torch.tensor([[0.0], [2.0], [10.0], [12.0]]), torch.tensor([0, 0, 1, 1])
        >>> metric = TotalClusterVariation(num_classes=2, num_features=1)
        >>> metric.update(features[:3], labels[:3])
        >>> metric.update(features[3:], labels[3:])
        >>> metric.compute()
        tensor(1., dtype=torch.float64)
        >>> TotalClusterVariation(num_classes=2, num_features=1, ratio=True)(features, labels)
        tensor(0.0385, dtype=torch.float64)

    Reference:
        Provable emergence of deep neural collapse and low-rank bias (Zangrando et al., 2026), https://arxiv.org/abs/2402.03991
    """

    def __init__(
        self,
        num_classes: int,
        num_features: int,
        ratio: bool = False,
        ignore_index: int | None = None,
        **kwargs: object,
    ) -> None:
        super().__init__(num_classes, num_features, ignore_index, **kwargs)
        self.ratio = ratio

    def compute(self) -> Tensor:
        """The variation of all samples so far, or its share of the variance."""
        measure = cluster_variation_ratio if self.ratio else total_cluster_variation
        return measure(self.class_moments())
