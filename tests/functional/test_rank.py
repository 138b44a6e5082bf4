"""Measures of rank against known answers, laws, and naive versions written from the formulas."""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rank_callbacks.catalog import MEASURES
from rank_callbacks.functional import (
    alpha,
    condition_number,
    distance_to_rank,
    effective_rank,
    energy_at_rank,
    energy_effective_rank,
    energy_rank,
    frobenius_norm,
    mp_soft_rank,
    nuclear_rank,
    numerical_rank,
    participation_ratio,
    rankme,
    rounding_noise,
    singular_values,
    spectral_norm,
    stable_rank,
)

NAN, INF = float("nan"), float("inf")
SHAPE = (20, 12)  # of the matrices whose spectra are measured where nothing else is said: r = 12
ALL = {
    "stable_rank": stable_rank,
    "participation_ratio": participation_ratio,
    "effective_rank": effective_rank,
    "energy_effective_rank": energy_effective_rank,
    "rankme": rankme,
    "numerical_rank": numerical_rank,
    "energy_at_rank": partial(energy_at_rank, k=2),
    "energy_rank": energy_rank,
    "nuclear_rank": nuclear_rank,
    "distance_to_rank": partial(distance_to_rank, k=2, relative=False),
    "relative_distance_to_rank": partial(distance_to_rank, k=2),
    "spectral_norm": spectral_norm,
    "frobenius_norm": frobenius_norm,
    "condition_number": condition_number,
    "alpha": alpha,
    "mp_soft_rank": partial(mp_soft_rank, shape=SHAPE),
}
IN_THE_UNIT_OF_THE_MATRIX = {"distance_to_rank", "spectral_norm", "frobenius_norm"}
# 0 where nothing is said.
AT_ZERO = {"condition_number": INF, "alpha": NAN}
WHEN_EMPTY = {"condition_number": NAN, "alpha": NAN, "mp_soft_rank": NAN}

every_measure = pytest.mark.parametrize("name", ALL)
laws = settings(derandomize=True, deadline=None, max_examples=300)


def spectrum(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def geometric(count: int = 12, ratio: float = 0.8) -> torch.Tensor:
    return ratio ** torch.arange(count, dtype=torch.float64)


def assert_equal(measured: torch.Tensor, expected: float, rtol: float = 0.0) -> None:
    wanted = torch.full_like(measured, expected, dtype=torch.float64)
    torch.testing.assert_close(measured, wanted, rtol=rtol, atol=0, equal_nan=True)


def test_every_measure_of_the_catalogue_is_tested_here():
    assert ALL.keys() == MEASURES.keys()


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        pytest.param(stable_rank, 1.0167553713836919, id="stable_rank"),
        pytest.param(participation_ratio, 1.0335028696951716, id="participation_ratio"),
        pytest.param(effective_rank, 1.478377448303893, id="effective_rank"),
        pytest.param(energy_effective_rank, 1.0879590943619206, id="energy_effective_rank"),
        pytest.param(rankme, 1.4783792733429664, id="rankme_1e-7"),
        pytest.param(partial(rankme, epsilon=1e-5), 1.4785594238116273, id="rankme_1e-5"),
        pytest.param(partial(rankme, epsilon=0), 1.478377448303893, id="rankme_0"),
        pytest.param(nuclear_rank, 1.1360845006593026, id="nuclear_rank"),
        pytest.param(lambda s: nuclear_rank(s) ** 2 / stable_rank(s), 1.2694184156429023, id="nuclear_over_frobenius"),
        pytest.param(partial(distance_to_rank, k=2, relative=False), 0.010359464038737175, id="distance_to_rank_2"),
        pytest.param(partial(numerical_rank, rtol=6 * 2**-52), 4, id="numerical_rank_of_float64"),
        pytest.param(partial(numerical_rank, rtol=6 * 2**-23), 4, id="numerical_rank_of_float32"),
        pytest.param(numerical_rank, 3, id="numerical_rank_1e-3"),
        pytest.param(partial(numerical_rank, rtol=1e-2), 2, id="numerical_rank_1e-2"),
        pytest.param(energy_rank, 2, id="energy_rank_0.99"),
        pytest.param(partial(energy_at_rank, k=2), 1 - 0.010359464038737175**2 / 2.4592646208, id="energy_at_rank_2"),
    ],
)
def test_known_answers_of_the_matrix_of_reciprocals(measure, expected):
    matrix = torch.tensor([[1 / (i + j + 1) for j in range(4)] for i in range(6)], dtype=torch.float64)
    assert_equal(measure(torch.linalg.svdvals(matrix)), expected, rtol=1e-12)


