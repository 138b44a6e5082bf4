"""What the metrics of feature rank share: the mean and scatter of features, from which their spectrum is computed."""

from __future__ import annotations

from functools import partial, reduce

from torch import Tensor

from rank_callbacks.functional import SecondMoments, merged_second_moments, moment_singular_values, second_moments
from rank_callbacks.functional.second_moments import no_second_moments, packed_second_moments, unpacked_second_moments
from rank_callbacks.metrics.moment_metric import MomentMetric

__all__ = ["FeatureMetric"]


class FeatureMetric(MomentMetric):
    """A metric that is computed from the singular values of the N x D matrix of all features.

    Its state ``moments`` is one float64 vector: count, mean and scatter of the features, 1 + D + D² numbers. A batch of n rows
    costs n·D² operations and ``compute`` an eigenvalue problem of D; what holds for every ``MomentMetric`` holds for it. A
    singular value below 1e-7 of the largest is 0.

    The metrics of one ``MetricCollection`` that derive from this and have one width are updated once for all of them.

    Args:
        num_features: Numbers in a feature, D, from 1.
        kwargs: Those of ``torchmetrics.Metric``.

    Raises:
        ValueError: If ``num_features`` is too small.
    """

    def __init__(self, num_features: int, **kwargs: object) -> None:
        super().__init__(num_features, **kwargs)
        self._keep(packed_second_moments(no_second_moments(num_features)), partial(_merged, num_features=num_features))

    def update(self, features: Tensor) -> None:
        """Take in a batch.

        Args:
            features: Shape ``(*, num_features)``, any real type; ``*`` are rows.

        Raises:
            ValueError: If the features have another width.
        """
        self._check_width(features)
        self.moments = packed_second_moments(merged_second_moments(self.second_moments(), second_moments(features)))

    def second_moments(self) -> SecondMoments:
        """The moments of all rows so far: of this process, or while synced of all."""
        return unpacked_second_moments(self.moments, self.num_features)

    def singular_values(self, centered: bool = False) -> Tensor:
        """Singular values of the matrix of all rows so far; shape ``(D,)``, see ``moment_singular_values``."""
        return moment_singular_values(self.second_moments(), centered)


def _merged(vectors: Tensor, num_features: int) -> Tensor:
    """The packed moments of the union of rows whose packed moments are stacked."""
    moments = (unpacked_second_moments(vector, num_features) for vector in vectors)
    return packed_second_moments(reduce(merged_second_moments, moments))
