"""The stable rank of features, as a metric."""

from __future__ import annotations

from torch import Tensor

from rank_callbacks.functional import stable_rank
from rank_callbacks.metrics.feature_metric import FeatureMetric

__all__ = ["StableRank"]


class StableRank(FeatureMetric):
    """Stable rank of the matrix of features, ‖H‖_F² / ‖H‖₂².

    Of features as they are; ``centered`` takes the mean feature off first, without which a common mean alone makes it 1.
    Between 1 and min(N, D); 0 where all features are 0, or centred where all are equal. NaN without rows, for centred features
    with fewer than two, and where features are not finite.

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
        >>> metric = StableRank(num_features=2)
        >>> metric(features)
        tensor(1.5556, dtype=torch.float64)

    Reference:
        Sampling from large matrices (Rudelson and Vershynin, 2007), https://doi.org/10.1145/1255443.1255449
    """

    def __init__(self, num_features: int, centered: bool = False, **kwargs: object) -> None:
        super().__init__(num_features, **kwargs)
        self.centered = centered

    def compute(self) -> Tensor:
        """The stable rank of all rows so far."""
        return stable_rank(self.singular_values(self.centered))
