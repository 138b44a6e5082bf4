"""Measures of feature rank against known answers, naive versions, delve, scikit-dimension and isotropic samples."""

import numpy as np
import pytest
import skdim
import torch
from delve.metrics import compute_intrinsic_dimensionality, compute_saturation

from rank_callbacks.functional import (
    alpha_req,
    corrected_participation_ratio,
    energy_rank,
    feature_singular_values,
    participation_ratio,
    saturation,
)

NAN, INF = float("nan"), float("inf")


def features(count: int, width: int, decay: float = 1.0, seed: int = 0) -> np.ndarray:
    """Gaussian features whose variances fall as i^-decay, about a mean, rotated."""
    generator = np.random.default_rng(seed)
    scales = np.arange(1, width + 1) ** (-decay / 2)
    rotation = np.linalg.qr(generator.standard_normal((width, width)))[0]
    return (generator.standard_normal((count, width)) * scales) @ rotation + generator.standard_normal(width)


def centred_values(sample: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.linalg.svd(sample - sample.mean(0), compute_uv=False))


def naive_alpha(eigenvalues: np.ndarray, first: int, last: int) -> float:
    """reptrix's get_powerlaw: normal equations of the weighted fit, indices from 0."""
    places = np.arange(first - 1, min(last, len(eigenvalues)))
    y = np.log(np.abs(eigenvalues))[places][:, None]
    places = places + 1
    x = np.stack([-np.log(places), np.ones(len(places))], axis=1)
    w = 1.0 / places[:, None]
    return np.linalg.solve(x.T @ (x * w), (w * x).T @ y)[0, 0]


@pytest.mark.parametrize(("first", "last"), [(11, 100), (1, 20), (5, 400)])
@pytest.mark.parametrize("decay", [0.5, 1.0, 2.0])
def test_alpha_req_equals_the_weighted_fit(decay, first, last):
    values = centred_values(features(300, 150, decay))
    assert alpha_req(values, first, last).item() == pytest.approx(naive_alpha(values.numpy() ** 2, first, last), rel=1e-11)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 3.0])
def test_alpha_req_of_a_power_law_is_its_exponent(exponent):
    values = torch.arange(1, 201).double().pow(-exponent / 2)
    assert alpha_req(1e-30 * values).item() == pytest.approx(exponent, rel=1e-12)
    assert alpha_req(values.square().sqrt(), first=1, last=10).item() == pytest.approx(exponent, rel=1e-12)


def test_alpha_req_looks_at_no_value_outside_its_range():
    values = torch.arange(1, 201).double().pow(-0.5)
    values[:10], values[100:] = 7, 1e-9
    assert alpha_req(values).item() == pytest.approx(1, rel=1e-12)


def test_alpha_req_leaves_zeros_out():
    values = torch.arange(1, 41).double().pow(-0.5)
    assert alpha_req(torch.cat([values, torch.zeros(30)])) == alpha_req(values)


@pytest.mark.parametrize(("count", "defined"), [(0, False), (10, False), (19, False), (20, True)])
def test_alpha_req_needs_ten_values(count, defined):
    values = torch.arange(1, count + 1).double().pow(-0.5)
    assert alpha_req(values).isfinite().item() is defined
    assert alpha_req(torch.cat([values, torch.zeros(60)])).isfinite().item() is defined


@pytest.mark.parametrize(("first", "last"), [(0, 100), (11, 19), (-3, 50)])
def test_alpha_req_refuses_a_range_that_makes_no_line(first, last):
    with pytest.raises(ValueError, match=rf"last at least first \+ 9, got first={first} and last={last}\."):
        alpha_req(torch.ones(30), first, last)


