"""Class moments of features that come batch by batch, in as little memory as a scatter matrix takes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import torch
from pytorch_lightning import Trainer
from torch import Tensor

from rank_callbacks.functional import ClassMoments, batch_moments, class_moments, merged_moments
from rank_callbacks.functional.class_moments import no_moments, packed_moments, unpacked_moments
from rank_callbacks.functional.labels import labelled_rows

__all__ = ["FeatureMoments", "over_processes"]


class FeatureMoments:
    """Rows of features and their classes, kept while there are few, then folded into moments.

    Rows take as much memory as the D x D scatter when there are 2·D of them. Up to then NC1 needs no such matrix, which would
    cost D operations for each one that the rows themselves do.

    Args:
        num_classes: K.
        ignore_index: A label that means none.
    """

    def __init__(self, num_classes: int, ignore_index: int | None = None) -> None:
        self._num_classes = num_classes
        self._ignore_index = ignore_index
        self._rows: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._folded: ClassMoments | None = None

    def add(self, rows: Tensor, labels: Tensor) -> None:
        """Add rows of shape ``(n, D)`` with labels of shape ``(n,)`` or ``(n, K)``.

        Raises:
            ValueError: If the width of the rows changed, or the labels do not fit: see ``labelled_rows``.
        """
        labelled_rows(labels, self._num_classes, len(rows), self._ignore_index)
        before = self._rows[0].shape[1] if self._rows else self.features
        if before not in {None, rows.shape[1]}:
            raise ValueError(f"Expected features of width {before} as before, got {rows.shape[1]}.")
        self._rows.append(rows)
        self._labels.append(labels)
        if sum(map(len, self._rows)) > 2 * rows.shape[1]:
            self._fold()

    @property
    def features(self) -> int | None:
        """Width of the rows; None without any."""
        if self._rows:
            return self._rows[0].shape[1]
        return None if self._folded is None else self._folded.means.shape[1]

    def moments(self) -> ClassMoments | None:
        """Of all rows, with their scatter; None without any."""
        if self._folded is None and self._rows:
            return class_moments(*self._waiting(), self._num_classes, scatter=True, ignore_index=self._ignore_index)
        return self.mergeable()

    def mergeable(self) -> ClassMoments | None:
        """The same with the scatter of all features, for ``merged_moments``."""
        self._fold()
        return self._folded

    def _fold(self) -> None:
        if self._rows:
            now = batch_moments(*self._waiting(), self._num_classes, scatter=True, ignore_index=self._ignore_index)
            self._folded = now if self._folded is None else merged_moments(self._folded, now)
            self._rows, self._labels = [], []

    def _waiting(self) -> tuple[Tensor, Tensor]:
        return torch.cat(self._rows), torch.cat(self._labels)


def over_processes(local: Mapping[str, FeatureMoments], num_classes: int, trainer: Trainer) -> dict[str, ClassMoments]:
    """The moments of the rows of all processes together; a layer that no process saw is left out.

    A collective operation: every process must call it with the same names. Two all-gathers: of widths, and of moments.
    """
    if trainer.world_size == 1:
        moments = {name: one.moments() for name, one in local.items()}
        return {name: one for name, one in moments.items() if one is not None}
    device = trainer.strategy.root_device
    own = torch.tensor([one.features or 0 for one in local.values()], device=device)
    widths = trainer.strategy.all_gather(own).reshape(trainer.world_size, -1).amax(0).tolist()
    moments_here = (one.mergeable() for one in local.values())
    parts = [
        packed_moments(no_moments(num_classes, width, scatter=True, device=device) if one is None else one)
        for one, width in zip(moments_here, widths, strict=True)
    ]
    everyones = trainer.strategy.all_gather(torch.cat(parts).to(device)).reshape(trainer.world_size, -1)
    pieces = everyones.split([len(part) for part in parts], 1)
    return {
        name: reduce(merged_moments, [unpacked_moments(vector, num_classes, width) for vector in piece])
        for name, piece, width in zip(local, pieces, widths, strict=True)
        if width
    }
