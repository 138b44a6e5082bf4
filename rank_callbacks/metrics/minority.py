"""Merging of minority classes in the classifier, as a metric."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rank_callbacks.functional import minority_collapse
from rank_callbacks.metrics.classifier_metric import ClassifierMetric

__all__ = ["MinorityCollapse"]


class MinorityCollapse(ClassifierMetric):
    """Mean cosine between the classifier's rows of minority classes.

    In [−1, 1]; 1 where the rows have merged and minority classes cannot be told apart. NaN without samples, with fewer than
    two minority classes, or where the row of one is zero or not finite. Of the samples only their labels matter.

    As input to ``forward`` and ``update`` the metric accepts:

        - ``features``: shape ``(*, num_features)``, any real type; ``*`` are rows.
        - ``labels``: integers of shape ``(*,)``, or one-hot or soft labels of shape ``(*, num_classes)``.

    As output of ``forward`` and ``compute`` it gives a scalar, float64.

    Args:
        num_classes: K, from 2.
        num_features: Numbers in a feature, D, from 1.
        classifier: The layer that the features go into, such as ``nn.Linear``: with a ``weight`` of shape ``(K, D)``. It is
            read when the metric is computed, and no submodule of it.
        minority: The minority classes. None for those with samples, but at most half as many as the largest class has.
        ignore_index: A label that means none.
        kwargs: Those of ``torchmetrics.Metric``.

    Raises:
        ValueError: If ``num_classes`` or ``num_features`` is too small, the classifier has no such weight, or a class is not
            in 0..K−1.

    Example:
        >>> import torch
        >>> classifier = torch.nn.Linear(2, 3)
        >>> classifier.weight.data = torch.tensor([[-1.0, 0.0], [3.0, 4.0], [4.0, 3.0]])
        >>> metric = MinorityCollapse(num_classes=3, num_features=2, classifier=classifier)
        >>> metric.update(torch.ones(6, 2), torch.tensor([0, 0, 0, 0, 1, 2]))
        >>> metric.compute()
        tensor(0.9600, dtype=torch.float64)

    Reference:
        Exploring deep neural networks via layer-peeled model (Fang et al., 2021), https://arxiv.org/abs/2101.12699
    """

    plot_lower_bound = -1.0
    plot_upper_bound = 1.0

    def __init__(
        self,
        num_classes: int,
        num_features: int,
        classifier: nn.Module,
        minority: Sequence[int] | None = None,
        ignore_index: int | None = None,
        **kwargs: object,
    ) -> None:
        super().__init__(num_classes, num_features, classifier, ignore_index, **kwargs)
        self.minority = None if minority is None else frozenset(map(int, minority))
        others = (self.minority or frozenset()) - set(range(num_classes))
        if others:
            raise ValueError(f"Expected minority to hold classes from 0 to {num_classes - 1}, got {min(others)}.")

    def compute(self) -> Tensor:
        """The mean cosine, minority classes being those of all samples so far and the classifier as it is now."""
        counts = self.class_moments().counts
        few = (counts > 0) & (counts <= counts.max() / 2)
        if self.minority is not None:
            few = torch.tensor([k in self.minority for k in range(self.num_classes)], device=counts.device)
        return minority_collapse(self.class_weights(), few & counts.any())
