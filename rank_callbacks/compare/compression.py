"""The compression that the final spectra of a run allow: each matrix as two factors of its numerical rank."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from rank_callbacks.compare.run import Run
from rank_callbacks.figures.truncation import Truncated

__all__ = ["compression"]

# From what costs accuracy to what loses next to nothing; above the rounding of float32 for any matrix of use.
_TOLERANCES = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


def compression(run: Run) -> list[Truncated]:
    """What share of their parameters the weights of a run need at each tolerance, by their last spectra.

    A matrix of m x n takes k·(m + n) numbers as two factors, k = #{i : s_i > rtol · s_1}, or m·n where that is no more. Empty
    if the log has no spectra with shapes, which TensorBoard's has, or if one of them is not finite or of blocks.

    Args:
        run: With spectra of weights.

    Example:
        >>> from rank_callbacks.compare.run import Spectra
        >>> from rank_callbacks.tags import Tag
        >>> spectra = {Tag("weight_rank", "spectrum", "fc"): Spectra({9: [1.0] * 2 + [0.2] * 8}, (10, 20))}
        >>> [(one.rtol, one.share) for one in compression(Run("a", "tensorboard", {}, [], {}, spectra))][:2]
        [(0.3, 0.3), (0.1, 1.0)]
    """
    matrices = list(_last_spectra(run))
    if not matrices or not all(_is_whole(values, shape) for values, shape in matrices):
        return []
    whole = sum(math.prod(shape) for _, shape in matrices)
    return [Truncated(rtol, math.nan, sum(_factored(*one, rtol) for one in matrices) / whole) for rtol in _TOLERANCES]


def _last_spectra(run: Run) -> Iterator[tuple[NDArray[np.float64], tuple[int, ...]]]:
    for tag, (by_step, shape) in run.spectra.items():
        if tag[:2] == ("weight_rank", "spectrum") and by_step:
            yield np.asarray(by_step[max(by_step)], dtype=np.float64), shape


def _is_whole(values: NDArray[np.float64], shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and 0 < len(values) == min(shape) and bool(np.isfinite(values).all())


def _factored(values: NDArray[np.float64], shape: tuple[int, ...], rtol: float) -> int:
    rank = int((values > rtol * values[0]).sum())
    return min(rank * sum(shape), math.prod(shape))
