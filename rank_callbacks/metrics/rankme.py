"""RankMe, as a metric."""

from __future__ import annotations

from torch import Tensor

from rank_callbacks.functional import rankme
from rank_callbacks.metrics.feature_metric import FeatureMetric

__all__ = ["RankMe"]


class RankMe(FeatureMetric):
    """RankMe as published, the effective rank of features with a constant added to every share.

    exp(−Σ p ln p), p = σ / Σσ + epsilon, over the min(N, D) singular values of features as they are: the paper does not centre
    them. It takes the embeddings of 25,600 images. Exceeds D for a flat spectrum, by 0.3 % for D = 4096: see ``rankme``;
    without an epsilon it is ``EffectiveRank``. 0 where all features are 0, NaN without rows and where features are not finite.

    As input to ``forward`` and ``update`` the metric accepts:

        - ``features``: shape ``(*, num_features)``, any real type; ``*`` are rows.

    As output of ``forward`` and ``compute`` it gives a scalar, float64.

    Args:
        num_features: Numbers in a feature, D, from 1.
        epsilon: What is added to every share, from 0. stable-pretraining adds 1e-5, which makes 5523 of 4096.
        kwargs: Those of ``torchmetrics.Metric``.

    Raises:
        ValueError: If ``num_features`` is too small or ``epsilon`` negative.

    Example:
        >>> import torch
        >>> features = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0], [0.0, -1.0]])
        >>> RankMe(num_features=2)(features)
        tensor(1.9788, dtype=torch.float64)

    Reference:
        RankMe: assessing the downstream performance of pretrained self-supervised representations by their rank
        (Garrido et al., 2023), https://arxiv.org/abs/2210.02885
    """

    higher_is_better = True

    def __init__(self, num_features: int, epsilon: float = 1e-7, **kwargs: object) -> None:
        super().__init__(num_features, **kwargs)
        if not epsilon >= 0:
            raise ValueError(f"Expected epsilon to be a number from 0, got {epsilon}.")
        self.epsilon = epsilon

    def compute(self) -> Tensor:
        """RankMe of all rows so far."""
        # A matrix of fewer rows than features has as many singular values as rows: each zero more would add to RankMe.
        rows = max(1, int(self.second_moments().count))
        return rankme(self.singular_values()[:rows], self.epsilon)