def harmonic_rank(power: int) -> float:
    """(Σ i^-power)² / Σ i^-2power over 64 values."""
    return math.fsum(i**-power for i in range(1, 65)) ** 2 / math.fsum(i ** (-2 * power) for i in range(1, 65))


def harmonic_entropy_rank() -> float:
    total = math.fsum(1 / i for i in range(1, 65))
    return math.exp(-math.fsum(1 / (i * total) * math.log(1 / (i * total)) for i in range(1, 65)))


@pytest.mark.parametrize(
    ("measure", "exact", "in_the_documentation"),
    [
        pytest.param(stable_rank, math.fsum(1 / i**2 for i in range(1, 65)), 1.63, id="stable_rank"),
        pytest.param(participation_ratio, harmonic_rank(2), 2.45, id="participation_ratio"),
        pytest.param(effective_rank, harmonic_entropy_rank(), 29.1, id="effective_rank"),
        pytest.param(partial(numerical_rank, rtol=0), 64, 64, id="numerical_rank"),
    ],
)
def test_one_harmonic_spectrum_has_four_ranks(measure, exact, in_the_documentation):
    assert_equal(measure(1 / torch.arange(1, 65).double()), exact, rtol=1e-12)
    assert exact == pytest.approx(in_the_documentation, rel=2e-3)


@pytest.mark.parametrize("value", [1.0, 3.7, 1e-30])
@pytest.mark.parametrize(
    "measure", [stable_rank, participation_ratio, effective_rank, energy_effective_rank, nuclear_rank, energy_rank]
)
def test_one_value_among_16384_zeros_has_rank_exactly_one(measure, value):
    values = torch.zeros(16_384)
    values[0] = value
    assert measure(values).item() == 1


@pytest.mark.parametrize("count", [1, 7, 10])
@pytest.mark.parametrize(
    "measure",
    [
        stable_rank,
        participation_ratio,
        effective_rank,
        energy_effective_rank,
        nuclear_rank,
        numerical_rank,
        partial(energy_rank, energy=1.0),
    ],
)
def test_equal_values_beside_zeros_count_as_many_as_they_are(measure, count):
    values = torch.zeros(12)
    values[:count] = 0.3
    assert_equal(measure(values), count, rtol=1e-14)


@pytest.mark.parametrize(("count", "tools"), [(768, 802.0), (2048, 2345), (4096, 5523)])
def test_rankme_of_a_flat_spectrum_exceeds_the_number_of_features(count, tools):
    assert rankme(torch.ones(count), epsilon=1e-5).item() == pytest.approx(tools, abs=0.5)
    assert 1 < rankme(torch.ones(count)).item() / count < 1.0031


def test_rankme_of_rank_one_exceeds_one():
    values = torch.zeros(16_384)
    values[0] = 1
    assert rankme(values, epsilon=1e-5).item() == pytest.approx(6.6, abs=0.05)


@pytest.mark.parametrize("count", [10, 25])  # in floating point 7 / 25 * 25 is above 7
def test_equal_values_hold_equal_shares_of_the_energy(count):
    values = torch.full((count,), 0.1)
    kept = range(1, count + 1)
    assert [energy_rank(values, energy=k / count).item() for k in kept] == list(kept)


