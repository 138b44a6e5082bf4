"""The numerical rank of features, as a metric."""

from __future__ import annotations

from torch import Tensor

from rank_callbacks.functional import numerical_rank
from rank_callbacks.metrics.feature_metric import FeatureMetric

__all__ = ["NumericalRank"]


class NumericalRank(FeatureMetric):
    """Numerical rank of the matrix of features, how many singular values stand above a tolerance, #{σ > rtol·σ₁}.

    Of features as they are; ``centered`` takes the mean feature off first. Between 0 and min(N, D); 0 where all features are
    0, or centred where all are equal. NaN without rows, for centred features with fewer than two, and where features are not
    finite.

    The spectrum of moments holds no value below 1e-7 of the largest, so a smaller tolerance counts those above that. Features
    of bfloat16 are rounded by up to 2e-3 of each number: there a tolerance below 1e-3 counts rounding noise.

    As input to ``forward`` and ``update`` the metric accepts:

        - ``features``: shape ``(*, num_features)``, any real type; ``*`` are rows.

    As output of ``forward`` and ``compute`` it gives a scalar, float64.

    Args:
        num_features: Numbers in a feature, D, from 1.
        rtol: Relative tolerance, from 0.
        centered: Whether the mean feature is subtracted from every row.
        kwargs: Those of ``torchmetrics.Metric``.

    Raises:
        ValueError: If ``num_features`` is too small or ``rtol`` negative.

    Example:
        >>> import torch
        >>> features = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0], [0.0, -1.0]])
        >>> NumericalRank(num_features=2)(features)
        tensor(2., dtype=torch.float64)

    Reference:
        SGD with weight decay secretly minimizes the ranks of your neural networks (Galanti et al., 2025),
        https://arxiv.org/abs/2206.05794
    """

    def __init__(self, num_features: int, rtol: float = 1e-3, centered: bool = False, **kwargs: object) -> None:
        super().__init__(num_features, **kwargs)
        if not rtol >= 0:
            raise ValueError(f"Expected rtol to be a number from 0, got {rtol}.")
        self.rtol = rtol
        self.centered = centered

    def compute(self) -> Tensor:
        """The numerical rank of all rows so far."""
        return numerical_rank(self.singular_values(self.centered), self.rtol)
