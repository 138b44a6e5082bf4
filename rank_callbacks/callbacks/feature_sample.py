"""A bounded, uniform sample of the rows of features that pass through a layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from pytorch_lightning import Trainer
from torch import Tensor

__all__ = ["MOST_NUMBERS", "FeatureSample", "SampledRows", "default_samples", "over_processes"]

# 64 MiB of float32.
MOST_NUMBERS = 2**24
# To put parts together takes the memory of all for a moment, and to look through many takes time.
_MOST_PARTS = 16
_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class SampledRows(NamedTuple):
    """Rows that were kept.

    Args:
        features: Shape ``(N, D)``.
        labels: Shape ``(N,)``, integers; all -1 where rows have none.
    """

    features: Tensor
    labels: Tensor


def default_samples(num_features: int, classes: int = 1) -> int:
    """How many rows of D features to keep: 4·D, at least 1,024 and at most 8,192 for each class, in at most 64 MiB.

    At four rows a feature the effective rank of isotropic features reads 3 per cent low, and the participation ratio 20;
    twice as many rows halve that, and cost twice as much.

    Example:
        >>> default_samples(64), default_samples(512), default_samples(25_088)
        (1024, 2048, 668)
    """
    return max(2, min(classes * min(max(4 * num_features, 1024), 8192), MOST_NUMBERS // num_features))


class FeatureSample:
    """Up to ``capacity`` rows, each of those that passed with the same chance.

    Every row draws a random number, and the rows with the smallest stay. So the samples of several processes hold a sample of
    all their rows: those with the smallest numbers.

    Args:
        capacity: Rows to keep; None for ``default_samples`` of their width for each class, in 64 MiB.
        classes: Among which rows are divided, from 1.
        seed: Of the random numbers, which are drawn from no generator of the training's.

    Attributes:
        refused: Why the layer has no rows that could be measured; None if it may have some.
    """

    def __init__(self, capacity: int | None = None, classes: int = 1, seed: int = 0) -> None:
        self.capacity = capacity
        self.refused: str | None = None
        self._classes = classes
        self._random = np.random.default_rng(seed)
        self.clear()

    def clear(self) -> None:
        """Forget every row."""
        self._rows: list[Tensor] = []
        self._draws = torch.zeros(0, dtype=torch.float64)
        self._labels = torch.zeros(0, dtype=torch.int64)
        self._largest, self._drawn = 1.0, 0

    @property
    def width(self) -> int | None:
        """Features in a row; None before the first."""
        return self._rows[0].shape[1] if self._rows else None

    def __len__(self) -> int:
        return len(self._draws)

    def room(self, width: int) -> int:
        """Rows to keep, of so many features."""
        return self.capacity or default_samples(width, self._classes)

    def add(self, rows: Tensor, labels: Tensor | None = None, keep: Tensor | None = None) -> None:
        """Let rows pass.

        Args:
            rows: Shape ``(*, D)``, as wide as those before.
            labels: Integers of shape ``(*,)``.
            keep: False for rows that do not count, such as padding; of shape ``(*,)``.
        """
        self.capacity = self.room(rows.shape[-1])
        counted = None if keep is None else keep.flatten().nonzero().squeeze(1).cpu()
        places, draws = self._candidates(rows.shape[:-1].numel() if counted is None else len(counted), self.capacity)
        entering, leaving = self._exchanged(draws, self.capacity)
        places = (places if counted is None else counted[places])[entering].to(rows.device)
        at = torch.unravel_index(places, rows.shape[:-1])
        own = torch.full((len(places),), -1) if labels is None else labels[at].cpu()
        order = _order(len(self), leaving, len(places))
        self._draws = torch.cat([self._draws, draws[entering]])[order]
        self._labels = torch.cat([self._labels, own])[order]
        self._replace(leaving, _picked(rows, at, slice(len(leaving))))
        self._append(_picked(rows, at, slice(len(leaving), None)))

    def _candidates(self, passing: int, capacity: int) -> tuple[Tensor, Tensor]:
        """Places of the rows that drew less than all that would leave, and their draws: no other row need draw at all."""
        count = self._random.binomial(passing, self._largest)
        chosen = np.arange(passing) if count == passing else self._random.choice(passing, count, replace=False, shuffle=False)
        places, draws = torch.from_numpy(chosen), torch.from_numpy(self._largest * self._random.random(count))
        least = _smallest(draws, capacity)
        return places[least], draws[least]

    def _exchanged(self, draws: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
        """Places of the new rows that are among those with the smallest draws, and of those before that are no longer."""
        before = len(self)
        together = torch.cat([self._draws, draws])
        stay = torch.zeros(len(together), dtype=torch.bool)
        stay[_smallest(together, capacity)] = True
        self._drawn += len(draws)
        if self._drawn > 2 * capacity:
            self._bound(together[stay])
        return stay[before:].nonzero().squeeze(1), (~stay[:before]).nonzero().squeeze(1)

    def _bound(self, draws: Tensor) -> None:
        """A row that draws more than all these would leave at once."""
        self._largest, self._drawn = draws.max().item(), len(draws)

    @torch.inference_mode()  # in which rows of every mode can be written over
    def _replace(self, places: Tensor, rows: Tensor) -> None:
        start = 0
        for part in self._rows:
            inside = (start <= places) & (places < start + len(part))
            part[(places[inside] - start).to(part.device)] = rows[inside.to(rows.device)]
            start += len(part)

    def _append(self, rows: Tensor) -> None:
        if len(rows) or not self._rows:
            self._rows.append(rows)
        if len(self._rows) > _MOST_PARTS:
            self._rows = [torch.cat(self._rows)]

    def refuse(self, reason: str) -> None:
        """Keep no row from here on, nor those before."""
        self.refused = reason
        self.clear()

    def taken(self) -> tuple[SampledRows, Tensor]:
        """The rows that stay and what they drew, at least one having passed."""
        if self._drawn > (self.capacity or 0):
            self._bound(self._draws)
        self._rows = [torch.cat(self._rows)] if len(self._rows) > 1 else self._rows
        return SampledRows(self._rows[0], self._labels), self._draws


def over_processes(local: Mapping[str, FeatureSample], trainer: Trainer) -> dict[str, SampledRows]:
    """The samples of the rows of all processes together, the same on each; without layers that none saw or one refused.

    A collective operation: every process must call it with the same names. One all-gather of sizes, one for each layer.
    """
    if trainer.world_size == 1:
        return {name: sample.taken()[0] for name, sample in local.items() if len(sample)}
    device = trainer.strategy.root_device
    own = torch.tensor([_size(sample) for sample in local.values()], device=device)
    sizes = trainer.strategy.all_gather(own).reshape(trainer.world_size, len(local), 5)
    rows = {}
    for place, (name, sample) in enumerate(local.items()):
        counts, widths = sizes[:, place, 0].tolist(), sizes[:, place, 1]
        width, capacity, kind, refused = sizes[:, place, 1:].amax(0).tolist()
        if width and not refused and bool(((widths == width) | (widths == 0)).all()):
            block = _block(sample, max(counts), width).to(device)
            everyones = trainer.strategy.all_gather(block).reshape(trainer.world_size, *block.shape)
            parts = [part[:count] for part, count in zip(everyones, counts, strict=True)]
            rows[name] = _merged(parts, capacity, _TYPES[kind])
    return rows


def _size(sample: FeatureSample) -> tuple[int, int, int, int, bool]:
    """Rows, features in each, rows that a sample of all processes may have, their type, and whether they are refused."""
    if not len(sample):
        return 0, 0, 0, 0, sample.refused is not None
    (features, _), _ = sample.taken()
    return len(features), features.shape[1], sample.capacity or 0, _TYPES.index(features.dtype), False


def _block(sample: FeatureSample, length: int, width: int) -> Tensor:
    """Draws, labels and rows of one process as one float64 matrix, filled up with zeros."""
    block = torch.zeros(length, 2 + width, dtype=torch.float64)
    if len(sample):
        (features, labels), draws = sample.taken()
        block[: len(draws)] = torch.cat([draws[:, None], labels[:, None].double(), features.double().cpu()], 1)
    return block


def _merged(parts: list[Tensor], capacity: int, dtype: torch.dtype) -> SampledRows:
    together = torch.cat(parts)
    stay = together[_smallest(together[:, 0], capacity)]
    return SampledRows(stay[:, 2:].to(dtype), stay[:, 1].long().cpu())


def _smallest(draws: Tensor, count: int) -> Tensor:
    """Places of the smallest draws."""
    return draws.topk(count, largest=False).indices if len(draws) > count else torch.arange(len(draws), device=draws.device)


def _order(before: int, leaving: Tensor, entering: int) -> Tensor:
    """Where rows come from, ``before`` of them and then new ones: these take the places that are left, and then others."""
    order = torch.arange(before + entering - len(leaving))
    order[before:] += len(leaving)
    order[leaving] = torch.arange(before, before + len(leaving))
    return order


def _picked(rows: Tensor, at: tuple[Tensor, ...], part: slice) -> Tensor:
    """Copies of rows, since what follows in the network may work in place."""
    picked = rows[tuple(places[part] for places in at)]
    return picked.cpu() if picked.device.type == "mps" else picked  # which has no float64