@pytest.mark.parametrize(("energy", "expected"), [(0.64, 1), (0.640001, 2), (1.0, 2)])
def test_energy_rank_takes_another_value_for_a_millionth_of_the_energy(energy, expected):
    assert energy_rank(spectrum(4, 3, 0), energy=energy).item() == expected


def test_numerical_rank_takes_the_larger_of_tolerance_and_noise():
    values = spectrum(10, 1, 0.1, 0.01)
    assert [numerical_rank(values, rtol=0.05, noise=noise).item() for noise in (0, 0.4, 0.6, 2)] == [2, 2, 2, 1]
    assert [numerical_rank(values, rtol=rtol, noise=0.05).item() for rtol in (0, 1e-3, 0.05)] == [3, 3, 2]


def test_a_value_on_the_tolerance_does_not_stand_above_it():
    assert numerical_rank(spectrum(8, 4, 2), rtol=0.25).item() == 2
    assert numerical_rank(spectrum(8, 4, 2), rtol=0, noise=4.0).item() == 1


def test_noise_is_one_number_a_matrix():
    values = spectrum(4, 2, 1).expand(3, 3)
    assert numerical_rank(values, rtol=0, noise=spectrum(0.5, 1.5, 5)).tolist() == [3, 2, 0]


@pytest.mark.parametrize(("k", "expected"), [(0, 13.0), (1, 5.0), (2, 3.0), (3, 0.0), (7, 0.0)])
def test_distance_to_rank_is_what_a_truncation_leaves(k, expected):
    values = spectrum(12, 4, 3)
    assert_equal(distance_to_rank(values, k=k, relative=False), expected, rtol=1e-15)
    assert_equal(distance_to_rank(values, k=k), expected / 13, rtol=1e-15)


@pytest.mark.parametrize("shape", [(600, 400), (400, 600), (2, 600, 400)], ids=str)
def test_mp_soft_rank_of_a_random_matrix_is_about_one(shape):
    values = torch.linalg.svdvals(torch.randn(shape, dtype=torch.float64)).flatten().sort(descending=True).values
    assert mp_soft_rank(values, shape).item() == pytest.approx(1, abs=0.05)


def float64_spectra() -> st.SearchStrategy[torch.Tensor]:
    """Descending spectra, not all zero: flat and steep, with ties, zeros in the tail, and at any scale."""
    flat = st.floats(0.1, 1)
    steep = st.floats(0, 18).map(lambda decades: 10**-decades)
    tied = st.sampled_from([1.0, 0.5, 1e-8])
    values = st.lists(flat | steep | tied, min_size=1, max_size=40)
    scales = st.sampled_from([1.0, 1e-300, 1e-30, 1e-3, 1e30, 1e300])
    return st.builds(
        lambda values, zeros, scale: scale * spectrum(*sorted(values, reverse=True), *[0.0] * zeros),
        values,
        st.integers(0, 20),
        scales,
    )


def assert_ascending(*ranks: float) -> None:
    for lower, upper in pairwise(ranks):
        assert lower <= upper * (1 + 1e-13), ranks


@laws
@given(float64_spectra())
def test_ranks_are_ordered(values):
    measures = (stable_rank, participation_ratio, energy_effective_rank, effective_rank, partial(numerical_rank, rtol=0))
    assert_ascending(1, *(measure(values).item() for measure in measures), len(values))


@laws
@given(float64_spectra(), st.sampled_from([0.0, 1e-12, 1e-7, 1e-5, 1e-3]))
def test_rankme_lies_within_its_bounds(values, epsilon):
    total = 1 + len(values) * epsilon
    assert_ascending(1 - epsilon, rankme(values, epsilon).item(), (len(values) / total) ** total)


@laws
@given(float64_spectra())
def test_rankme_without_epsilon_is_the_effective_rank(values):
    assert_equal(rankme(values, epsilon=0), effective_rank(values).item())


