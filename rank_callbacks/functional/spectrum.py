"""A matrix in, its singular values out: exact, at the least cost that the accuracy allows."""

from __future__ import annotations

import cmath
from collections import defaultdict
from collections.abc import Hashable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["METHODS", "singular_values", "singular_values_of_each", "spectrum_cost"]

METHODS = ("auto", "gram", "svd")

_Name = TypeVar("_Name", bound=Hashable)

# Numbers cast to float64 at a time, in no fewer rows: that stays in the cache, and a whole matrix would pay for page faults.
_NUMBERS_AT_ONCE, _FEWEST_ROWS = 2**18, 256
# Column blocks of the Gram matrix. Of 4 x 4 blocks only the lower 10 are multiplied; narrower blocks would not pay.
_COLUMN_BLOCKS = 4
_NARROWEST_BLOCK = 64
# Matrices no larger than this are decomposed in one batched call, 1.2 to 1.6 times faster on a CPU; larger gain nothing.
_BATCHED_UP_TO = 32
# Up to so much m·n² LAPACK's SVD is faster than a product, an eigenvalue problem and their overhead.
_SVD_UP_TO = 60_000
_WIDE_TYPES = (torch.float64, torch.complex128)
_EPS = torch.finfo(torch.float64).eps


def singular_values(matrix: Tensor, method: str = "auto") -> Tensor:
    """Singular values of a matrix or of a batch of them, in descending order.

    =========  ==========================================================  =============================================
    method     how                                                         error of a singular value σ, with r = min(m, n)
    =========  ==========================================================  =============================================
    ``svd``    LAPACK in float64, on the tall orientation                  1e-15·σ₁
    ``gram``   float64 eigenvalues of the smaller Gram matrix, of which    2e-15·σ₁²/σ, 1e-8·σ₁ at worst. A value below
               only the lower blocks are multiplied                        sqrt(√r·2e-16)·σ₁, 7e-8·σ₁ for r = 512,
                                                                           cannot be told from 0 and is 0
    ``auto``   ``gram``; but ``svd`` for float64 and complex128 input,     finer than max(m, n)·ε·σ₁, at which rank is
               whose digits a Gram matrix would lose, for small            counted in the input's own type
               matrices, where it is the faster, and where a gradient is
               needed
    =========  ==========================================================  =============================================

    Args:
        matrix: Shape ``(..., m, n)``, any floating or complex type, on any device. bfloat16 and float16 are cast up.
        method: One of the above.

    Returns:
        Shape ``(..., min(m, n))``, float64. NaN throughout for a matrix that holds a NaN or an infinity; empty where m
        or n is 0. Differentiable by ``svd`` alone. On a GPU the host waits for the result.

    Raises:
        ValueError: If ``matrix`` has fewer than two dimensions or is of integer type, or ``method`` is unknown.

    Example:
        >>> singular_values(torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]]))
        tensor([4., 3.], dtype=torch.float64)
    """
    _check(matrix, method)
    if matrix.device.type == "mps":  # has no float64
        matrix = matrix.cpu()
    tall = matrix if matrix.shape[-2] >= matrix.shape[-1] else matrix.mT
    if tall.numel() == 0:
        return torch.zeros(tall.shape[:-2] + tall.shape[-1:], dtype=torch.float64, device=tall.device)
    if method == "auto":
        method = "gram" if takes_gram(tuple(tall.shape), tall.dtype) and not tall.requires_grad else "svd"
    return _by_svd(tall) if method == "svd" else _by_gram(tall.detach())


def singular_values_of_each(matrices: Mapping[_Name, Tensor], method: str = "auto") -> dict[_Name, Tensor]:
    """Singular values of every matrix by its name, small ones of the same shape in one batched call.

    A matrix with leading dimensions is block-diagonal: its singular values are those of all its blocks together.

    Args:
        matrices: Each of shape ``(m, n)`` or ``(blocks, m, n)``.
        method: As for ``singular_values``.

    Returns:
        By name in the order of ``matrices``: shape ``(r,)``, float64, descending.

    Raises:
        ValueError: As for ``singular_values``.

    Example:
        >>> singular_values_of_each({"diagonal": torch.tensor([[[1.0]], [[2.0]]])})
        {'diagonal': tensor([2., 1.], dtype=torch.float64)}
    """
    alike: defaultdict[object, list[_Name]] = defaultdict(list)
    for name, matrix in matrices.items():
        small = matrix.dim() == 2 and max(matrix.shape) <= _BATCHED_UP_TO
        alike[(matrix.shape, matrix.dtype, matrix.device) if small else name].append(name)
    values: dict[_Name, Tensor] = {}
    for names in alike.values():
        if len(names) > 1:
            values.update(zip(names, singular_values(torch.stack([matrices[name] for name in names]), method), strict=True))
        else:
            values[names[0]] = _of_blocks(matrices[names[0]], method)
    return {name: values[name] for name in matrices}


