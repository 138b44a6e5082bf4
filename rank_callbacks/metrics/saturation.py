"""The saturation of a layer, as a metric."""

from __future__ import annotations

from torch import Tensor

from rank_callbacks.functional import saturation
from rank_callbacks.metrics.feature_metric import FeatureMetric

__all__ = ["LayerSaturation"]


class LayerSaturation(FeatureMetric):
    """Saturation, the share of a layer's dimensions that hold nearly all of the variance of its features.

    As delve counts them, of centred features: see ``saturation``. In [0, 1]; 0 where all features are equal. NaN with fewer
    than two rows and where features are not finite. At most N − 1 dimensions can be counted, so look at several rows a
    feature.

    As input to ``forward`` and ``update`` the metric accepts:

        - ``features``: shape ``(*, num_features)``, any real type; ``*`` are rows.

    As output of ``forward`` and ``compute`` it gives a scalar, float64.

    Args:
        num_features: Numbers in a feature, D, from 1.
        energy: The share of variance, in (0, 1].
        kwargs: Those of ``torchmetrics.Metric``.

    Raises:
        ValueError: If ``num_features`` is too small or ``energy`` not in (0, 1].

    Example:
        >>> import torch
        >>> features = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 3.0], [0.0, -1.0]])
        >>> LayerSaturation(num_features=2)(features)
        tensor(0.5000, dtype=torch.float64)

    Reference:
        Feature space saturation during training (Richter et al., 2020), https://arxiv.org/abs/2006.08679
    """

    plot_upper_bound = 1.0

    def __init__(self, num_features: int, energy: float = 0.99, **kwargs: object) -> None:
        super().__init__(num_features, **kwargs)
        if not 0 < energy <= 1:
            raise ValueError(f"Expected energy to be in (0, 1], got {energy}.")
        self.energy = energy

    def compute(self) -> Tensor:
        """The saturation of all rows so far."""
        return saturation(self.singular_values(centered=True), self.num_features, self.energy)
