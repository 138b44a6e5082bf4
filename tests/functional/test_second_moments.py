"""Second moments against two passes in NumPy, merged moments against those of the union, and the spectra they hold."""

from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from rank_callbacks.functional import (
    SecondMoments,
    energy_rank,
    feature_singular_values,
    merged_second_moments,
    moment_singular_values,
    second_moments,
)
from rank_callbacks.functional.second_moments import (
    _ROWS_AT_ONCE,
    no_second_moments,
    packed_second_moments,
    unpacked_second_moments,
)

NAN, INF = float("nan"), float("inf")
laws = settings(derandomize=True, deadline=None, max_examples=40)
both = pytest.mark.parametrize("centered", [False, True])


def rows(count: int, width: int, offset: float = 3.0) -> torch.Tensor:
    """Features of decaying variance about a common mean."""
    scales = 1 / torch.arange(1, width + 1, dtype=torch.float64)
    return torch.randn(count, width, dtype=torch.float64) * scales + offset


def naive_scatter(features: np.ndarray) -> np.ndarray:
    mean = features[0] + sum(h - features[0] for h in features) / len(features)
    return sum(np.outer(h - mean, h - mean) for h in features)


def lower(moments: SecondMoments) -> np.ndarray:
    return np.tril(moments.scatter.numpy())


def assert_same(one: SecondMoments, other: SecondMoments, rtol: float = 1e-11) -> None:
    assert one.count == other.count
    torch.testing.assert_close(one.mean, other.mean, rtol=rtol, atol=1e-12)
    torch.testing.assert_close(one.scatter.tril(), other.scatter.tril(), rtol=rtol, atol=1e-11)


@pytest.mark.parametrize("shape", [(40, 5), (3, 8), (1, 4), (30, 130), (200, 70)], ids=str)
def test_moments_equal_two_passes(shape):
    features = rows(*shape)
    moments = second_moments(features)
    assert {part.dtype for part in moments} == {torch.float64}
    assert moments.count == shape[0]
    np.testing.assert_allclose(moments.mean.numpy(), features.numpy().mean(0), rtol=1e-13)
    np.testing.assert_allclose(lower(moments), np.tril(naive_scatter(features.numpy())), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("count", [_ROWS_AT_ONCE - 1, _ROWS_AT_ONCE + 1, 2 * _ROWS_AT_ONCE])
def test_rows_that_fill_parts_or_do_not(count):
    features = rows(count, 3)
    np.testing.assert_allclose(
        lower(second_moments(features)), np.tril(naive_scatter(features.numpy())), rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8], ids=str)
def test_any_real_type_is_taken_as_it_is(dtype):
    features = (10 * rows(20, 4, offset=8)).to(dtype)
    assert_same(second_moments(features), second_moments(features.double()))
    for centered in (False, True):
        wide = feature_singular_values(features.double(), centered)
        torch.testing.assert_close(feature_singular_values(features, centered), wide, rtol=1e-10, atol=1e-6)


def test_leading_dimensions_are_rows():
    features = rows(24, 5)
    assert_same(second_moments(features.view(2, 3, 4, 5)), second_moments(features))
    torch.testing.assert_close(feature_singular_values(features.view(4, 6, 5)), feature_singular_values(features))


def test_a_large_common_mean_costs_no_digits():
    features = 1e4 + 1e-4 * rows(50, 6, offset=0)
    halves = map(second_moments, features.split([13, 37]))
    expected = np.tril(naive_scatter(features.numpy()))
    for moments in (second_moments(features), reduce(merged_second_moments, halves)):
        np.testing.assert_allclose(lower(moments), expected, rtol=1e-6, atol=1e-15)


@laws
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.sampled_from([2, 70]), st.sampled_from([0.0, 1e3]))
def test_any_split_equals_one_batch(sizes, width, offset):
    features = rows(sum(sizes), width, offset)
    merged = reduce(merged_second_moments, map(second_moments, features.split(sizes)))
    assert_same(merged, second_moments(features))


@pytest.mark.parametrize("count", [1, 7])
def test_merging_with_nothing_changes_nothing(count):
    moments, nothing = second_moments(rows(count, 3)), no_second_moments(3)
    for merged in (merged_second_moments(moments, nothing), merged_second_moments(nothing, moments)):
        assert all(map(torch.equal, merged, moments))
    assert all(map(torch.equal, merged_second_moments(nothing, nothing), nothing))
    assert all(map(torch.equal, second_moments(torch.zeros(0, 3)), nothing))


def test_packed_moments_come_back():
    moments = second_moments(rows(7, 3))
    vector = packed_second_moments(moments)
    assert vector.shape == (1 + 3 + 9,)
    assert all(map(torch.equal, unpacked_second_moments(vector, 3), moments))


