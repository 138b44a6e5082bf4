"""The rank of one class's gradient, for the layers where rows are samples."""

from __future__ import annotations

from collections.abc import Container, Mapping

import torch
from torch import Tensor

from rank_callbacks.functional import class_gradient_ranks
from rank_callbacks.matrices.activations import LayerRows

__all__ = ["class_ranks", "labels_of"]


def labels_of(batch: object) -> Tensor:
    """The labels in an ``(inputs, labels)`` batch.

    Raises:
        ValueError: If its second item is not a vector of integers.
    """
    labels = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
    if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.is_floating_point():
        raise ValueError("Expected integer labels of shape (batch,) as the second item of the batch, for per_class.")
    return labels


def class_ranks(captured: Mapping[str, LayerRows], names: Container[str], labels: list[Tensor]) -> dict[str, float]:
    """Mean rank of one class's gradient, for linear layers that saw each labelled sample as one row."""
    together, means = torch.cat(labels), {}
    for layer in captured.values():
        calls = sorted(layer.deltas, key=lambda delta: delta[0])
        rows = [len(layer.inputs[call]) for call, _ in calls]
        if f"{layer.name}.weight" in names and not layer.sampled and rows == [len(part) for part in labels]:
            inputs, deltas = torch.cat([layer.inputs[call] for call, _ in calls]), torch.cat([delta for _, delta in calls])
            ranks = class_gradient_ranks(deltas, inputs, together.to(inputs.device))
            means[f"{layer.name}.weight"] = sum(ranks.values()) / len(ranks)
    return means
