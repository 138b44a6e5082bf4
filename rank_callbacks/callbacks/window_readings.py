"""What is read of one weight from the window in which it was looked at."""

from __future__ import annotations

import torch
from torch import Tensor

from rank_callbacks.callbacks.collapse_window import WindowedMatrix
from rank_callbacks.callbacks.weight_decay import Decay
from rank_callbacks.functional import (
    cluster_variation_ratio,
    rank_collapse_certificates,
    sgd_rank_bound,
    total_cluster_variation,
)
from rank_callbacks.functional.certificate import class_mean_alignments

__all__ = ["has_certificates", "norm_by_rows", "readings_of_window"]

# 2 MiB in float64.
_NUMBERS_AT_ONCE = 2**18


def has_certificates(decay: Decay | None) -> bool:
    """Whether the certificates hold for a weight: its decay is a penalty on the loss."""
    return decay is not None and decay.is_penalty and decay.weight_decay > 0


def norm_by_rows(matrix: Tensor) -> Tensor:
    """‖W‖_F in float64, a few rows at a time: a copy of all would take twice the memory of W."""
    rows = max(1, _NUMBERS_AT_ONCE // max(1, matrix.shape[1]))
    return torch.stack([torch.linalg.matrix_norm(part.double()) for part in matrix.split(rows)]).norm()


def readings_of_window(
    matrix: WindowedMatrix, samples: int, processes: int, decay: Decay | None, is_probe: bool
) -> dict[str, Tensor | float]:
    """All that is read of one matrix but its spectrum.

    Args:
        matrix: As the window saw it.
        samples: That the window saw, in all processes.
        processes: That added up their gradients.
        decay: Of the weight; None where it is not known.
        is_probe: Whether a loader was looked at, and no training.

    Returns:
        By measure, in the units of ``rank_callbacks.collapse_catalog``. No ``class_mean_alignment`` where W or M is 0.
    """
    weight, gradient, inputs, deltas, steps = matrix
    steps *= processes
    alignment, bound = class_mean_alignments(weight, inputs, deltas, steps)
    readings: dict[str, Tensor | float] = {
        "tcv_input": total_cluster_variation(inputs),
        "tcv_ratio_input": cluster_variation_ratio(inputs),
        # As if the loss were a mean over the samples of the window.
        "tcv_adjoint": total_cluster_variation(deltas) * (samples / steps) ** 2,
        "alignment_bound": bound,
    }
    if not (alignment.isnan() and bound.isfinite()):  # W or M is 0
        readings["class_mean_alignment"] = alignment
    if decay is None:
        return readings
    readings["weight_decay"] = decay.weight_decay
    if gradient is not None and has_certificates(decay):
        bounds = rank_collapse_certificates(weight, gradient, inputs, deltas, decay.weight_decay, steps)
        readings.update({f"certificate_{name}": getattr(bounds, name) for name in ("joint", "sharp", "loose")})
        readings["stationarity_residual"] = bounds.stationarity_residual
    if decay.is_sgd and decay.weight_decay * decay.learning_rate > 0 and not is_probe:
        rows = float(inputs.counts.sum() / matrix.steps)
        shape = (weight.shape[0], weight.shape[1])
        readings["sgd_rank_bound"] = sgd_rank_bound(shape, rows, decay.learning_rate, decay.weight_decay)
    return readings
