"""Labels in a batch: where they are looked for, and how to say where they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor

__all__ = ["Labels", "labels_of"]

Labels: TypeAlias = "str | Callable[[Any], Tensor] | None"


def labels_of(batch: Any, labels: Labels = None) -> Tensor:  # ruff: ignore[any-type]
    """The labels in a batch.

    Args:
        batch: As a loader gives it.
        labels: None for the second item of ``(inputs, labels, ...)``; the key of a dict; or a function of the batch.

    Raises:
        ValueError: If there is no tensor where the labels are looked for.
    """
    found: object
    if callable(labels):
        found, place = labels(batch), "what labels= returns"
    elif isinstance(labels, str):
        found, place = batch.get(labels) if isinstance(batch, Mapping) else None, f"batch[{labels!r}]"
    else:
        is_pair = isinstance(batch, (tuple, list)) and len(batch) > 1
        found, place = batch[1] if is_pair else None, "the second item of the batch"
    if not isinstance(found, Tensor):
        raise ValueError(
            f"Expected a tensor of labels as {place}, got {type(found).__name__}. The batch is {_looks(batch)}. "
            "Name the labels by labels='key' for a dict, or by labels=lambda batch: ..."
        )
    return found


def _looks(batch: object) -> str:
    if isinstance(batch, Mapping):
        return f"a {type(batch).__name__} with the keys {', '.join(map(repr, batch))}"
    if isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} of {', '.join(type(item).__name__ for item in batch) or 'nothing'}"
    return f"a {type(batch).__name__}"
