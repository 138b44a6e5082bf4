"""The ranks of a model's gradients at a step, against the bound that its architecture and batch allow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer

from rank_callbacks.callbacks.bounds_over_processes import bounds_over_processes, no_bounds
from rank_callbacks.callbacks.class_rank import check_integers, class_ranks
from rank_callbacks.callbacks.gathering import shared_rounding_noise
from rank_callbacks.callbacks.gradient_spectra import factor_spectra, leading_left_vectors, sketched_or_full
from rank_callbacks.callbacks.processes import process_count
from rank_callbacks.callbacks.readings import (
    Spectrum,
    check_scalars,
    listed,
    measured,
    shows_layers,
    spectra_by_tag,
    tagged,
    unreadable,
    warn_of_nan,
)
from rank_callbacks.callbacks.sharing import shared_singular_values
from rank_callbacks.catalog import find_measure
from rank_callbacks.functional import numerical_rank
from rank_callbacks.functional.spectrum import widened
from rank_callbacks.gradient_bounds import (
    BoundTable,
    GradientBound,
    bounds_of_layers,
    outer_products_of_layers,
    rows_without_gradient,
)
from rank_callbacks.matrices import check_conv, gradient_matrices, matrix_views, trainable_weights
from rank_callbacks.matrices.activations import LayerRows, RowCapture
from rank_callbacks.matrices.parameters import TrainableWeight
from rank_callbacks.tags import Tag
from rank_callbacks.writers import MatrixSpectrum, Table

__all__ = ["GradientReadings", "GradientReport"]


class GradientReport(NamedTuple):
    """What is read at a step.

    Args:
        scalars: Numbers by tag.
        spectra: Singular values by tag.
        tables: The bounds, once.
    """

    scalars: dict[Tag, float]
    spectra: dict[Tag, MatrixSpectrum]
    tables: dict[Tag, Table]


class Taken(NamedTuple):
    """What the gradients of an optimizer are read from.

    Args:
        gradients: By name.
        captured: What passed through layers, by name.
        scale: What the gradients are still multiplied by.
        dtype: To which they were rounded on their way; None for their own.
    """

    gradients: dict[str, Tensor]
    captured: dict[str, LayerRows]
    scale: float
    dtype: torch.dtype | None

    def tensors(self) -> Iterator[Tensor]:
        """All of them."""
        yield from self.gradients.values()
        for rows in self.captured.values():
            yield from rows.tensors()

    def copied(self, copy: Callable[[Tensor], Tensor]) -> Taken:
        """The same of copies."""
        gradients = {name: copy(gradient) for name, gradient in self.gradients.items()}
        return self._replace(gradients=gradients, captured={name: rows.copied(copy) for name, rows in self.captured.items()})


class GradientReadings:
    """Reads the ranks of a model's gradients.

    ``open`` before a step, ``take`` and ``measure`` before an optimizer steps, ``read`` after.

    Args:
        measures: Names from the catalogue.
        layers: Which matrices.
        conv: How a convolution kernel is a matrix.
        subspace_rank: Of the leading subspaces that are compared from reading to reading; None for none.
        update: Whether to read what the optimizer adds to the weights as well.
        moments: Whether to read the optimizer's own matrices.
        per_class: Whether to read the gradient of each class.
        scalars: ``"auto"`` or ``"all"``.
        group: First part of the tags.

    Raises:
        ValueError: If an argument is not one of these.
    """

    def __init__(
        self,
        measures: Sequence[str],
        layers: str | Sequence[str] | Callable[[str], bool] | None,
        conv: str,
        subspace_rank: int | None,
        update: bool,
        moments: bool,
        per_class: bool,
        scalars: str,
        group: str = "gradient_rank",
    ) -> None:
        for measure in listed(measures):
            find_measure(measure)
        check_conv(conv)
        check_scalars(scalars)
        if subspace_rank is not None and (subspace_rank < 1 or subspace_rank % 1):
            raise ValueError(f"Expected subspace_rank to be None or a whole number from 1, got {subspace_rank}.")
        self.measures, self.layers, self.conv, self.scalars = list(measures), layers, conv, scalars
        self.group, self.subspace_rank = group, subspace_rank
        self.update, self.moments, self.per_class = update, moments, per_class
        self._capture: RowCapture | None = None
        self.restart()

    def restart(self) -> None:
        """Another training starts."""
        self._warned: set[str] = set()
        self._subspaces: dict[str, Tensor] = {}
        self._told_bounds = False
        self._without_gradient = BoundTable()
        self.close()

    def check(self, model: nn.Module) -> None:
        """Refuse a model in which there is nothing to read."""
        trainable_weights(model, self.layers, self.conv)
        self._without_gradient = rows_without_gradient(model, self.layers, self.conv)

    @property
    def is_open(self) -> bool:
        """Whether there are hooks in the model."""
        return self._capture is not None

    @property
    def has_measured(self) -> bool:
        """Whether the gradients of an optimizer have been measured."""
        return bool(self._optimizers)

    def open(self, model: nn.Module, step: int, sees_rows: bool = True) -> None:
        """Set the hooks that see what passes through layers.

        Args:
            model: Any module.
            step: Of which the gradients will be.
            sees_rows: Whether this process sees whole rows of what passes; under tensor parallelism none does.
        """
        self._sees_rows = sees_rows
        self._capture = RowCapture(model if sees_rows else nn.ModuleList(), torch.Generator().manual_seed(step))

    def add_labels(self, labels: Tensor) -> None:
        """Tell the labels of a batch, if gradients of classes are read."""
        self._labels.append(check_integers(labels))

    def close(self) -> None:
        """Take the hooks away, and forget the step."""
        if self._capture is not None:
            self._capture.close()
        self._capture = None
        self._optimizers: dict[int, Optimizer] = {}
        self._spectra: dict[str, Spectrum] = {}
        self._bounds: dict[str, GradientBound] = {}
        self._overlaps: dict[str, Tensor] = {}
        self._labels: list[Tensor] = []
        self._class_ranks: dict[str, float] = {}
        self._weights: list[TrainableWeight] = []
        self._before: dict[str, Tensor] = {}

    def take(
        self, model: nn.Module, optimizer: Optimizer, scale: float = 1.0, dtype: torch.dtype | None = None
    ) -> Taken | None:
        """The gradients of an optimizer's parameters as they are now, once; None if there are none.

        Args:
            model: The module that is open.
            optimizer: That is about to step.
            scale: What the gradients are still multiplied by.
            dtype: To which they were rounded on their way; None for their own.
        """
        if self._capture is None or id(optimizer) in self._optimizers:
            return None
        self._optimizers[id(optimizer)] = optimizer
        gradients = self._gradients(model, optimizer)
        return Taken(gradients, self._capture.layers, scale, dtype) if gradients else None

    def measure(self, model: nn.Module, taken: Taken) -> None:
        """Measure what was taken. A collective operation."""
        gradients, captured, scale, dtype = taken
        mine = gradients.__contains__
        factors = outer_products_of_layers(model, captured, mine, self.conv) if process_count() == 1 else {}
        products = factor_spectra(gradients, factors, self.subspace_rank or 0)
        known = {name: (product.input_rank, product.delta_rank) for name, product in products.items()}
        bounds = bounds_of_layers(model, captured, mine, self.conv, known)
        bounds = bounds_over_processes(bounds) if self._sees_rows else no_bounds(bounds)
        values = {name: product.singular_values.cpu() for name, product in products.items()}
        others = {name: gradient for name, gradient in gradients.items() if name not in products}
        limits = {row.layer: row.bound for row in bounds}
        values.update(shared_singular_values(others, partial(sketched_or_full, limits)))
        self._bounds.update({row.layer: row for row in bounds})
        self._spectra.update(_unscaled(values, gradients, scale, dtype))
        self._compare_subspaces(gradients, {name: product.left_vectors for name, product in products.items()})
        if self.per_class:
            self._class_ranks.update(class_ranks(captured, gradients, self._labels))
        if self.update or self.moments:
            self._remember_weights(trainable_weights(model, mine, self.conv))

    def read(self, step: int) -> GradientReport:
        """The readings of what was measured, the optimizer having stepped. A collective operation."""
        warn_of_nan(unreadable(self._spectra), step, self._warned)
        groups = {self.group: self._spectra}
        if self.update:
            groups[self._group_of("update")] = self._update_spectra()
        if self.moments:
            groups[self._group_of("moment")] = self._moment_spectra()
        report = GradientReport({}, {}, self._bounds_once(step))
        for group, spectra in groups.items():
            values = measured(spectra, self.measures) | (self._against_bounds() if group == self.group else {})
            report.scalars.update(tagged(group, values, shows_layers(self.scalars, len(spectra), self.group, self._warned)))
            report.spectra.update(spectra_by_tag(group, spectra))
        return report

    def _group_of(self, what: str) -> str:
        return self.group.replace("gradient", what) if "gradient" in self.group else f"{self.group}_{what}"

    def _gradients(self, model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
        gradients = gradient_matrices(model, self.layers, self.conv, optimizer)
        # Which has no float64.
        return {name: gradient.cpu() if gradient.device.type == "mps" else gradient for name, gradient in gradients.items()}

    def _remember_weights(self, weights: list[TrainableWeight]) -> None:
        self._weights += weights
        if self.update:
            self._before.update({name: matrix.clone() for weight in weights for name, matrix in weight.matrices.items()})

    def _compare_subspaces(self, gradients: Mapping[str, Tensor], known: Mapping[str, Tensor]) -> None:
        """Compare the leading left singular vectors with those at the last report."""
        rank = self.subspace_rank
        for name, gradient in gradients.items():
            before = self._subspaces.pop(name, None)
            if rank is None or not _has_subspace(self._spectra[name], rank):
                continue
            if name in known:
                now, total = known[name], None
            else:
                now, total = leading_left_vectors(gradient, rank)
            if before is not None and before.shape == now.shape:
                cosines = before.mT @ now
                self._overlaps[name] = ((total(cosines) if total else cosines).square().sum() / rank).cpu()
            self._subspaces[name] = now

    def _against_bounds(self) -> dict[str, dict[str, Tensor]]:
        known = {name: row for name, row in self._bounds.items() if row.bound is not None}
        ranks = {name: _exact_rank(spectrum) for name, spectrum in self._spectra.items()}
        values: dict[str, dict[str, Any]] = {
            "bound": {name: row.bound for name, row in known.items()},
            "utilization": {name: ranks[name] / row.bound for name, row in known.items() if row.bound},
            "input_rank": {name: row.input_rank for name, row in known.items() if row.input_rank is not None},
            "delta_rank": {name: row.delta_rank for name, row in known.items() if row.delta_rank is not None},
            f"subspace_overlap_{self.subspace_rank}": self._overlaps,
            "class_rank": self._class_ranks,
        }
        return {
            measure: {name: torch.as_tensor(value, dtype=torch.float64) for name, value in of_layers.items()}
            for measure, of_layers in values.items()
        }

    def _update_spectra(self) -> dict[str, Spectrum]:
        after = {
            name: matrix for weight in self._weights for name, matrix in self._views(weight, weight.parameter.detach()).items()
        }
        updates = {name: widened(matrix) - widened(self._before[name]) for name, matrix in after.items()}
        values = shared_singular_values(updates)
        # An update is lost in the rounding of the weights, before and after, not in its own.
        noise = {name: 2 * shared_rounding_noise(matrix) for name, matrix in after.items()}
        return {name: Spectrum(values[name], tuple(matrix.shape), noise[name], 0.0) for name, matrix in after.items()}

    def _moment_spectra(self) -> dict[str, Spectrum]:
        moments: dict[str, Tensor] = {}
        for weight in self._weights:
            for optimizer in self._optimizers.values():
                for key, moment in optimizer.state.get(weight.parameter, {}).items():
                    if isinstance(moment, Tensor) and moment.shape == weight.parameter.shape:
                        moments.update({f"{name}.{key}": view for name, view in self._views(weight, moment).items()})
        values = shared_singular_values(moments)
        return {name: Spectrum.of(values[name], moment, exact=True) for name, moment in moments.items()}

    def _views(self, weight: TrainableWeight, tensor: Tensor) -> dict[str, Tensor]:
        """The selected matrices of a tensor shaped as the parameter."""
        views = matrix_views(weight.path, weight.module, tensor, self.conv) or {}
        return {name: view for name, view in views.items() if name in weight.matrices}

    def _bounds_once(self, step: int) -> dict[Tag, Table]:
        """What binds each gradient, and which weights have none, told and logged with the first report."""
        if self._told_bounds or not self._bounds:
            return {}
        self._told_bounds = True
        table = BoundTable([*self._bounds.values(), *self._without_gradient])
        rank_zero_info(f"Bounds of the gradients' ranks at step {step}:\n{table}")
        rows = [
            (row.layer, " x ".join(map(str, row.shape)), "-" if row.bound is None else row.bound, row.reason) for row in table
        ]
        return {Tag(self.group, "bounds", "table"): Table(("layer", "shape", "bound", "bound by"), rows)}


def _exact_rank(spectrum: Spectrum) -> Tensor:
    return numerical_rank(spectrum.singular_values, spectrum.rtol or 0, spectrum.noise)


def _has_subspace(spectrum: Spectrum, rank: int) -> bool:
    """Whether there are ``rank`` leading directions to compare, and more to tell them from."""
    return len(spectrum.shape) == 2 and min(spectrum.shape) > rank and bool(_exact_rank(spectrum) >= rank)


def _unscaled(
    values: Mapping[str, Tensor], gradients: Mapping[str, Tensor], scale: float, dtype: torch.dtype | None
) -> dict[str, Spectrum]:
    spectra = {}
    for name, gradient in gradients.items():
        spectrum = Spectrum.of(values[name], gradient, dtype, exact=True)
        spectra[name] = spectrum._replace(singular_values=values[name] / scale, noise=spectrum.noise / scale)
    return spectra
