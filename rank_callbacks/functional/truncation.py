"""The best approximation of a matrix by one of lower rank, the rank to keep, and what storing it in two factors takes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rank_callbacks.functional.rank import energy_rank, numerical_rank
from rank_callbacks.functional.spectrum import widened

__all__ = ["check_truncation", "factored_parameters", "kept_rank", "truncated"]


def truncated(matrix: Tensor, rank: int) -> Tensor:
    """The nearest matrix of a rank, Σ_{i≤rank} σᵢ uᵢ vᵢᵀ, in the Frobenius and in the spectral norm.

    Computed in float64 and rounded to the type of the matrix, which leaves singular values of the size of
    ``rounding_noise`` above the rank. Of equal singular values at the border, the first is kept. A matrix of no more than
    this rank and one that is not finite are copied as they are.

    Args:
        matrix: Shape ``(m, n)``, or ``(blocks, m, n)`` of a block-diagonal matrix, of which the largest singular values of
            all blocks together are kept. Any floating or complex type.
        rank: How many singular values to keep, from 0.

    Returns:
        A new tensor of the shape, type and device of ``matrix``.

    Raises:
        ValueError: If ``rank`` is negative, or ``matrix`` is not of two or three dimensions and floating type.

    Example:
        >>> truncated(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), rank=1)
        tensor([[2., 0.],
                [0., 0.]])

    Reference:
        The approximation of one matrix by another of lower rank (Eckart and Young, 1936), https://doi.org/10.1007/BF02288367
    """
    check_truncation(rank=rank)
    if matrix.dim() not in {2, 3} or not (matrix.is_floating_point() or matrix.is_complex()):
        raise ValueError(
            f"Expected a matrix of shape (m, n) or (blocks, m, n) and floating type, got shape {tuple(matrix.shape)} of "
            f"{matrix.dtype}."
        )
    if rank >= matrix.shape[:-2].numel() * min(matrix.shape[-2:]) or not matrix.isfinite().all():
        return matrix.clone()
    wide = widened(matrix.cpu() if matrix.device.type == "mps" else matrix)  # MPS has no float64
    left, values, right = torch.linalg.svd(wide, full_matrices=False)
    return ((left * (values * _is_kept(values, rank)).unsqueeze(-2)) @ right).to(matrix)


def kept_rank(
    singular_values: Tensor,
    *,
    rtol: float | None = None,
    energy: float | None = None,
    rank: int | None = None,
    noise: float | Tensor = 0.0,
) -> Tensor:
    """How many singular values a truncation keeps, by one of three rules.

    Args:
        singular_values: Shape ``(..., r)``, descending.
        rtol: Keep those above ``rtol``·σ₁, as ``numerical_rank``.
        energy: Keep the fewest that hold this share of Σσ², as ``energy_rank``.
        rank: Keep so many, or all r where there are fewer.
        noise: With ``rtol``, the absolute floor of the tolerance, of shape ``(...)``: ``rounding_noise`` of the matrix.

    Returns:
        Shape ``(...)``, float64: a count from 0 to r, NaN where a singular value is not finite.

    Raises:
        ValueError: If not exactly one of ``rtol``, ``energy`` and ``rank`` is given, or it is out of its range.

    Example:
        >>> values = torch.tensor([1.0, 0.5, 0.01])
        >>> kept_rank(values, rtol=0.1), kept_rank(values, rank=1)
        (tensor(2., dtype=torch.float64), tensor(1., dtype=torch.float64))
    """
    check_truncation(rtol, energy, rank)
    if rtol is not None:
        return numerical_rank(singular_values, rtol, noise)
    if energy is not None:
        return energy_rank(singular_values, energy)
    count = min(rank or 0, singular_values.shape[-1])
    kept = torch.full_like(singular_values[..., :0].sum(-1), count, dtype=torch.float64)
    return torch.where(singular_values.isfinite().all(-1), kept, torch.nan)


def check_truncation(rtol: float | None = None, energy: float | None = None, rank: int | None = None) -> None:
    """Refuse what is not one rule of truncation.

    Raises:
        ValueError: If not exactly one of the three is given, or it is out of its range.
    """
    given = {name: value for name, value in (("rtol", rtol), ("energy", energy), ("rank", rank)) if value is not None}
    if len(given) != 1:
        came = " and ".join(f"{name}={value}" for name, value in given.items()) or "none"
        raise ValueError(f"Expected exactly one of rtol, energy and rank, got {came}.")
    if rtol is not None and not rtol >= 0:
        raise ValueError(f"Expected rtol to be a number from 0, got {rtol}.")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"Expected energy to be in (0, 1], got {energy}.")
    if rank is not None and (rank != int(rank) or rank < 0):
        raise ValueError(f"Expected rank to be a whole number from 0, got {rank}.")


def factored_parameters(singular_values: Tensor, shape: tuple[int, ...], rank: int) -> int:
    """How many numbers a truncated matrix takes: k·(m + n) as two factors, or m·n where that is no more.

    Args:
        singular_values: Shape ``(r,)``, or ``(blocks, r)`` of a block-diagonal matrix, each of whose blocks has its own k.
        shape: ``(m, n)`` or ``(blocks, m, n)``.
        rank: How many singular values are kept, of all blocks together.

    Returns:
        At most the number of entries of the matrix.

    Example:
        >>> factored_parameters(torch.ones(10), (10, 20), rank=2)
        60
    """
    *_, rows, columns = shape
    ranks = _is_kept(singular_values, rank).sum(-1)
    return int((ranks * (rows + columns)).clamp_max(math.prod((rows, columns))).sum())


def _is_kept(values: Tensor, rank: int) -> Tensor:
    """Whether each singular value is among the ``rank`` largest of all blocks; always exactly so many are."""
    kept = torch.zeros_like(values, dtype=torch.bool).flatten()
    kept[values.flatten().argsort(descending=True, stable=True)[:rank]] = True
    return kept.view_as(values)
