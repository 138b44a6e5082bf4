"""How accurate a network stays with weights of lower rank."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from rank_callbacks.callbacks.batch_labels import Labels, labels_of
from rank_callbacks.callbacks.lightning import Callback, step_axis
from rank_callbacks.callbacks.probe import check_forward, logits_of, outputs_of, probe_batches, undisturbed
from rank_callbacks.callbacks.sharing import check_not_sharded
from rank_callbacks.callbacks.validation import costs_training, warn_without_validation
from rank_callbacks.functional.truncation import check_truncation
from rank_callbacks.tags import Tag
from rank_callbacks.truncation import check_truncatable, truncate
from rank_callbacks.writers import Report, write_report

__all__ = ["TruncationMonitor"]

_GROUP = "truncation"
# The layer of a reading that is of the whole network.
_NETWORK = "network"


class TruncationMonitor(Callback):
    """Measures the accuracy of a classifier whose weight matrices are replaced by their best approximations of lower rank.

    **When.** At the end of validation, in epochs that ``every_n_epochs`` divides and in the last, and of ``trainer.validate``;
    not in the sanity check. An epoch is not known to be the last if a callback stops the fit after its validation, as
    ``EarlyStopping`` does unless it is told ``check_on_train_epoch_end=False``. List the monitor last among the callbacks:
    hooks of others that are still open see its passes.

    **Logs**, for each tolerance such as 0.1:

    =================================================  ==========================================================  =========
    tag                                                what                                                        range
    =================================================  ==========================================================  =========
    ``truncation/accuracy/network``                    share of the samples classified as their label              [0, 1]
    ``truncation/accuracy_at_rtol_0.1/network``        the same with the singular values above 0.1·σ₁ alone in     [0, 1]
                                                       every matrix
    ``truncation/parameters_at_rtol_0.1/network``      numbers that the matrices take as two factors where that    [0, 1]
                                                       is fewer, over those that they have
    =================================================  ==========================================================  =========

    The accuracy of no sample is NaN, and so is one that cannot be found, with one warning: what is wrong with the first batch
    of validation is refused in the sanity check, but later no training ends of it. Weights come back bit for bit: training is
    as without the monitor.

    **Cost.** For each tolerance a pass over the first validation loader, and a spectrum and a singular value decomposition of
    every matrix; one further pass; a copy of the weights.

    **Distributed.** Every process truncates its own copy and goes through its own share of the loader; counts are summed, so
    that samples which a sampler repeats to make shares equal count twice. Sharded models are refused.

    Args:
        rtols: Tolerances relative to the largest singular value of each matrix.
        every_n_epochs: Epochs between reports.
        layers: Which matrices to truncate, of those that are not computed from others: see ``rank_callbacks.truncation``.
        conv: How a convolution kernel is a matrix: ``"filters"`` or ``"slices"``.
        labels: Where a batch has its labels: None for the second item, the key of a dict, or a function of the batch. The
            module's ``forward`` gets the first item, or the whole batch where it is not a tuple or list; of a dict, by name,
            what it has arguments for. It gives logits of shape ``(samples, classes, ...)``, as they are or as ``logits`` of
            its output.

    Raises:
        ValueError: If a tolerance is negative or there is none, or ``every_n_epochs`` is below 1; when fitting starts if a
            pattern matches nothing, a chosen weight cannot be written, the module has no ``forward`` or the model is sharded;
            and in the sanity check and ``trainer.validate`` if a batch cannot go through ``forward``, or labels are missing or
            do not fit the logits.

    Example:
        >>> monitor = TruncationMonitor(rtols=[0.3, 0.1, 0.03], every_n_epochs=5)
    """

    def __init__(
        self,
        rtols: Sequence[float] = (0.3, 0.1, 0.03),
        every_n_epochs: int = 1,
        layers: str | Sequence[str] | Callable[[str], bool] | None = None,
        conv: str = "filters",
        labels: str | Callable[[Any], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if not rtols:
            raise ValueError("Expected at least one tolerance in rtols, got none.")
        for rtol in rtols:
            check_truncation(rtol=rtol)
        if every_n_epochs < 1:
            raise ValueError(f"Expected every_n_epochs to be a whole number from 1, got {every_n_epochs}.")
        self.rtols = list(rtols)
        self.every_n_epochs = every_n_epochs
        self.layers = layers
        self.conv = conv
        self.labels: Labels = labels
        self._has_warned = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot be truncated before any training is paid for."""
        self._has_warned = False
        check_not_sharded(trainer)
        check_truncatable(pl_module, self.layers, self.conv)
        check_forward(pl_module)
        warn_without_validation(trainer, type(self).__name__)

    @torch.no_grad()
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Refuse the first batch of the sanity check if samples cannot be counted in it."""
        if trainer.sanity_checking and batch_idx == dataloader_idx == 0:
            with undisturbed(pl_module), trainer.precision_plugin.forward_context():
                self._hits(pl_module, batch)

    @torch.no_grad()
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go through the validation data again, with the weights as they are and at every tolerance."""
        is_due = trainer.current_epoch % self.every_n_epochs == 0
        if not trainer.sanity_checking and (is_due or _is_last(trainer)):
            with undisturbed(pl_module):
                write_report(trainer, Report(step_axis(trainer), self._readings(trainer, pl_module), {}))

    def _readings(self, trainer: Trainer, model: LightningModule) -> dict[Tag, float]:
        readings = {Tag(_GROUP, "accuracy", _NETWORK): self._accuracy(trainer, model)}
        for rtol in self.rtols:
            with truncate(model, rtol=rtol, layers=self.layers, conv=self.conv) as table:
                readings[Tag(_GROUP, f"accuracy_at_rtol_{rtol:g}", _NETWORK)] = self._accuracy(trainer, model)
            readings[Tag(_GROUP, f"parameters_at_rtol_{rtol:g}", _NETWORK)] = table.factored / table.parameters
        return readings

    def _accuracy(self, trainer: Trainer, model: LightningModule) -> float:
        right, samples = trainer.strategy.reduce(self._counts(trainer, model), reduce_op="sum").tolist()
        return right / samples if samples else math.nan

    def _counts(self, trainer: Trainer, model: LightningModule) -> Tensor:
        """Samples that this process classifies as their label, and all; NaN, for all processes, where it cannot."""
        counts = torch.zeros(2, dtype=torch.float64 if model.device.type != "mps" else torch.float32, device=model.device)
        try:
            with trainer.precision_plugin.forward_context():
                for batch in probe_batches(trainer, _validation_batches(trainer)):
                    hits = self._hits(model, batch)
                    counts += torch.stack([hits.sum(), hits.new_tensor(hits.numel(), dtype=torch.int64)])
        except Exception as error:
            if not costs_training(trainer):
                raise
            self._warn(f"{type(error).__name__}: {error}")
            counts.fill_(math.nan)
        return counts

    def _hits(self, model: LightningModule, batch: object) -> Tensor:
        return _hits(logits_of(outputs_of(model, batch)), labels_of(batch, self.labels))

    def _warn(self, reason: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(f"{_GROUP} reads NaN, for the network could not be evaluated. {reason}", stacklevel=2)


def _is_last(trainer: Trainer) -> bool:
    """Whether no validation of this fit follows: of epochs, of steps, or since a callback before this one has stopped it."""
    at_end = trainer.current_epoch + 1 == trainer.max_epochs or trainer.global_step == trainer.max_steps
    return trainer.state.fn != "fit" or at_end or trainer.should_stop


def _validation_batches(trainer: Trainer) -> Iterable[Any]:
    """The batches of the first validation loader that the trainer validates with."""
    loaders: Any = trainer.val_dataloaders
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    loader = loaders[0] if isinstance(loaders, (list, tuple)) else loaders
    limit = trainer.num_val_batches[0]
    return islice(loader, None if math.isinf(limit) else int(limit))


def _hits(logits: object, labels: Tensor) -> Tensor:
    """Whether each sample or token is classified as its label."""
    if not isinstance(logits, Tensor) or logits.dim() < 2 or logits.argmax(1).shape != labels.shape:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"Expected forward to give logits of shape (samples, classes, ...) for labels of shape {tuple(labels.shape)}, got "
            f"{found}."
        )
    return logits.argmax(1) == labels
