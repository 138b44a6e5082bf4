"""Variance of classes against their distance, as a metric."""

from __future__ import annotations

from torch import Tensor

from rank_callbacks.functional import class_distance_normalized_variance
from rank_callbacks.metrics.class_metric import ClassMetric

__all__ = ["ClassDistanceNormalizedVariance"]


class ClassDistanceNormalizedVariance(ClassMetric):
    """CDNV: variance within two classes over the squared distance of their means, mean over pairs of classes.

    V(k, l) = (Var_k + Var_l) / (2 ‖h̄_k − h̄_l‖²), Var_k = (1/n_k) Σ_{i∈k} ‖h_i − h̄_k‖². Pairs are of classes that have samples.
    In [0, ∞]: 0 at collapse, as with one sample a class; ∞ where two classes share their mean; NaN with fewer than two
    classes, two classes in one point, or features that are not finite.

    As input to ``forward`` and ``update`` the metric accepts:

        - ``features``: shape ``(*, num_features)``, any real type; ``*`` are rows.
        - ``labels``: integers of shape ``(*,)``, or one-hot or soft labels of shape ``(*, num_classes)``.

    As output of ``forward`` and ``compute`` it gives a scalar, float64.

    Args:
        num_classes: K, from 2.
        num_features: Numbers in a feature, D, from 1.
        ignore_index: A label that means none.
        kwargs: Those of ``torchmetrics.Metric``.

    Raises:
        ValueError: If ``num_classes`` or ``num_features`` is too small.

    Example:
        >>> import torch
        >>> metric = ClassDistanceNormalizedVariance(num_classes=2, num_features=1)
        >>> metric.update(torch.tensor([[0.0], [2.0], [10.0], [12.0]]), torch.tensor([0, 0, 1, 1]))
        >>> metric.compute()
        tensor(0.0100, dtype=torch.float64)

    Reference:
        On the role of neural collapse in transfer learning (Galanti, György and Hutter, 2022), https://arxiv.org/abs/2112.15121
    """

    def compute(self) -> Tensor:
        """CDNV of all samples so far."""
        return class_distance_normalized_variance(self.class_moments())
