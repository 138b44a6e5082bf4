"""Measures of rank: singular values in, one number a matrix out.

Every function takes singular values of shape ``(..., r)`` in descending order, as ``singular_values`` returns them, and
gives float64 of shape ``(...)``. Ratios are taken relative to the largest singular value, so no scale over- or underflows.
A zero matrix and an empty spectrum have rank 0; a spectrum that is not finite gives NaN. One law orders them::

    1 <= stable_rank <= participation_ratio <= energy_effective_rank <= effective_rank <= numerical_rank(rtol=0) <= r
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "alpha",
    "condition_number",
    "distance_to_rank",
    "effective_rank",
    "energy_at_rank",
    "energy_effective_rank",
    "energy_rank",
    "frobenius_norm",
    "mp_soft_rank",
    "nuclear_rank",
    "numerical_rank",
    "participation_ratio",
    "rankme",
    "rounding_noise",
    "rounding_rtol",
    "spectral_norm",
    "stable_rank",
]


def stable_rank(singular_values: Tensor) -> Tensor:
    """Squared Frobenius norm over squared spectral norm, ‖A‖_F² / ‖A‖₂².

    Between 1 and r; 0 for a zero or empty spectrum, NaN where a singular value is not finite.

    Args:
        singular_values: Shape ``(..., r)``, descending.

    Returns:
        Shape ``(...)``, float64.

    Example:
        >>> stable_rank(torch.tensor([2.0, 1.0, 1.0]))
        tensor(1.5000, dtype=torch.float64)

    Reference:
        Sampling from large matrices (Rudelson and Vershynin, 2007), https://doi.org/10.1145/1255443.1255449
    """
    return relative_to_largest(singular_values).square().sum(-1)


def participation_ratio(singular_values: Tensor) -> Tensor:
    """How many squared singular values share the energy, (Σσ²)² / Σσ⁴.

    Between 1 and r; 0 for a zero or empty spectrum, NaN where a singular value is not finite.

    Args:
        singular_values: Shape ``(..., r)``, descending.

    Returns:
        Shape ``(...)``, float64.

    Example:
        >>> participation_ratio(torch.tensor([3.0, 3.0, 0.0]))
        tensor(2., dtype=torch.float64)

    Reference:
        A theory of multineuronal dimensionality, dynamics and measurement (Gao et al., 2017), https://doi.org/10.1101/214262
    """
    energy = relative_to_largest(singular_values).square()
    return _or_zero(energy.sum(-1).square() / energy.square().sum(-1), singular_values)


def effective_rank(singular_values: Tensor) -> Tensor:
    """Exponential of the entropy of the singular values, exp(−Σ p ln p) with p = σ / Σσ and 0 ln 0 = 0.

    No epsilon is added to p, as it is in ``rankme``: 1e-5 makes 6.6 of a rank-one spectrum of 16,384 values.
    Between 1 and r; 0 for a zero or empty spectrum, NaN where a singular value is not finite.

    Args:
        singular_values: Shape ``(..., r)``, descending.

    Returns:
        Shape ``(...)``, float64.

    Example:
        >>> effective_rank(torch.tensor([3.0, 3.0, 0.0]))
        tensor(2., dtype=torch.float64)

    Reference:
        The effective rank: a measure of effective dimensionality (Roy and Vetterli, 2007),
        https://ieeexplore.ieee.org/document/7098875
    """
    share = relative_to_largest(singular_values)
    share = share / share.sum(-1, keepdim=True)
    return _or_zero(torch.special.entr(share).sum(-1).exp(), singular_values)


def energy_effective_rank(singular_values: Tensor) -> Tensor:
    """Exponential of the entropy of the squared singular values, exp(−Σ p ln p) with p = σ² / Σσ² and 0 ln 0 = 0.

    What PCA means by an effective number of dimensions: of centred features, p is the share of explained variance. Squares
    weigh the tail less than ``effective_rank`` does, so it never stands above that. Between 1 and r; 0 for a zero or empty
    spectrum, NaN where a singular value is not finite.

    Args:
        singular_values: Shape ``(..., r)``, descending.

    Returns:
        Shape ``(...)``, float64.

    Example:
        >>> energy_effective_rank(torch.tensor([3.0, 3.0, 0.0]))
        tensor(2., dtype=torch.float64)

    Reference:
        Effective dimensionality: a tutorial (Del Giudice, 2021), https://doi.org/10.1080/00273171.2020.1743631
    """
    energy = relative_to_largest(singular_values).square()
    energy = energy / energy.sum(-1, keepdim=True)
    return _or_zero(torch.special.entr(energy).sum(-1).exp(), singular_values)


def rankme(singular_values: Tensor, epsilon: float = 1e-7) -> Tensor:
    """RankMe as published: ``effective_rank`` with a constant added, exp(−Σ p ln p) with p = σ / Σσ + epsilon.

    The p are not normalised again, so their sum is 1 + r·epsilon and RankMe exceeds r for a flat spectrum, by a factor of
    about exp(r·epsilon·(ln r − 1)): 1.003 for r = 4096 and 1e-7, but 1.35 with the 1e-5 of stable-pretraining. A spectrum of
    rank one reads more than 1. Use it to compare with the numbers of others, and ``effective_rank`` otherwise, which is the
    limit for an epsilon of 0. At most (r / (1 + r·epsilon))^(1 + r·epsilon); 0 for a zero or empty spectrum, NaN where a
    singular value is not finite.

    Args:
        singular_values: Shape ``(..., r)``, descending: by the paper those of features that are not centred.
        epsilon: What is added to every share.

    Returns:
        Shape ``(...)``, float64.

    Raises:
        ValueError: If ``epsilon`` is negative.

    Example:
        >>> rankme(torch.ones(4096)), rankme(torch.ones(4096), epsilon=1e-5)
        (tensor(4108.2952, dtype=torch.float64), tensor(5522.9876, dtype=torch.float64))

    Reference:
        RankMe: assessing the downstream performance of pretrained self-supervised representations by their rank
        (Garrido et al., 2023), https://arxiv.org/abs/2210.02885
    """
    if not epsilon >= 0:
        raise ValueError(f"Expected epsilon to be a number from 0, got {epsilon}.")
    share = relative_to_largest(singular_values)
    share = share / share.sum(-1, keepdim=True) + epsilon
    return _or_zero(torch.special.entr(share).sum(-1).exp(), singular_values)


def numerical_rank(singular_values: Tensor, rtol: float = 1e-3, noise: float | Tensor = 0.0) -> Tensor:
    """How many singular values stand above a tolerance, #{σ > max(rtol·σ₁, noise)}.

    Between 0 and r; 0 for a zero or empty spectrum, NaN where a singular value is not finite.

    Args:
        singular_values: Shape ``(..., r)``, descending.
        rtol: Relative tolerance. Galanti et al. use 1e-3.
        noise: Absolute floor of the tolerance, of shape ``(...)``: ``rounding_noise`` of the matrix, so that the
            rounding of a matrix of rank 4 to bfloat16 does not count as rank.

    Returns:
        Shape ``(...)``, float64: a count, in a type that has a NaN.

    Raises:
        ValueError: If ``rtol`` is negative.

    Example:
        >>> numerical_rank(torch.tensor([1.0, 0.1, 1e-4]))
        tensor(2., dtype=torch.float64)

    Reference:
        SGD with weight decay secretly minimizes the ranks of your neural networks (Galanti et al., 2025),
        https://arxiv.org/abs/2206.05794
    """
    if not rtol >= 0:
        raise ValueError(f"Expected rtol to be a number from 0, got {rtol}.")
    values = singular_values.double()
    floor = torch.as_tensor(noise, dtype=torch.float64, device=values.device).unsqueeze(-1)
    count = (values > torch.maximum(rtol * values[..., :1], floor)).sum(-1).double()
    return torch.where(values.isfinite().all(-1) & floor.isfinite().all(-1), count, torch.nan)


def energy_rank(singular_values: Tensor, energy: float = 0.99) -> Tensor:
    """How many singular values hold a share of the energy, the least k with Σ_{i≤k} σ² ≥ energy·Σσ².

    Sums are compared up to 1e-12 of them, so that an ``energy`` of 1 leaves out a tail that holds no more. Between 1 and r;
    0 for a zero or empty spectrum, NaN where a singular value is not finite.

    Args:
        singular_values: Shape ``(..., r)``, descending.
        energy: The share, in (0, 1].

    Returns:
        Shape ``(...)``, float64: a count, in a type that has a NaN.

    Raises:
        ValueError: If ``energy`` is not in (0, 1].

    Example:
        >>> energy_rank(torch.tensor([3.0, 1.0, 0.1]), energy=0.8)
        tensor(1., dtype=torch.float64)

    Reference:
        Principal Component Analysis (Jolliffe, 2002), https://doi.org/10.1007/b98835
    """
    if not 0 < energy <= 1:
        raise ValueError(f"Expected energy to be in (0, 1], got {energy}.")
    held = relative_to_largest(singular_values).square().cumsum(-1)
    # Ten equal values hold .7 of the energy with seven of them, though the sums differ in their last digits.
    wanted = energy * (1 - 1e-12) * held[..., -1:]
    return _or_zero((held < wanted).sum(-1).double() + 1, singular_values)


def energy_at_rank(singular_values: Tensor, k: int) -> Tensor:
    """Share of the energy that the k largest singular values hold, Σ_{i≤k} σ² / Σσ².

    In [0, 1], and 1 where k ≥ r. 0 for a zero or empty spectrum, NaN where a singular value is not finite.

    Args:
        singular_values: Shape ``(..., r)``, descending.
        k: The rank, from 0.

    Returns:
        Shape ``(...)``, float64.

    Raises:
        ValueError: If ``k`` is negative.

    Example:
        >>> energy_at_rank(torch.tensor([2.0, 1.0, 1.0]), k=1)
        tensor(0.6667, dtype=torch.float64)

    Reference:
        GaLore: memory-efficient LLM training by gradient low-rank projection (Zhao et al., 2024),
        https://arxiv.org/abs/2403.03507
    """
    if k < 0:
        raise ValueError(f"Expected k to be a whole number from 0, got {k}.")
    energy = relative_to_largest(singular_values).square()
    return _or_zero(energy[..., :k].sum(-1) / energy.sum(-1), singular_values)


def nuclear_rank(singular_values: Tensor) -> Tensor:
    """Nuclear norm over spectral norm, ‖A‖_* / ‖A‖₂ (not the variant ‖A‖_*² / ‖A‖_F²).

    Between 1 and r; 0 for a zero or empty spectrum, NaN where a singular value is not finite.

    Args:
        singular_values: Shape ``(..., r)``, descending.

    Returns:
        Shape ``(...)``, float64.

    Example:
        >>> nuclear_rank(torch.tensor([2.0, 1.0, 1.0]))
        tensor(2., dtype=torch.float64)

    Reference:
        Sampling from large matrices (Rudelson and Vershynin, 2007), https://doi.org/10.1145/1255443.1255449
    """
    return relative_to_largest(singular_values).sum(-1)


def distance_to_rank(singular_values: Tensor, k: int, relative: bool = True) -> Tensor:
    """Frobenius distance to the nearest matrix of rank k, sqrt(Σ_{i>k} σ²).

    0 where k ≥ r and for a zero or empty spectrum, NaN where a singular value is not finite.

    Args:
        singular_values: Shape ``(..., r)``, descending.
        k: The rank, from 0.
        relative: Divide by ‖A‖_F, to a number in [0, 1]; otherwise in the unit of the matrix.

    Returns:
        Shape ``(...)``, float64.

    Raises:
        ValueError: If ``k`` is negative.

    Example:
        >>> distance_to_rank(torch.tensor([2.0, 4.0, 4.0]).sort(descending=True).values, k=2, relative=False)
        tensor(2., dtype=torch.float64)

    Reference:
        The approximation of one matrix by another of lower rank (Eckart and Young, 1936), https://doi.org/10.1007/BF02288367
    """
    if k < 0:
        raise ValueError(f"Expected k to be a whole number from 0, got {k}.")
    scaled = relative_to_largest(singular_values)
    # NaN + 0 keeps a NaN that stands among the first k.
    distance = torch.linalg.vector_norm(scaled[..., k:], dim=-1) + 0 * scaled.sum(-1)
    if relative:
        return _or_zero(distance / torch.linalg.vector_norm(scaled, dim=-1), singular_values)
    return distance * spectral_norm(singular_values)


def spectral_norm(singular_values: Tensor) -> Tensor:
    """Largest singular value, ‖A‖₂.

    0 for a zero or empty spectrum, NaN where a singular value is not finite.

    Args:
        singular_values: Shape ``(..., r)``, descending.

    Returns:
        Shape ``(...)``, float64.

    Example:
        >>> spectral_norm(torch.tensor([2.0, 1.0]))
        tensor(2., dtype=torch.float64)

    Reference:
        Matrix Computations (Golub and Van Loan, 4th edition, 2013), https://doi.org/10.56021/9781421407944
    """
    # A sum over one value, or over none where the spectrum is empty.
    return singular_values[..., :1].double().sum(-1) + 0 * relative_to_largest(singular_values).sum(-1)


def frobenius_norm(singular_values: Tensor) -> Tensor:
    """Root of the sum of squares, ‖A‖_F = sqrt(Σσ²).

    0 for a zero or empty spectrum, NaN where a singular value is not finite.

    Args:
        singular_values: Shape ``(..., r)``, descending.

    Returns:
        Shape ``(...)``, float64.

    Example:
        >>> frobenius_norm(torch.tensor([4.0, 3.0]))
        tensor(5., dtype=torch.float64)

    Reference:
        Matrix Computations (Golub and Van Loan, 4th edition, 2013), https://doi.org/10.56021/9781421407944
    """
    return torch.linalg.vector_norm(relative_to_largest(singular_values), dim=-1) * spectral_norm(singular_values)


def condition_number(singular_values: Tensor) -> Tensor:
    """Largest over smallest singular value, σ₁ / σ_r.

    At least 1; infinite where the smallest is 0 and for a zero matrix, NaN for an empty spectrum and where a singular
    value is not finite.

    Args:
        singular_values: Shape ``(..., r)``, descending.

    Returns:
        Shape ``(...)``, float64.

    Example:
        >>> condition_number(torch.tensor([4.0, 1.0, 0.5]))
        tensor(8., dtype=torch.float64)

    Reference:
        Matrix Computations (Golub and Van Loan, 4th edition, 2013), https://doi.org/10.56021/9781421407944
    """
    if singular_values.shape[-1] == 0:
        return _undefined(singular_values)
    scaled = relative_to_largest(singular_values)
    return 1 / scaled[..., -1] + 0 * scaled.sum(-1)


def mp_soft_rank(singular_values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Marchenko-Pastur edge over the largest squared singular value, (‖A‖_F²/mn)·(√m + √n)² / σ₁².

    The edge is that of a random matrix whose entries are as large as those of the whole of A; the variant that fits the
    variance of the bulk after leaving out spikes is not computed. About 1 for a random matrix, less the further σ₁ stands
    out. 0 for a zero matrix, NaN for an empty spectrum and where a singular value is not finite.

    Args:
        singular_values: Shape ``(..., r)``, descending.
        shape: Shape of the matrix, ``(m, n)``, or ``(blocks, m, n)`` of a block-diagonal one.

    Returns:
        Shape ``(...)``, float64.

    Example:
        >>> mp_soft_rank(torch.ones(4), shape=(4, 4))
        tensor(4., dtype=torch.float64)

    Reference:
        Implicit self-regularization in deep neural networks (Martin and Mahoney, 2021), https://arxiv.org/abs/1810.01075
    """
    if singular_values.shape[-1] == 0:
        return _undefined(singular_values)
    *_, rows, columns = shape
    edge = (math.sqrt(rows) + math.sqrt(columns)) ** 2 / math.prod(shape)
    return edge * stable_rank(singular_values)


