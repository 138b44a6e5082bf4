"""Labels in a batch: where they are looked for, and how to say where they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from rank_callbacks.functional.labels import labelled_rows

__all__ = ["Labels", "check_labels", "classes_of", "labels_of", "labels_of_rows", "soft_if_one_hot", "tensor_in"]

Labels: TypeAlias = "str | Callable[[Any], Tensor] | None"


def labels_of(batch: Any, labels: Labels = None) -> Tensor:  # ruff: ignore[any-type]
    """The labels in a batch; those of shape ``(n, 1)`` that are no floats lose the second dimension.

    Args:
        batch: As a loader gives it.
        labels: None for the second item of ``(inputs, labels, ...)``; the key of a dict; or a function of the batch.

    Raises:
        ValueError: If there is no tensor where the labels are looked for.
    """
    if labels is None:
        second = batch[1] if isinstance(batch, (tuple, list)) and len(batch) > 1 else None
        found = _checked(second, batch, "labels", "the second item of the batch")
    else:
        found = tensor_in(batch, labels, "labels")
    is_column = found.dim() == 2 and found.shape[1] == 1 and not found.is_floating_point()
    return found.squeeze(1) if is_column else found


def tensor_in(batch: Any, place: str | Callable[[Any], Tensor], name: str) -> Tensor:  # ruff: ignore[any-type]
    """The tensor in a batch that ``place`` says, the key of a dict or a function of the batch.

    Args:
        batch: As a loader gives it.
        place: Where it is.
        name: Of the argument that says so, for errors.

    Raises:
        ValueError: If there is none.
    """
    if callable(place):
        return _checked(place(batch), batch, name, f"what {name}= returns")
    return _checked(batch.get(place) if isinstance(batch, Mapping) else None, batch, name, f"batch[{place!r}]")


def _checked(found: object, batch: object, name: str, place: str) -> Tensor:
    if isinstance(found, Tensor):
        return found
    raise ValueError(
        f"Expected a tensor of {name} as {place}, got {type(found).__name__}. The batch is {_looks(batch)}. "
        f"Name the {name} by {name}='key' for a dict, or by {name}=lambda batch: ..."
    )


def check_labels(labels: Tensor, num_classes: int, ignore_index: int | None) -> None:
    """Refuse labels that are no classes from 0 to K−1, before any training is paid for.

    Raises:
        ValueError: See ``labelled_rows``.
    """
    is_soft = labels.is_floating_point() and labels.dim() > 1
    labelled_rows(labels, num_classes, labels.numel() // labels.shape[-1] if is_soft else labels.numel(), ignore_index)


def classes_of(batch: Any, labels: Labels, num_classes: int, ignore_index: int | None) -> Tensor:  # ruff: ignore[any-type]
    """One class a sample or token, -1 for none: of soft labels the one with the largest.

    Raises:
        ValueError: See ``labels_of`` and ``check_labels``.
    """
    found = soft_if_one_hot(labels_of(batch, labels).detach(), num_classes)
    check_labels(found, num_classes, ignore_index)
    classes = found.argmax(-1) if found.is_floating_point() and found.dim() > 1 else found.long()
    return classes if ignore_index is None else classes.masked_fill(classes == ignore_index, -1)


def soft_if_one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Integers of shape ``(*, K)`` that are one-hot, told apart from a label a token by their values."""
    if labels.dim() < 2 or labels.shape[-1] != num_classes or labels.is_floating_point():
        return labels
    is_one_hot = bool(((labels == 0) | (labels == 1)).all() and (labels.sum(-1) == 1).all())
    return labels.double() if is_one_hot else labels


def labels_of_rows(shape: Sequence[int], labels: Tensor, batch_dim: int | None = None) -> Tensor | None:
    """A label for each row of a tensor, from labels of the batch.

    Labels as many as the rows are theirs, one by one; a label a sample holds for all rows of the sample.

    Args:
        shape: Of the rows: that of the tensor without its features.
        labels: Integers, or soft labels with a last dimension of classes.
        batch_dim: The dimension in which samples lie; None for the first that is as long as the labels, of the first two.

    Returns:
        Labels of shape ``shape``, with a last dimension of classes if they are soft; None if they do not fit.
    """
    rows, classes = tuple(shape), tuple(labels.shape[-1:]) if labels.dim() > 1 and labels.is_floating_point() else ()
    own = tuple(labels.shape[: labels.dim() - len(classes)])
    if batch_dim is None:
        if own == rows:
            return labels
        batch_dim = next((dim for dim in (0, 1) if rows[dim : dim + 1] == own[:1]), 0)
    if len(own) == 1 and rows[batch_dim : batch_dim + 1] == own:
        ones = [1] * len(rows)
        ones[batch_dim] = own[0]
        return labels.reshape(*ones, *classes).expand(*rows, *classes)
    # A label a token, where the rows lie by token, then by sample.
    turned = labels.movedim(0, batch_dim) if len(own) > batch_dim else labels
    return turned if tuple(turned.shape[: len(own)]) == rows else None


def _looks(batch: object) -> str:
    if isinstance(batch, Mapping):
        return f"a {type(batch).__name__} with the keys {', '.join(map(repr, batch))}"
    if isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} of {', '.join(type(item).__name__ for item in batch) or 'nothing'}"
    return f"a {type(batch).__name__}"
