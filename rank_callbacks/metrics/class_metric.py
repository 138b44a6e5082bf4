"""What the metrics of neural collapse share: class moments that grow batch by batch, and merge over processes."""

from __future__ import annotations

from functools import partial, reduce

from torch import Tensor

from rank_callbacks.functional import ClassMoments, batch_moments, merged_moments
from rank_callbacks.functional.class_moments import check_classes, no_moments, packed_moments, unpacked_moments
from rank_callbacks.metrics.moment_metric import MomentMetric

__all__ = ["ClassMetric"]


class ClassMetric(MomentMetric):
    """A metric that is computed from the class moments of labelled features.

    Its state ``moments`` is one float64 vector: counts, variations, means and, where the measure needs it, the within-class
    scatter. What holds for every ``MomentMetric`` holds for it.

    Metrics of one ``MetricCollection`` whose states are equal are updated once for all of them. It compares states after the
    first batch: give ``compute_groups=False`` to a collection whose metrics differ in ``ignore_index``.

    Args:
        num_classes: K, from 2.
        num_features: Numbers in a feature, D, from 1.
        ignore_index: A label that means none.
        kwargs: Those of ``torchmetrics.Metric``.

    Raises:
        ValueError: If ``num_classes`` or ``num_features`` is too small.
    """

    higher_is_better = False

    def __init__(self, num_classes: int, num_features: int, ignore_index: int | None = None, **kwargs: object) -> None:
        super().__init__(num_features, **kwargs)
        check_classes(num_classes)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self._keep_moments(scatter=False)

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Take in a batch.

        Args:
            features: Shape ``(*, num_features)``, any real type.
            labels: Integers of shape ``(*,)``, or one-hot or soft labels of shape ``(*, num_classes)``.

        Raises:
            ValueError: If the features have another width, or the labels do not fit: see ``labelled_rows``.
        """
        self._check_width(features)
        known = self.class_moments()
        batch = batch_moments(features, labels, self.num_classes, known.scatter is not None, self.ignore_index)
        self.moments = packed_moments(merged_moments(known, batch))

    def class_moments(self) -> ClassMoments:
        """The moments of all samples so far: of this process, or while synced of all."""
        return unpacked_moments(self.moments, self.num_classes, self.num_features)

    def _keep_moments(self, scatter: bool) -> None:
        default = packed_moments(no_moments(self.num_classes, self.num_features, scatter))
        merged = partial(_merged, num_classes=self.num_classes, num_features=self.num_features)
        self._keep(default, merged)


def _merged(vectors: Tensor, num_classes: int, num_features: int) -> Tensor:
    """The packed moments of the union of samples whose packed moments are stacked."""
    return packed_moments(reduce(merged_moments, (unpacked_moments(vector, num_classes, num_features) for vector in vectors)))
