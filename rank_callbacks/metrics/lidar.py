"""LiDAR, as a metric."""

from __future__ import annotations

from functools import partial, reduce

from torch import Tensor

from rank_callbacks.functional import ViewMoments, merged_view_moments, moment_lidar, view_moments
from rank_callbacks.functional.lidar import check_lidar, no_view_moments, packed_view_moments, unpacked_view_moments
from rank_callbacks.metrics.moment_metric import MomentMetric

__all__ = ["LiDAR"]


class LiDAR(MomentMetric):
    """LiDAR, the effective rank of the linear discriminant problem that tells objects apart by their views.

    Formula, constants and bounds are those of ``lidar``. All views of an object come in one batch; the number of views may
    differ from batch to batch, and the scatter within objects is pooled. 0 where all objects have the same mean. NaN with
    fewer than two objects or views, and where features are not finite.

    Its state has 2 + D + 2·D² numbers, and a batch of n objects with q views costs n·(q + 1)·D² operations.

    As input to ``forward`` and ``update`` the metric accepts:

        - ``features``: shape ``(n, q, num_features)``, any real type: q views of each of n objects.

    As output of ``forward`` and ``compute`` it gives a scalar, float64.

    Args:
        num_features: Numbers in a feature, D, from 1.
        delta: What is added to the diagonal of the covariance within objects, above 0.
        epsilon: What is added to every eigenvalue, from 0.
        kwargs: Those of ``torchmetrics.Metric``.

    Raises:
        ValueError: If ``num_features`` is too small, ``delta`` not above 0 or ``epsilon`` below it.

    Example:
        >>> import torch
        >>> centers = torch.tensor([[[4.0, 0.0]], [[-4.0, 0.0]], [[0.0, 4.0]], [[0.0, -4.0]]])
        >>> views = centers + torch.tensor([[0.5, 0.5], [-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5]])
        >>> metric = LiDAR(num_features=2)
        >>> metric.update(views[:1])
        >>> metric.update(views[1:])
        >>> metric.compute()
        tensor(2., dtype=torch.float64)

    Reference:
        LiDAR: sensing linear probing performance in joint embedding SSL architectures (Thilak et al., 2023),
        https://arxiv.org/abs/2312.04000
    """

    higher_is_better = True

    def __init__(self, num_features: int, delta: float = 1e-4, epsilon: float = 1e-8, **kwargs: object) -> None:
        super().__init__(num_features, **kwargs)
        check_lidar(delta, epsilon)
        self.delta, self.epsilon = delta, epsilon
        self._keep(packed_view_moments(no_view_moments(num_features)), partial(_merged, num_features=num_features))

    def update(self, features: Tensor) -> None:
        """Take in a batch of objects.

        Args:
            features: Shape ``(n, q, num_features)``, any real type: q views of each of n objects.

        Raises:
            ValueError: If the features have another width or number of dimensions.
        """
        self._check_width(features)
        self.moments = packed_view_moments(merged_view_moments(self.view_moments(), view_moments(features)))

    def view_moments(self) -> ViewMoments:
        """The moments of all objects so far: of this process, or while synced of all."""
        return unpacked_view_moments(self.moments, self.num_features)

    def compute(self) -> Tensor:
        """LiDAR of all objects so far."""
        return moment_lidar(self.view_moments(), self.delta, self.epsilon)


def _merged(vectors: Tensor, num_features: int) -> Tensor:
    """The packed moments of the union of objects whose packed moments are stacked."""
    moments = (unpacked_view_moments(vector, num_features) for vector in vectors)
    return packed_view_moments(reduce(merged_view_moments, moments))
