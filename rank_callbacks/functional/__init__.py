"""Tensors in, tensors out: spectra and measures of rank. No modules, no loggers."""

from rank_callbacks.functional.rank import (
    alpha,
    condition_number,
    distance_to_rank,
    effective_rank,
    energy_rank,
    frobenius_norm,
    mp_soft_rank,
    nuclear_rank,
    numerical_rank,
    participation_ratio,
    rounding_noise,
    spectral_norm,
    stable_rank,
)
from rank_callbacks.functional.spectrum import singular_values, singular_values_of_each, spectrum_cost

__all__ = [
    "alpha",
    "condition_number",
    "distance_to_rank",
    "effective_rank",
    "energy_rank",
    "frobenius_norm",
    "mp_soft_rank",
    "nuclear_rank",
    "numerical_rank",
    "participation_ratio",
    "rounding_noise",
    "singular_values",
    "singular_values_of_each",
    "spectral_norm",
    "spectrum_cost",
    "stable_rank",
]