@laws
@given(float64_spectra())
def test_nuclear_rank_lies_between_stable_and_effective_rank(values):
    assert_ascending(stable_rank(values).item(), nuclear_rank(values).item(), effective_rank(values).item())


def test_rank_of_all_energy_leaves_out_what_holds_less_than_rounding():
    assert energy_rank(torch.tensor([1.0, 2e-6], dtype=torch.float64), energy=1.0) == 2
    assert energy_rank(torch.tensor([1.0, 5e-7], dtype=torch.float64), energy=1.0) == 1


@laws
@given(float64_spectra())
def test_rank_of_all_energy_is_at_most_the_rank(values):
    assert_ascending(1, energy_rank(values, energy=1.0).item(), numerical_rank(values, rtol=0).item())


@laws
@given(float64_spectra(), st.floats(0, 1), st.floats(0, 1))
def test_numerical_rank_falls_as_its_tolerance_rises(values, one, other):
    low, high = sorted((one, other))
    assert_ascending(numerical_rank(values, rtol=high).item(), numerical_rank(values, rtol=low).item())


@laws
@given(float64_spectra(), st.integers(0, 60))
def test_distance_to_rank_falls_from_one_to_zero(values, k):
    assert_ascending(0, distance_to_rank(values, k + 1).item(), distance_to_rank(values, k).item(), 1)
    assert distance_to_rank(values, len(values)).item() == 0


@every_measure
def test_a_batch_is_measured_row_by_row(name):
    batch = torch.rand(3, 4, 12, dtype=torch.float64).sort(descending=True).values
    batch[0, 1] = 0
    batch[1, 2, 5] = NAN
    batch[2, 0, 6:] = 0
    rows = torch.stack([torch.stack([ALL[name](row) for row in rows]) for rows in batch])
    torch.testing.assert_close(ALL[name](batch), rows, rtol=1e-14, atol=0, equal_nan=True)


@every_measure
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_measure_is_float64_whatever_the_spectrum_is(name, dtype):
    values = 2.0 ** -torch.arange(12).to(dtype)  # exact in each
    measured = ALL[name](values)
    assert measured.dtype == torch.float64
    assert_equal(measured, ALL[name](values.double()).item())


@every_measure
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
def test_zero_spectrum(name, batch):
    measured = ALL[name](torch.zeros(*batch, 12))
    assert measured.shape == batch
    assert_equal(measured, AT_ZERO.get(name, 0.0))


@every_measure
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
def test_empty_spectrum(name, batch):
    measured = ALL[name](torch.zeros(*batch, 0))
    assert measured.shape == batch
    assert_equal(measured, WHEN_EMPTY.get(name, 0.0))


@every_measure
@pytest.mark.parametrize("length", [12, 0])
def test_empty_batch(name, length):
    measured = ALL[name](torch.zeros(0, length))
    assert measured.shape == (0,)
    assert measured.dtype == torch.float64


@every_measure
@pytest.mark.parametrize("bad", [slice(0, 1), slice(1, 2), slice(6, 7), slice(11, 12), slice(None)], ids=str)
def test_nan_anywhere_reads_nan(name, bad):
    values = geometric()
    values[bad] = NAN
    assert ALL[name](values).isnan()


@every_measure
@pytest.mark.parametrize("infinite", [1, 2, 12])
def test_infinity_reads_nan(name, infinite):
    values = geometric()
    values[:infinite] = INF  # descending: they come first
    assert ALL[name](values).isnan()


@pytest.mark.parametrize(
    "measure", [partial(distance_to_rank, k=12), partial(numerical_rank, rtol=2), partial(energy_rank, energy=0.1)]
)
def test_nan_in_a_value_that_is_not_counted_reads_nan(measure):
    values = geometric()
    values[11] = NAN
    assert measure(values).isnan()


def test_rounding_noise_of_nothing_is_zero_and_of_nan_is_nan():
    assert rounding_noise(torch.zeros(4, 5, dtype=torch.bfloat16)).item() == 0
    assert rounding_noise(torch.zeros(3, 20, 0, dtype=torch.bfloat16)).tolist() == [0, 0, 0]
    assert rounding_noise(torch.full((2, 2), NAN)).isnan()