@both
@pytest.mark.parametrize("shape", [(40, 5), (5, 40), (150, 150), (2, 9), (9, 1)], ids=str)
def test_singular_values_are_those_of_the_matrix_of_features(shape, centered):
    features = rows(*shape)
    matrix = features.numpy() - features.numpy().mean(0) * centered
    exact = np.linalg.svd(matrix, compute_uv=False)
    at_hand = feature_singular_values(features, centered)
    of_moments = moment_singular_values(second_moments(features), centered)
    assert at_hand.shape == (min(shape),)
    assert of_moments.shape == (shape[1],)
    np.testing.assert_allclose(at_hand.numpy(), exact, rtol=1e-10, atol=1e-6 * exact[0])
    np.testing.assert_allclose(of_moments[: min(shape)].numpy(), exact, rtol=1e-10, atol=1e-6 * exact[0])
    leading = exact > 1e-2 * exact[0]
    np.testing.assert_allclose(of_moments[: min(shape)].numpy()[leading], at_hand.numpy()[leading], rtol=1e-10)
    assert not of_moments[min(shape) :].any()


def test_streamed_spectrum_equals_that_of_one_batch():
    features = rows(300, 40)
    merged = reduce(merged_second_moments, map(second_moments, features.split(17)))
    for centered in (False, True):
        one = moment_singular_values(second_moments(features), centered)
        torch.testing.assert_close(moment_singular_values(merged, centered), one, rtol=1e-10, atol=0)


@both
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("place", [0, 4])
def test_features_that_are_not_finite_read_nan(bad, place, centered):
    features = rows(6, 3)
    features[place, 1] = bad
    assert feature_singular_values(features, centered).isnan().all()
    assert moment_singular_values(second_moments(features), centered).isnan().all()
    merged = merged_second_moments(second_moments(rows(6, 3)), second_moments(features))
    assert moment_singular_values(merged, centered).isnan().all()


def test_too_few_rows():
    one = torch.tensor([[3.0, 4.0]])
    assert moment_singular_values(second_moments(one)).tolist() == [5, 0]
    assert feature_singular_values(one).tolist() == [5]
    assert moment_singular_values(second_moments(one), centered=True).isnan().all()
    assert feature_singular_values(one, centered=True).isnan().tolist() == [True]
    assert moment_singular_values(no_second_moments(2)).isnan().all()
    assert feature_singular_values(torch.zeros(0, 2)).shape == (0,)
    assert feature_singular_values(torch.zeros(0, 2), centered=True).shape == (0,)


@both
@pytest.mark.parametrize("row", [torch.full((3,), 0.1), torch.arange(3.0).double() / 7 + 0.1], ids=["float32", "float64"])
def test_equal_rows(centered, row):
    features = row.expand(5, 3)
    expected = [0.0 if centered else float(row.double().norm()) * 5**0.5, 0.0, 0.0]
    assert feature_singular_values(features, centered).tolist() == pytest.approx(expected)
    assert moment_singular_values(second_moments(features), centered).tolist() == pytest.approx(expected)


def test_callers_features_stay_as_they_are():
    features = rows(6, 3).requires_grad_()
    before = features.detach().clone()
    moments = second_moments(features)
    feature_singular_values(features, centered=True)
    assert torch.equal(features.detach(), before)
    assert not any(part.requires_grad for part in moments)
    kept = [part.clone() for part in moments]
    merged_second_moments(moments, moments)
    moment_singular_values(moments)
    assert all(map(torch.equal, moments, kept))


@pytest.mark.parametrize("shape", [(60, 12), (12, 60)], ids=str)
def test_centred_spectrum_is_that_of_principal_components(shape):
    features = rows(*shape)
    pca = PCA().fit(features.numpy())
    values = feature_singular_values(features, centered=True)
    kept = pca.explained_variance_ > 1e-20  # with fewer samples than features the last is 0
    shares = (values.square() / values.square().sum()).numpy()
    np.testing.assert_allclose(shares[kept], pca.explained_variance_ratio_[kept], rtol=1e-9)
    np.testing.assert_allclose(values.numpy()[kept], pca.singular_values_[kept], rtol=1e-9)


@pytest.mark.parametrize("energy", [0.6, 0.9, 0.95, 0.99])
def test_energy_rank_is_the_number_of_components_that_scikit_learn_keeps(energy):
    features = rows(200, 30)
    kept = PCA(n_components=energy, svd_solver="full").fit(features.numpy()).n_components_
    assert energy_rank(moment_singular_values(second_moments(features), centered=True), energy) == kept