def rounding_noise(matrix: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Spectral norm of the error that storing a matrix in a floating type has left in it: the floor of ``numerical_rank``.

    1.2·u·(largest row norm + largest column norm), u a quarter of the type's epsilon. Rounding errors act as a random
    matrix, of spectral norm about that of its largest row plus its largest column; without the 1.2 the formula was within
    16 % of it on random and structured matrices.

    Args:
        matrix: Shape ``(..., m, n)``, any floating or complex type.
        dtype: The type that it was last rounded to, if not its own.

    Returns:
        Shape ``(...)``, float64, in the unit of the matrix; 0 for a zero or empty matrix, NaN where it is not finite.

    Example:
        >>> rounding_noise(torch.ones(64, 64, dtype=torch.bfloat16))
        tensor(0.0375, dtype=torch.float64)
    """
    if matrix.numel() == 0:
        return torch.zeros(matrix.shape[:-2], dtype=torch.float64, device=matrix.device)
    scale = 1.2 / 4 * torch.finfo(dtype or matrix.dtype).eps
    norms = _largest_row_and_column(matrix if matrix.dtype.itemsize > 2 else matrix.float())
    if not (norms.isfinite() & (norms > 1e-15)).all():  # squares over- or underflow
        wide = matrix.to(torch.complex128 if matrix.is_complex() else torch.float64)
        unit = wide.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        norms = _largest_row_and_column(wide / unit) * unit[..., 0, 0]
    return scale * torch.where(norms.isfinite(), norms.double(), torch.nan)


def _largest_row_and_column(matrix: Tensor) -> Tensor:
    squares = matrix.abs().square() if matrix.is_complex() else matrix.square()
    rows, columns = (squares.sum(dim).amax(-1) for dim in (-1, -2))  # 9 times faster than vector_norm of columns
    return rows.sqrt() + columns.sqrt()


def rounding_rtol(shape: tuple[int, ...], dtype: torch.dtype) -> float:
    """Relative tolerance at which ``numerical_rank`` counts exact rank, max(m, n)·ε: NumPy's and torch's default.

    For bfloat16 and float16 it is float32's, in which products of those are summed; their own rounding is
    ``rounding_noise``, an absolute floor.

    Args:
        shape: Shape of the matrix, ``(m, n)``, or ``(blocks, m, n)`` of a block-diagonal one.
        dtype: The type the matrix is stored in.

    Example:
        >>> rounding_rtol((1024, 10), torch.float32)
        0.0001220703125
    """
    return max(shape[-2:]) * min(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)


def alpha(singular_values: Tensor) -> Tensor:
    """Power-law exponent of the tail of the squared singular values λ, 1 + n / Σ ln(λ_i / λ_min) over the n largest.

    The tail starts where the Kolmogorov-Smirnov distance between the fit and the tail is least: WeightWatcher's estimator
    for spectra of 20 values and more (below, it corrects for bias; here the formula stays). Above 1, infinite for a flat
    spectrum. NaN with fewer than 10 non-zero singular values, which do not make a tail, and where one is not finite.

    Args:
        singular_values: Shape ``(..., r)``, descending. Values below 1e-6 of the largest are left out as zeros.

    Returns:
        Shape ``(...)``, float64.

    Example:
        >>> alpha(torch.arange(1, 101).double().pow(-0.5))
        tensor(2.0333, dtype=torch.float64)

    Reference:
        Implicit self-regularization in deep neural networks (Martin and Mahoney, 2021), https://arxiv.org/abs/1810.01075
    """
    rows = relative_to_largest(singular_values)[None].flatten(0, -2)
    fits = [_tail_exponent(row) for row in rows]
    return torch.stack(fits).reshape(singular_values.shape[:-1]) if fits else _undefined(singular_values)


def _tail_exponent(scaled: Tensor, rows_at_once: int = 256) -> Tensor:
    logs = 2 * scaled[scaled > 1e-6].log()
    if len(logs) < 10 or scaled.isnan().any():
        return scaled.new_tensor(torch.nan)
    counts = torch.arange(1, len(logs) + 1, device=logs.device, dtype=logs.dtype)
    exponents = counts / (logs.cumsum(0) - counts * logs)
    distances = [
        _tail_distances(logs, exponents, range(start, min(start + rows_at_once, len(logs))))
        for start in range(1, len(logs), rows_at_once)
    ]
    return 1 + exponents[1 + int(torch.cat(distances).argmin())]


def _tail_distances(logs: Tensor, exponents: Tensor, ends: range) -> Tensor:
    """Kolmogorov-Smirnov distance of the power law fitted to the values up to each of ``ends``."""
    end = torch.tensor(ends, device=logs.device).unsqueeze(-1)
    place = torch.arange(ends[-1] + 1, device=logs.device)
    above = torch.exp(exponents[end] * (logs[end] - logs[place]))
    observed = (place + 1) / (end + 1)
    distances = torch.where(place <= end, (above - observed).abs(), 0).amax(-1)
    # A run of equal values has no finite exponent and is no tail.
    return distances.nan_to_num(nan=torch.inf)


def relative_to_largest(singular_values: Tensor) -> Tensor:
    """The singular values over the largest, in float64; zeros where that is zero."""
    values = singular_values.double()
    first = values[..., :1]
    return torch.where(first > 0, values / first, values)


def _or_zero(measure: Tensor, singular_values: Tensor) -> Tensor:
    """The measure, with 0 for a zero or empty spectrum and NaN for one that is not finite."""
    total = relative_to_largest(singular_values).sum(-1)
    return torch.where(total.isnan(), torch.nan, torch.where(total > 0, measure, 0.0))


def _undefined(singular_values: Tensor) -> Tensor:
    return torch.full(singular_values.shape[:-1], torch.nan, dtype=torch.float64, device=singular_values.device)
