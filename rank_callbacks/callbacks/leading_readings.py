"""Measures of a matrix without its whole spectrum: what a report can afford where that is too dear."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rank_callbacks.callbacks.gathering import shared_rounding_noise
from rank_callbacks.catalog import find_measure
from rank_callbacks.functional.fourth_moment import gram_participation_ratio
from rank_callbacks.functional.inertia import rank_by_inertia
from rank_callbacks.functional.leading_spectrum import LeadingSpectrum, leading_distance, leading_spectrum
from rank_callbacks.matrices.sharded import shard_of

__all__ = ["LEADING", "WITHOUT_SPECTRUM", "LeadingReadings", "is_worth_it", "measures_among"]

# Up to so many rows or columns a whole spectrum is as fast.
_SMALLEST = 128
# Of a block of singular values the first half is good.
_LEAST_BLOCK, _MOST_VALUES = 16, 32


class _Matrix(NamedTuple):
    """A matrix, or of a sharded one this process's rows and the sum over processes; and what is known of its spectrum."""

    whole: Tensor
    rows: Tensor
    total: Callable[[Tensor], Tensor] | None
    leading: LeadingSpectrum


_Reading = Callable[[_Matrix, float], Tensor]


def _stable_rank(matrix: _Matrix, parameter: float) -> Tensor:
    largest = matrix.leading.singular_values[0]
    return (matrix.leading.frobenius_norm / largest).square() if largest != 0 else largest


def _energy_at_rank(matrix: _Matrix, k: float) -> Tensor:
    norm = matrix.leading.frobenius_norm
    return (matrix.leading.singular_values[: int(k)] / norm).square().sum() if norm != 0 else norm


def _distance(matrix: _Matrix, k: float, relative: bool) -> Tensor:
    return leading_distance(matrix.rows, matrix.leading, int(k), relative, total=matrix.total)


def _numerical_rank(matrix: _Matrix, rtol: float) -> Tensor:
    largest = matrix.leading.singular_values[0]
    if not largest.isfinite():
        return largest
    dtype = matrix.whole.dtype
    noise = 0.6 * torch.finfo(dtype).eps * largest if dtype.itemsize > 2 else shared_rounding_noise(matrix.whole)
    return rank_by_inertia(matrix.rows, torch.maximum(rtol * largest.cpu(), noise.cpu()), total=matrix.total)


_LEADING: dict[str, _Reading] = {
    "spectral_norm": lambda matrix, _: matrix.leading.singular_values[0],
    "frobenius_norm": lambda matrix, _: matrix.leading.frobenius_norm,
    "stable_rank": _stable_rank,
    "energy_at_rank": _energy_at_rank,
    "distance_to_rank": lambda matrix, k: _distance(matrix, k, relative=False),
    "relative_distance_to_rank": lambda matrix, k: _distance(matrix, k, relative=True),
}
# Dearer by a Gram matrix, and exact: the participation ratio but for rounding, the count but for ties with σ₁'s error.
_OF_GRAM: dict[str, _Reading] = {
    "numerical_rank": _numerical_rank,
    "participation_ratio": lambda matrix, _: gram_participation_ratio(matrix.rows, total=matrix.total),
}
LEADING, WITHOUT_SPECTRUM = frozenset(_LEADING), frozenset(_LEADING | _OF_GRAM)


def is_worth_it(matrix: Tensor) -> bool:
    """Whether leading singular values of a matrix are cheaper than all of them."""
    return matrix.dim() == 2 and min(matrix.shape) > _SMALLEST and not matrix.is_complex()


def measures_among(measures: Sequence[str], kinds: frozenset[str]) -> list[str]:
    """Those of the kinds named, and of them that ask for singular values up to some rank those that ask for few."""
    rows = {name: find_measure(name) for name in measures}
    few = {name for name, (row, parameter) in rows.items() if _values(row.parameter, parameter) <= _MOST_VALUES}
    return [name for name, (row, _) in rows.items() if row.name in kinds and name in few]


def _values(kind: str | None, parameter: float | None) -> int:
    return int(parameter or 0) if kind == "k" else 0


class Leading(NamedTuple):
    """What is known of some matrices without whole spectra.

    Args:
        values: By measure, then by layer: float64 scalars on the CPU.
        unreadable: Layers that are not finite.
    """

    values: dict[str, dict[str, Tensor]]
    unreadable: list[str]


class LeadingReadings:
    """Readings of matrices from a Krylov space that goes on where that of the report before ended.

    Args:
        measures: Names from the catalogue, of those in ``WITHOUT_SPECTRUM``.
    """

    def __init__(self, measures: Sequence[str]) -> None:
        rows = {name: find_measure(name) for name in measures}
        self._measures = {name: (row.name, parameter or 0.0) for name, (row, parameter) in rows.items()}
        self._block = max([_LEAST_BLOCK, *(2 * _values(row.parameter, parameter) for row, parameter in rows.values())])
        self._bases: dict[str, Tensor | None] = {}

    def __call__(self, matrices: Mapping[str, Tensor], step: int) -> Leading:
        """Read some matrices. Of sharded ones a collective operation.

        Args:
            matrices: By name, each of two dimensions.
            step: On which the random columns depend, alike on all processes.
        """
        found = Leading({measure: {} for measure in self._measures}, [])
        for name, whole in matrices.items() if self._measures else ():
            matrix = self._known(name, whole, step)
            if not matrix.leading.frobenius_norm.isfinite():
                found.unreadable.append(name)
            for measure, (kind, parameter) in self._measures.items():
                found.values[measure][name] = (_LEADING | _OF_GRAM)[kind](matrix, parameter).cpu()
        return found

    def _known(self, name: str, whole: Tensor, step: int) -> _Matrix:
        shard = shard_of(whole)
        rows, total = (whole, None) if shard is None else (shard.rows, shard.total)
        generator = torch.Generator().manual_seed(step)
        leading = leading_spectrum(rows, self._bases.get(name), generator=generator, block=self._block, total=total)
        self._bases[name] = leading.basis
        return _Matrix(whole, rows, total, leading)