def spectrum_cost(shape: tuple[int, ...]) -> float:
    """Seconds that the spectrum of a ``(..., m, n)`` matrix takes on one core, to compare matrices by.

    The Gram matrix costs m·n² multiplications and its eigenvalues n³ of a slower kind; fitted on a 2.1 GHz server core.

    Example:
        >>> spectrum_cost((512, 4608)) < spectrum_cost((1024, 1024))
        True
    """
    *blocks, rows, columns = shape
    short, long = sorted((rows, columns))
    return torch.Size(blocks).numel() * (1.7e-11 * long * short**2 + 1.0e-10 * short**3 + 1e-5)


def takes_gram(shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether ``"auto"`` takes the eigenvalues of the Gram matrix of a ``(..., m, n)`` matrix that needs no gradient."""
    short, long = sorted(shape[-2:])
    return long * short**2 > _SVD_UP_TO and dtype not in _WIDE_TYPES


def _check(matrix: Tensor, method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"Expected method to be one of {', '.join(METHODS)}, got {method!r}.")
    if matrix.dim() < 2 or not (matrix.is_floating_point() or matrix.is_complex()):
        raise ValueError(
            f"Expected a matrix of shape (..., m, n) and floating type, got shape {tuple(matrix.shape)} of {matrix.dtype}."
        )


def _of_blocks(matrix: Tensor, method: str) -> Tensor:
    values = singular_values(matrix, method)
    return values if values.dim() == 1 else values.flatten().sort(descending=True).values


def _by_svd(tall: Tensor) -> Tensor:
    tall = widened(tall)
    if cmath.isfinite(tall.sum().item()):
        return torch.linalg.svdvals(tall)
    # LAPACK raises on a NaN and returns NaN on an infinity: neither may reach it, nor spoil the rest of a batch.
    finite = tall.isfinite().all(-1).all(-1)[..., None]
    return torch.where(finite, torch.linalg.svdvals(torch.where(finite[..., None], tall, 0)), torch.nan)


def _by_gram(tall: Tensor) -> Tensor:
    if tall.dtype not in _WIDE_TYPES:
        return roots_of_eigenvalues(lower_gram(tall))
    # Squares of float64 can over- and underflow; those of narrower types cannot.
    scale = tall.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return roots_of_eigenvalues(lower_gram(tall / scale)) * scale.squeeze(-1)


def roots_of_eigenvalues(gram: Tensor) -> Tensor:
    """Square roots of the eigenvalues, descending; 0 for what rounding hides, NaN for a matrix that is not finite."""
    if gram.dim() == 2 and cmath.isfinite(gram.trace().item()):
        return roots_of_squares(torch.linalg.eigvalsh(gram, UPLO="L"))
    finite = gram.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True).isfinite()
    squares = torch.linalg.eigvalsh(torch.where(finite[..., None], gram, 0), UPLO="L").flip(-1)
    hidden = squares <= squares[..., :1] * (_EPS * squares.shape[-1] ** 0.5)
    return torch.where(finite, squares.masked_fill(hidden, 0).sqrt(), torch.nan)


def roots_of_squares(squares: Tensor) -> Tensor:
    """Square roots of the ascending eigenvalues of one Gram matrix, descending; 0 for what rounding hides.

    Rounding leaves up to 10·ε·λ₁ where an eigenvalue is 0, measured for r up to 1024: √r·ε·λ₁ keeps a margin of 3.
    """
    return torch.threshold(squares, _EPS * len(squares) ** 0.5 * squares[-1].item(), 0.0).sqrt().flip(0)


def lower_gram(tall: Tensor) -> Tensor:
    """The Gram matrix of the columns in float64; what stands above its block diagonal is not computed."""
    rows, columns = tall.shape[-2:]
    if columns <= _NARROWEST_BLOCK and rows * columns <= _NUMBERS_AT_ONCE:
        tall = widened(tall)
        return tall.mH @ tall
    if tall.dim() > 2:
        return torch.stack([lower_gram(one) for one in tall.flatten(0, -3)]).unflatten(0, tall.shape[:-2])
    width = max(_NARROWEST_BLOCK, -(-columns // _COLUMN_BLOCKS))
    blocks = [slice(start, start + width) for start in range(0, columns, width)]
    gram = widened(tall.new_zeros(columns, columns))
    for chunk in map(widened, tall.split(max(_FEWEST_ROWS, _NUMBERS_AT_ONCE // columns))):
        for block in blocks:
            gram[block.start :, block].addmm_(chunk[:, block.start :].mH, chunk[:, block])
    return gram


def widened(tensor: Tensor) -> Tensor:
    """The tensor in double precision."""
    return tensor.to(torch.complex128) if tensor.is_complex() else tensor.double()
