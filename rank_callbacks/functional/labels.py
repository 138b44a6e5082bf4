"""Labels in all the forms in which they come, as pairs of a row and a class."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["LabelledRows", "labelled_rows"]

# Soft labels are probabilities, in whatever type the loader rounded them to.
_SUM_TO_ONE = 1e-2


class LabelledRows(NamedTuple):
    """Which row belongs to which class, and how much.

    Args:
        rows: Index of each pair's row, shape ``(p,)``; None where the p-th pair is of the p-th row.
        classes: Class of each pair, shape ``(p,)``, int64.
        weights: Weight of each pair, shape ``(p,)``, float64; None for 1.
    """

    rows: Tensor | None
    classes: Tensor
    weights: Tensor | None

    def of(self, rows: Tensor, part: slice = slice(None)) -> Tensor:
        """Those of ``rows`` that have a label, once for each of their classes, or a part of these."""
        return rows[part] if self.rows is None else rows[self.rows[part]]


def labelled_rows(labels: Tensor, num_classes: int, rows: int, ignore_index: int | None = None) -> LabelledRows:
    """Check labels, and bring them to one form.

    Args:
        labels: One of the forms below, in which ``*`` stands for leading dimensions that hold as many rows.

            - Integers or booleans of shape ``(*,)``: a class a row. Rows of ``ignore_index`` have no pair.
            - Shape ``(*, num_classes)`` of any type: one-hot or soft labels. Each class of positive weight makes a pair, so
              mixup has two pairs a row, and label smoothing as many as there are classes.
        num_classes: K.
        rows: How many rows there are to label.
        ignore_index: A label that means none.

    Raises:
        ValueError: If there is another number of labels than of rows, a label is not in 0..K−1, is a float, or soft labels
            are negative, NaN or do not sum to 1.

    Example:
        >>> import torch
        >>> labelled_rows(torch.tensor([2, -100, 0]), num_classes=3, rows=3, ignore_index=-100)[:2]
        (tensor([0, 2]), tensor([2, 0]))
        >>> labelled_rows(torch.tensor([[0.5, 0.5, 0.0]]), num_classes=3, rows=1).classes
        tensor([0, 1])
    """
    if labels.dim() > 1 and labels.shape[-1] == num_classes and labels.numel() == rows * num_classes:
        return _of_weights(labels.detach().reshape(rows, num_classes).double())
    if labels.numel() == rows:
        return _of_classes(labels.flatten(), num_classes, ignore_index)
    raise ValueError(
        f"Expected a label for each of {rows} rows, or labels of shape ({rows}, {num_classes}), "
        f"got shape {tuple(labels.shape)}."
    )


def _of_classes(labels: Tensor, num_classes: int, ignore_index: int | None) -> LabelledRows:
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"Expected labels to be integers, or one-hot or soft labels of shape (rows, {num_classes}), "
            f"got {labels.dtype} of shape {tuple(labels.shape)}."
        )
    labels, rows = labels.detach().long(), None
    if ignore_index is not None:
        rows = (labels != ignore_index).nonzero().flatten()
        labels = labels[rows]
    if labels.numel() and not (labels.min() >= 0 and labels.max() < num_classes):
        others = sorted({int(label) for label in labels.unique() if not 0 <= label < num_classes})
        hint = "" if ignore_index is not None else " If one of them means no label, give it as ignore_index."
        raise ValueError(f"Expected labels from 0 to {num_classes - 1}, got {', '.join(map(str, others[:5]))}.{hint}")
    return LabelledRows(rows, labels, None)


def _of_weights(weights: Tensor) -> LabelledRows:
    if not (weights >= 0).all() or ((weights.sum(1) - 1).abs() > _SUM_TO_ONE).any():
        raise ValueError("Expected one-hot or soft labels from 0 that sum to 1 in each row, got others.")
    rows, classes = weights.nonzero(as_tuple=True)
    return LabelledRows(rows, classes, weights[rows, classes])