@every_measure
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100], ids=["1e-30", "1e+30"])
def test_scale_in_float32(name, scale):
    values = geometric().float()
    scaled = (values * scale).float()  # exact: a power of two, 1.3e30 or its reciprocal
    factor = scale if name in IN_THE_UNIT_OF_THE_MATRIX else 1.0
    assert_equal(ALL[name](scaled), factor * ALL[name](values).item(), rtol=1e-14)


@every_measure
@pytest.mark.parametrize("scale", [2.0**-1000, 2.0**1000], ids=["1e-301", "1e+301"])
def test_scale_in_float64(name, scale):
    factor = scale if name in IN_THE_UNIT_OF_THE_MATRIX else 1.0
    assert_equal(ALL[name](geometric() * scale), factor * ALL[name](geometric()).item(), rtol=1e-14)


def naive_effective_rank(s: np.ndarray) -> float:
    p = s / s.sum()
    return np.exp(-np.sum(p * np.log(p)))


def naive_rankme(s: np.ndarray, epsilon: float) -> float:
    p = s / s.sum() + epsilon
    return np.exp(-np.sum(p * np.log(p)))


def naive_energy_rank(s: np.ndarray, energy: float) -> int:
    return next(k for k in range(len(s) + 1) if sum(s[:k] ** 2) >= energy * sum(s**2))


def naive_mp_soft_rank(s: np.ndarray, shape: tuple[int, int]) -> float:
    variance = np.sum(s**2) / (shape[0] * shape[1])
    ratio = max(shape) / min(shape)
    edge = max(shape) * variance * (1 + 1 / np.sqrt(ratio)) ** 2
    return edge / s[0] ** 2


def naive_alpha(s: np.ndarray) -> float:
    """The exponent of the tail, among all tails, from which the power law fitted to it differs least."""
    eigenvalues = sorted(s**2, reverse=True)
    best_distance, best_exponent = INF, NAN
    for n in range(2, len(eigenvalues) + 1):
        tail = eigenvalues[:n]
        if tail[0] == tail[-1]:
            continue
        exponent = 1 + n / math.fsum(math.log(x / tail[-1]) for x in tail)
        distance = 0.0
        for i, x in enumerate(tail, start=1):
            fitted, observed = (x / tail[-1]) ** (1 - exponent), i / n  # shares of values from x
            distance = max(distance, abs(fitted - observed))
        if distance < best_distance:
            best_distance, best_exponent = distance, exponent
    return best_exponent


