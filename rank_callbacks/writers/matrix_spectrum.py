"""The singular values of one matrix, as loggers take them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["MatrixSpectrum"]


class MatrixSpectrum(NamedTuple):
    """Singular values and the shape of the matrix that has them.

    Args:
        singular_values: Descending, float32.
        shape: ``(m, n)``, or ``(blocks, m, n)`` of a block-diagonal matrix.
    """

    singular_values: NDArray[np.float32]
    shape: tuple[int, ...]
