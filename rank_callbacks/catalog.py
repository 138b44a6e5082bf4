"""Every measure in words: the one table behind error messages, documentation, hover texts and report columns."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["MEASURES", "Measure", "find_measure"]


class Measure(NamedTuple):
    """One row of the catalogue.

    Args:
        name: The name in tags, and, unless ``function`` says otherwise, of the function in ``rank_callbacks.functional``.
        title: One sentence.
        formula: In terms of the singular values s_1 >= ... >= s_r of an m x n matrix, r = min(m, n).
        bounds: The interval of its values.
        at_zero: The value for a zero matrix, and for one without rows or columns.
        how_to_read: What a high or a falling value means.
        source: Title, authors, year and address.
        parameter: The argument that a suffix of the name sets: ``rtol`` in ``numerical_rank_1e-2``.
        default: The argument's value where the name has no suffix; None where it must have one.
    """

    name: str
    title: str
    formula: str
    bounds: str
    at_zero: str
    how_to_read: str
    source: str
    parameter: str | None = None
    default: float | None = None


_MARTIN_MAHONEY = (
    "Implicit self-regularization in deep neural networks (Martin and Mahoney, 2021), https://arxiv.org/abs/1810.01075"
)
_ECKART_YOUNG = (
    "The approximation of one matrix by another of lower rank (Eckart and Young, 1936), https://doi.org/10.1007/BF02288367"
)
_RUDELSON_VERSHYNIN = "Sampling from large matrices (Rudelson and Vershynin, 2007), https://doi.org/10.1145/1255443.1255449"
_GOLUB_VAN_LOAN = "Matrix Computations (Golub and Van Loan, 4th edition, 2013), https://doi.org/10.56021/9781421407944"

MEASURES: dict[str, Measure] = {
    row.name: row
    for row in (
        Measure(
            name="stable_rank",
            title="Squared Frobenius norm over squared spectral norm.",
            formula="Σ s_i² / s_1²",
            bounds="[1, r]",
            at_zero="0",
            how_to_read="Near 1 when one direction dominates. Insensitive to small singular values, so it falls late.",
            source=_RUDELSON_VERSHYNIN,
        ),
        Measure(
            name="participation_ratio",
            title="How many squared singular values share the energy.",
            formula="(Σ s_i²)² / Σ s_i⁴",
            bounds="[1, r]",
            at_zero="0",
            how_to_read="k equal singular values and zeros elsewhere give k. Between stable and effective rank.",
            source=(
                "A theory of multineuronal dimensionality, dynamics and measurement (Gao et al., 2017), "
                "https://doi.org/10.1101/214262"
            ),
        ),
        Measure(
            name="effective_rank",
            title="Exponential of the entropy of the singular values.",
            formula="exp(−Σ p_i ln p_i), p_i = s_i / Σ s_j",
            bounds="[1, r]",
            at_zero="0",
            how_to_read="The smoothest of the ranks: it moves as soon as the tail of the spectrum does, with no tolerance.",
            source=(
                "The effective rank: a measure of effective dimensionality (Roy and Vetterli, 2007), "
                "https://ieeexplore.ieee.org/document/7098875"
            ),
        ),
        Measure(
            name="energy_effective_rank",
            title="Exponential of the entropy of the squared singular values.",
            formula="exp(−Σ p_i ln p_i), p_i = s_i² / Σ s_j²",
            bounds="[1, r]",
            at_zero="0",
            how_to_read="Of centred features, the effective number of principal components. Below the effective rank.",
            source="Effective dimensionality: a tutorial (Del Giudice, 2021), https://doi.org/10.1080/00273171.2020.1743631",
        ),
        Measure(
            name="rankme",
            title="Effective rank with a constant added to every share, which are not normalised again.",
            formula="exp(−Σ p_i ln p_i), p_i = s_i / Σ s_j + epsilon",
            bounds="[1 − epsilon, (r / (1 + r·epsilon))^(1 + r·epsilon)]",
            at_zero="0",
            how_to_read=(
                "To compare with published RankMe, which is of uncentred features. It exceeds r for a flat spectrum and 1 for "
                "a rank of one, more so with the 1e-5 that some tools add."
            ),
            source=(
                "RankMe: assessing the downstream performance of pretrained self-supervised representations by their rank "
                "(Garrido et al., 2023), https://arxiv.org/abs/2210.02885"
            ),
            parameter="epsilon",
            default=1e-7,
        ),
        Measure(
            name="numerical_rank",
            title="How many singular values stand above a tolerance relative to the largest.",
            formula="#{i : s_i > max(rtol · s_1, rounding noise of the storage dtype)}",
            bounds="[0, r]",
            at_zero="0",
            how_to_read=(
                "The rank that a truncation at this tolerance would keep. It depends on the tolerance: compare like with like."
            ),
            source=(
                "SGD with weight decay secretly minimizes the ranks of your neural networks (Galanti et al., 2025), "
                "https://arxiv.org/abs/2206.05794"
            ),
            parameter="rtol",
            default=1e-3,
        ),
        Measure(
            name="energy_rank",
            title="How many singular values hold a given share of the squared Frobenius norm.",
            formula="min{k : Σ_{i≤k} s_i² ≥ energy · Σ s_i²}",
            bounds="[1, r]",
            at_zero="0",
            how_to_read="The rank that keeps 99 % of the energy: what a compression to that rank would preserve.",
            source="Principal Component Analysis (Jolliffe, 2002), https://doi.org/10.1007/b98835",
            parameter="energy",
            default=0.99,
        ),
        Measure(
            name="energy_at_rank",
            title="Share of the squared Frobenius norm that the k largest singular values hold.",
            formula="Σ_{i≤k} s_i² / Σ s_i²",
            bounds="[0, 1]",
            at_zero="0",
            how_to_read="What a projection to rank k keeps: near 1, GaLore or PowerSGD of that rank loses little.",
            source=(
                "GaLore: memory-efficient LLM training by gradient low-rank projection (Zhao et al., 2024), "
                "https://arxiv.org/abs/2403.03507"
            ),
            parameter="k",
        ),
        Measure(
            name="nuclear_rank",
            title="Nuclear norm over spectral norm.",
            formula="Σ s_i / s_1",
            bounds="[1, r]",
            at_zero="0",
            how_to_read="Like the stable rank, with more weight on the tail.",
            source=_RUDELSON_VERSHYNIN,
        ),
        Measure(
            name="distance_to_rank",
            title="Frobenius distance to the nearest matrix of rank k.",
            formula="sqrt(Σ_{i>k} s_i²)",
            bounds="[0, ∞)",
            at_zero="0",
            how_to_read="Falls to 0 as the matrix becomes one of rank k. With k the number of classes: neural rank collapse.",
            source=_ECKART_YOUNG,
            parameter="k",
        ),
        Measure(
            name="relative_distance_to_rank",
            title="Distance to the nearest matrix of rank k, relative to the Frobenius norm.",
            formula="sqrt(Σ_{i>k} s_i² / Σ s_i²)",
            bounds="[0, 1]",
            at_zero="0",
            how_to_read="The share that a truncation to rank k loses. Comparable between layers and weight decays.",
            source=_ECKART_YOUNG,
            parameter="k",
        ),
        Measure(
            name="spectral_norm",
            title="Largest singular value.",
            formula="s_1",
            bounds="[0, ∞)",
            at_zero="0",
            how_to_read="The Lipschitz constant of the linear map. Growth without end is an instability.",
            source=_GOLUB_VAN_LOAN,
        ),
        Measure(
            name="frobenius_norm",
            title="Root of the sum of squared entries.",
            formula="sqrt(Σ s_i²)",
            bounds="[0, ∞)",
            at_zero="0",
            how_to_read="What weight decay shrinks. A rank of a matrix whose norm has vanished means little.",
            source=_GOLUB_VAN_LOAN,
        ),
        Measure(
            name="condition_number",
            title="Largest over smallest singular value.",
            formula="s_1 / s_r",
            bounds="[1, ∞]",
            at_zero="∞, and NaN for a matrix without rows or columns",
            how_to_read="Infinite for a matrix that is singular to the accuracy of its spectrum.",
            source=_GOLUB_VAN_LOAN,
        ),
        Measure(
            name="alpha",
            title="Power-law exponent of the tail of the squared singular values.",
            formula="1 + n / Σ ln(s_i² / s_min²) over the n largest, s_min by the least Kolmogorov-Smirnov distance",
            bounds="(1, ∞]",
            at_zero="NaN: fewer than 10 non-zero singular values do not make a tail",
            how_to_read="2 to 6 in well-trained layers by its authors' reading; falling alpha is a heavier tail.",
            source=_MARTIN_MAHONEY,
        ),
        Measure(
            name="mp_soft_rank",
            title="Marchenko-Pastur edge of a random matrix with as large entries, over the largest squared singular value.",
            formula="(Σ s_i² / mn) · (√m + √n)² / s_1²",
            bounds="(0, (1/√m + 1/√n)² · r]",
            at_zero="0, and NaN for a matrix without rows or columns",
            how_to_read="About 1 at a random initialisation; it falls as training pulls singular values out of the bulk.",
            source=_MARTIN_MAHONEY,
        ),
    )
}


def find_measure(name: str) -> tuple[Measure, float | None]:
    """The catalogue row that a measure's name means, and the value of its parameter.

    Args:
        name: A row's name, with its parameter as a suffix where it has one: ``energy_rank``, ``energy_rank_0.9``,
            ``relative_distance_to_rank_10``.

    Raises:
        ValueError: If no row has that name, or a parameter is missing, unusable or superfluous.

    Example:
        >>> row, rtol = find_measure("numerical_rank_1e-2")
        >>> row.name, row.parameter, rtol
        ('numerical_rank', 'rtol', 0.01)
    """
    if name in MEASURES:
        row, suffix = MEASURES[name], ""
    else:
        stem, _, suffix = name.rpartition("_")
        if stem not in MEASURES or MEASURES[stem].parameter is None:
            raise ValueError(f"Expected the name of a measure, got {name!r}. Choose from {', '.join(_spellings())}.")
        row = MEASURES[stem]
    return row, _parameter_value(row, name, suffix)


def _parameter_value(row: Measure, name: str, suffix: str) -> float | None:
    if not suffix:
        if row.parameter and row.default is None:
            raise ValueError(f"Measure {name!r} needs its {row.parameter} in the name: {name}_10, for example.")
        return row.default
    try:
        value = float(suffix)
    except ValueError:
        raise ValueError(f"Expected a number for {row.parameter} at the end of {name!r}, got {suffix!r}.") from None
    whole = row.parameter != "k" or value.is_integer()
    if not whole or not 0 <= value < float("inf") or (row.parameter == "energy" and not 0 < value <= 1):
        expected = {"k": "a whole number from 0", "energy": "a share in (0, 1]"}.get(row.parameter or "", "a number from 0")
        raise ValueError(f"Expected {expected} for {row.parameter} in {name!r}, got {suffix}.")
    return int(value) if row.parameter == "k" else value


def _spellings() -> list[str]:
    return [
        name if row.parameter is None or row.default is not None else f"{name}_<{row.parameter}>"
        for name, row in MEASURES.items()
    ]