@pytest.mark.parametrize("shape", [(30, 50), (64, 20), (16, 16)], ids=str)
@pytest.mark.parametrize(
    ("measure", "naive"),
    [
        pytest.param(stable_rank, lambda s, _: np.sum(s**2) / np.max(s) ** 2, id="stable_rank"),
        pytest.param(participation_ratio, lambda s, _: np.sum(s**2) ** 2 / np.sum(s**4), id="participation_ratio"),
        pytest.param(effective_rank, lambda s, _: naive_effective_rank(s), id="effective_rank"),
        pytest.param(energy_effective_rank, lambda s, _: naive_effective_rank(s**2), id="energy_effective_rank"),
        pytest.param(rankme, lambda s, _: naive_rankme(s, 1e-7), id="rankme"),
        pytest.param(partial(rankme, epsilon=0.01), lambda s, _: naive_rankme(s, 0.01), id="rankme_0.01"),
        pytest.param(partial(numerical_rank, rtol=0.3), lambda s, _: np.sum(s > 0.3 * s[0]), id="numerical_rank"),
        pytest.param(partial(energy_rank, energy=0.8), lambda s, _: naive_energy_rank(s, 0.8), id="energy_rank"),
        pytest.param(partial(energy_at_rank, k=5), lambda s, _: np.sum(s[:5] ** 2) / np.sum(s**2), id="energy_at_rank"),
        pytest.param(nuclear_rank, lambda s, _: np.sum(s) / np.max(s), id="nuclear_rank"),
        pytest.param(
            partial(distance_to_rank, k=5),
            lambda s, _: np.linalg.norm(s[5:]) / np.linalg.norm(s),
            id="relative_distance_to_rank",
        ),
        pytest.param(
            partial(distance_to_rank, k=5, relative=False), lambda s, _: np.linalg.norm(s[5:]), id="distance_to_rank"
        ),
        pytest.param(spectral_norm, lambda s, _: np.max(s), id="spectral_norm"),
        pytest.param(frobenius_norm, lambda s, _: np.sqrt(np.sum(s**2)), id="frobenius_norm"),
        pytest.param(condition_number, lambda s, _: np.max(s) / np.min(s), id="condition_number"),
        pytest.param(alpha, lambda s, _: naive_alpha(s), id="alpha"),
    ],
)
def test_a_measure_equals_its_formula_on_random_matrices(measure, naive, shape):
    s = np.linalg.svd(np.random.default_rng(0).standard_normal(shape), compute_uv=False)
    assert_equal(measure(torch.from_numpy(s)), float(naive(s, shape)), rtol=1e-12)


@pytest.mark.parametrize("shape", [(30, 50), (64, 20), (16, 16)], ids=str)
def test_mp_soft_rank_equals_its_formula_on_random_matrices(shape):
    s = np.linalg.svd(np.random.default_rng(0).standard_normal(shape), compute_uv=False)
    assert_equal(mp_soft_rank(torch.from_numpy(s), shape), naive_mp_soft_rank(s, shape), rtol=1e-12)


@pytest.mark.parametrize("count", [10, 256, 257, 600])  # up to and beyond the rows that are compared at a time
def test_alpha_equals_its_formula_on_heavy_tails(count):
    s = np.sort(np.random.default_rng(count).pareto(2.0, count) + 0.3)[::-1].copy()
    assert_equal(alpha(torch.from_numpy(s)), naive_alpha(s), rtol=1e-9)


def power_law(exponent: float, count: int) -> np.ndarray:
    """Descending draws above 1 of density x^-exponent, by inversion."""
    uniform = np.random.default_rng(0).uniform(size=count)
    return np.sort((1 - uniform) ** (-1 / (exponent - 1)))[::-1].copy()


@pytest.mark.parametrize("exponent", [2.0, 3.0, 5.0])
def test_alpha_recovers_the_exponent_of_a_power_law(exponent):
    values = torch.from_numpy(np.sqrt(power_law(exponent, 3000)))
    assert alpha(values).item() == pytest.approx(exponent, rel=0.05)


def test_alpha_finds_where_the_tail_starts():
    bulk = np.sort(np.random.default_rng(1).uniform(0.01, 1, size=2000))[::-1]
    values = torch.from_numpy(np.sqrt(np.concatenate([power_law(3.0, 1000), bulk])))
    assert alpha(values).item() == pytest.approx(3.0, rel=0.1)


def test_alpha_takes_no_run_of_equal_values_for_a_tail():
    values = geometric(30)
    values[:3] = 1
    assert alpha(values).item() == pytest.approx(naive_alpha(values.numpy()))


def test_alpha_of_a_flat_spectrum_is_infinite():
    assert alpha(torch.full((12,), 0.3)).item() == INF


@pytest.mark.parametrize(("values", "defined"), [(9, False), (10, True)])
def test_alpha_needs_ten_values_above_a_millionth_of_the_largest(values, defined):
    padded = torch.cat([geometric(values), torch.full((20,), 0.9e-6, dtype=torch.float64)])
    assert alpha(padded).isfinite().item() is defined


