"""The rank of a network as a map: how many directions of its inputs, and of its features, count in the end."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn

from rank_callbacks.callbacks.batch_labels import Labels, classes_of
from rank_callbacks.callbacks.classifier import tell_classifier
from rank_callbacks.callbacks.classifier_inputs import ClassifierInputs
from rank_callbacks.callbacks.feature_monitor import FeatureMonitor
from rank_callbacks.callbacks.feature_sample import over_processes
from rank_callbacks.callbacks.lightning import step_axis
from rank_callbacks.callbacks.network_readings import (
    OF_CLASSES,
    check_measure,
    deficit_table,
    is_of_one,
    measured_together,
    probe_readings,
    readings_of_classes,
)
from rank_callbacks.callbacks.probe import check_forward, undisturbed
from rank_callbacks.callbacks.readings import listed, shows_layers, tagged
from rank_callbacks.callbacks.sharing import check_not_sharded
from rank_callbacks.callbacks.unseen import why_unseen
from rank_callbacks.callbacks.validation import costs_training
from rank_callbacks.functional.class_moments import check_classes
from rank_callbacks.functional.evaluation import check_inputs
from rank_callbacks.functional.independence_deficit import DeficitTable
from rank_callbacks.matrices.features import PENULTIMATE, depth_layers, find_classifier
from rank_callbacks.matrices.layer_outputs import layer_outputs
from rank_callbacks.tags import Tag
from rank_callbacks.writers import Report, Table

__all__ = ["NetworkRankMonitor"]


class NetworkRankMonitor(FeatureMonitor[ClassifierInputs]):
    """Measures how much of its input a network still tells apart at each layer, and how few features its classes need.

    **When.** At the end of validation, in epochs that the schedule says and in the last, and of ``trainer.validate``; of
    the first validation loader.

    **Logs** ``network_rank/<measure>/<layer>``:

    =====================================  ==================================================================  ==============
    measure                                what                                                                range
    =====================================  ==================================================================  ==============
    ``jacobian_rank``,                     singular values of ∂layer/∂input above 1e-3 (or 1e-2) of the        [0, min(D, d)]
    ``jacobian_rank_1e-2``                 largest, in float64; a mean over the probe inputs
    ``feng_jacobian_rank``                 the same by the central 16 x 16 patch alone, as the paper counts    [0, min(D, d)]
    ``perturbed_pca_dimension``            dimension of the features of inputs with noise of 1e-3, as the      [0, min(copies
                                           paper counts; a mean over the probe inputs                          − 1, D)]
    ``jacobian_error``                     with ``probes``: what of a singular value can be missing, over      [0, ∞)
                                           the largest; 0 otherwise, and not logged
    ``classification_dimension``           principal components of the ``penultimate`` features with which     [0, D]
                                           the classifier is right 95 % as often; the paper's projection
    ``centered_classification_dimension``  the same about the mean feature                                     [0, D]
    ``independence_deficit``               of ``class_<k>``: relative error of its logit when it is told by    [0, ∞]
                                           the three others that tell it best; and ``mean_over_classes``
    ``predicted_logit_accuracy``           share of the class's samples that are still classified as it then   [0, 1]
    =====================================  ==================================================================  ==============

    The mean, minimum and maximum over layers of the first four are logged as well; those of ``classes`` need ``num_classes``.
    The whole table of the deficit, with the classes that decide each class and their weights, is in ``monitor.deficit``, in
    TensorBoard's text dashboard and a table of Weights & Biases.

    **NaN.** Where features or Jacobians are not finite, and at all layers if a measure fails, for want of memory or because an
    operation of the network has no derivative in ``torch.func``: with one warning. Training goes on. A class with fewer than
    two samples has no deficit, which makes the mean over classes NaN. What is wrong with the first batch of validation is
    refused in the sanity check; after it, and with any other batch, there is a warning and no reading.

    **Cost.** A probe input takes d forward passes in float64, d being the numbers in an input, and a singular value
    decomposition of each layer's D x d Jacobian; with k probes 2k and some 40 passes; ``copies`` passes for the perturbed PCA
    dimension. The classifier's inputs are kept, in up to 64 MiB; K small Lasso problems for the deficit.

    **Distributed.** Probe inputs are shared out over processes, features of all gathered. Sharded models are refused.

    Args:
        measures: Names as above; None for ``jacobian_rank`` and ``perturbed_pca_dimension``, and with ``num_classes`` for
            ``classification_dimension`` and ``independence_deficit``.
        layers: Modules whose outputs to measure, by name, glob pattern or a function of the name; None for those along the
            depth, as for ``FeatureRankMonitor``.
        every_n_epochs: Epochs between reports, or a schedule: a function of the epoch.
        inputs: Probe inputs of shape ``(n, *sample)`` and floating type, or how many to take from the first validation batch,
            of which the first item goes into the module's ``forward``, or the whole batch where it is not a tuple.
        probes: Of each Jacobian. None for whole Jacobians of inputs of up to 1,024 numbers, and 128 beyond.
        copies: Of each probe input, for ``perturbed_pca_dimension``; 5,000 in the paper.
        num_classes: K, for measures of the classifier.
        classifier: Name of the linear layer that gives the logits; None for the last with ``num_classes`` outputs that is
            trained, or the last at all; Lightning's log names it where several fit.
        labels: Where a batch has its labels: None for the second item, the key of a dict, or a function of the batch.
        ignore_index: A label that means none.
        group: First part of the tags.
        scalars: ``"auto"`` logs a scalar a layer or class for up to 200 of them, ``"all"`` for any number.

    Raises:
        ImportError: If ``independence_deficit`` is asked for and scikit-learn is absent.
        ValueError: If an argument is not one of the above, a measure needs ``num_classes`` or the inputs are no floating
            tensor; when fitting starts if a pattern matches nothing, the classifier is not found, the module has no
            ``forward`` or the model is sharded; and in the sanity check and ``trainer.validate`` at a batch without inputs of
            floating type, or whose labels are missing or not from 0 to K−1.

    Reference:
        Rank diminishing in deep neural networks (Feng et al., 2022), https://arxiv.org/abs/2206.06072

    Example:
        >>> monitor = NetworkRankMonitor(["jacobian_rank", "classification_dimension"], num_classes=10, every_n_epochs=5)
    """

    _instead = ""

    def __init__(
        self,
        measures: Sequence[str] | None = None,
        layers: str | Sequence[str] | Callable[[str], bool] | None = None,
        every_n_epochs: int | Callable[[int], bool] = 1,
        inputs: int | Tensor = 4,
        probes: int | None = None,
        copies: int = 512,
        num_classes: int | None = None,
        classifier: str | None = None,
        labels: str | Callable[[Any], Tensor] | None = None,
        ignore_index: int | None = None,
        group: str = "network_rank",
        scalars: Literal["auto", "all"] = "auto",
    ) -> None:
        super().__init__("val", 1, 1.0, None, group, scalars)
        if measures is None:
            of_classes = [] if num_classes is None else ["classification_dimension", "independence_deficit"]
            measures = ["jacobian_rank", "perturbed_pca_dimension", *of_classes]
        _check_measures(listed(measures), num_classes)
        numbers = {"probes": (probes, 1), "copies": (copies, 2), "every_n_epochs": (every_n_epochs, 1)}
        if isinstance(inputs, Tensor):
            check_inputs(inputs)
        else:
            numbers["inputs"] = (inputs, 1)
        for name, (number, least) in numbers.items():
            if isinstance(number, (int, float)) and (number < least or number % 1):
                raise ValueError(f"Expected {name} to be a whole number from {least}, got {number}.")
        self.measures = list(measures)
        self._of_probe = [measure for measure in measures if measure not in OF_CLASSES]
        self._of_classes = [measure for measure in measures if measure in OF_CLASSES]
        self.layers = layers
        self.every_n_epochs = every_n_epochs
        self.inputs = inputs
        self.probes = probes
        self.copies = copies
        self.num_classes = num_classes
        self.classifier = classifier
        self.labels: Labels = labels
        self.ignore_index = ignore_index
        self.deficit: DeficitTable | None = None
        self._probe_inputs: Tensor | None = None
        self._start_anew()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the hook, in epochs that are looked at; validation outside a fit always is."""
        epoch = trainer.current_epoch
        n = self.every_n_epochs
        is_last = trainer.state.fn != "fit" or epoch + 1 == trainer.max_epochs
        if is_last or (n(epoch) if callable(n) else epoch % n == 0):
            super().on_validation_start(trainer, pl_module)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Take probe inputs from the first batch, that of the sanity check if there is one: so they fail before training."""
        with self._left_out(trainer):
            if self._probe_inputs is None and self._of_probe and batch_idx == dataloader_idx == 0:
                self._probe_inputs = self._share_of_inputs(trainer, batch)
        super().on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)

    def on_validation_batch_end(self, trainer: Trainer, *facts: Any, **more: Any) -> None:  # ruff: ignore[any-type]
        """Take what the batch left."""
        with self._left_out(trainer):
            super().on_validation_batch_end(trainer, *facts, **more)

    @contextmanager
    def _left_out(self, trainer: Trainer) -> Generator[None]:
        """Warn of what is refused, rather than end a training that has been paid for."""
        try:
            yield
        except ValueError as error:
            if not costs_training(trainer):
                raise
            self._warn(str(error).removesuffix("."))

    def _start_anew(self) -> None:
        super()._start_anew()
        self._probe_inputs = None

    def _forget(self) -> None:
        pass

    def _check_strategy(self, trainer: Trainer) -> None:
        check_not_sharded(trainer)

    def _check_model(self, pl_module: LightningModule) -> None:
        depth_layers(pl_module, self.layers)
        if self._of_probe:
            check_forward(pl_module)
        if self._of_classes:
            tell_classifier(pl_module, self.num_classes or 0, self.classifier, type(self).__name__)

    def _check_batch(self, batch: object) -> None:
        if self._of_classes:
            self._classes(batch)

    def _classes(self, batch: object) -> Tensor:
        return classes_of(batch, self.labels, self.num_classes or 0, self.ignore_index)

    def _classifier(self, pl_module: LightningModule) -> nn.Linear | None:
        if not self._of_classes:
            return None
        return find_classifier(pl_module, self.num_classes or 0, self.classifier)

    def _open(self, pl_module: LightningModule) -> ClassifierInputs:
        return ClassifierInputs(self._classifier(pl_module), seed=pl_module.global_rank)

    def _before_batch(self, hooks: ClassifierInputs, batch: object) -> None:
        hooks.begin_batch()

    def _after_batch(self, hooks: ClassifierInputs, batch: object) -> None:
        if hooks.features is not None:
            hooks.add(self._classes(batch))

    def _report(self, trainer: Trainer, hooks: ClassifierInputs) -> None:
        hooks.close()  # the probe runs through the classifier as well
        step, values = step_axis(trainer), self._probed(trainer)
        layers = max(map(len, values.values()), default=0)
        scalars = tagged(self.group, values, shows_layers(self.scalars, layers, self.group, self._warned))
        tables: dict[Tag, Table] = {}
        if hooks.classifier is not None:
            rows = over_processes({PENULTIMATE: hooks.sample}, trainer)
            if PENULTIMATE in rows:
                found, self.deficit = readings_of_classes(rows[PENULTIMATE], hooks.classifier, self.measures)
                shown = shows_layers(self.scalars, self.num_classes or 0)
                scalars |= {Tag(self.group, *name): value for name, value in found.items() if shown or not is_of_one(name)}
                tables = {Tag(self.group, "deficit", "table"): deficit_table(self.deficit)} if self.deficit else {}
            else:
                unseen = hooks.unfit or why_unseen(trainer.lightning_module)
                self._warn(f"no labelled row went into the classifier{unseen}")
        self._write(trainer, Report(step, scalars, {}, tables))

    def _share_of_inputs(self, trainer: Trainer, batch: object) -> Tensor:
        """The probe inputs that this process looks at, in single precision at least."""
        if isinstance(self.inputs, Tensor):
            mine = self.inputs[trainer.global_rank :: trainer.world_size].to(trainer.strategy.root_device)
        else:
            first = batch[0] if isinstance(batch, (tuple, list)) else batch
            if not isinstance(first, Tensor):
                raise ValueError(
                    f"Expected the first item of a validation batch to be a tensor of inputs, got {type(first).__name__}. "
                    "Give probe inputs that the module's forward takes by inputs=."
                )
            check_inputs(first)
            mine = first[: len(range(trainer.global_rank, self.inputs, trainer.world_size))]
        return mine.detach().clone().to(torch.promote_types(mine.dtype, torch.float32))

    def _probed(self, trainer: Trainer) -> dict[str, dict[str, Tensor]]:
        """Means over the probe inputs of all processes: by measure, then by layer."""
        model = trainer.lightning_module
        inputs = torch.zeros(0) if self._probe_inputs is None else self._probe_inputs
        if not self._of_probe:
            return {}
        layers = depth_layers(model, self.layers)
        found: dict[str, dict[str, Tensor]] = {}
        for measures in measured_together(self._of_probe) if len(inputs) else ():
            try:
                with undisturbed(model):
                    found |= probe_readings(layer_outputs(model, layers), inputs, measures, self.probes, self.copies)
            except Exception as error:
                self._warn(f"{', '.join(measures)} failed with {type(error).__name__}: {error}")
                nan = torch.tensor([torch.nan], dtype=torch.float64)
                found |= {name: dict.fromkeys(layers, nan) for name in measures}
        return _means(found, [*self._of_probe, "jacobian_error"], list(layers), trainer)

    def _warn(self, reason: str) -> None:
        if reason not in self._warned:
            self._warned.add(reason)
            warnings.warn(f"{self.group} has no reading: {reason}.", stacklevel=2)


def _means(
    values: Mapping[str, Mapping[str, Tensor]], measures: Sequence[str], layers: Sequence[str], trainer: Trainer
) -> dict[str, dict[str, Tensor]]:
    """Means over the values of all processes, without what none of them has. A collective operation."""
    none = torch.zeros(0, dtype=torch.float64)
    of_all = [[values.get(measure, {}).get(layer, none) for layer in layers] for measure in measures]
    sums = torch.tensor([[[one.sum(), len(one)] for one in of_layers] for of_layers in of_all], dtype=torch.float64)
    if trainer.world_size > 1:
        sums = trainer.strategy.reduce(sums.to(trainer.strategy.root_device), reduce_op="sum").cpu()
    means = {
        measure: {layer: total / count for layer, (total, count) in zip(layers, rows, strict=True) if count}
        for measure, rows in zip(measures, sums, strict=True)
    }
    return {measure: of_layers for measure, of_layers in means.items() if of_layers}


def _check_measures(measures: Sequence[str], num_classes: int | None) -> None:
    for measure in measures:
        check_measure(measure)
        if measure in OF_CLASSES and num_classes is None:
            raise ValueError(f"Measure {measure!r} needs num_classes=.")
    if num_classes is not None:
        check_classes(num_classes)
    if "independence_deficit" in measures and find_spec("sklearn") is None:
        raise ImportError(
            "independence_deficit needs scikit-learn: install it by `pip install 'rank-callbacks[network]'`, or leave the "
            "measure out of measures=."
        )
