"""What the metrics of neural collapse share: class moments that grow batch by batch, and merge over processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torchmetrics import Metric

from rank_callbacks.functional import ClassMoments, batch_moments, merged_moments
from rank_callbacks.functional.class_moments import check_classes, no_moments, packed_moments, unpacked_moments

if TYPE_CHECKING:
    from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

__all__ = ["ClassMetric"]


class ClassMetric(Metric):
    """A metric that is computed from the class moments of labelled features.

    Its state ``moments`` is one float64 vector: counts, variations, means and, where the measure needs it, the within-class
    scatter. Any split into batches, forwards, merged metrics or processes gives the value of all samples at once, exact but
    for rounding. The state stays float64 whatever type the metric, or a module that holds it, is cast to.

    Metrics of one ``MetricCollection`` whose states are equal are updated once for all of them. It compares states after the
    first batch: give ``compute_groups=False`` to a collection whose metrics differ in ``ignore_index``.

    Args:
        num_classes: K, from 2.
        num_features: Numbers in a feature, D, from 1.
        ignore_index: A label that means none.
        kwargs: Those of ``torchmetrics.Metric``.

    Raises:
        ValueError: If ``num_classes`` or ``num_features`` is too small.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0

    moments: Tensor

    def __init__(self, num_classes: int, num_features: int, ignore_index: int | None = None, **kwargs: object) -> None:
        super().__init__(**kwargs)
        check_classes(num_classes)
        if num_features < 1 or num_features % 1:
            raise ValueError(f"Expected num_features to be a whole number from 1, got {num_features}.")
        self.num_classes = num_classes
        self.num_features = num_features
        self.ignore_index = ignore_index
        self._keep_moments(scatter=False)

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Take in a batch.

        Args:
            features: Shape ``(*, num_features)``, any real type.
            labels: Integers of shape ``(*,)``, or one-hot or soft labels of shape ``(*, num_classes)``.

        Raises:
            ValueError: If the features have another width, or the labels do not fit: see ``labelled_rows``.
        """
        if features.shape[-1:] != (self.num_features,):
            raise ValueError(
                f"Expected features of shape (*, {self.num_features}), as num_features says, got {tuple(features.shape)}."
            )
        known = self.class_moments()
        batch = batch_moments(features, labels, self.num_classes, known.scatter is not None, self.ignore_index)
        self.moments = packed_moments(merged_moments(known, batch))

    def class_moments(self) -> ClassMoments:
        """The moments of all samples so far: of this process, or while synced of all."""
        return unpacked_moments(self.moments, self.num_classes, self.num_features)

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Take in what another metric of the same kind has seen, or a dict of its states."""
        super().merge_state(incoming_state)
        self._computed = None  # torchmetrics would go on returning the value from before

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot one value or several. Needs matplotlib.

        Args:
            val: What ``forward`` or ``compute`` returned, or a list of such; the present value if None.
            ax: Matplotlib axes to plot into, instead of a new figure.

        Returns:
            The figure and its axes.
        """
        return self._plot(val, ax)

    def _keep_moments(self, scatter: bool) -> None:
        default = packed_moments(no_moments(self.num_classes, self.num_features, scatter))
        merged = partial(_merged, num_classes=self.num_classes, num_features=self.num_features)
        self.add_state("moments", default, dist_reduce_fx=merged)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        """Follow a module to its device, but not to its type: torchmetrics guards ``half()``, not ``to(torch.half)``."""

        def keeping_type(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keeping_type, exclude_state)


def _merged(vectors: Tensor, num_classes: int, num_features: int) -> Tensor:
    """The packed moments of the union of samples whose packed moments are stacked."""
    return packed_moments(reduce(merged_moments, (unpacked_moments(vector, num_classes, num_features) for vector in vectors)))