@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [(torch.bfloat16, 1e-4), (torch.float16, 1e-5), (torch.float32, 1e-9)],
    ids=["bfloat16", "float16", "float32"],
)
def test_rank_four_stays_four_when_it_is_rounded(dtype, rtol):
    product = torch.randn(512, 4, dtype=torch.float64) @ torch.randn(4, 512, dtype=torch.float64)
    values = singular_values(product.to(dtype), method="svd")
    noise = rounding_noise(product.to(dtype))
    assert numerical_rank(values, rtol=rtol).item() > 100
    assert numerical_rank(values, rtol=rtol, noise=noise).item() == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(512, 512), (300, 900), (2000, 64), (128, 40), (4, 200, 100)], ids=str)
def test_rounding_noise_is_little_above_the_norm_of_the_rounding_error(shape, dtype):
    matrix = torch.randn(shape, dtype=torch.float64)
    error = torch.linalg.svdvals(matrix - matrix.to(dtype).double()).amax().item()
    assert 1 <= rounding_noise(matrix.to(dtype)).amax().item() / error <= 1.7


@pytest.mark.parametrize("kind", ["rank_one", "few_rows", "large_column"])
def test_rounding_noise_covers_the_rounding_of_uneven_matrices(kind):
    matrix = torch.randn(512, 512, dtype=torch.float64)
    if kind == "rank_one":
        matrix = torch.outer(matrix[0], matrix[1])
    elif kind == "few_rows":  # the gradient of an embedding
        matrix[64:] = 0
    else:
        matrix[:, 0] *= 1000
    error = torch.linalg.svdvals(matrix - matrix.bfloat16().double())[0]
    assert rounding_noise(matrix, torch.bfloat16) >= error


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_rounding_noise_is_in_the_unit_of_the_matrix(scale):
    matrix = torch.randn(20, 30)
    assert_equal(rounding_noise(matrix * scale) / rounding_noise(matrix), scale, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-280, 1e-160, 1e155, 1e300])
def test_rounding_noise_of_a_batch_in_float64_at_any_scale(scale):
    matrices, scales = torch.randn(2, 20, 30, dtype=torch.float64), torch.tensor([scale, 1.0], dtype=torch.float64)
    ratio = rounding_noise(matrices * scales[:, None, None]) / rounding_noise(matrices)
    assert_equal(ratio / scales, 1, rtol=1e-12)


@pytest.mark.parametrize("rtol", [-1e-3, NAN])
def test_numerical_rank_refuses_a_tolerance_below_zero(rtol):
    with pytest.raises(ValueError, match=rf"Expected rtol to be a number from 0, got {rtol}\."):
        numerical_rank(geometric(), rtol=rtol)


@pytest.mark.parametrize("epsilon", [-1e-7, NAN])
def test_rankme_refuses_an_epsilon_below_zero(epsilon):
    with pytest.raises(ValueError, match=rf"Expected epsilon to be a number from 0, got {epsilon}\."):
        rankme(geometric(), epsilon)


@pytest.mark.parametrize("energy", [0, -0.5, 1.01, NAN])
def test_energy_rank_refuses_what_is_no_share(energy):
    with pytest.raises(ValueError, match=rf"Expected energy to be in \(0, 1\], got {energy}\."):
        energy_rank(geometric(), energy=energy)


def test_energy_at_rank_refuses_a_negative_rank():
    with pytest.raises(ValueError, match=r"Expected k to be a whole number from 0, got -1\."):
        energy_at_rank(geometric(), k=-1)


@pytest.mark.parametrize("relative", [True, False])
def test_distance_to_rank_refuses_a_negative_rank(relative):
    with pytest.raises(ValueError, match=r"Expected k to be a whole number from 0, got -1\."):
        distance_to_rank(geometric(), k=-1, relative=relative)


def test_noise_that_is_not_known_leaves_no_rank():
    infinite = torch.tensor([[float("inf"), 1.0], [0.0, 1.0]])
    assert rounding_noise(infinite).isnan()
    assert numerical_rank(spectrum(2, 1), noise=rounding_noise(infinite)).isnan()
