"""The participation ratio of features, as a metric."""

from __future__ import annotations

from torch import Tensor

from rank_callbacks.functional import corrected_participation_ratio, participation_ratio
from rank_callbacks.metrics.feature_metric import FeatureMetric

__all__ = ["ParticipationRatio"]


class ParticipationRatio(FeatureMetric):
    """Participation ratio of the features, how many squared singular values share the energy, (Σσ²)² / Σσ⁴.

    Of features as they are; with ``centered`` it is that of the eigenvalues of their covariance, the dimension of PCA that
    neuroscience reports. Between 1 and min(N, D); 0 where all features are 0, or centred where all are equal. NaN without
    rows, for centred features with fewer than two, and where features are not finite.

    Samples no more than features halve it. ``corrected`` takes that bias off for Gaussian features, see
    ``corrected_participation_ratio``, and is of centred features always: at least 1, not bounded by D, NaN with fewer than 3
    rows or too few to tell.

    As input to ``forward`` and ``update`` the metric accepts:

        - ``features``: shape ``(*, num_features)``, any real type; ``*`` are rows.

    As output of ``forward`` and ``compute`` it gives a scalar, float64.

    Args:
        num_features: Numbers in a feature, D, from 1.
        centered: Whether the mean feature is subtracted from every row.
        corrected: Whether to free the centred ratio of the bias of few samples.
        kwargs: Those of ``torchmetrics.Metric``.

    Raises:
        ValueError: If ``num_features`` is too small.

    Example:
        >>> import torch
        >>> features = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0], [0.0, -1.0]])
        >>> ParticipationRatio(num_features=2)(features)
        tensor(1.8491, dtype=torch.float64)
        >>> ParticipationRatio(num_features=2, centered=True)(features)
        tensor(1.8000, dtype=torch.float64)

    Reference:
        A theory of multineuronal dimensionality, dynamics and measurement (Gao et al., 2017), https://doi.org/10.1101/214262
    """

    def __init__(self, num_features: int, centered: bool = False, corrected: bool = False, **kwargs: object) -> None:
        super().__init__(num_features, **kwargs)
        self.centered = centered or corrected
        self.corrected = corrected

    def compute(self) -> Tensor:
        """The participation ratio of all rows so far."""
        values = self.singular_values(self.centered)
        if self.corrected:
            return corrected_participation_ratio(values, self.second_moments().count)
        return participation_ratio(values)
