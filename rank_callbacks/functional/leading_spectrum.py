"""The largest singular values of a matrix, whole or in shards of rows, from a few products with a thin block."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rank_callbacks.functional.full_precision import full_precision
from rank_callbacks.functional.matrix_norm import Total, itself, matrix_norm, multipliable, unit_of

__all__ = ["LeadingSpectrum", "leading_distance", "leading_spectrum"]

# Blocks of the Krylov space: at most 19 products with the matrix.
_GREATEST_DEPTH = 10
# Where the leading vector of a space is off by no more, relatively, the next block is the last. Without a gap, as in random
# weights, an error of 1e-3 stays; a warm start leaves that to the next call, which goes on from there.
_WARM_RESIDUAL, _COLD_RESIDUAL = 0.05, 0.01
# Squared lengths that rounding leaves of a direction that was known before, and of one that its own block has twice.
_KNOWN, _TWICE = 1e-24, 1e-8
# Below this share of the energy a difference of squares would keep too few of its digits.
_SMALLEST_DIFFERENCE = 1e-3
# Rows of which the outside of a subspace is taken at a time: memory.
_ROWS_AT_ONCE = 2048


class LeadingSpectrum(NamedTuple):
    """What a Krylov space of a thin block tells of a matrix.

    Args:
        singular_values: Shape ``(block,)``, float64, descending; none is above the true one, but for rounding.
        frobenius_norm: ‖A‖_F, a float64 scalar.
        basis: Where the next call starts: the singular vectors that belong to the values, of shape ``(n, block)``, or
            ``(m, block)`` of an unsharded wide matrix. None after a matrix that is zero or not finite.
        reads: How often the matrix was multiplied.
    """

    singular_values: Tensor
    frobenius_norm: Tensor
    basis: Tensor | None
    reads: int


def leading_spectrum(
    matrix: Tensor,
    start: Tensor | None = None,
    *,
    generator: torch.Generator,
    block: int = 16,
    depth: int | None = None,
    total: Total | None = None,
) -> LeadingSpectrum:
    """The largest singular values of a matrix, by Rayleigh and Ritz from a block Krylov space.

    With X the basis of the last call, one column of it random, they are those of A on the span of X, AᵀAX, (AᵀA)²X, ...:
    lower bounds, so that a stable rank or a distance to rank k from them is an upper bound. Rounding in float32 can lift a
    value by 1e-7·σ₁. The space grows until AᵀA moves its leading vector v by less than 0.05·θ², or 0.01·θ² from a cold start.
    Along training runs, 50 steps apart, the largest value was then short of the truth by 1e-6 in nine of ten readings and by
    5e-6 at most, for 4.7 products on average. From a cold start it is short by 1e-3 where nothing sets it apart, as in random
    weights of 2,000 columns. What grows from nothing between two calls is found by the random column: to a few 1e-3 at once,
    and to the last digit in the next call. Values after the first are the less exact the nearer the next one is.

    A matrix whose rows are shared between processes is never gathered: each gives its own rows, also none. Summed by
    ``total`` are a norm, 4·n·block bytes for each block of the space but the last, and one Gram matrix of the space. For
    min(m, n) ≤ 128 a full spectrum is faster.

    Args:
        matrix: Shape ``(m, n)``, any real floating type. float64 is multiplied in float64, all others in float32.
        start: ``basis`` of the last call. Without it, or with that of another block, columns are drawn at random.
        generator: Source of random columns, on the matrix's device, and in the same state on every process.
        block: Columns of a block; 16 cost a CPU no more than one does, since reading the matrix takes the time.
        depth: Blocks of the space, with 2·depth − 1 products; by default as many as it takes, from 2 to 10.
        total: Sum of a tensor over all processes that hold rows; each must get the same. None for a whole matrix.

    Returns:
        Values, norm, basis and cost. All NaN for a matrix that is not finite, and 0 for one of zeros; 0 beyond the rank.

    Raises:
        ValueError: If ``matrix`` is no real matrix, ``start`` does not fit it, or ``block`` or ``depth`` is below 1.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> matrix = torch.diag(torch.arange(1.0, 301))
        >>> first = leading_spectrum(matrix, generator=generator)
        >>> again = leading_spectrum(matrix, first.basis, generator=generator)
        >>> again.singular_values[:3].round(decimals=1), again.reads
        (tensor([300., 299., 298.], dtype=torch.float64), 3)

    Reference:
        Randomized block Krylov methods for stronger and faster approximate singular value decomposition (Musco and Musco,
        2015), https://arxiv.org/abs/1504.05477
    """
    _check(matrix, block, depth)
    rows = _oriented(matrix.detach(), total)
    _check_start(rows, start)
    sums = total or itself
    norm = matrix_norm(rows)
    size = float(sums(norm.clone()))  # of the norms of all shards: at least the norm, at most √processes times as much
    if size == 0 or not math.isfinite(size):
        return LeadingSpectrum(norm.new_full((block,), size - size), norm.new_tensor(size - size), None, 0)
    unit = unit_of(size)
    rows = multipliable(rows, unit)
    first = _first_block(rows, start, block, generator)
    with full_precision(rows.device):
        space, images = _krylov_space(rows, first, depth, _COLD_RESIDUAL if start is None else _WARM_RESIDUAL, sums)
        values, basis, energy = _ritz(space, torch.cat(images, 1), (norm / unit).square(), block, sums)
    return LeadingSpectrum(unit * values, unit * energy.sqrt(), basis.to(rows.dtype), 2 * len(images) - 1)


def leading_distance(
    matrix: Tensor, leading: LeadingSpectrum, k: int, relative: bool = True, *, total: Total | None = None
) -> Tensor:
    """Frobenius distance to the nearest matrix of rank k from above: what the k leading directions leave of a matrix.

    sqrt(‖A‖_F² − Σ_{i≤k} θ²), which needs no more products; or, where less than a thousandth of the energy is left and
    the difference would lose its digits, ‖A − AVVᵀ‖_F with V the first k columns of the basis, for two products more.

    Args:
        matrix: The same as of ``leading_spectrum``.
        leading: What that returned for it.
        k: The rank, from 0 to the number of values; the error grows towards the last of them: half of them are good.
        relative: Divide by ‖A‖_F, to a number in [0, 1]; otherwise in the unit of the matrix.
        total: The same as of ``leading_spectrum``.

    Returns:
        A float64 scalar; 0 for a zero matrix, NaN where the matrix is not finite.

    Raises:
        ValueError: If ``k`` is negative or above the number of values.

    Example:
        >>> matrix = torch.diag(torch.tensor([4.0, 4.0, 2.0]))
        >>> leading = leading_spectrum(matrix, generator=torch.Generator().manual_seed(0))
        >>> leading_distance(matrix, leading, 2, relative=False).round(decimals=6)
        tensor(2., dtype=torch.float64)

    Reference:
        The approximation of one matrix by another of lower rank (Eckart and Young, 1936), https://doi.org/10.1007/BF02288367
    """
    if not 0 <= k <= len(leading.singular_values):
        raise ValueError(f"Expected k to be a whole number from 0 to {len(leading.singular_values)}, got {k}.")
    norm = leading.frobenius_norm
    if leading.basis is None:
        return norm.clone()
    share = 1 - (leading.singular_values[:k] / norm).square().sum()
    if share < _SMALLEST_DIFFERENCE:
        share = _energy_outside(_oriented(matrix.detach(), total), leading.basis[:, :k], norm, total or itself)
    return share.clamp_min(0).sqrt() * (1.0 if relative else norm)


def _check(matrix: Tensor, block: int, depth: int | None) -> None:
    if matrix.dim() != 2 or not matrix.is_floating_point():
        raise ValueError(
            f"Expected a matrix of shape (m, n) and real floating type, got shape {tuple(matrix.shape)} of {matrix.dtype}."
        )
    if block < 1 or (depth is not None and depth < 1):
        raise ValueError(f"Expected block and depth to be whole numbers from 1, got {block} and {depth}.")


def _check_start(rows: Tensor, start: Tensor | None) -> None:
    if start is not None and (start.dim() != 2 or start.shape[0] != rows.shape[1]):
        raise ValueError(
            f"Expected start to be a basis of {rows.shape[1]} rows, got shape {tuple(start.shape)}. Give the basis that the "
            "last call returned for a matrix of the same shape, or None."
        )


def _oriented(matrix: Tensor, total: Total | None) -> Tensor:
    """The matrix with its columns on the short side; of shards the rows stay rows, since their number is not known."""
    return matrix.mT if total is None and matrix.shape[0] < matrix.shape[1] else matrix


def _first_block(rows: Tensor, start: Tensor | None, block: int, generator: torch.Generator) -> Tensor:
    """All of ``start`` but its last column, which is random: a direction that has grown from nothing is found."""
    known = rows.new_zeros(rows.shape[1], 0) if start is None else start[:, : block - 1]
    size = (rows.shape[1], block - known.shape[1])
    fresh = torch.randn(size, generator=generator, device=generator.device)
    return torch.cat([known.double(), fresh.to(rows.device, torch.float64)], dim=1)


def _krylov_space(rows: Tensor, block: Tensor, depth: int | None, residual: float, sums: Total) -> tuple[Tensor, list[Tensor]]:
    """An orthonormal basis of the span of X, AᵀAX, (AᵀA)²X, ..., float64, and the images of its blocks under A."""
    space, square, images = _orthonormal(block, block.mT @ block), block.new_zeros(0, 0), []
    width, last = block.shape[1], depth or _GREATEST_DEPTH
    while True:
        images.append(_product(rows, space[:, -width:].to(rows.dtype)))
        if len(images) == last:
            return space, images
        block = sums(_product(rows.mT, images[-1]).contiguous()).double()
        inside = space.mT @ block
        outside = block - space @ inside
        gram = outside.mT @ outside
        if depth is None:
            square = torch.nn.functional.pad(square, (0, width, 0, width))
            square[:, -width:] = inside
            # What was outside joins the space for one product more: that is the last.
            last = len(images) + 1 if _residual(square, gram) < residual else last
        space = torch.cat([space, _orthonormal(outside, gram, inside.square().sum(0))], dim=1)


def _residual(square: Tensor, outside: Tensor) -> float:
    """‖AᵀAv − θ²v‖ / θ² of the leading Ritz vector v.

    Args:
        square: The upper half of the projection of AᵀA on the space.
        outside: The Gram matrix of what AᵀA makes of the last block outside the space.
    """
    squares, vectors = torch.linalg.eigh(square, UPLO="U")
    leading = vectors[-len(outside) :, -1]
    return float((leading @ outside @ leading).clamp_min(0).sqrt() / squares[-1])


def _product(matrix: Tensor, block: Tensor) -> Tensor:
    """The matrix times a thin block, in the order that reads the memory along."""
    return matrix @ block if matrix.stride(-1) == 1 else (block.mT @ matrix.mT).mT


def _orthonormal(outside: Tensor, gram: Tensor, known: Tensor | float = 0.0) -> Tensor:
    """Orthonormal columns with the span of a block; a column of zeros for each direction that it lacks.

    Once is enough: what rounding leaves in float64 is less than float32 adds, and ``_ritz`` corrects for it.

    Args:
        outside: The block, after what lies in the space was taken from it.
        gram: Its Gram matrix.
        known: Squared lengths of what was taken.
    """
    lengths = gram.diagonal()
    unit = torch.where(lengths > _KNOWN * (lengths + known), lengths.rsqrt(), 0)
    squares, vectors = torch.linalg.eigh(gram * unit * unit[:, None])
    return outside @ (unit[:, None] * vectors * torch.where(squares > _TWICE, squares.rsqrt(), 0))


def _ritz(space: Tensor, images: Tensor, energy: Tensor, count: int, sums: Total) -> tuple[Tensor, Tensor, Tensor]:
    """The first singular values of A on a space, descending, the vectors that belong to them, and the sum of the energies."""
    width = images.shape[1]
    gram = torch.zeros(width, width, dtype=torch.float64, device=images.device)
    for chunk in images.split(_ROWS_AT_ONCE):
        chunk = chunk.double()
        gram.addmm_(chunk.mT, chunk)
    summed = sums(torch.cat([gram.flatten(), energy.flatten()]))
    # The first two terms of (spaceᵀ·space)^(−1/2): it is the identity but for rounding, and columns of zeros.
    unit = 1.5 * torch.eye(width, dtype=torch.float64, device=images.device) - 0.5 * (space.mT @ space)
    squares, vectors = torch.linalg.eigh(unit @ summed[:-1].view(width, width) @ unit)
    vectors = unit @ vectors[:, width - count :].flip(1)
    return squares[width - count :].flip(0).clamp_min(0).sqrt(), space @ vectors, summed[-1]


def _energy_outside(rows: Tensor, basis: Tensor, norm: Tensor, sums: Total) -> Tensor:
    """Share of the energy that projecting every row on a basis leaves."""
    outside = torch.zeros((), dtype=torch.float64, device=rows.device)
    basis = torch.linalg.qr(basis.double()).Q
    for chunk in rows.split(_ROWS_AT_ONCE):
        chunk = chunk.double() / norm
        outside += torch.linalg.vector_norm(chunk - (chunk @ basis) @ basis.mT).square()
    return sums(outside)
