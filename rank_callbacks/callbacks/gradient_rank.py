"""The ranks of a network's gradients, against the bound that its architecture and batch allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer

from rank_callbacks.callbacks.batch_labels import labels_of
from rank_callbacks.callbacks.class_rank import check_integers, class_ranks
from rank_callbacks.callbacks.gathering import shared_rounding_noise
from rank_callbacks.callbacks.gradient_spectra import factor_spectra, leading_left_vectors, sketched_or_full
from rank_callbacks.callbacks.lightning import loss_scale, step_axis
from rank_callbacks.callbacks.monitor import Monitor
from rank_callbacks.callbacks.processes import process_count, summed_over_processes
from rank_callbacks.callbacks.readings import Spectrum, measured, shows_layers, spectra_by_tag, tagged, unreadable, warn_of_nan
from rank_callbacks.callbacks.sharing import check_shards, is_tensor_parallel, shared_singular_values
from rank_callbacks.catalog import find_measure
from rank_callbacks.functional import numerical_rank
from rank_callbacks.functional.spectrum import widened
from rank_callbacks.gradient_bounds import BoundTable, GradientBound, bounds_of_layers, outer_products_of_layers
from rank_callbacks.matrices import check_conv, gradient_matrices, is_selected, matrix_views, trainable_weights
from rank_callbacks.matrices.activations import RowCapture
from rank_callbacks.matrices.parameters import TrainableWeight
from rank_callbacks.tags import Tag
from rank_callbacks.writers import MatrixSpectrum, Report, Table, write_report

__all__ = ["GradientRankMonitor"]

# What the gradient was rounded to on its way, whatever type it is stored in.
_MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class GradientRankMonitor(Monitor):
    """Measures the rank of every weight's gradient, and the bound that the batch and the architecture put on it.

    **When.** On scheduled steps, in ``on_before_optimizer_step``: the gradient that the optimizer is about to use,
    accumulated, averaged over processes and unscaled, before clipping. (In manual optimization, after a clipping of your
    own.) Each optimizer is measured at its first step of a batch; LBFGS evaluates several times and is measured once.

    **Logs.**

    =================================================  =====================================================  =============
    tag                                                what                                                   range
    =================================================  =====================================================  =============
    ``gradient_rank/<measure>/<layer>``                the measure of one gradient; for more than 50 layers   see
                                                       only with ``scalars="all"``                            ``measures.md``
    ``.../mean_over_layers``, ``min_...``, ``max_...`` over all selected matrices; NaN if one is
    ``gradient_rank/bound/<layer>``                    what the exact rank cannot exceed; no reading where    [0, min(m, n)]
                                                       none is known
    ``gradient_rank/utilization/<layer>``              rank at tolerance max(m, n)·ε, over the bound          [0, 1]
    ``gradient_rank/input_rank/<layer>``,              measured ranks of the layer's inputs and of its        [0, min(m, n)]
    ``delta_rank``                                     output gradients, in this process
    ``gradient_rank/subspace_overlap_8/<layer>``       ‖UᵀU'‖_F²/8 of the top 8 left singular vectors, now    [0, 1]
                                                       and at the last report; 1 if they span the same; no
                                                       reading where the rank is below 8
    ``gradient_rank/class_rank/<layer>``               with ``per_class=True``: exact rank of the gradient    [0, min(m, n)]
                                                       of one class, mean over the classes of the batch
    ``gradient_rank/spectrum/<layer>``                 singular values, to TensorBoard and W&B
    ``update_rank/...``, ``moment_rank/...``           with ``update=True``, ``moments=True``
    ``monitor/seconds/gradient_rank``,                 wall time of the report, in seconds; share of the
    ``share_of_training``                              time since training began
    =================================================  =====================================================  =============

    ``numerical_rank`` without a tolerance of its own is taken at max(m, n)·ε of the gradient's type, since the bound speaks
    of exact rank; in mixed precision not below the rounding noise of the narrow type. A parameter without a gradient has no
    reading; a gradient that is not finite reads NaN, with one warning a layer. At the first report a table of the bounds, with
    what binds each, goes to Lightning's log and to the loggers.

    A bound counts what passes through the layer. A penalty on its weight or on gradients adds to that, and in manual
    optimization so do batches before the scheduled one that accumulate into the same step: then utilization exceeds 1.

    **Cost.** Hooks only on scheduled steps, which keep inputs and output gradients of linear layers until the step ends.
    A gradient of rank at most b ≤ min(m, n)/3 is measured by a b x b problem, 2·b²·(m + n) operations, if its rows were
    caught, and else by a sketch that certifies itself, 4·m·n·b; where neither applies, by its full spectrum.

    **Distributed.** Under DDP the averaged gradient is measured, each matrix by one process, and the bounds of the
    processes' batches add up. Two all-reduces a report, one of the bounds and one of the singular values. The schedule must
    answer alike on every process. Under FSDP2 and tensor parallelism in ``ModelParallelStrategy`` gradients stay sharded as
    ``WeightRankMonitor`` says; under tensor parallelism, where no process sees whole rows, there are no bounds, and no
    readings that need them or the rows. The first FSDP and DeepSpeed are refused.

    Args:
        measures: Names from the catalogue, a parameter as a suffix: ``"energy_at_rank_8"`` tells what GaLore or PowerSGD of
            rank 8 would keep.
        layers: Which matrices: None for all, glob patterns of names, or a function of the name.
        every_n_steps: Steps between reports, a schedule: a function of the step, or ``"auto"``: as often as takes at most the
            monitor's part of ``max_overhead``, see ``Cadence``.
        conv: How a convolution kernel is a matrix: see ``WeightRankMonitor``.
        subspace_rank: How many leading singular vectors ``subspace_overlap`` compares; None for no comparison.
        update: Whether to measure W_{t+1} − W_t as well, what the optimizer made of the gradient. Copies the weights on
            scheduled steps.
        moments: Whether to measure the optimizer's own matrices, momentum or Adam's moments, as
            ``moment_rank/<measure>/<layer>.exp_avg``.
        per_class: Whether to measure the gradient of each class by itself, in linear layers that see one row a sample. Labels
            are the second item of an ``(inputs, labels)`` batch. In this process.
        scalars: ``"auto"`` logs a scalar a layer for up to 50 layers, ``"all"`` for any number.
        max_overhead: Share of the wall time for all monitors of a training that choose their cadence, in even parts.

    Raises:
        ValueError: If a measure is unknown, ``every_n_steps`` or ``subspace_rank`` is below 1, ``conv`` or ``scalars`` is
            not one of the above; when fitting starts if a pattern matches nothing, the model has no trainable matrix or the
            strategy is refused; and at the first batch if it has no labels for ``per_class``.

    Reference:
        Low-rank learning by design (Baker et al., 2024), https://arxiv.org/abs/2402.06751

    Example:
        >>> monitor = GradientRankMonitor(measures=["numerical_rank", "energy_at_rank_4"], every_n_steps=50)
    """

    def __init__(
        self,
        measures: Sequence[str] = ("numerical_rank", "effective_rank", "stable_rank", "energy_at_rank_8"),
        layers: str | Sequence[str] | Callable[[str], bool] | None = None,
        every_n_steps: int | Callable[[int], bool] | Literal["auto"] = "auto",
        conv: str = "filters",
        subspace_rank: int | None = 8,
        update: bool = False,
        moments: bool = False,
        per_class: bool = False,
        scalars: Literal["auto", "all"] = "auto",
        max_overhead: float = 0.01,
    ) -> None:
        super().__init__(every_n_steps, max_overhead)
        for measure in measures:
            find_measure(measure)
        check_conv(conv)
        if scalars not in {"auto", "all"}:
            raise ValueError(f"Expected scalars to be 'auto' or 'all', got {scalars!r}.")
        if subspace_rank is not None and (subspace_rank < 1 or subspace_rank % 1):
            raise ValueError(f"Expected subspace_rank to be None or a whole number from 1, got {subspace_rank}.")
        self.measures = list(measures)
        self.layers = layers
        self.conv = conv
        self.subspace_rank = subspace_rank
        self.update = update
        self.moments = moments
        self.per_class = per_class
        self.scalars = scalars
        self._capture: RowCapture | None = None
        self._start_anew()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit."""
        super().setup(trainer, pl_module, stage)
        self._start_anew()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot be measured before any training is paid for."""
        check_shards(trainer)
        trainable_weights(pl_module, self.layers, self.conv)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Set the hooks if the schedule says so, for all batches that accumulate in this step."""
        self.cadence.begin_step(step_axis(trainer))
        if self._capture is None and self.cadence(step_axis(trainer)):
            with self._stopwatch:
                # Under tensor parallelism no process sees whole rows.
                seen = nn.ModuleList() if is_tensor_parallel(trainer) else pl_module
                self._capture = RowCapture(seen, torch.Generator().manual_seed(step_axis(trainer)))
        if self._capture is not None and self.per_class:
            self._labels.append(check_integers(labels_of(batch)))

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measure the gradients of this optimizer's parameters."""
        if self._capture is not None and id(optimizer) not in self._optimizers:
            with self._stopwatch:
                self._optimizers[id(optimizer)] = optimizer
                self._measure(trainer, pl_module, optimizer, self._capture)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Report, once an optimizer has stepped."""
        if self._optimizers:
            with self._stopwatch:
                self._report(trainer, pl_module)
                self._close()
            self.cadence.reported(step_axis(trainer))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no hook behind."""
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave no hook behind."""
        self._close()

    def _start_anew(self) -> None:
        self._warned: set[str] = set()
        self._subspaces: dict[str, Tensor] = {}
        self._told_bounds = False
        self._close()

    def _close(self) -> None:
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

    def _measure(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer, capture: RowCapture) -> None:
        gradients = self._gradients(pl_module, optimizer)
        if not gradients:
            return
        captured, mine = capture.layers, gradients.__contains__
        factors = outer_products_of_layers(pl_module, captured, mine, self.conv) if process_count() == 1 else {}
        products = factor_spectra(gradients, factors, self.subspace_rank or 0)
        known = {name: (product.input_rank, product.delta_rank) for name, product in products.items()}
        bounds = bounds_of_layers(pl_module, captured, mine, self.conv, known)
        bounds = _unknown(bounds) if is_tensor_parallel(trainer) else _over_processes(bounds)
        values = {name: product.singular_values.cpu() for name, product in products.items()}
        others = {name: gradient for name, gradient in gradients.items() if name not in products}
        limits = {row.layer: row.bound for row in bounds}
        values.update(shared_singular_values(others, partial(sketched_or_full, limits)))
        self._bounds.update({row.layer: row for row in bounds})
        self._spectra.update(_unscaled(values, gradients, trainer, optimizer))
        self._compare_subspaces(gradients, {name: product.left_vectors for name, product in products.items()})
        if self.per_class:
            self._class_ranks.update(class_ranks(captured, gradients, self._labels))
        if self.update or self.moments:
            self._remember_weights(trainable_weights(pl_module, mine, self.conv))

    def _gradients(self, pl_module: LightningModule, optimizer: Optimizer) -> dict[str, Tensor]:
        # Patterns are not insisted on: a layer that they name may be frozen at this step, as by toggle_optimizer.
        gradients = gradient_matrices(pl_module, None, self.conv, optimizer)
        on_mps = pl_module.device.type == "mps"  # has no float64
        return {name: g.cpu() if on_mps else g for name, g in gradients.items() if is_selected(name, self.layers)}

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

    def _report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = step_axis(trainer)
        warn_of_nan(unreadable(self._spectra), step, self._warned)
        groups = {"gradient_rank": self._spectra}
        if self.update:
            groups["update_rank"] = self._update_spectra()
        if self.moments:
            groups["moment_rank"] = self._moment_spectra()
        scalars: dict[Tag, float] = {}
        arrays: dict[Tag, MatrixSpectrum] = {}
        for group, spectra in groups.items():
            values = measured(spectra, self.measures) | (self._against_bounds() if group == "gradient_rank" else {})
            scalars.update(tagged(group, values, shows_layers(self.scalars, len(spectra))))
            arrays.update(spectra_by_tag(group, spectra))
        tables = self._bounds_once(trainer)
        write_report(trainer, Report(step, scalars | self._cost("gradient_rank", step), arrays, tables))

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

    def _bounds_once(self, trainer: Trainer) -> dict[Tag, Table]:
        """What binds each gradient, told and logged with the first report."""
        if self._told_bounds or not self._bounds:
            return {}
        self._told_bounds = True
        rank_zero_info(f"Bounds of the gradients' ranks at step {step_axis(trainer)}:\n{BoundTable(self._bounds.values())}")
        rows = [
            (row.layer, " x ".join(map(str, row.shape)), "-" if row.bound is None else row.bound, row.reason)
            for row in self._bounds.values()
        ]
        return {Tag("gradient_rank", "bounds", "table"): Table(("layer", "shape", "bound", "bound by"), rows)}


def _exact_rank(spectrum: Spectrum) -> Tensor:
    return numerical_rank(spectrum.singular_values, spectrum.rtol or 0, spectrum.noise)


def _has_subspace(spectrum: Spectrum, rank: int) -> bool:
    """Whether there are ``rank`` leading directions to compare, and more to tell them from."""
    return len(spectrum.shape) == 2 and min(spectrum.shape) > rank and bool(_exact_rank(spectrum) >= rank)


def _unscaled(
    values: Mapping[str, Tensor], gradients: Mapping[str, Tensor], trainer: Trainer, optimizer: Optimizer
) -> dict[str, Spectrum]:
    scale = _loss_scale(trainer, optimizer)
    spectra = {}
    for name, gradient in gradients.items():
        spectrum = Spectrum.of(values[name], gradient, _MIXED.get(str(trainer.precision)), exact=True)
        spectra[name] = spectrum._replace(singular_values=values[name] / scale, noise=spectrum.noise / scale)
    return spectra


def _unknown(bounds: BoundTable) -> BoundTable:
    """No bounds, where layers are split between processes."""
    return BoundTable(row._replace(bound=None, reason="no bound is known under tensor parallelism") for row in bounds)


def _over_processes(bounds: BoundTable) -> BoundTable:
    """The bounds of the averaged gradient: those of every process's batch, added up."""
    if process_count() == 1:
        return bounds
    local = torch.tensor([torch.nan if row.bound is None else row.bound for row in bounds], dtype=torch.float64)
    total = summed_over_processes(local).tolist()
    return BoundTable(_capped(row, bound, process_count()) for row, bound in zip(bounds, total, strict=True))


def _capped(row: GradientBound, total: float, processes: int) -> GradientBound:
    if row.bound is None or total != total:
        return row._replace(bound=None)
    *blocks, rows, columns = row.shape
    whole = min(rows, columns) * torch.Size(blocks).numel()
    if total >= whole:
        return row._replace(bound=whole, reason="its own shape")
    return row._replace(bound=int(total), reason=f"{row.reason}, in each of {processes} processes")


def _loss_scale(trainer: Trainer, optimizer: Optimizer) -> float:
    """What the gradient is still multiplied by: fused optimizers undo a GradScaler's scale inside their step."""
    return loss_scale(trainer) if getattr(optimizer, "_step_supports_amp_scaling", False) else 1.0
