"""The ranks of a network's weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from rank_callbacks.callbacks.background import Copy
from rank_callbacks.callbacks.lightning import step_axis
from rank_callbacks.callbacks.monitor import Monitor
from rank_callbacks.callbacks.sharing import check_shards
from rank_callbacks.callbacks.weight_readings import WeightReadings
from rank_callbacks.matrices.sharded import read_on_first
from rank_callbacks.writers import Report

__all__ = ["WeightRankMonitor"]


class WeightRankMonitor(Monitor):
    """Measures the rank of every weight matrix while a network trains.

    **When.** Before the first batch, on schedule, and after the last batch. A report at step s, on the axis of Lightning's
    own training metrics, is of the weights after s optimizer steps: those that the batch logged at s was run with.

    **Logs.**

    ========================================  ==============================================  ==========================
    tag                                       what                                            unit and range
    ========================================  ==============================================  ==========================
    ``weight_rank/<measure>/<layer>``         the measure of one matrix; for more than 200    see ``docs/measures.md``
                                              layers only with ``scalars="all"``
    ``.../mean_over_layers``, ``min_...``,    over all selected matrices; NaN if one is
    ``max_...``
    ``weight_rank/spectrum/<layer>``          singular values, to TensorBoard as a tensor     in the unit of the weight
                                              and to W&B as a histogram
    ``weight_change_rank/...``                the same of W − W₀, with ``change=True``
    ``monitor/approximate_layers/             layers that were read without their whole       [0, layers]
    weight_rank``                             spectrum in this report; not by ``exact``
    ``monitor/spectrum_age/weight_rank``      steps since the oldest whole spectrum, of which  steps
                                              the means tell; by ``auto``
    ``monitor/every_n_steps/weight_rank``     the cadence that ``"auto"`` has chosen          steps
    ``monitor/dropped_reports/weight_rank``   reports that came due while another was         [0, ∞); none on a CPU
                                              finished in the background
    ``monitor/seconds/weight_rank``           wall time that this report's spectra and        seconds
                                              measures took
    ``monitor/share_of_training/              wall time that the monitor has taken so far,    [0, 1]; none before the
    weight_rank``                             over wall time since training began             first batch
    ========================================  ==============================================  ==========================

    A matrix that holds a NaN or an infinity reads NaN, with one warning; training goes on. A zero matrix has rank 0.

    **Methods.** ``"exact"`` takes the whole spectrum of every matrix at each report. ``"auto"`` does so too where
    ``every_n_steps`` is given; where the monitor chooses, it takes as many as its share of the time allows, the oldest first,
    and all at the end of training. Of the other layers the report has only what a few products with the matrix tell:
    ``stable_rank`` and distances to a rank from above, ``spectral_norm`` and ``energy_at_rank_k`` from below
    (``docs/performance.md`` tells how close); other measures have a reading when the layer's turn comes, and enter the means
    with their latest. Matrices with up to 128 rows or columns are always whole. ``"krylov"`` never takes a whole spectrum of
    a larger one; it knows also ``numerical_rank`` and ``participation_ratio``, from a Gram matrix.

    **Cost.** The exact spectrum of every matrix, m·n² + n³ operations in float64 for one of m x n, m ≥ n; memory for the
    largest Gram matrix, 8·n² bytes; with ``change=True`` twice the time, and a copy of the weights, in checkpoints too.

    **On a GPU.** Where the monitor chooses its cadence, up to 1 GiB of weights are copied to the host behind the training's
    own work, which waits for nothing; a thread with one core takes the whole spectra of all of them, and the report is
    written, with its own step, when it is done. One that comes due before is dropped. Of more weights, of sharded ones, with
    ``change=True``, ``method="krylov"`` or a cadence of your own the host waits for each report, and so it does at the end.

    **Distributed.** Under DDP each matrix is measured by one process, shared out by cost; one all-reduce of the singular
    values follows. Under FSDP2 and tensor parallelism in ``ModelParallelStrategy`` a sharded matrix, or the Gram matrix of
    its shorter side where that is less, is sent to the process that measures it; fused projections, grouped convolutions
    and weights of three dimensions are gathered on every process. The schedule must answer alike on every process. The first
    FSDP and DeepSpeed are refused.

    Args:
        measures: Names from the catalogue, a parameter as a suffix: ``"numerical_rank_1e-2"``,
            ``"relative_distance_to_rank_10"``.
        layers: Which matrices: None for all, glob patterns of names (``"encoder"`` takes all inside ``encoder``), or a
            function of the name.
        every_n_steps: Steps between reports, a schedule: a function of the step, or ``"auto"``: as often as takes at most the
            monitor's part of ``max_overhead``, see ``Cadence``.
        conv: How a convolution kernel is a matrix: ``"filters"`` (C_out x C_in·k), ``"slices"`` (a block for each place in
            the kernel) or ``"circular_32x32"`` (the map on images of that size with periodic borders).
        change: Whether to measure W − W₀ as well: what training has added since the monitor first saw the weights.
        group: First part of the tags: two monitors of one training, of other layers or another ``conv``, need two. That of
            ``"circular"`` is followed by ``"circular_change"``.
        scalars: ``"auto"`` logs a scalar a layer for up to 200 layers, ``"all"`` for any number.
        max_overhead: Share of the wall time for all monitors of a training that choose their cadence, in even parts.
        method: ``"auto"``, ``"exact"`` or ``"krylov"``.

    Raises:
        ValueError: If a measure is unknown, ``every_n_steps`` is below 1, ``conv`` or ``scalars`` is not one of the above;
            and when fitting starts if a pattern matches nothing, the model has no matrix, the strategy is refused, or two
            monitors of one training have the same ``group``.

    Example:
        >>> monitor = WeightRankMonitor(measures=["effective_rank", "energy_rank_0.9"], layers="encoder*", every_n_steps=50)
    """

    def __init__(
        self,
        measures: Sequence[str] = ("effective_rank", "stable_rank", "numerical_rank"),
        layers: str | Sequence[str] | Callable[[str], bool] | None = None,
        every_n_steps: int | Callable[[int], bool] | Literal["auto"] = "auto",
        conv: str = "filters",
        change: bool = False,
        group: str = "weight_rank",
        scalars: Literal["auto", "all"] = "auto",
        max_overhead: float = 0.01,
        method: Literal["auto", "exact", "krylov"] = "auto",
    ) -> None:
        super().__init__(every_n_steps, max_overhead, part=0.5 if method == "auto" else 1.0)
        self.measures, self.layers, self.conv, self.change = list(measures), layers, conv, change
        self.group, self.scalars, self.method = group, scalars, method
        self._weights = WeightReadings(measures, layers, conv, change, scalars, method, group)
        self._last_step: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """The step of the last report, and W₀ where it is needed: of a sharded model a collective operation."""
        initial = {name: read_on_first(matrix) for name, matrix in self._weights.initial.items()}
        return super().state_dict() | {"last_step": self._last_step, "initial": initial}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was written."""
        super().load_state_dict(state_dict)
        self._last_step = state_dict["last_step"]
        self._weights.initial = state_dict["initial"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit when another starts; validation keeps what a checkpoint needs."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._last_step = None
            self._weights.restart()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot be measured before any training is paid for."""
        super().on_fit_start(trainer, pl_module)
        check_shards(trainer)
        self._weights.matrices(pl_module)

    @torch.no_grad()
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Report if the schedule says so, once a step however many batches accumulate in it."""
        self.cadence.begin_step(step_axis(trainer))
        is_due = self.cadence(step_axis(trainer))
        if is_due or trainer.world_size == 1:
            self._write_finished(trainer)  # with others only where all come by
        if is_due:
            budgeted = self.cadence.is_auto and self.method == "auto"
            self._report(trainer, pl_module, self.cadence.credit() if budgeted else None)

    @torch.no_grad()
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report what training has made of the weights."""
        self._write_finished(trainer, is_waited_for=True)
        self._report(trainer, pl_module, seconds=None, is_last=True)

    def _report(self, trainer: Trainer, pl_module: LightningModule, seconds: float | None, is_last: bool = False) -> None:
        step = step_axis(trainer)
        if step == self._last_step or self._background.drops():
            return
        self._last_step, beyond = step, 0.0
        with self._stopwatch:
            matrices = self._weights.matrices(pl_module)
            if self._in_background and not is_last and self._background.takes(matrices.values()):
                self._background.start(partial(_copies, matrices), partial(self._finished, step))
            else:
                found = self._weights.read_matrices(matrices, step, seconds)
                self._write(trainer, Report(step, found.scalars, found.spectra))
                beyond = found.seconds
        self.cadence.reported(step, beyond)

    @property
    def _in_background(self) -> bool:
        # W₀ must be there when a checkpoint is written, Krylov spaces set the precision of the whole process, and who names
        # a cadence gets every report.
        return self.cadence.is_auto and self.method != "krylov" and not self.change

    def _finished(self, step: int, matrices: Mapping[str, Tensor]) -> Report:
        found = self._weights.read_matrices(matrices, step, seconds=None)
        return Report(step, found.scalars, found.spectra, {})


def _copies(matrices: Mapping[str, Tensor], copy: Copy) -> dict[str, Tensor]:
    return {name: copy(matrix) for name, matrix in matrices.items()}
