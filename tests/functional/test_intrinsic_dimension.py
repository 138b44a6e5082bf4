"""Two-NN against scikit-dimension, a version by all distances, and manifolds of known dimension."""

import warnings

import numpy as np
import pytest
import skdim
import torch

from rank_callbacks.functional import intrinsic_dimension, two_nn

NAN, INF = float("nan"), float("inf")


def manifold(dimension: int, width: int, count: int = 1000, seed: int = 0) -> np.ndarray:
    """A flat piece of a random subspace."""
    generator = np.random.default_rng(seed)
    basis = np.linalg.qr(generator.standard_normal((width, dimension)))[0]
    return generator.uniform(size=(count, dimension)) @ basis.T


def naive(points: np.ndarray, discard: float = 0.1) -> float:
    """From all distances."""
    distances = np.sqrt(((points[:, None] - points) ** 2).sum(-1))
    distances = np.sort(distances + np.diag(np.full(len(points), np.inf)), axis=1)
    ratios = np.sort(distances[distances[:, 0] > 0, 1] / distances[distances[:, 0] > 0, 0])
    kept = int(len(ratios) * (1 - discard))
    x, y = np.log(ratios[:kept]), -np.log(1 - np.arange(1, kept + 1) / len(ratios))
    return (x @ y) / (x @ x)


@pytest.mark.parametrize("width", [10, 60])  # scikit-dimension has another way from 26 on
@pytest.mark.parametrize("dimension", [1, 2, 5])
@pytest.mark.parametrize("discard", [0.1, 0.3])
def test_equals_scikit_dimension(width, dimension, discard):
    points = manifold(dimension, width, count=400)
    theirs = skdim.id.TwoNN(discard_fraction=discard).fit(points).dimension_
    assert two_nn(torch.from_numpy(points), discard).item() == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("shape", [(3, 2), (4, 7), (11, 3), (150, 5), (120, 1)], ids=str)
def test_equals_the_fit_to_all_distances(shape):
    points = np.random.default_rng(1).standard_normal(shape)
    assert two_nn(torch.from_numpy(points)).item() == pytest.approx(naive(points), rel=1e-10)


@pytest.mark.parametrize("dimension", [1, 2, 4])
def test_dimension_of_a_manifold(dimension):
    measured = [two_nn(torch.from_numpy(manifold(dimension, 20, 2000, seed))).item() for seed in range(3)]
    assert np.mean(measured) == pytest.approx(dimension, rel=0.06)


def test_a_curved_sheet_has_dimension_two():
    roll, height = np.random.default_rng(0).uniform(size=(2, 2000))
    angle = 1.5 * np.pi * (1 + 2 * roll)
    sheet = np.stack([angle * np.cos(angle), 20 * height, angle * np.sin(angle)], axis=1)
    assert two_nn(torch.from_numpy(sheet)).item() == pytest.approx(2, rel=0.08)


def test_a_large_common_mean_does_not_matter():
    points = manifold(3, 12, count=300)
    assert two_nn(torch.from_numpy(points + 1e6)).item() == pytest.approx(naive(points), rel=1e-6)


def test_neighbours_far_closer_than_the_cloud_is_wide():
    """Pairs at a distance of 1e-9 of clusters: what a product of float64 loses in ‖x‖² + ‖y‖² − 2xy."""
    generator = np.random.default_rng(0)
    centers = 100 * generator.standard_normal((30, 1, 5))
    points = (centers + 1e-7 * generator.standard_normal((30, 3, 5))).reshape(-1, 5)
    assert two_nn(torch.from_numpy(points)).item() == pytest.approx(naive(points), rel=1e-6)


def test_points_with_a_duplicate_are_left_out_as_by_scikit_dimension():
    points = manifold(2, 6, count=200)
    points[:20] = points[20:40]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = skdim.id.TwoNN().fit(points).dimension_
    assert two_nn(torch.from_numpy(points)).item() == pytest.approx(theirs, rel=1e-9)
    assert two_nn(torch.from_numpy(points)).item() == pytest.approx(naive(points), rel=1e-9)


@pytest.mark.parametrize("pairs", [1, 700, 10_000])
def test_parts_of_any_size_give_the_same(monkeypatch, pairs):
    points = torch.from_numpy(manifold(3, 8, count=100))
    whole = two_nn(points)
    monkeypatch.setattr(intrinsic_dimension, "_NUMBERS_AT_ONCE", pairs)
    torch.testing.assert_close(two_nn(points), whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [1e-100, 1e-3, 1e100])
def test_scale_does_not_matter(scale):
    points = torch.from_numpy(manifold(3, 8, count=100))
    torch.testing.assert_close(two_nn(scale * points), two_nn(points), rtol=1e-9, atol=0)


def test_leading_dimensions_are_rows_and_any_type_is_taken():
    points = torch.from_numpy(manifold(3, 8, count=120)).bfloat16()
    measured = two_nn(points.view(6, 20, 8))
    assert measured.dtype == torch.float64
    assert measured.shape == ()
    torch.testing.assert_close(measured, two_nn(points.double()), rtol=1e-12, atol=0)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_points_read_nan(count):
    assert two_nn(torch.randn(count, 4)).isnan()


def test_where_nothing_can_be_said_nan():
    assert two_nn(torch.zeros(30, 4)).isnan()  # duplicates all
    grid = torch.cartesian_prod(torch.arange(5), torch.arange(5))
    assert two_nn(grid).isnan()
    for dtype in (torch.float32, torch.float64):
        assert two_nn(0.1 * grid.to(dtype)).isnan()  # .3 − .2 is not .1
    assert two_nn(torch.tensor([[0.0], [1.0], [3.0]]), discard=0.5).isnan()  # one ratio is kept


@pytest.mark.parametrize("bad", [NAN, INF])
def test_features_that_are_not_finite_read_nan(bad):
    points = torch.randn(20, 4)
    points[7, 2] = bad
    assert two_nn(points).isnan()


@pytest.mark.parametrize("discard", [0, 1, -0.1, NAN])
def test_refuses_a_share_that_is_none(discard):
    with pytest.raises(ValueError, match=rf"Expected discard to be in \(0, 1\), got {discard}\."):
        two_nn(torch.randn(20, 4), discard)
