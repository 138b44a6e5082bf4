"""What all metrics of moments share: one float64 vector that grows batch by batch, and merges over processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torchmetrics import Metric

if TYPE_CHECKING:
    from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

__all__ = ["MomentMetric"]


class MomentMetric(Metric):
    """A metric that is computed from moments of features, its state ``moments``.

    Any split into batches, forwards, merged metrics or processes gives the value of all samples at once, exact but for
    rounding. The state stays float64 whatever type the metric, or a module that holds it, is cast to.

    Args:
        num_features: Numbers in a feature, D, from 1.
        kwargs: Those of ``torchmetrics.Metric``.

    Raises:
        ValueError: If ``num_features`` is too small.
    """

    is_differentiable = False
    full_state_update = False
    plot_lower_bound = 0.0

    moments: Tensor

    def __init__(self, num_features: int, **kwargs: object) -> None:
        super().__init__(**kwargs)
        if num_features < 1 or num_features % 1:
            raise ValueError(f"Expected num_features to be a whole number from 1, got {num_features}.")
        self.num_features = num_features

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

    def _check_width(self, features: Tensor) -> None:
        if features.shape[-1:] != (self.num_features,):
            raise ValueError(
                f"Expected features of shape (*, {self.num_features}), as num_features says, got {tuple(features.shape)}."
            )

    def _keep(self, moments: Tensor, merged: Callable[[Tensor], Tensor]) -> None:
        """Start from these moments; ``merged`` is the vector of the union of those that are stacked."""
        self.add_state("moments", moments, dist_reduce_fx=merged)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        """Follow a module to its device, but not to its type: torchmetrics guards ``half()``, not ``to(torch.half)``."""

        def keeping_type(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keeping_type, exclude_state)
