"""Neural collapse: NC1 to NC4 and their relatives, of penultimate features and of any layer's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn

from rank_callbacks import functional
from rank_callbacks.callbacks.batch_labels import Labels, check_labels, labels_of, labels_of_rows, soft_if_one_hot
from rank_callbacks.callbacks.classifier import tell_classifier
from rank_callbacks.callbacks.collapse_readings import (
    DEFAULT_MEASURES,
    MEASURES,
    readings_of_classifier,
    readings_of_moments,
)
from rank_callbacks.callbacks.feature_moments import FeatureMoments, over_processes
from rank_callbacks.callbacks.feature_monitor import FeatureMonitor
from rank_callbacks.callbacks.lightning import step_axis
from rank_callbacks.callbacks.probe import outputs_of, probe_batches, undisturbed
from rank_callbacks.callbacks.readings import listed, shows_layers, tagged
from rank_callbacks.callbacks.unseen import why_unseen
from rank_callbacks.functional import ClassMoments
from rank_callbacks.functional.class_moments import check_classes
from rank_callbacks.matrices.features import (
    PENULTIMATE,
    FeatureCapture,
    feature_layers,
    feature_rows,
    find_classifier,
)
from rank_callbacks.matrices.parameters import weight_matrices
from rank_callbacks.matrices.sharded import whole
from rank_callbacks.writers import Report

__all__ = ["NeuralCollapseMonitor"]

_MAPS = ("mean", "positions", "projection")


class NeuralCollapseMonitor(FeatureMonitor[FeatureCapture]):
    """Measures how far features have collapsed to their class means, and the means to a simplex.

    **When.** ``data="train"``: a window of ordinary training batches ends at each scheduled step, and one with training where
    no other is open: in training mode as they pass, while the weights move. ``"val"``: runs of validation, of the first
    validation loader. A loader: at each scheduled step and the last, one pass over it in eval mode with fixed weights, and one
    more for NC4, as the papers do on training data.

    **Logs** ``neural_collapse/<measure>/<layer>``, the layer being ``penultimate``, what goes into the classifier, or a module
    of ``layers``; and the mean, minimum and maximum over these:

    ======================================  =================================================================  ==============
    measure                                 what                                                               at collapse
    ======================================  =================================================================  ==============
    ``nc1_pinv``                            NC1: tr(Σ_W Σ_B⁺)/C                                                0
    ``nc1_quotient``                        NC1: tr Σ_W / tr Σ_B, which never blows up                         0
    ``total_cluster_variation``             tr Σ_W, in the unit of the features squared                        0
    ``cluster_variation_ratio``             tr Σ_W / tr Σ_T, in [0, 1]                                         0
    ``class_distance_normalized_variance``  CDNV                                                               0
    ``class_mean_equinorm``                 NC2: variation of the norms of centred class means                 0
    ``class_mean_equiangularity``           NC2: distance of their cosines from −1/(C − 1)                     0
    ``classifier_equinorm``,                the same of the classifier's rows; penultimate alone, as all       0
    ``classifier_equiangularity``           that follow
    ``self_duality``                        NC3: ‖W/‖W‖ − Ṁ/‖Ṁ‖‖²                                              0
    ``nearest_center_mismatch``             NC4: share of samples classified otherwise than by the nearest     0
                                            class mean
    ``minority_collapse``                   mean cosine of the classifier's rows of minority classes, by       1 is minority
                                            default those with at most half the samples of the largest         collapse
    ``samples_per_class``                   samples in the smallest class; 0 if one was not seen
    ======================================  =================================================================  ==============

    ``measures=`` chooses among these, and other variants that published code uses: ``nc1_svds``, ``nc1_pinv_sample_mean``,
    ``nc1_fuzziness`` and ``self_duality_zhu``; each is the function of that name in ``rank_callbacks.functional``.

    **NC4** needs class means before the features. It takes those of the report before: the first report has none, and where
    features move much between reports it is a look at old means. With a loader the second pass makes it exact.

    **NaN.** Where no class has two samples, within-class spread reads NaN rather than a perfect 0, with one warning. Classes
    that were not seen are left out of all measures. NaN or infinite features read NaN. With fewer than two minority classes
    ``minority_collapse`` has no reading.

    **Cost.** A pass over the features in float64, and 2·K operations a number for NC1 while there are at most 2·D rows; beyond
    that a D x D matrix and 2·D operations a number. With a loader, two evaluations of the network on it.

    **Distributed.** Moments of all processes are merged exactly, in two all-gathers a report. Every process goes through a
    loader. The schedule must answer alike on every process. FSDP2 in ``ModelParallelStrategy`` is
    as DDP; tensor parallelism, the first FSDP and DeepSpeed are refused.

    Args:
        num_classes: K.
        layers: Modules whose outputs to measure as well, by name, glob pattern or a function of the name.
        every_n_steps: Steps between reports, a schedule: a function of the step, or ``"auto"``: as often as takes at most the
            monitor's part of ``max_overhead``, see ``Cadence``. With ``data="val"`` reported are the first run of
            validation after so many steps, each with a schedule, and the last of a training.
        window: Training steps before each report that are looked at; 8 by default, or ``every_n_steps`` where that
            is a smaller number.
        data: ``"train"``, ``"val"``, or a loader. Of its batches the first item goes into the module's ``forward``, or the
            whole batch where it is not a tuple; of a dict, by name, what ``forward`` has arguments for.
        measures: Which of them; None for those of the table.
        classifier: Name of the linear layer that gives the logits; None for the last with ``num_classes`` outputs that is
            trained, or the last at all; Lightning's log names it where several fit.
        maps: What to do with the positions of feature maps and with tokens: ``"mean"`` over them, ``"positions"`` as samples,
            or a fixed random ``"projection"`` of all: see ``feature_rows``. Labels of the tokens' own shape make each token a
            sample.
        labels: Where a batch has its labels: None for the second item, the key of a dict, or a function of the batch.
        ignore_index: A label that means none.
        minority: Classes of ``minority_collapse``; None for those with at most half the samples of the largest.
        group: First part of the tags: two monitors of one training, of training and of validation data, need two.
        scalars: ``"auto"`` logs a scalar a layer for up to 200 layers, ``"all"`` for any number.
        max_overhead: Share of the wall time for all monitors of a training that choose their cadence, in even parts.

    Raises:
        ValueError: If ``num_classes`` is below 2 or an argument is not one of the above; when fitting or validation starts if
            the classifier is not found, a pattern matches nothing, the strategy is refused, or ``data`` is a loader and the
            module has no ``forward``; and at a batch whose labels are missing, do not fit or are not from 0 to K−1, or whose
            features have another width; and if two monitors of one training have the same ``group``.

    Reference:
        Prevalence of neural collapse (Papyan, Han and Donoho, 2020), https://arxiv.org/abs/2008.08186

    Example:
        >>> monitor = NeuralCollapseMonitor(num_classes=10, layers=["layer3", "layer4"], data="val")
    """

    def __init__(
        self,
        num_classes: int,
        layers: str | Sequence[str] | Callable[[str], bool] | None = None,
        every_n_steps: int | Callable[[int], bool] | Literal["auto"] = "auto",
        window: int | None = None,
        data: Literal["train", "val"] | Iterable[Any] = "train",
        measures: Sequence[str] | None = None,
        classifier: str | None = None,
        maps: Literal["mean", "positions", "projection"] = "mean",
        labels: str | Callable[[Any], Tensor] | None = None,
        ignore_index: int | None = None,
        minority: Sequence[int] | None = None,
        group: str = "neural_collapse",
        scalars: Literal["auto", "all"] = "auto",
        max_overhead: float = 0.01,
    ) -> None:
        super().__init__(data, every_n_steps, max_overhead, window, group, scalars)
        check_classes(num_classes)
        if maps not in _MAPS:
            raise ValueError(f"Expected maps to be one of {', '.join(_MAPS)}, got {maps!r}.")
        if minority is not None and not set(minority) <= set(range(num_classes)):
            raise ValueError(f"Expected minority to hold classes from 0 to {num_classes - 1}, got {list(minority)}.")
        for measure in listed(measures or ()):
            if measure not in MEASURES:
                raise ValueError(f"Expected the name of a measure, got {measure!r}. Choose from {', '.join(MEASURES)}.")
        self.num_classes = num_classes
        self.layers = layers
        self.measures = DEFAULT_MEASURES if measures is None else list(measures)
        self.classifier = classifier
        self.maps = maps
        self.labels: Labels = labels
        self.ignore_index = ignore_index
        self.minority = minority
        self._start_anew()

    def _start_anew(self) -> None:
        super()._start_anew()
        self._centers: Tensor | None = None

    def _forget(self) -> None:
        self._moments: dict[str, FeatureMoments] = {}
        self._mismatches = self._compared = 0.0

    def _check_model(self, pl_module: LightningModule) -> None:
        feature_layers(pl_module, self.layers)
        tell_classifier(pl_module, self.num_classes, self.classifier, type(self).__name__)

    def _check_batch(self, batch: object) -> None:
        check_labels(labels_of(batch, self.labels), self.num_classes, self.ignore_index)

    def _parts(self, pl_module: LightningModule) -> tuple[dict[str, nn.Module], nn.Linear]:
        return feature_layers(pl_module, self.layers), find_classifier(pl_module, self.num_classes, self.classifier)

    def _open(self, pl_module: LightningModule) -> FeatureCapture:
        layers, classifier = self._parts(pl_module)
        self._moments = {name: FeatureMoments(self.num_classes, self.ignore_index) for name in (*layers, PENULTIMATE)}
        return FeatureCapture(pl_module, layers, classifier)

    def _before_batch(self, hooks: FeatureCapture, batch: object) -> None:
        hooks.take()  # what validation within a window has left

    def _after_batch(self, hooks: FeatureCapture, batch: object) -> None:
        rows, predictions = self._taken(hooks, batch)
        for name, (features, labels) in rows.items():
            self._moments[name].add(features, labels)
        if self._centers is not None:
            self._compare(rows, predictions)

    def _probe(self, trainer: Trainer, pl_module: LightningModule, hooks: FeatureCapture) -> None:
        self._centers = None
        super()._probe(trainer, pl_module, hooks)
        with undisturbed(pl_module), trainer.precision_plugin.forward_context():
            moments = self._moments[PENULTIMATE].moments()
            self._centers = None if moments is None else _centers(moments)
            for batch in probe_batches(trainer, self.data) if "nearest_center_mismatch" in self.measures else ():
                outputs_of(pl_module, batch)
                self._compare(*self._taken(hooks, batch))

    def _taken(self, hooks: FeatureCapture, batch: object) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor | None]:
        """Rows of features and their labels, by layer, and predictions for the penultimate ones."""
        features, predictions = hooks.take()
        labels = soft_if_one_hot(labels_of(batch, self.labels).detach(), self.num_classes)
        rows = {}
        for name, tensor in features.items():
            of_tokens = tensor.shape[: labels.dim()] == labels.shape and tensor.dim() == labels.dim() + 1
            shaped = tensor if of_tokens else feature_rows(tensor, len(labels), self.maps)
            if (
                name == PENULTIMATE
                and predictions is not None
                and predictions.shape[::-1] == shaped.shape[:-1] != predictions.shape
            ):
                predictions = predictions.mT  # from by token, then by sample
            fitting = labels_of_rows(shaped.shape[:-1], labels)
            if fitting is None:
                self._warn(name, f"rows {tuple(shaped.shape[:-1])} do not fit labels {tuple(labels.shape)}")
            else:
                classes = fitting.shape[shaped.dim() - 1 :]
                rows[name] = shaped.reshape(-1, shaped.shape[-1]), fitting.reshape(-1, *classes)
        return rows, predictions

    def _compare(self, rows: dict[str, tuple[Tensor, Tensor]], predictions: Tensor | None) -> None:
        """Count the predictions that the nearest class mean does not share, where there is one for each row."""
        features, labels = rows.get(PENULTIMATE, (None, None))
        if features is None or labels is None or predictions is None or predictions.numel() != len(features):
            return
        if self._centers is None:
            return
        predictions, finite = predictions.flatten(), features.isfinite().all(1)
        counted = self._centers.isfinite().all(1)[predictions] | ~finite
        if self.ignore_index is not None and not labels.is_floating_point():
            counted &= labels != self.ignore_index
        if counted.any():
            mismatch = functional.nearest_center_mismatch(features[counted], predictions[counted], self._centers)
            self._mismatches += float(mismatch) * int(counted.sum()) if finite[counted].all() else torch.nan
            self._compared += int(counted.sum())

    def _report(self, trainer: Trainer, hooks: FeatureCapture) -> None:
        step = step_axis(trainer)
        if isinstance(self.data, str):
            moments = over_processes(self._moments, self.num_classes, trainer)
            counts = torch.tensor([self._mismatches, self._compared], device=trainer.strategy.root_device)
            mismatches, compared = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
        else:
            seen = {name: one.moments() for name, one in self._moments.items()}
            moments = {name: one for name, one in seen.items() if one is not None}
            mismatches, compared = self._mismatches, self._compared
        for name in self._moments.keys() - moments.keys():
            self._warn(name, f"nothing passed through it{why_unseen(trainer.lightning_module)}")
        values = self._values(moments, whole(weight_matrices(hooks.classifier)["weight"]), step)
        if compared and "nearest_center_mismatch" in self.measures:
            values["nearest_center_mismatch"] = {PENULTIMATE: torch.tensor(mismatches / compared, dtype=torch.float64)}
        if PENULTIMATE in moments:
            self._centers = _centers(moments[PENULTIMATE])
        scalars = tagged(self.group, values, shows_layers(self.scalars, len(moments), self.group, self._warned))
        self._write(trainer, Report(step, scalars, {}))

    def _values(self, moments: dict[str, ClassMoments], weight: Tensor, step: int) -> dict[str, dict[str, Tensor]]:
        values: dict[str, dict[str, Tensor]] = {}
        for name, one in moments.items():
            readings = readings_of_moments(one, self.measures)
            if name == PENULTIMATE:
                readings |= readings_of_classifier(one, weight, self.measures, self.minority)
            if not (one.counts > 1).any():
                self._warn(name, f"no class has two samples at step {step}, so there is no spread to see: use a longer window")
            elif not one.variations.isfinite().all():
                self._warn(name, f"a NaN or infinity passed through it before step {step}")
            for measure, value in readings.items():
                values.setdefault(measure, {})[name] = value.cpu()
        return values

    def _warn(self, name: str, reason: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            warnings.warn(f"{self.group} of {name} has no reading: {reason}.", stacklevel=2)


def _centers(moments: ClassMoments) -> Tensor:
    """Class means, NaN for classes that were not seen."""
    return torch.where(moments.seen[:, None], moments.means, torch.nan)
