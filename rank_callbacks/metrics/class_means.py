"""NC2 of neural collapse, how close class means are to a simplex, as metrics."""

from __future__ import annotations

from torch import Tensor

from rank_callbacks.functional import class_mean_equiangularity, class_mean_equinorm
from rank_callbacks.metrics.class_metric import ClassMetric

__all__ = ["ClassMeanEquiangularity", "ClassMeanEquinorm"]


class ClassMeanEquinorm(ClassMetric):
    """NC2, equal norms: coefficient of variation of the norms of centred class means.

    std_k ‖h̄_k − h̄‖ / mean_k ‖h̄_k − h̄‖, the standard deviation unbiased, h̄ the mean of class means, over the classes that have
    samples. In [0, ∞), 0 at collapse and with two classes; NaN with fewer than two, where all class means are equal, or with
    features that are not finite. One sample a class is enough.

    As input to ``forward`` and ``update`` the metric accepts:

        - ``features``: shape ``(*, num_features)``, any real type; ``*`` are rows.
        - ``labels``: integers of shape ``(*,)``, or one-hot or soft labels of shape ``(*, num_classes)``.

    As output of ``forward`` and ``compute`` it gives a scalar, float64.

    Args:
        num_classes: K, from 2.
        num_features: Numbers in a feature, D, from 1.
        ignore_index: A label that means none.
        kwargs: Those of ``torchmetrics.Metric``.

    Raises:
        ValueError: If ``num_classes`` or ``num_features`` is too small.

    Example:
        >>> import torch
        >>> metric = ClassMeanEquinorm(num_classes=3, num_features=1)
        >>> metric.update(torch.tensor([[-2.0], [0.0], [2.0]]), torch.tensor([0, 1, 2]))
        >>> metric.compute()
        tensor(0.8660, dtype=torch.float64)

    Reference:
        Prevalence of neural collapse (Papyan, Han and Donoho, 2020), https://arxiv.org/abs/2008.08186
    """

    def compute(self) -> Tensor:
        """The coefficient of variation, of all samples so far."""
        return class_mean_equinorm(self.class_moments())


class ClassMeanEquiangularity(ClassMetric):
    """NC2, equal angles: mean over pairs of classes of |cos(h̄_k − h̄, h̄_l − h̄) + 1/(C − 1)|.

    h̄ is the mean of class means, over the C classes that have samples. In [0, 2], 0 where the class means span a simplex; NaN
    with fewer than two classes, where a class mean is h̄ itself, or with features that are not finite. One sample a class is
    enough.

    As input to ``forward`` and ``update`` the metric accepts:

        - ``features``: shape ``(*, num_features)``, any real type; ``*`` are rows.
        - ``labels``: integers of shape ``(*,)``, or one-hot or soft labels of shape ``(*, num_classes)``.

    As output of ``forward`` and ``compute`` it gives a scalar, float64.

    Args:
        num_classes: K, from 2.
        num_features: Numbers in a feature, D, from 1.
        ignore_index: A label that means none.
        kwargs: Those of ``torchmetrics.Metric``.

    Raises:
        ValueError: If ``num_classes`` or ``num_features`` is too small.

    Example:
        >>> import torch
        >>> metric = ClassMeanEquiangularity(num_classes=3, num_features=1)
        >>> metric.update(torch.tensor([[-3.0], [1.0], [2.0]]), torch.tensor([0, 1, 2]))
        >>> metric.compute()
        tensor(0.8333, dtype=torch.float64)

    Reference:
        Prevalence of neural collapse (Papyan, Han and Donoho, 2020), https://arxiv.org/abs/2008.08186
    """

    def compute(self) -> Tensor:
        """The mean deviation of cosines, of all samples so far."""
        return class_mean_equiangularity(self.class_moments())
