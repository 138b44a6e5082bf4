"""What goes into a classifier, batch by batch, with the labels of its rows."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from rank_callbacks.callbacks.batch_labels import labels_of_rows
from rank_callbacks.callbacks.feature_sample import MOST_NUMBERS, FeatureSample
from rank_callbacks.matrices.uncompiled import unless_compiled

__all__ = ["ClassifierInputs"]


class ClassifierInputs:
    """A hook that keeps rows of what goes into a classifier, in up to 64 MiB of float32, until ``close``.

    Args:
        classifier: A linear layer; None to keep nothing.
        seed: Of the choice of rows.
    """

    def __init__(self, classifier: nn.Linear | None, seed: int = 0) -> None:
        self.classifier = classifier
        self.features: Tensor | None = None
        self.unfit = ""
        self.sample = FeatureSample(max(2, MOST_NUMBERS // classifier.in_features) if classifier else 2, seed=seed)
        hook = unless_compiled(self._keep)
        self._handle = classifier.register_forward_pre_hook(hook, with_kwargs=True) if classifier else None

    def close(self) -> None:
        """Remove the hook."""
        if self._handle is not None:
            self._handle.remove()

    def begin_batch(self) -> None:
        """Forget what went through before."""
        self.features = None

    def add(self, labels: Tensor) -> None:
        """Add what the batch left.

        Args:
            labels: A class a sample or row, -1 for none.
        """
        if self.features is None:
            return
        fitting = labels_of_rows(self.features.shape[:-1], labels)
        if fitting is None:
            self.unfit = f": rows {tuple(self.features.shape[:-1])} do not fit labels {tuple(labels.shape)}"
        else:
            self.sample.add(self.features, fitting, fitting >= 0)
        self.features = None

    def _keep(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.features = (args[0] if args else kwargs["input"]).detach()
