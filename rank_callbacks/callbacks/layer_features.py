"""Hooks that take a sample of the features of layers, batch by batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn

from rank_callbacks.callbacks.batch_labels import labels_of_rows
from rank_callbacks.callbacks.feature_sample import FeatureSample
from rank_callbacks.callbacks.rounds import Rounds
from rank_callbacks.callbacks.stopwatch import Stopwatch
from rank_callbacks.functional.lidar import (
    ViewMoments,
    merged_view_moments,
    no_view_moments,
    packed_view_moments,
    unpacked_view_moments,
    view_moments,
)
from rank_callbacks.matrices.channels import ChannelsLast
from rank_callbacks.matrices.features import OutputHooks, feature_rows, first_tensor

__all__ = ["BatchFacts", "LayerFeatures", "views_over_processes"]


class BatchFacts(NamedTuple):
    """What must be known of a batch to take its features.

    Args:
        samples: How many there are; -1 if not known.
        mask: False at padding, shape ``(samples, tokens)``; None if all tokens count.
        labels: Integers, a class for each sample or each token; None without.
    """

    samples: int
    mask: Tensor | None
    labels: Tensor | None


class LayerFeatures:
    """Samples of what layers give out, from construction until ``close``.

    Args:
        model: What they are in.
        layers: Modules by name.
        maps: ``"mean"``, ``"positions"`` or ``"flat"``: see ``feature_rows``.
        capacity: Rows to keep of each layer; None for ``default_samples``, times ``classes``.
        classes: Among which rows are divided, from 1.
        views: Of each object, one after the other in a batch or in calls of the layer; None if there are none.
        seed: Of the choice of rows.
        stopwatch: Of the monitor.
        rounds: Says which of the layers this look is at; of the others no row is kept.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Module],
        maps: str,
        capacity: int | None,
        classes: int,
        views: int | None,
        seed: int,
        stopwatch: Stopwatch,
        rounds: Rounds,
    ) -> None:
        self.samples = {name: FeatureSample(capacity, classes, seed) for name in layers}
        self.views: dict[str, ViewMoments] = {}
        self.order: list[str] = []
        self._maps = maps
        self._views = views
        self._calls: dict[str, list[Tensor]] = {}
        self._batch: BatchFacts | None = None
        self._stopwatch = stopwatch
        self._rounds = rounds
        self._layers = layers
        self._channels_last = ChannelsLast(model)
        self._hooks = OutputHooks(layers, self._receive)

    def close(self) -> None:
        """Remove every hook, and let go of the rows: hooks and this know each other, and would wait for the collector."""
        self._channels_last.close()
        self._hooks.close()
        self.clear()

    def clear(self) -> None:
        """Forget every row, but not which layers were refused."""
        for sample in self.samples.values():
            sample.clear()
        self.views.clear()

    def begin_batch(self, batch: BatchFacts) -> None:
        """Take what layers give out from here on."""
        self._batch = batch
        self._calls.clear()

    def end_batch(self) -> None:
        """Take no more, and put the views of the batch together."""
        self._batch = None
        for name, calls in self._calls.items() if self._views else ():
            self._add_views(name, torch.cat(calls))

    @torch.no_grad()
    def _receive(self, name: str, output: Any) -> None:  # ruff: ignore[any-type]
        if self._batch is None or self.samples[name].refused:
            return
        with self._stopwatch:
            features = first_tensor(output)
            if features is None or not features.is_floating_point() or features.dim() == 0:
                self.samples[name].refuse(f"it gives {_kind(features, output)}")
            else:
                self._add(name, self._channels_last(self._layers[name], features.detach()), self._batch)

    def _add(self, name: str, features: Tensor, batch: BatchFacts) -> None:
        rows, keep = _rows(features, self._maps, batch)
        before, width = self.samples[name].width, rows.shape[-1]
        if name not in self.order:
            self.order.append(name)
        if not self._rounds.admits(name, self.samples[name].room(width) * width * rows.element_size()):
            return
        if before not in {None, width}:
            self.samples[name].refuse(f"its features were {before} numbers wide, and then {width}")
            return
        labels = None if batch.labels is None else labels_of_rows(rows.shape[:-1], batch.labels)
        self.samples[name].add(rows, labels, keep)
        if self._views is not None:
            vectors, _ = _rows(features, "flat" if self._maps == "flat" else "mean", batch)
            self._calls.setdefault(name, []).append(vectors.clone())

    def _add_views(self, name: str, vectors: Tensor) -> None:
        views = self._views or 1
        if len(vectors) % views:
            self.samples[name].refuse(f"its {len(vectors)} rows in a batch are not {views} views of each sample")
            return
        now = view_moments(vectors.unflatten(0, (views, -1)).transpose(0, 1))
        before = self.views.get(name)
        self.views[name] = now if before is None else merged_view_moments(before, now)


def views_over_processes(local: LayerFeatures, widths: Mapping[str, int], trainer: Trainer) -> dict[str, ViewMoments]:
    """The moments of the views of all processes together.

    A collective operation: every process must call it with the same widths. One all-gather for each layer.

    Args:
        local: What this process has seen.
        widths: Features of a layer, by name, of the layers that no process refuses.
        trainer: Of the run.
    """
    if trainer.world_size == 1:
        return {name: local.views[name] for name in widths}
    device = trainer.strategy.root_device
    merged = {}
    for name, width in widths.items():
        mine = packed_view_moments(local.views.get(name, no_view_moments(width))).to(device)
        together = no_view_moments(width, device)
        for vector in trainer.strategy.all_gather(mine).reshape(trainer.world_size, -1):
            together = merged_view_moments(together, unpacked_view_moments(vector, width))
        merged[name] = together
    return merged


def _rows(features: Tensor, maps: str, batch: BatchFacts) -> tuple[Tensor, Tensor | None]:
    """Rows, and which of them count."""
    if batch.mask is None:
        return feature_rows(features, batch.samples, maps), None
    tokens = feature_rows(features, batch.samples, "positions")
    if maps == "flat" or tokens.shape[:-1] != batch.mask.shape:
        return feature_rows(features, batch.samples, maps), None
    if maps == "positions":
        return tokens, batch.mask
    total = torch.where(batch.mask[..., None], tokens, 0).sum(1)
    return total / batch.mask.sum(1, keepdim=True), batch.mask.any(1)


def _kind(features: Tensor | None, output: object) -> str:
    if features is None:
        return f"no tensor but {type(output).__name__}"
    return f"a tensor of {features.dtype} and shape {tuple(features.shape)}"
