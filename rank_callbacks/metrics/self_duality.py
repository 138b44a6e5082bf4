"""NC3 of neural collapse, as a metric."""

from __future__ import annotations

from torch import Tensor, nn

from rank_callbacks.functional import self_duality, self_duality_zhu
from rank_callbacks.metrics.classifier_metric import ClassifierMetric

__all__ = ["SelfDuality"]

_VARIANTS = {"papyan": self_duality, "zhu": self_duality_zhu}


class SelfDuality(ClassifierMetric):
    """NC3: how far the classifier's rows are from the centred class means, both of norm one.

    ‖W/‖W‖_F − Ṁ/‖Ṁ‖_F‖²_F, Ṁ the class means less their mean, over the classes that have samples. In [0, 4], 0 where the two
    are multiples of one another; NaN with fewer than two classes, where all class means are equal, or with features that are
    not finite. One sample a class is enough.

    As input to ``forward`` and ``update`` the metric accepts:

        - ``features``: shape ``(*, num_features)``, any real type; ``*`` are rows.
        - ``labels``: integers of shape ``(*,)``, or one-hot or soft labels of shape ``(*, num_classes)``.

    As output of ``forward`` and ``compute`` it gives a scalar, float64.

    Args:
        num_classes: K, from 2.
        num_features: Numbers in a feature, D, from 1.
        classifier: The layer that the features go into, such as ``nn.Linear``: with a ``weight`` of shape ``(K, D)``. It is
            read when the metric is computed, and no submodule of it.
        variant: Which definition.

            - ``papyan``: the one above.
            - ``zhu``: by the product, ‖WṀᵀ/‖WṀᵀ‖_F − (I − 11ᵀ/C)/√(C − 1)‖_F, in [0, 2].
        ignore_index: A label that means none.
        kwargs: Those of ``torchmetrics.Metric``.

    Raises:
        ValueError: If ``num_classes`` or ``num_features`` is too small, the variant unknown, or the classifier has no such
            weight.

    Example:
        >>> import torch
        >>> classifier = torch.nn.Linear(1, 2)
        >>> metric = SelfDuality(num_classes=2, num_features=1, classifier=classifier)
        >>> metric.update(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1]))
        >>> classifier.weight.data = torch.tensor([[7.0], [0.0]])
        >>> metric.compute()
        tensor(3.4142, dtype=torch.float64)

    Reference:
        Prevalence of neural collapse (Papyan, Han and Donoho, 2020), https://arxiv.org/abs/2008.08186

        ``zhu``: A geometric analysis of neural collapse with unconstrained features (Zhu et al., 2021),
        https://arxiv.org/abs/2105.02375
    """

    def __init__(
        self,
        num_classes: int,
        num_features: int,
        classifier: nn.Module,
        variant: str = "papyan",
        ignore_index: int | None = None,
        **kwargs: object,
    ) -> None:
        super().__init__(num_classes, num_features, classifier, ignore_index, **kwargs)
        if variant not in _VARIANTS:
            raise ValueError(f"Expected variant to be one of {', '.join(_VARIANTS)}, got {variant!r}.")
        self.variant = variant

    def compute(self) -> Tensor:
        """NC3 of all samples so far and the classifier as it is now."""
        return _VARIANTS[self.variant](self.class_moments(), self.class_weights())
