"""Neural rank collapse: the distance of each weight to rank K, against within-class variability and weight decay."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from rank_callbacks.callbacks.batch_labels import Labels, check_labels, labels_of
from rank_callbacks.callbacks.collapse_window import CollapseWindow, bytes_held, over_processes
from rank_callbacks.callbacks.lightning import last_step, loss_scale, step_axis
from rank_callbacks.callbacks.monitor import Monitor
from rank_callbacks.callbacks.probe import check_loader, logits_of, outputs_of, probe_batches, undisturbed
from rank_callbacks.callbacks.readings import Spectrum, check_scalars, measured, shows_layers
from rank_callbacks.callbacks.rounds import Rounds, allowance
from rank_callbacks.callbacks.schedule import Windows
from rank_callbacks.callbacks.sharing import check_not_sharded, shared_singular_values
from rank_callbacks.callbacks.unseen import why_unseen
from rank_callbacks.callbacks.weight_decay import decay_of
from rank_callbacks.callbacks.window_readings import has_certificates, norm_by_rows, readings_of_window
from rank_callbacks.functional import spectrum_cost
from rank_callbacks.functional.class_moments import check_classes
from rank_callbacks.matrices.parameters import (
    WITHOUT_GRADIENT,
    TrainableWeight,
    computed_matrices,
    names_of,
    trainable_weights,
)
from rank_callbacks.matrices.passes import no_passes
from rank_callbacks.matrices.selection import by_reason, in_short
from rank_callbacks.writers import Report

__all__ = ["RankCollapseMonitor"]


class RankCollapseMonitor(Monitor):
    """Measures how far each weight is from rank K, the number of classes, and what holds it there.

    At a critical point of a loss with weight decay the distance of a weight to rank K is at most a constant times the
    within-class variability of the features before it, over the weight decay. The monitor shows the three, and certificates:
    upper bounds of the distance that hold at every step of any training, proved in ``rank_collapse_certificates``.

    **When.** A window of ordinary training steps ends at each scheduled step, and one with training where no other is open.
    While it lasts, hooks add up class moments of what passes through each layer, and in ``on_before_optimizer_step`` its
    gradient is added up: accumulated, averaged over processes and unscaled, before clipping. The report at step s is of the
    weights after s steps. With ``data=`` a loader, one pass over it in eval mode takes the place of the window.

    **Logs** ``rank_collapse/<measure>/<layer>``, and the mean, minimum and maximum over layers:

    ============================  ======================================================================  ================
    measure                       what                                                                    range
    ============================  ======================================================================  ================
    ``distance_to_rank_k``        Frobenius distance of W to the nearest matrix of rank K                 [0, ‖W‖_F]
    ``relative_distance_to_       the same over ‖W‖_F                                                     [0, 1]
    rank_k``
    ``numerical_rank``            singular values above 1e-3·σ₁                                           [0, min(m, n)]
    ``tcv_input``                 total cluster variation of the layer's inputs z                         [0, ∞)
    ``tcv_ratio_input``           its share of their variance                                             [0, 1]
    ``tcv_adjoint``               total cluster variation of the per-sample adjoints δ                    [0, ∞)
    ``class_mean_alignment``      of W and the class-mean part M of its gradient; 1 is collapse           [−1, 1]
    ``alignment_bound``           ‖W‖_F √(1 − a²): bounds the distance, whatever the optimizer            [0, ‖W‖_F]
    ``certificate_joint``,        ‖λW + M‖/λ, (‖C‖ + ‖R‖)/λ and the latter with ‖C‖ by Cauchy-Schwarz:    [0, ∞)
    ``_sharp``, ``_loose``        each bounds the distance, and the one before
    ``stationarity_residual``     ‖R‖/‖λW‖: at 1 or above certificates say nothing                        [0, ∞)
    ``weight_decay``              of the parameter's own group, now                                       [0, ∞)
    ``sgd_rank_bound``            rank that SGD with weight decay leaves up to 1e-3                       [0, min(m, n)]
    ``norm_ratio``                ‖W_t‖/‖W_{t+1}‖ of the step; the SGD bound supposes 1                   (0, ∞)
    ============================  ======================================================================  ================

    ``monitor/seconds/rank_collapse`` and ``monitor/share_of_training/rank_collapse`` tell what it costs.

    **Weight decay.** Certificates need λ of a penalty (λ/2)‖W‖²: ``weight_decay`` of SGD, and of Adam and its relatives where
    it is added to the gradient. In AdamW and other decoupled optimizers it is something else, and with 0 the bound is
    infinite: then there is no reading of certificates, nor of the residual. ``sgd_rank_bound`` is for SGD alone.
    ``tcv_adjoint`` is of the per-sample loss, as if the loss were a mean over the samples of the window.

    **Layers.** Linear layers, convolutions (patches are the samples; not in groups), ``nn.MultiheadAttention``, recurrent
    layers and cells. A sample's label holds for all of its tokens and positions; labels of the tokens' own shape hold for
    tokens. With ignored labels ``certificate_loose`` reads NaN, and so it does where the gradient has another part as well, of
    a penalty say. A recurrent layer is run once more in each step of a window, so not one with dropout between its layers;
    packed sequences and labels a token leave it without a reading. Other layers, such as embeddings and heads tied to them,
    transposed convolutions, and weights that are computed from parameters, as by ``weight_norm``, have none: Lightning's log
    names them when fitting starts.

    **NaN.** A layer that saw a NaN or infinity in the window reads NaN. Classes that the window did not see are left out.
    ``class_mean_alignment`` has no reading of a layer whose W or M is 0, which has no direction.

    **Cost.** In a window two passes over what a layer's inputs and output gradients hold, in float64; at a report one
    exact spectrum a matrix and some 10·m·n operations. In memory, while a window lasts, a gradient of each layer that has
    certificates, and 8·K bytes for each input and output of a layer. With ``every_n_steps="auto"`` layers take turns: a window
    is of as many as 4 MiB are enough for, or 2 % of the parameters' bytes, of one at least. Mean, minimum and maximum are then
    of the latest reading of each layer, and ``monitor/spectrum_age/rank_collapse`` tells how many steps old the oldest is.

    **Distributed.** Moments of all processes are merged exactly, in one all-gather a report; spectra are shared out by cost.
    The schedule must answer alike on every process. Sharded models are refused.

    Args:
        num_classes: K.
        layers: Which matrices: None for all, glob patterns of names, or a function of the name.
        every_n_steps: Steps between reports, a schedule: a function of the step, or ``"auto"``: as often as takes at most the
            monitor's part of ``max_overhead``, see ``Cadence``.
        window: Training steps before each report that it looks at; 8 by default, or ``every_n_steps`` where that is a smaller
            number. A longer window makes the residual, and with it the certificates, smaller.
        data: ``"train"`` for training batches as they pass; a loader for ``loss(model(inputs), labels)`` on a fixed set, which
            leaves parameters, buffers, gradients and random state as they were, and which every process goes through. Of its
            batches the first item goes into the module's ``forward``, or the whole batch where it is not a tuple; of a dict,
            by name, what ``forward`` has arguments for.
        loss: Of the outputs and labels of a probe, the mean over a batch; by default cross-entropy, of the ``logits`` among
            the outputs if there are such.
        labels: Where a batch has its labels: None for the second item, the key of a dict, or a function of the batch.
        ignore_index: A label that means none.
        group: First part of the tags: two monitors of one training, of other labels or data, need two.
        scalars: ``"auto"`` logs a scalar a layer for up to 200 layers, ``"all"`` for any number.
        max_overhead: Share of the wall time for all monitors of a training that choose their cadence, in even parts.

    Raises:
        ValueError: If ``num_classes`` is below 2, a window does not fit between reports, an argument is not one of the above;
            when fitting starts if a pattern matches nothing, no selected layer can be measured, the model is sharded or two
            monitors of one training have the same ``group``; and at a batch whose labels are missing, no integers, or not
            from 0 to K−1.

    Reference:
        Provable emergence of deep neural collapse and low-rank bias (Zangrando et al., 2026), https://arxiv.org/abs/2402.03991

    Example:
        >>> monitor = RankCollapseMonitor(num_classes=10, every_n_steps=200)
    """

    def __init__(
        self,
        num_classes: int,
        layers: str | Sequence[str] | Callable[[str], bool] | None = None,
        every_n_steps: int | Callable[[int], bool] | Literal["auto"] = "auto",
        window: int | None = None,
        data: Literal["train"] | Iterable[Any] = "train",
        loss: Callable[[Any, Tensor], Tensor] = cross_entropy,
        labels: str | Callable[[Any], Tensor] | None = None,
        ignore_index: int | None = None,
        group: str = "rank_collapse",
        scalars: Literal["auto", "all"] = "auto",
        max_overhead: float = 0.01,
    ) -> None:
        super().__init__(every_n_steps, max_overhead, at_start=False, shortest=window)
        check_classes(num_classes)
        check_scalars(scalars)
        if isinstance(data, str) and data != "train":
            raise ValueError(f"Expected data to be 'train' or a loader, got {data!r}.")
        check_loader(data)
        self.num_classes = num_classes
        self.layers = layers
        # A loader is looked at in one step.
        self.windows = Windows(self.cadence.schedule, window if isinstance(data, str) else 1)
        self.data = data
        self.loss = loss
        self.labels: Labels = labels
        self.ignore_index = ignore_index
        self.group = group
        self.scalars = scalars
        self._window: CollapseWindow | None = None
        self._checked = False
        self._start_anew()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier fit."""
        super().setup(trainer, pl_module, stage)
        self._start_anew()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot be measured before any training is paid for, and say what is left out of the rest."""
        super().on_fit_start(trainer, pl_module)
        check_not_sharded(trainer)
        self._weights(pl_module)
        left_out = self._left_out(pl_module)
        if left_out:
            rank_zero_info(f"RankCollapseMonitor cannot read all weights. {left_out}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and learn when training ends."""
        super().on_train_start(trainer, pl_module)
        self.windows.restart(last_step(trainer))

    def _expected_seconds(self, pl_module: LightningModule) -> float:
        weights, _ = self._due(pl_module)
        return sum(spectrum_cost(tuple(matrix.shape)) for weight in weights for matrix in weight.matrices.values())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Open a window where one must begin to end on schedule, and tell it the labels of the batch."""
        step = step_axis(trainer)
        self.cadence.begin_step(step)
        if isinstance(self.data, str) and not self._checked:
            check_labels(labels_of(batch, self.labels), self.num_classes, self.ignore_index)
            self._checked = True
        with self._stopwatch:
            if self._window is None and self.windows.begin(step):
                self._window = self._new_window(pl_module)
                if not isinstance(self.data, str):
                    self._probe(trainer, pl_module, self._window, self.data)
            if self._window is not None:
                self._window.begin_batch(labels_of(batch, self.labels), loss_scale(trainer))

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Add up the gradients, and at the end of the window measure them."""
        if self._window is None or id(optimizer) in self._stepped:
            return
        self._stepped.add(id(optimizer))
        with self._stopwatch:
            owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            mine = [weight for weight in self._measurable if id(weight.parameter) in owned]
            scale = loss_scale(trainer) if getattr(optimizer, "_step_supports_amp_scaling", False) else 1.0
            gradients = [(weight, weight.parameter.grad) for weight in mine if weight.parameter.grad is not None]
            self._window.add_gradients(gradients, scale=scale)
            if self.windows.end(step_axis(trainer)):
                self._measure(trainer, self._window, mine, [optimizer])

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Report at the end of the window."""
        if self._window is None or not self._stepped:
            return
        self._stepped.clear()
        if self.windows.end(step_axis(trainer)):
            with self._stopwatch:
                self._add_norm_ratios()
                self._report(trainer, step_axis(trainer))
            self._close()
            self.cadence.reported(step_axis(trainer))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no hook behind."""
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave no hook behind."""
        self._close()
        super().teardown(trainer, pl_module, stage)

    def _start_anew(self) -> None:
        self._warned: set[str] = set()
        self._checked = False
        self._rounds = Rounds()
        self.windows.restart()
        self._close()

    def _close(self) -> None:
        if self._window is not None:
            self._window.close()
        self._window = None
        self._measurable: list[TrainableWeight] = []
        self._stepped: set[int] = set()
        self._norms: dict[str, tuple[Tensor, Tensor]] = {}
        self._values: dict[str, dict[str, Tensor]] = {}

    def _weights(self, pl_module: LightningModule) -> list[TrainableWeight]:
        weights = trainable_weights(pl_module, self.layers)
        seen = [weight for weight in weights if no_passes(weight) is None]
        if not seen:
            reasons = self._left_out(pl_module)
            raise ValueError(f"Expected a layer of which it can be seen what passes through, got none. {reasons}")
        return seen

    def _left_out(self, pl_module: LightningModule) -> str:
        """Which weights have no reading, and why; nothing where all have."""
        reasons = {
            " = ".join(names_of(pl_module, weight.parameter)): reason
            for weight in trainable_weights(pl_module, self.layers)
            if (reason := no_passes(weight)) is not None
        }
        reasons |= dict.fromkeys(computed_matrices(pl_module, self.layers), WITHOUT_GRADIENT)
        return " ".join(f"{in_short(names)}: {reason}." for reason, names in by_reason(reasons).items())

    def _new_window(self, pl_module: LightningModule) -> CollapseWindow:
        self._measurable, summed = self._due(pl_module)
        return CollapseWindow(pl_module, self._measurable, self.num_classes, self.ignore_index, self._stopwatch, summed)

    def _due(self, pl_module: LightningModule) -> tuple[list[TrainableWeight], set[str]]:
        """The weights whose turn it is, and the paths of those whose gradients are to be added up."""
        weights = {weight.path: weight for weight in self._weights(pl_module)}
        optimizers = pl_module.trainer.optimizers
        summed = {path for path, weight in weights.items() if has_certificates(decay_of(weight.parameter, optimizers))}
        sizes = {path: bytes_held(weight, self.num_classes, path in summed) for path, weight in weights.items()}
        if self.cadence.is_auto and isinstance(self.data, str):
            self._rounds.room = allowance(pl_module)
        self._rounds.begin(sizes)
        return [weight for path, weight in weights.items() if self._rounds.admits(path, sizes[path])], summed

    def _measure(
        self, trainer: Trainer, window: CollapseWindow, weights: Sequence[TrainableWeight], optimizers: Sequence[Optimizer]
    ) -> None:
        local = {name: (weight.matrices[name], one) for weight in weights for name, one in window.take(weight).items()}
        is_probe = not isinstance(self.data, str)
        if is_probe:
            matrices, samples, processes = {name: one for name, (_, one) in local.items() if one}, window.samples, 1
        else:
            matrices, samples = over_processes(local, window.samples, self.num_classes, trainer)
            processes = trainer.world_size
        paths = {name: weight.path for weight in weights for name in weight.matrices if name not in matrices}
        self._warn_of_unseen(window, paths, why_unseen(trainer.lightning_module))
        decays = {name: decay_of(weight.parameter, optimizers) for weight in weights for name in weight.matrices}
        weights_now = {name: matrix.weight for name, matrix in matrices.items()}
        del local  # gradients go before spectra come
        while matrices:
            name = next(iter(matrices))
            self._add(name, readings_of_window(matrices.pop(name), samples, processes, decays[name], is_probe))
        self._measure_ranks(weights_now, trainer)
        self._warn_of_nan(step_axis(trainer))
        if not is_probe:
            self._norms.update({name: (matrix, norm_by_rows(matrix)) for name, matrix in weights_now.items()})

    def _add(self, name: str, readings: Mapping[str, Tensor | float]) -> None:
        for measure, value in readings.items():
            self._values.setdefault(measure, {})[name] = torch.as_tensor(value, dtype=torch.float64).cpu()

    def _measure_ranks(self, weights: Mapping[str, Tensor], trainer: Trainer) -> None:
        values = shared_singular_values(weights)
        spectra = {name: Spectrum.of(values[name], weight) for name, weight in weights.items()}
        for kind in ("distance_to_rank", "relative_distance_to_rank"):
            name = f"{kind}_{self.num_classes}"
            self._values.setdefault(f"{kind}_k", {}).update(measured(spectra, [name])[name])
        self._values.setdefault("numerical_rank", {}).update(measured(spectra, ["numerical_rank"])["numerical_rank"])

    def _add_norm_ratios(self) -> None:
        ratios = {name: (before / norm_by_rows(weight)).cpu() for name, (weight, before) in self._norms.items()}
        self._values["norm_ratio"] = ratios

    def _warn_of_unseen(self, window: CollapseWindow, paths: Mapping[str, str], unseen: str) -> None:
        for name in sorted(paths.keys() - self._warned):
            self._warned.add(name)
            why = window.why_nothing(paths[name]) or f"no labelled sample passed through it{unseen}"
            warnings.warn(f"{name} has no reading: {why}.", stacklevel=2)

    def _warn_of_nan(self, step: int) -> None:
        for name, distance in self._values.get("tcv_input", {}).items():
            if name not in self._warned and not distance.isfinite():
                self._warned.add(name)
                warnings.warn(f"{name} reads NaN at step {step}: a NaN or infinity passed through it.", stacklevel=2)

    def _report(self, trainer: Trainer, step: int) -> None:
        layers = len(self._values.get("distance_to_rank_k", {})) + len(self._rounds.waiting)
        self._rounds.end(step)
        shown = shows_layers(self.scalars, layers, self.group, self._warned)
        scalars = self._rounds.tagged(self.group, self._values, shown, step)
        self._write(trainer, Report(step, scalars, {}))

    def _probe(self, trainer: Trainer, pl_module: LightningModule, window: CollapseWindow, loader: Iterable[Any]) -> None:
        parameters = [weight.parameter for weight in self._measurable]
        with undisturbed(pl_module), torch.enable_grad():
            for batch in probe_batches(trainer, loader):
                labels = labels_of(batch, self.labels)
                samples = window.begin_batch(labels)
                with trainer.precision_plugin.forward_context():
                    outputs = outputs_of(pl_module, batch)
                    loss = self.loss(logits_of(outputs) if self.loss is cross_entropy else outputs, labels) * samples
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                pairs = zip(self._measurable, gradients, strict=True)
                window.add_gradients([(weight, part) for weight, part in pairs if part is not None], steps=samples)
        with torch.no_grad():
            self._measure(trainer, window, self._measurable, trainer.optimizers)
        self._report(trainer, step_axis(trainer))
        self._close()
