"""The ranks of a network's weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from rank_callbacks.callbacks.lightning import Callback, step_axis
from rank_callbacks.callbacks.readings import Spectrum, measured, shows_layers, spectra_by_tag, tagged, warn_of_nan
from rank_callbacks.callbacks.schedule import every
from rank_callbacks.callbacks.sharing import check_not_sharded, shared_singular_values
from rank_callbacks.callbacks.stopwatch import Stopwatch
from rank_callbacks.catalog import find_measure
from rank_callbacks.matrices import check_conv, weight_matrices
from rank_callbacks.tags import Tag
from rank_callbacks.writers import MatrixSpectrum, Report, write_report

__all__ = ["WeightRankMonitor"]


class WeightRankMonitor(Callback):
    """Measures the rank of every weight matrix while a network trains.

    **When.** Before the first batch, on schedule, and after the last batch. A report at step s, on the axis of Lightning's
    own training metrics, is of the weights after s optimizer steps: those that the batch logged at s was run with.

    **Logs.**

    ========================================  ==============================================  ==========================
    tag                                       what                                            unit and range
    ========================================  ==============================================  ==========================
    ``weight_rank/<measure>/<layer>``         the measure of one matrix; for more than 50     see ``docs/measures.md``
                                              layers only with ``scalars="all"``
    ``.../mean_over_layers``, ``min_...``,    over all selected matrices; NaN if one is
    ``max_...``
    ``weight_rank/spectrum/<layer>``          singular values, to TensorBoard as a tensor     in the unit of the weight
                                              and to W&B as a histogram
    ``weight_change_rank/...``                the same of W − W₀, with ``change=True``
    ``monitor/seconds/weight_rank``           wall time that this report's spectra and        seconds
                                              measures took
    ``monitor/share_of_training/              wall time that the monitor has taken so far,    [0, 1]; none before the
    weight_rank``                             over wall time since training began             first batch
    ========================================  ==============================================  ==========================

    A matrix that holds a NaN or an infinity reads NaN, with one warning; training goes on. A zero matrix has rank 0.

    **Cost.** The exact spectrum of every matrix, m·n² + n³ operations in float64 for one of m x n, m ≥ n; memory for the
    largest Gram matrix, 8·n² bytes; with ``change=True`` twice the time, and a copy of the weights, in checkpoints too.

    **Distributed.** Under DDP each matrix is measured by one process, shared out by cost; one all-reduce of the singular
    values follows. The schedule must answer alike on every process. Sharded models are refused.

    Args:
        measures: Names from the catalogue, a parameter as a suffix: ``"numerical_rank_1e-2"``,
            ``"relative_distance_to_rank_10"``.
        layers: Which matrices: None for all, glob patterns of names (``"encoder"`` takes all inside ``encoder``), or a
            function of the name.
        every_n_steps: Steps between reports, or a schedule, such as ``log_spaced(per_decade=10)``: a function of the step.
        conv: How a convolution kernel is a matrix: ``"filters"`` (C_out x C_in·k), ``"slices"`` (a block for each place in
            the kernel) or ``"circular_32x32"`` (the map on images of that size with periodic borders).
        change: Whether to measure W − W₀ as well: what training has added since the monitor first saw the weights.
        scalars: ``"auto"`` logs a scalar a layer for up to 50 layers, ``"all"`` for any number.

    Raises:
        ValueError: If a measure is unknown, ``every_n_steps`` is below 1, ``conv`` or ``scalars`` is not one of the above;
            and when fitting starts if a pattern matches nothing, the model has no matrix or is sharded.

    Example:
        >>> monitor = WeightRankMonitor(measures=["effective_rank", "energy_rank_0.9"], layers="encoder*", every_n_steps=50)
    """

    def __init__(
        self,
        measures: Sequence[str] = ("effective_rank", "stable_rank", "numerical_rank"),
        layers: str | Sequence[str] | Callable[[str], bool] | None = None,
        every_n_steps: int | Callable[[int], bool] = 100,
        conv: str = "filters",
        change: bool = False,
        scalars: Literal["auto", "all"] = "auto",
    ) -> None:
        super().__init__()
        for measure in measures:
            find_measure(measure)
        check_conv(conv)
        if scalars not in {"auto", "all"}:
            raise ValueError(f"Expected scalars to be 'auto' or 'all', got {scalars!r}.")
        self.measures = list(measures)
        self.layers = layers
        self.schedule = every_n_steps if callable(every_n_steps) else every(every_n_steps)
        self.conv = conv
        self.change = change
        self.scalars = scalars
        self._last_step: int | None = None
        self._initial: dict[str, Tensor] = {}
        self._warned: set[str] = set()
        self._stopwatch = Stopwatch()

    @property
    def state_key(self) -> str:
        """Name of this monitor's state in checkpoints: two monitors need different layers, measures or conventions."""
        layers = getattr(self.layers, "__qualname__", self.layers)
        return self._generate_state_key(measures=self.measures, layers=layers, conv=self.conv, change=self.change)

    def state_dict(self) -> dict[str, Any]:
        """The step of the last report, and W₀ where it is needed."""
        return {"last_step": self._last_step, "initial": self._initial}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was written."""
        self._last_step = state_dict["last_step"]
        self._initial = state_dict["initial"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit when another starts; validation keeps what a checkpoint needs."""
        if stage == "fit":
            self._last_step, self._initial, self._warned = None, {}, set()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot be measured before any training is paid for."""
        check_not_sharded(trainer)
        weight_matrices(pl_module, self.layers, self.conv)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._stopwatch.restart()

    @torch.no_grad()
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Report if the schedule says so, once a step however many batches accumulate in it."""
        if self.schedule(step_axis(trainer)):
            self._report(trainer, pl_module)

    @torch.no_grad()
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report what training has made of the weights."""
        self._report(trainer, pl_module)

    def _report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = step_axis(trainer)
        if step == self._last_step:
            return
        self._last_step = step
        with self._stopwatch:
            spectra = {"weight_rank": self._weight_spectra(trainer, pl_module)}
            warn_of_nan(spectra["weight_rank"], step, self._warned)
            if self.change:
                spectra["weight_change_rank"] = self._change_spectra(trainer, pl_module, spectra["weight_rank"])
            write_report(trainer, self._readings(step, spectra))

    def _weight_spectra(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Spectrum]:
        matrices = weight_matrices(pl_module, self.layers, self.conv)
        values = shared_singular_values(matrices, trainer)
        return {name: Spectrum.of(values[name], matrix) for name, matrix in matrices.items()}

    def _change_spectra(
        self, trainer: Trainer, pl_module: LightningModule, now: Mapping[str, Spectrum]
    ) -> dict[str, Spectrum]:
        matrices = weight_matrices(pl_module, self.layers, self.conv)
        # An adapter pair is a change by itself, and its core is not linear in the weights.
        matrices = {name: matrix for name, matrix in matrices.items() if "lora_" not in name}
        if not self._initial:
            self._initial = {name: matrix.clone() for name, matrix in matrices.items()}
        changes = {name: _difference(matrix, self._initial[name]) for name, matrix in matrices.items()}
        values = shared_singular_values(changes, trainer)
        # Both ends of the difference were rounded, each to about as much as the weight is now.
        return {name: Spectrum(values[name], now[name].shape, 2 * now[name].noise) for name in changes}

    def _readings(self, step: int, spectra: Mapping[str, Mapping[str, Spectrum]]) -> Report:
        scalars: dict[Tag, float] = {}
        arrays: dict[Tag, MatrixSpectrum] = {}
        for group, of_layers in spectra.items():
            values = measured(of_layers, self.measures)
            scalars.update(tagged(group, values, shows_layers(self.scalars, len(of_layers))))
            arrays.update(spectra_by_tag(group, of_layers))
        return Report(step, scalars | self._stopwatch.cost("weight_rank", step), arrays)


def _difference(now: Tensor, before: Tensor) -> Tensor:
    wide = torch.promote_types(now.dtype, torch.float64)  # complex128 for the frequencies of a convolution
    return now.to(wide) - before.to(now.device, wide)