@pytest.mark.parametrize("shape", [(100, 20), (20, 50), (400, 8)], ids=str)
@pytest.mark.parametrize("decay", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("energy", [0.9, 0.99])
def test_saturation_is_that_of_delve(shape, decay, energy):
    sample = features(*shape, decay)
    theirs = compute_saturation(torch.from_numpy(np.cov(sample.T)), thresh=energy)
    assert saturation(centred_values(sample), shape[1], energy).item() == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize(
    ("variances", "expected", "of_principal_components"),
    [
        ((0.98, 0.02), 1, 2),
        ((1,) * 10, 9, 10),
        ((0.5, 0.5), 1, 2),
        ((0.9, 0.05, 0.05), 2, 3),
        ((2.4187373, 0.0404195, 1.0726e-4, 5.75e-8), 1, 2),  # of the matrix of reciprocals
    ],
)
def test_saturation_counts_one_less_than_principal_components(variances, expected, of_principal_components):
    squares = torch.tensor(variances, dtype=torch.float64)
    assert saturation(squares.sqrt(), num_features=10).item() == pytest.approx(expected / 10)
    assert compute_intrinsic_dimensionality(squares.diag()) == expected
    assert energy_rank(squares.sqrt()) == of_principal_components


def test_saturation_of_rank_one_counts_one_where_delve_counts_none():
    assert saturation(torch.tensor([2.0, 0.0, 0.0, 0.0]), 4) * 4 == 1
    assert compute_intrinsic_dimensionality(torch.tensor([4.0, 0.0, 0.0, 0.0]).diag()) == 0


def test_saturation_of_a_layer_that_says_nothing_is_zero():
    assert saturation(torch.zeros(4), 4).item() == 0
    assert saturation(torch.zeros(0), 4).item() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_features": 0}, "num_features to be a whole number from 1, got 0"),
        ({"energy": 0}, r"energy to be in \(0, 1\], got 0"),
    ],
)
def test_saturation_refuses_what_it_cannot_use(options, message):
    with pytest.raises(ValueError, match=message):
        saturation(torch.ones(3), **{"num_features": 3} | options)


def naive_corrected(sample: np.ndarray) -> float:
    """Quotient of the unbiased estimates of (tr Σ)² and tr Σ² from a Wishart matrix, each written out."""
    nu = len(sample) - 1
    covariance = np.cov(sample.T)
    t1, t2 = np.trace(covariance), np.trace(covariance @ covariance)
    square_of_trace = ((nu + 1) * nu * t1**2 - 2 * nu * t2) / ((nu + 2) * (nu - 1))
    trace_of_square = (nu**2 * t2 - nu * t1**2) / ((nu + 2) * (nu - 1))
    return square_of_trace / trace_of_square


@pytest.mark.parametrize("shape", [(3, 5), (40, 10), (20, 60)], ids=str)
def test_corrected_participation_ratio_equals_its_formula(shape):
    sample = features(*shape)
    measured = corrected_participation_ratio(centred_values(sample), shape[0])
    assert measured.item() == pytest.approx(naive_corrected(sample), rel=1e-9)


@pytest.mark.parametrize(("ratio", "plain_bias"), [(1, -0.5), (4, -0.2)])
@pytest.mark.parametrize("width", [50, 80])
def test_corrected_participation_ratio_has_no_bias_on_isotropic_features(width, ratio, plain_bias):
    plain, corrected = [], []
    for seed in range(6):
        sample = np.random.default_rng(seed).standard_normal((ratio * width, width)) + 5
        values = centred_values(sample)
        plain.append(participation_ratio(values).item() / width)
        corrected.append(corrected_participation_ratio(values, len(sample)).item() / width)
    assert np.mean(plain) - 1 == pytest.approx(plain_bias, abs=0.02)
    assert np.mean(corrected) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("decay", [1.0, 2.0])
def test_corrected_participation_ratio_of_a_decaying_spectrum(decay):
    width = 100
    variances = np.arange(1, width + 1) ** -decay
    truth = variances.sum() ** 2 / (variances**2).sum()
    measured = [
        corrected_participation_ratio(centred_values(features(width, width, decay, seed)), width) for seed in range(20)
    ]
    assert np.mean(measured) == pytest.approx(truth, rel=0.05)


def test_the_traces_that_it_is_made_of_have_no_bias():
    """Over many draws, N = 4: as the docstring derives for Gaussian features."""
    nu, variances = 3, np.array([3.0, 1.0, 0.5])
    draws = np.random.default_rng(0).standard_normal((200_000, nu, 3)) * np.sqrt(variances)
    covariances = draws.transpose(0, 2, 1) @ draws / nu
    t1 = np.trace(covariances, axis1=1, axis2=2)
    t2 = (covariances**2).sum((1, 2))
    t = nu**2 / ((nu - 1) * (nu + 2)) * (t2 - t1**2 / nu)
    assert t.mean() == pytest.approx((variances**2).sum(), rel=0.02)
    assert (t1**2 - 2 * t / nu).mean() == pytest.approx(variances.sum() ** 2, rel=0.02)
    assert (t1**2).mean() > 1.2 * variances.sum() ** 2


