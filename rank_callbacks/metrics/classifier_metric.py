"""What the metrics share that compare features with the classifier they go into."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from rank_callbacks.metrics.class_metric import ClassMetric

__all__ = ["ClassifierMetric"]


class ClassifierMetric(ClassMetric):
    """A metric that reads a classifier at the time it is computed, without owning it.

    The classifier is no submodule: its parameters are none of the metric's, nor in its ``state_dict``, nor moved with it.
    A clone of the metric reads the same classifier. A deep copy of a module that holds both reads the copied one.

    Args:
        num_classes: K, from 2.
        num_features: Numbers in a feature, D, from 1.
        classifier: The layer that the features go into, such as ``nn.Linear``: with a ``weight`` of shape ``(K, D)``.
        ignore_index: A label that means none.
        kwargs: Those of ``torchmetrics.Metric``.

    Raises:
        ValueError: If ``num_classes`` or ``num_features`` is too small, or the classifier has no such weight.
    """

    def __init__(
        self, num_classes: int, num_features: int, classifier: nn.Module, ignore_index: int | None = None, **kwargs: object
    ) -> None:
        super().__init__(num_classes, num_features, ignore_index, **kwargs)
        weight = getattr(classifier, "weight", None)
        shape = tuple(weight.shape) if isinstance(weight, Tensor) else None
        if shape != (num_classes, num_features):
            found = f"a {type(classifier).__name__} " + (f"with one of shape {shape}" if shape else "without a weight")
            raise ValueError(f"Expected a classifier with a weight of shape {(num_classes, num_features)}, got {found}.")
        self._reference = _LayerReference(classifier)

    @property
    def classifier(self) -> nn.Module:
        """The layer, as it is now."""
        return self._reference.layer

    def class_weights(self) -> Tensor:
        """The classifier's weight as it is now, float64, on the metric's device; shape ``(K, D)``."""
        return self._wide(self.classifier.weight)

    def _wide(self, parameter: Any) -> Tensor:  # ruff: ignore[any-type]
        return parameter.detach().to(self.moments)


class _LayerReference:
    """Points to a layer in a way that modules do not register, and that deep copies of module and metric follow."""

    def __init__(self, layer: nn.Module, copies: dict[int, Any] | None = None) -> None:
        self._layer = layer
        self._copies = copies or {}

    @property
    def layer(self) -> nn.Module:
        # Asked only now, since the layer may have been copied after what points to it.
        self._layer = self._copies.get(id(self._layer), self._layer)
        self._copies = {}
        return self._layer

    def __deepcopy__(self, memo: dict[int, Any]) -> _LayerReference:
        layer = self.layer
        return _LayerReference(memo[id(layer)]) if id(layer) in memo else _LayerReference(layer, memo)

    def __reduce__(self) -> tuple[type[_LayerReference], tuple[nn.Module]]:
        return _LayerReference, (self.layer,)
