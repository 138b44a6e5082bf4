"""Measures of a matrix from its leading singular values: what a report can afford where a whole spectrum is too dear."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rank_callbacks.catalog import MEASURES, find_measure
from rank_callbacks.functional.leading_spectrum import LeadingSpectrum, leading_distance, leading_spectrum
from rank_callbacks.matrices.sharded import shard_of

__all__ = ["LeadingReadings", "has_leading_reading", "is_worth_it"]

# Up to so many rows or columns a whole spectrum is as fast.
_SMALLEST = 128
# Of a block of singular values the first half is good.
_LEAST_BLOCK, _MOST_VALUES = 16, 32

_Total = Callable[[Tensor], Tensor] | None
_Reading = Callable[[Tensor, LeadingSpectrum, int, _Total], Tensor]


def _stable_rank(rows: Tensor, leading: LeadingSpectrum, k: int, total: _Total) -> Tensor:
    largest = leading.singular_values[0]
    return (leading.frobenius_norm / largest).square() if largest != 0 else largest


def _energy_at_rank(rows: Tensor, leading: LeadingSpectrum, k: int, total: _Total) -> Tensor:
    norm = leading.frobenius_norm
    return (leading.singular_values[:k] / norm).square().sum() if norm != 0 else norm


_READINGS: dict[str, _Reading] = {
    "spectral_norm": lambda rows, leading, k, total: leading.singular_values[0],
    "frobenius_norm": lambda rows, leading, k, total: leading.frobenius_norm,
    "stable_rank": _stable_rank,
    "energy_at_rank": _energy_at_rank,
    "distance_to_rank": lambda rows, leading, k, total: leading_distance(rows, leading, k, relative=False, total=total),
    "relative_distance_to_rank": lambda rows, leading, k, total: leading_distance(rows, leading, k, total=total),
}


def has_leading_reading(measure: str) -> bool:
    """Whether a measure is known from few singular values: and if it asks for a rank, from no more than 32 of them."""
    row, parameter = find_measure(measure)
    return row.name in _READINGS and (row.parameter is None or (parameter or 0) <= _MOST_VALUES)


def leading_measures() -> list[str]:
    """Names of all such measures."""
    return [name for name in _READINGS if name in MEASURES]


def is_worth_it(matrix: Tensor) -> bool:
    """Whether leading singular values of a matrix are cheaper than all of them."""
    return matrix.dim() == 2 and min(matrix.shape) > _SMALLEST and not matrix.is_complex()


class Leading(NamedTuple):
    """What leading singular values tell of some matrices.

    Args:
        values: By measure, then by layer: float64 scalars on the CPU.
        unreadable: Layers that are not finite.
    """

    values: dict[str, dict[str, Tensor]]
    unreadable: list[str]


class LeadingReadings:
    """Readings of matrices from a Krylov space that goes on where that of the report before ended.

    Args:
        measures: Names from the catalogue, each with a leading reading.
    """

    def __init__(self, measures: Sequence[str]) -> None:
        self._measures = {name: (find_measure(name)[0].name, int(find_measure(name)[1] or 0)) for name in measures}
        self._block = max([_LEAST_BLOCK, *(2 * k for _, k in self._measures.values())])
        self._bases: dict[str, Tensor | None] = {}

    def __call__(self, matrices: Mapping[str, Tensor], step: int) -> Leading:
        """Read some matrices. Of sharded ones a collective operation.

        Args:
            matrices: By name, each of two dimensions.
            step: On which the random columns depend, alike on all processes.
        """
        found = Leading({measure: {} for measure in self._measures}, [])
        if not self._measures:
            return found
        for name, matrix in matrices.items():
            shard = shard_of(matrix)
            rows, total = (matrix, None) if shard is None else (shard.rows, shard.total)
            generator = torch.Generator().manual_seed(step)
            start = self._bases.get(name)
            leading = leading_spectrum(rows, start, generator=generator, block=self._block, total=total)
            self._bases[name] = leading.basis
            if not leading.frobenius_norm.isfinite():
                found.unreadable.append(name)
            for measure, (kind, k) in self._measures.items():
                found.values[measure][name] = _READINGS[kind](rows, leading, k, total).cpu()
        return found