@pytest.mark.parametrize("samples", [3, 10, 1000])
def test_corrected_participation_ratio_of_rank_one_is_one(samples):
    assert corrected_participation_ratio(torch.tensor([2.0, 0.0, 0.0]), samples).item() == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("samples", [0, 1, 2])
def test_corrected_participation_ratio_needs_three_samples(samples):
    assert corrected_participation_ratio(torch.tensor([2.0, 1.0]), samples).isnan()
    assert corrected_participation_ratio(torch.zeros(2), samples).isnan()


def test_corrected_participation_ratio_where_samples_cannot_tell():
    for samples in (4, 6):
        assert corrected_participation_ratio(torch.ones(5), samples).isnan()
    assert corrected_participation_ratio(torch.ones(5), num_samples=7).isfinite()


@pytest.mark.parametrize("corners", range(3, 70, 6))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_corrected_participation_ratio_of_a_simplex_is_not_told_by_its_corners(dtype, corners):
    """N − 1 equal variances from N samples: t is 0, and what rounding makes of it is no dimension."""
    simplex = torch.linalg.qr(torch.randn(80, corners, dtype=torch.float64)).Q.mT.to(dtype) + 0.7
    values = feature_singular_values(simplex, centered=True)
    assert corrected_participation_ratio(values, corners).isnan()


def test_number_of_samples_is_one_number_a_matrix():
    values = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]], dtype=torch.float64)
    both = corrected_participation_ratio(values, torch.tensor([10, 20]))
    assert both.tolist() == [corrected_participation_ratio(values[0], n).item() for n in (10, 20)]


@pytest.mark.parametrize("shape", [(100, 20), (20, 50)], ids=str)
def test_centred_participation_ratio_is_that_of_scikit_dimension(shape):
    sample = features(*shape)
    theirs = skdim.id.lPCA(ver="participation_ratio").fit(sample).dimension_
    values = feature_singular_values(torch.from_numpy(sample), centered=True)
    assert participation_ratio(values).item() == pytest.approx(theirs, rel=1e-9)


MEASURES = {
    "alpha_req": lambda values: alpha_req(values, first=1),
    "saturation": lambda values: saturation(values, num_features=12),
    "corrected_participation_ratio": lambda values: corrected_participation_ratio(values, num_samples=40),
}
each = pytest.mark.parametrize("name", MEASURES)


@each
@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
def test_scale_does_not_matter(name, scale):
    values = 0.8 ** torch.arange(12, dtype=torch.float64)
    assert MEASURES[name](scale * values).item() == pytest.approx(MEASURES[name](values).item(), rel=1e-12)


@each
def test_a_batch_is_measured_row_by_row(name):
    batch = torch.rand(2, 3, 12, dtype=torch.float64).sort(descending=True).values
    batch[0, 1] = 0
    batch[1, 2, 5] = NAN
    rows = torch.stack([torch.stack([MEASURES[name](row) for row in rows]) for rows in batch])
    assert rows.dtype == torch.float64
    torch.testing.assert_close(MEASURES[name](batch), rows, rtol=1e-14, atol=0, equal_nan=True)
    assert rows.isnan()[1, 2]


@each
@pytest.mark.parametrize(
    ("bad", "places"), [(NAN, slice(0, 1)), (NAN, slice(11, 12)), (INF, slice(0, 1)), (INF, slice(0, 12))], ids=str
)
def test_values_that_are_not_finite_read_nan(name, bad, places):
    values = 0.8 ** torch.arange(12, dtype=torch.float64)
    values[places] = bad
    assert MEASURES[name](values).isnan()


@each
@pytest.mark.parametrize("length", [12, 0])
def test_zero_and_empty_spectrum(name, length):
    measured = MEASURES[name](torch.zeros(2, length))
    assert measured.shape == (2,)
    torch.testing.assert_close(measured, torch.full((2,), NAN if name == "alpha_req" else 0.0).double(), equal_nan=True)
