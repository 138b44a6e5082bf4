"""The participation ratio of a matrix without its spectrum, from the sum of the fourth powers of its singular values."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rank_callbacks.functional.full_precision import full_precision
from rank_callbacks.functional.matrix_norm import Total, itself, matrix_norm, multipliable, unit_of

__all__ = ["fourth_moment", "gram_participation_ratio"]

# Column blocks of the Gram matrix. Of 4 x 4 blocks only the lower 10 are multiplied; narrower blocks would not pay.
_COLUMN_BLOCKS = 4
_NARROWEST_BLOCK = 64


def fourth_moment(matrix: Tensor, *, total: Total | None = None) -> Tensor:
    """Sum of the fourth powers of the singular values, Σσ⁴ = ‖AᵀA‖_F².

    From the lower blocks of the smaller Gram matrix in the matrix's type, float32 at least, and a sum in float64: 2e-8 off
    in float32, since the errors of n² entries average out. 12 to 18 times faster than a spectrum.

    Args:
        matrix: Shape ``(m, n)``, any real floating type.
        total: Sum of a tensor over all processes, if each has some of the rows: then the columns' Gram matrix is summed
            whatever the shape, 2.5·n² bytes in float32. To gather the rows is the smaller transfer where m is below n.

    Returns:
        A float64 scalar; 0 for a zero or empty matrix, NaN for one that is not finite.

    Example:
        >>> fourth_moment(torch.diag(torch.tensor([2.0, 1.0])))
        tensor(17., dtype=torch.float64)
    """
    moment, _, unit = _moments(matrix.detach(), total)
    return moment * moment.new_tensor(unit).pow(4)


def gram_participation_ratio(matrix: Tensor, *, total: Total | None = None) -> Tensor:
    """``participation_ratio`` of a matrix, (Σσ²)² / Σσ⁴, without its spectrum.

    Args:
        matrix: As of ``fourth_moment``.
        total: As of ``fourth_moment``.

    Returns:
        A float64 scalar; 0 for a zero or empty matrix, NaN for one that is not finite.

    Example:
        >>> gram_participation_ratio(torch.eye(3))
        tensor(3., dtype=torch.float64)

    Reference:
        A theory of multineuronal dimensionality, dynamics and measurement (Gao et al., 2017), https://doi.org/10.1101/214262
    """
    moment, energy, _ = _moments(matrix.detach(), total)
    return energy.square() / moment if moment != 0 else moment


def _moments(matrix: Tensor, total: Total | None) -> tuple[Tensor, Tensor, float]:
    """Σσ⁴, Σσ² and the unit of the matrix in which they are."""
    sums = total or itself
    norm = matrix_norm(matrix)
    size = float(sums(norm.clone()))
    if size == 0 or not math.isfinite(size):
        return norm.new_tensor(size - size), norm.new_tensor(size - size), 1.0
    unit = unit_of(size)
    tall = matrix if total is not None or matrix.shape[0] >= matrix.shape[1] else matrix.mT
    width = max(_NARROWEST_BLOCK, -(-tall.shape[1] // _COLUMN_BLOCKS))
    tall = multipliable(tall, unit)
    moment = torch.zeros_like(norm)
    with full_precision(tall.device):
        for start in range(0, tall.shape[1], width):
            block = sums(tall[:, start:].mT @ tall[:, start : start + width])
            moment += matrix_norm(block[:width]).square() + 2 * matrix_norm(block[width:]).square()
    return moment, sums((norm / unit).square()), unit
