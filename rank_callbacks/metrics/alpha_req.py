"""α-ReQ, as a metric."""

from __future__ import annotations

from torch import Tensor

from rank_callbacks.functional import alpha_req
from rank_callbacks.functional.feature_rank import check_alpha_req
from rank_callbacks.metrics.feature_metric import FeatureMetric

__all__ = ["AlphaReQ"]


class AlphaReQ(FeatureMetric):
    """α-ReQ, the exponent of the decay of the spectrum of the features' covariance, λ_i ∝ i^−α.

    Weighted least squares over i from ``first`` to ``last``, of centred features: see ``alpha_req``. NaN with fewer than 10
    eigenvalues above 0 in that range, as for layers narrower than ``first`` + 9 and for about as few rows, and where features
    are not finite.

    As input to ``forward`` and ``update`` the metric accepts:

        - ``features``: shape ``(*, num_features)``, any real type; ``*`` are rows.

    As output of ``forward`` and ``compute`` it gives a scalar, float64.

    Args:
        num_features: Numbers in a feature, D, from 1.
        first: First index of the fit, from 1.
        last: Last index of the fit, at least ``first`` + 9.
        kwargs: Those of ``torchmetrics.Metric``.

    Raises:
        ValueError: If ``num_features`` or ``first`` is too small, or ``last`` leaves fewer than 10 indices.

    Example:
        >>> import torch
        >>> features = torch.diag(torch.arange(1, 41) ** -0.5)
        >>> AlphaReQ(num_features=40, first=1)(torch.cat([features, -features]))
        tensor(1.0000, dtype=torch.float64)

    Reference:
        α-ReQ: assessing representation quality in self-supervised learning by measuring eigenspectrum decay
        (Agrawal et al., 2022),
        https://proceedings.neurips.cc/paper_files/paper/2022/hash/70596d70542c51c8d9b4e423f4bf2736-Abstract-Conference.html
    """

    def __init__(self, num_features: int, first: int = 11, last: int = 100, **kwargs: object) -> None:
        super().__init__(num_features, **kwargs)
        check_alpha_req(first, last)
        self.first, self.last = first, last

    def compute(self) -> Tensor:
        """The exponent of all rows so far."""
        return alpha_req(self.singular_values(centered=True), self.first, self.last)
