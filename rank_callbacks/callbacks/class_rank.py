"""The rank of one class's gradient, for the layers where rows are samples."""

from __future__ import annotations

from collections.abc import Container, Mapping

import torch
from torch import Tensor

from rank_callbacks.functional import class_gradient_ranks
from rank_callbacks.matrices.activations import LayerRows

__all__ = ["check_integers", "class_ranks"]


def check_integers(labels: Tensor) -> Tensor:
    """Refuse labels that do not say one class a sample.

    Raises:
        ValueError: If they are not a vector of integers.
    """
    if labels.dim() != 1 or labels.is_floating_point():
        raise ValueError(
            f"Expected integer labels of shape (batch,) for per_class, got {labels.dtype} of shape {tuple(labels.shape)}."
        )
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
