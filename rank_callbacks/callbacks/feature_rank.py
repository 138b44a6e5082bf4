"""The ranks of a network's features."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from rank_callbacks import functional
from rank_callbacks.callbacks.batch_labels import Labels, classes_of, tensor_in
from rank_callbacks.callbacks.feature_monitor import FeatureMonitor
from rank_callbacks.callbacks.feature_readings import (
    Part,
    check_measure,
    is_of_spectrum,
    needs_centered,
    readings_of_classes,
    readings_of_layers,
    readings_of_rows,
    readings_of_spectra,
)
from rank_callbacks.callbacks.feature_sample import SampledRows, over_processes
from rank_callbacks.callbacks.layer_features import BatchFacts, LayerFeatures, views_over_processes
from rank_callbacks.callbacks.lightning import step_axis
from rank_callbacks.callbacks.readings import Spectrum, listed, shows_layers, spectra_by_tag, unreadable, warn_of_nan
from rank_callbacks.callbacks.rounds import Rounds, allowance
from rank_callbacks.callbacks.sharing import shared_singular_values
from rank_callbacks.callbacks.unseen import why_unseen
from rank_callbacks.functional.class_moments import check_classes
from rank_callbacks.functional.lidar import moment_lidar
from rank_callbacks.functional.second_moments import SecondMoments, moment_singular_values
from rank_callbacks.functional.spectrum import spectrum_cost
from rank_callbacks.matrices.features import depth_layers, first_tensor
from rank_callbacks.tags import Tag
from rank_callbacks.writers import MatrixSpectrum, Report

__all__ = ["FeatureRankMonitor"]

_MAPS = ("positions", "mean", "flat")


class FeatureRankMonitor(FeatureMonitor[LayerFeatures]):
    """Measures the rank of the features of each layer: how many directions are left of the data along the depth.

    **When.** ``data="val"``: runs of validation, of the first validation loader. ``"train"``: a window of training
    batches ends at each scheduled step, and one with training where no other is open: in training mode as they pass, while
    the weights move. A loader: at each scheduled step and the last, one pass over it in eval mode with fixed weights.

    **Logs** ``feature_rank/<measure>/<layer>``, and the mean, minimum and maximum over layers. The features of a layer are
    the rows of a matrix X of shape ``(N, D)``; a measure is of the singular values of X/√N, of those after the mean row is
    subtracted, or of the rows:

    ====================================  ==================================================================  ==============
    measure                               what                                                                range
    ====================================  ==================================================================  ==============
    any of ``docs/measures.md``:          of the features as they are, as published for ``effective_rank``    [1, min(N, D)]
    ``effective_rank``, ``rankme``, ...   and ``rankme``
    ``centered_<measure>``:               the same after the mean feature is subtracted, as in PCA:           [0, min(N, D)]
    ``centered_energy_rank_0.95``, ...    ``centered_energy_rank_0.95`` is the PCA dimension at 95 %
    ``corrected_participation_ratio``     ``centered_participation_ratio`` without the bias of a small N/D    [1, ∞)
    ``alpha_req``                         exponent of the power law of the eigenvalues of the covariance      (−∞, ∞)
    ``saturation``                        delve's: principal directions that hold 99 %, over D                (0, 1]
    ``two_nn``                            intrinsic dimension from two nearest neighbours                     (0, ∞)
    ``lidar``                             of ``views`` of each sample                                         [1, D]
    ``dead_fraction``                     features that are 0 in every row                                    [0, 1]
    ``dormant_ratio_0.025``               features whose mean size is at most 0.025 of the layer's            [0, 1]
    ====================================  ==================================================================  ==============

    Beside them ``samples``, N; ``samples_per_feature``, N/D, below 10 of which every rank reads low; with the first report
    ``depth``, the place of the layer in the order in which layers ran; and, as arrays, ``spectrum`` and
    ``centered_spectrum``, those singular values, whose squares are mean energies.

    With ``num_classes`` each measure of a spectrum is read of each class alone: ``<measure>_of_class_<k>`` where classes times
    layers are up to 200 (or with ``scalars="all"``), ``<measure>_mean_over_classes``, ``<measure>_min_over_classes`` and
    ``<measure>_lowest_class``, which one that is. ``samples_per_class`` is the least; classes with one sample are left out.

    **Samples.** N is bounded: each row that passes has the same chance to be among those kept, and the same rows of a loader
    that does not shuffle are kept at each report. A layer that runs several times in a batch has that many more rows. What a
    backward pass computes once more, as with activation checkpointing, does not count.

    **NaN.** NaN or infinite features read NaN in every measure, and so do fewer than two rows; one warning a layer. A layer
    named in ``layers`` that does not run, gives no floating-point tensor, changes its width or has a batch of rows that are
    no whole ``views`` has no reading, and a warning.

    **Cost.** Copies of the rows that are kept; at each report N·D² operations in float64 and an eigenvalue problem of size
    min(N, D), two if centred measures are asked for beside others, and N²·D operations for ``two_nn``. Memory for N·D numbers
    a layer. With ``views``, D² operations a vector. Where training and ``every_n_steps="auto"`` meet, layers take turns: a
    window is of as many as 4 MiB of rows are enough for, or 2 % of the parameters' bytes, of one at least. A mean, minimum
    and maximum are then of the latest reading of each layer, and ``monitor/spectrum_age/feature_rank`` tells how many steps
    old the oldest is.

    **Distributed.** The rows kept by all processes are gathered, and the spectra shared out. As long as N is not reached
    the readings are those of one process. Every process goes through a loader; the rows of the first count. FSDP2 in
    ``ModelParallelStrategy`` is as DDP; tensor parallelism, the first FSDP and DeepSpeed are refused.

    Args:
        measures: Names as above, a parameter as a suffix.
        layers: Modules whose outputs to measure, by name, glob pattern or a function of the name. None for those along the
            depth: members of lists and sequences, and what stands beside them; of these, whatever gives features.
        every_n_steps: Steps between reports, a schedule: a function of the step, or ``"auto"``: as often as takes at most the
            monitor's part of ``max_overhead``, see ``Cadence``. With ``data="val"`` reported are the first run of
            validation after so many steps, each with a schedule, and the last of a training.
        window: Training steps before each report that are looked at; 8 by default, or ``every_n_steps`` where that
            is a smaller number.
        data: ``"val"``, ``"train"``, or a loader. Of its batches the first item goes into the module's ``forward``, or the
            whole batch where it is not a tuple; of a dict, by name, what ``forward`` has arguments for.
        maps: What a row is: each of the ``"positions"`` of a feature map and each token, their ``"mean"``, or all numbers of a
            sample, ``"flat"``: see ``feature_rows``, and ``ChannelsLast`` for sequences.
        samples: Rows to keep of each layer; None for 4·D, at least 1,024 and at most 8,192 for each class, in at most 64 MiB.
        mask: Where a batch says which tokens count, and which are padding: the key of a dict, or a function of the batch that
            gives a tensor of shape ``(samples, tokens)``, 0 or False for padding.
        num_classes: K, to read each class alone.
        labels: Where a batch has its labels: None for the second item, the key of a dict, or a function of the batch. Soft
            labels count as the class with the largest.
        ignore_index: A label that means none.
        views: How many views of each sample, view by view, are in a batch or in successive calls of a layer: for ``lidar``.
        group: First part of the tags: two monitors of one training, of training and of validation data, need two.
        scalars: ``"auto"`` logs a scalar a layer for up to 200 layers, ``"all"`` for any number.
        max_overhead: Share of the wall time for all monitors of a training that choose their cadence, in even parts.

    Raises:
        ValueError: If a measure is unknown or an argument is not one of the above; when fitting or validation starts if a
            pattern matches nothing, the strategy is refused, or ``data`` is a loader and the module has no ``forward``; at a
            batch without the mask or the labels that were asked for, or whose labels are not from 0 to K−1; and if two
            monitors of one training have the same ``group``.

    Reference:
        Rank diminishing in deep neural networks (Feng et al., 2022), https://arxiv.org/abs/2206.06072

    Example:
        >>> monitor = FeatureRankMonitor(["effective_rank", "centered_energy_rank_0.95"], layers="encoder.layers.*")
    """

    def __init__(
        self,
        measures: Sequence[str] = (
            "effective_rank",
            "stable_rank",
            "numerical_rank",
            "dead_fraction",
            "dormant_ratio",
        ),
        layers: str | Sequence[str] | Callable[[str], bool] | None = None,
        every_n_steps: int | Callable[[int], bool] | Literal["auto"] = "auto",
        window: int | None = None,
        data: Literal["train", "val"] | Iterable[Any] = "val",
        maps: Literal["positions", "mean", "flat"] = "positions",
        samples: int | None = None,
        mask: str | Callable[[Any], Tensor] | None = None,
        num_classes: int | None = None,
        labels: str | Callable[[Any], Tensor] | None = None,
        ignore_index: int | None = None,
        views: int | None = None,
        group: str = "feature_rank",
        scalars: Literal["auto", "all"] = "auto",
        max_overhead: float = 0.01,
    ) -> None:
        super().__init__(data, every_n_steps, max_overhead, window, group, scalars)
        for measure in listed(measures):
            check_measure(measure)
        if maps not in _MAPS:
            raise ValueError(f"Expected maps to be one of {', '.join(_MAPS)}, got {maps!r}.")
        if num_classes is not None:
            check_classes(num_classes)
        for name, number in {"samples": samples, "views": views}.items():
            if number is not None and (number < 2 or number % 1):
                raise ValueError(f"Expected {name} to be a whole number from 2, got {number}.")
        if "lidar" in measures and views is None:
            raise ValueError("Measure 'lidar' needs views=: how many views of each sample are in a batch.")
        self.measures = list(measures)
        self.layers = layers
        self.maps = maps
        self.samples = samples
        self.mask = mask
        self.num_classes = num_classes
        self.labels: Labels = labels
        self.ignore_index = ignore_index
        self.views = views if "lidar" in measures else None
        self._start_anew()

    def _start_anew(self) -> None:
        super()._start_anew()
        self._told_depth = False
        self._rounds = Rounds()

    def _forget(self) -> None:
        pass

    def _check_model(self, pl_module: LightningModule) -> None:
        depth_layers(pl_module, self.layers)

    def _check_batch(self, batch: object) -> None:
        self._facts(batch)

    def _open(self, pl_module: LightningModule) -> LayerFeatures:
        layers, classes = depth_layers(pl_module, self.layers), self.num_classes or 1
        if self.cadence.is_auto and self.data == "train":
            self._rounds.room = allowance(pl_module)
        self._rounds.begin()
        seed = pl_module.global_rank  # processes must not draw alike
        return LayerFeatures(
            pl_module, layers, self.maps, self.samples, classes, self.views, seed, self._stopwatch, self._rounds
        )

    def _before_batch(self, hooks: LayerFeatures, batch: object) -> None:
        hooks.begin_batch(self._facts(batch))

    def _after_batch(self, hooks: LayerFeatures, batch: object) -> None:
        hooks.end_batch()

    def _facts(self, batch: object) -> BatchFacts:
        first = first_tensor(batch)
        samples = len(first) if first is not None and first.dim() else -1
        mask = None if self.mask is None else tensor_in(batch, self.mask, "mask").bool()
        if self.num_classes is None:
            return BatchFacts(samples, mask, None)
        return BatchFacts(samples, mask, classes_of(batch, self.labels, self.num_classes, self.ignore_index))

    def _seconds_of_report(self, hooks: LayerFeatures) -> float:
        return sum(spectrum_cost((len(one), one.width)) for one in hooks.samples.values() if one.width)

    def _report(self, trainer: Trainer, hooks: LayerFeatures) -> None:
        step = step_axis(trainer)
        if not (isinstance(self.data, str) or trainer.is_global_zero):
            hooks.clear()  # every process goes through a loader, and each row counts once
        rows = over_processes(hooks.samples, trainer)
        self._rounds.end(step)
        self._warn_of_missing(hooks, rows, step, why_unseen(trainer.lightning_module))
        parts = self._parts(rows)
        kinds = {needs_centered(name) for name in self.measures if is_of_spectrum(name)}
        values = _SingularValues(reused=len(kinds) == 2)
        spectra = {centered: self._spectra(trainer, parts, values, centered) for centered in (False, True)}
        arrays: dict[Tag, MatrixSpectrum] = {}
        for centered, name in ((False, "spectrum"), (True, "centered_spectrum")):
            of_layers = _by_depth(
                {layer: one for (layer, label), one in spectra[centered].items() if label is None}, hooks.order
            )
            warn_of_nan(unreadable(of_layers), step, self._warned)
            arrays |= spectra_by_tag(self.group, of_layers, name)
        scalars = self._readings(trainer, hooks, rows, spectra, step) | self._depths(hooks, rows)
        self._write(trainer, Report(step, scalars, arrays))

    def _parts(self, rows: Mapping[str, SampledRows]) -> dict[Part, Tensor]:
        """Rows of layers, and of each class that has two."""
        parts: dict[Part, Tensor] = {(name, None): sampled.features for name, sampled in rows.items()}
        for name, sampled in rows.items() if self.num_classes else ():
            for label in (self._counts(sampled) > 1).nonzero().flatten().tolist():
                parts[name, label] = sampled.features[(sampled.labels == label).to(sampled.features.device)]
        return parts

    def _spectra(
        self, trainer: Trainer, parts: Mapping[Part, Tensor], singular_values: _SingularValues, centered: bool
    ) -> dict[Part, Spectrum]:
        if not any(is_of_spectrum(name) and needs_centered(name) == centered for name in self.measures):
            return {}
        values = shared_singular_values(parts, partial(singular_values, centered=centered))
        spectra = {}
        for part, rows in parts.items():
            root = math.sqrt(len(rows))
            noise = functional.rounding_noise(rows).cpu() / root
            spectra[part] = Spectrum(values[part] / root, tuple(rows.shape), noise)
        return spectra

    def _readings(
        self,
        trainer: Trainer,
        hooks: LayerFeatures,
        rows: Mapping[str, SampledRows],
        spectra: Mapping[bool, Mapping[Part, Spectrum]],
        step: int,
    ) -> dict[Tag, float]:
        values: dict[str, dict[str, Tensor]] = {}
        lowest: dict[Tag, float] = {}
        for measure, of_parts in readings_of_spectra(spectra[False], spectra[True], self.measures).items():
            values[measure] = readings_of_layers(of_parts)
            if self.num_classes:
                each = self._shows(rows, self.num_classes)
                of_classes, names = readings_of_classes(measure, of_parts, each)
                values |= of_classes
                lowest |= {Tag(self.group, f"{measure}_lowest_class", layer): float(label) for layer, label in names.items()}
        for name, sampled in rows.items():
            for measure, value in (readings_of_rows(sampled.features, self.measures) | self._sizes(sampled)).items():
                values.setdefault(measure, {})[name] = value
        if self.views is not None:
            widths = {name: sampled.features.shape[1] for name, sampled in rows.items()}
            moments = views_over_processes(hooks, widths, trainer)
            values["lidar"] = {name: moment_lidar(one).cpu() for name, one in moments.items()}
        per_layer = self._shows(rows)
        return self._rounds.tagged(self.group, values, per_layer, step) | (lowest if per_layer else {})

    def _shows(self, rows: Mapping[str, SampledRows], classes: int = 1) -> bool:
        """Whether a scalar a layer is logged, or one for each of its classes."""
        layers = len(rows.keys() | self._rounds.waiting)
        return shows_layers(self.scalars, classes * layers, self.group, self._warned if classes == 1 else None)

    def _sizes(self, sampled: SampledRows) -> dict[str, Tensor]:
        samples = torch.tensor(float(len(sampled.features)), dtype=torch.float64)
        sizes = {"samples": samples, "samples_per_feature": samples / sampled.features.shape[1]}
        return sizes | ({"samples_per_class": self._counts(sampled).min().double()} if self.num_classes else {})

    def _counts(self, sampled: SampledRows) -> Tensor:
        return torch.bincount(sampled.labels[sampled.labels >= 0], minlength=self.num_classes or 0)

    def _depths(self, hooks: LayerFeatures, rows: Mapping[str, SampledRows]) -> dict[Tag, float]:
        """Where each layer stands, once: it does not change."""
        if self._told_depth or not self._shows(rows):
            return {}
        order = [name for name in hooks.order if name in rows or name in self._rounds.waiting]
        self._told_depth = bool(order)
        return {Tag(self.group, "depth", name): float(place) for place, name in enumerate(order)}

    def _warn_of_missing(self, hooks: LayerFeatures, rows: Mapping[str, SampledRows], step: int, unseen: str) -> None:
        """Of layers that were named; of those chosen by ourselves only if none has features. And of NaN, and of one row."""
        passed = f"a NaN or infinity passed through it before step {step}"
        reasons = {name: passed for name, sampled in rows.items() if not sampled.features.isfinite().all()}
        reasons |= {name: "it had one row" for name, sampled in rows.items() if len(sampled.features) < 2}
        for name, sample in hooks.samples.items() if self.layers is not None or not rows else ():
            if name not in rows and name not in self._rounds.waiting:
                reasons[name] = sample.refused or f"no row of it counted, or another process refused it{unseen}"
        for name in [name for name in reasons if name not in self._warned]:
            self._warned.add(name)
            warnings.warn(f"{self.group} of {name} has no reading: {reasons[name]}.", stacklevel=2)


def _by_depth(spectra: Mapping[str, Spectrum], order: Sequence[str]) -> dict[str, Spectrum]:
    """In the order in which layers ran; last those that ran in other processes alone."""
    ran = [layer for layer in order if layer in spectra]
    return {layer: spectra[layer] for layer in (*ran, *(spectra.keys() - set(ran)))}


class _SingularValues:
    """Of features, raw and then centred, from one product of each matrix where that serves both."""

    def __init__(self, reused: bool) -> None:
        self._reused = reused
        self._moments: dict[Part, SecondMoments] = {}

    def __call__(self, parts: Mapping[Part, Tensor], centered: bool) -> dict[Part, Tensor]:
        return {part: self._of(part, rows, centered) for part, rows in parts.items()}

    def _of(self, part: Part, rows: Tensor, centered: bool) -> Tensor:
        if len(rows) < 2:
            return rows.new_full((min(rows.shape),), torch.nan)
        if len(rows) < rows.shape[1] or not (centered or self._reused):
            return functional.feature_singular_values(rows, centered)
        moments = self._moments.pop(part, None)
        if moments is None:
            moments = functional.second_moments(rows)
        if self._reused and not centered:
            self._moments[part] = moments
        return moment_singular_values(moments, centered)
