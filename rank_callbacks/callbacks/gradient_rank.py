"""The ranks of a network's gradients, against the bound that its architecture and batch allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from rank_callbacks.callbacks.batch_labels import Labels, labels_of
from rank_callbacks.callbacks.gradient_readings import GradientReadings, Taken
from rank_callbacks.callbacks.lightning import loss_scale, step_axis
from rank_callbacks.callbacks.monitor import Monitor
from rank_callbacks.callbacks.sharing import check_shards, is_tensor_parallel
from rank_callbacks.writers import Report

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
    ``gradient_rank/<measure>/<layer>``                the measure of one gradient; for more than 200 layers  see
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
    ``monitor/dropped_reports/gradient_rank``          as ``WeightRankMonitor``'s
    =================================================  =====================================================  =============

    ``numerical_rank`` without a tolerance of its own is taken at max(m, n)·ε of the gradient's type, since the bound speaks
    of exact rank; in mixed precision not below the rounding noise of the narrow type. A parameter without a gradient has no
    reading; a gradient that is not finite reads NaN, with one warning a layer. At the first report a table of the bounds, with
    what binds each, goes to Lightning's log and to the loggers; there stand also the weights that are computed from
    parameters, as by ``weight_norm``, and have no gradient of their own.

    A bound counts what passes through the layer. A penalty on its weight or on gradients adds to that, and in manual
    optimization so do batches before the scheduled one that accumulate into the same step: then utilization exceeds 1.

    **Cost.** Hooks only on scheduled steps, which keep inputs and output gradients of linear layers until the step ends.
    A gradient of rank at most b ≤ min(m, n)/3 is measured by a b x b problem, 2·b²·(m + n) operations, if its rows were
    caught, and else by a sketch that certifies itself, 4·m·n·b; where neither applies, by its full spectrum.

    **On a GPU.** With one process and one optimizer a report is finished in the background as ``WeightRankMonitor``'s is, from
    copies of up to 1 GiB of gradients and rows; with ``update``, ``moments`` or ``per_class`` the host waits for it.

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
        per_class: Whether to measure the gradient of each class by itself, in linear layers that see one row a sample. In
            this process.
        labels: Where a batch has its labels, for ``per_class``: None for the second item, the key of a dict, or a function of
            the batch.
        group: First part of the tags: two monitors of one training, of other layers or another ``conv``, need two. That of
            ``"heads"`` is followed by ``"heads_update"`` and ``"heads_moment"``.
        scalars: ``"auto"`` logs a scalar a layer for up to 200 layers, ``"all"`` for any number.
        max_overhead: Share of the wall time for all monitors of a training that choose their cadence, in even parts.

    Raises:
        ValueError: If a measure is unknown, ``every_n_steps`` or ``subspace_rank`` is below 1, ``conv`` or ``scalars`` is
            not one of the above; when fitting starts if a pattern matches nothing, the model has no trainable matrix, the
            strategy is refused or two monitors of one training have the same ``group``; and at the first batch if it has no
            labels for ``per_class``.

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
        labels: str | Callable[[Any], Tensor] | None = None,
        group: str = "gradient_rank",
        scalars: Literal["auto", "all"] = "auto",
        max_overhead: float = 0.01,
    ) -> None:
        super().__init__(every_n_steps, max_overhead)
        self.measures, self.layers, self.conv = list(measures), layers, conv
        self.update, self.moments, self.per_class = update, moments, per_class
        self.labels: Labels = labels
        self.group = group
        self._gradients = GradientReadings(measures, layers, conv, subspace_rank, update, moments, per_class, scalars, group)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit."""
        super().setup(trainer, pl_module, stage)
        self._gradients.restart()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot be measured before any training is paid for."""
        super().on_fit_start(trainer, pl_module)
        check_shards(trainer)
        self._gradients.check(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Set the hooks if the schedule says so, for all batches that accumulate in this step."""
        step = step_axis(trainer)
        self.cadence.begin_step(step)
        self._write_finished(trainer)
        if not self._gradients.is_open and self.cadence(step) and not self._background.drops():
            with self._stopwatch:
                self._gradients.open(pl_module, step, sees_rows=not is_tensor_parallel(trainer))
        if self._gradients.is_open and self.per_class:
            self._gradients.add_labels(labels_of(batch, self.labels))

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measure the gradients of this optimizer's parameters."""
        if self._gradients.is_open:
            with self._stopwatch:
                dtype = _MIXED.get(str(trainer.precision))
                taken = self._gradients.take(pl_module, optimizer, _loss_scale(trainer, optimizer), dtype)
                if taken is not None and self._in_background(trainer) and self._background.takes(taken.tensors()):
                    self._begin(trainer, pl_module, taken)
                elif taken is not None:
                    self._gradients.measure(pl_module, taken)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Report, once an optimizer has stepped."""
        if self._gradients.has_measured:
            step = step_axis(trainer)
            with self._stopwatch:
                self._write(trainer, Report(step, *self._gradients.read(step)))
                self._gradients.close()
            self.cadence.reported(step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the report that is under way."""
        self._write_finished(trainer, is_waited_for=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no hook behind."""
        super().on_exception(trainer, pl_module, exception)
        self._gradients.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave no hook behind."""
        super().teardown(trainer, pl_module, stage)
        self._gradients.close()

    def _in_background(self, trainer: Trainer) -> bool:
        # The bounds of several processes, several optimizers, and what an optimizer makes of gradients have to be waited for.
        waits = trainer.world_size > 1 or len(trainer.optimizers) > 1 or self.update or self.moments or self.per_class
        return self.cadence.is_auto and not waits

    def _begin(self, trainer: Trainer, pl_module: LightningModule, taken: Taken) -> None:
        step = step_axis(trainer)
        self._gradients.close()
        self._background.start(taken.copied, partial(self._finished, pl_module, step))
        self.cadence.reported(step)

    def _finished(self, pl_module: LightningModule, step: int, taken: Taken) -> Report:
        self._gradients.measure(pl_module, taken)
        return Report(step, *self._gradients.read(step))


def _loss_scale(trainer: Trainer, optimizer: Optimizer) -> float:
    """What the gradient is still multiplied by: fused optimizers undo a GradScaler's scale inside their step."""
    return loss_scale(trainer) if getattr(optimizer, "_step_supports_amp_scaling", False) else 1.0
