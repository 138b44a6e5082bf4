"""The effective rank of features, as a metric."""

from __future__ import annotations

from torch import Tensor

from rank_callbacks.functional import effective_rank
from rank_callbacks.metrics.feature_metric import FeatureMetric

__all__ = ["EffectiveRank"]


class EffectiveRank(FeatureMetric):
    """Effective rank of the matrix of features, the exponential of the entropy of its singular values.

    exp(−Σ p ln p), p = σ / Σσ. Of features as they are, as Roy and Vetterli define it for a matrix; ``centered`` takes the
    mean feature off first. Between 1 and min(N, D); 0 where all features are 0, or centred where all are equal. NaN without
    rows, for centred features with fewer than two, and where features are not finite.

    As input to ``forward`` and ``update`` the metric accepts:

        - ``features``: shape ``(*, num_features)``, any real type; ``*`` are rows.

    As output of ``forward`` and ``compute`` it gives a scalar, float64.

    Args:
        num_features: Numbers in a feature, D, from 1.
        centered: Whether the mean feature is subtracted from every row.
        kwargs: Those of ``torchmetrics.Metric``.

    Raises:
        ValueError: If ``num_features`` is too small.

    Example:
        >>> import torch
        >>> features = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0], [0.0, -1.0]])
        >>> metric = EffectiveRank(num_features=2)
        >>> metric.update(features[:3])
        >>> metric.update(features[3:])
        >>> metric.compute()
        tensor(1.9788, dtype=torch.float64)

    Reference:
        The effective rank: a measure of effective dimensionality (Roy and Vetterli, 2007),
        https://ieeexplore.ieee.org/document/7098875
    """

    def __init__(self, num_features: int, centered: bool = False, **kwargs: object) -> None:
        super().__init__(num_features, **kwargs)
        self.centered = centered

    def compute(self) -> Tensor:
        """The effective rank of all rows so far."""
        return effective_rank(self.singular_values(self.centered))
