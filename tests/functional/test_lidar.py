"""LiDAR against a version written from the paper with SciPy, known answers, and merged moments."""

from functools import reduce

import numpy as np
import pytest
import scipy.linalg
import torch

from rank_callbacks.functional import lidar, merged_view_moments, moment_lidar, view_moments
from rank_callbacks.functional.lidar import no_view_moments, packed_view_moments, unpacked_view_moments

NAN, INF = float("nan"), float("inf")


def views(objects: int = 30, number: int = 4, width: int = 8, spread: float = 0.5) -> torch.Tensor:
    scales = 1 / torch.arange(1, width + 1, dtype=torch.float64)
    centers = torch.randn(objects, 1, width, dtype=torch.float64) * scales
    return centers + spread * torch.randn(objects, number, width, dtype=torch.float64) + 2


def naive(sample: np.ndarray, delta: float = 1e-4, epsilon: float = 1e-8) -> float:
    """Object by object, with a generalised eigenvalue problem."""
    objects, number, width = sample.shape
    means = sample.mean(1)
    between = sum(np.outer(m, m) for m in means - means.mean(0)) / (objects - 1)
    within = sum(np.outer(h - m, h - m) for rows, m in zip(sample, means, strict=True) for h in rows)
    within = within / (objects * (number - 1)) + delta * np.eye(width)
    values = np.clip(scipy.linalg.eigh(between, within, eigvals_only=True), 0, None) + epsilon
    p = values / values.sum()
    return np.exp(-(p * np.log(p)).sum())


@pytest.mark.parametrize("shape", [(30, 4, 8), (5, 2, 8), (2, 2, 3), (100, 3, 1), (20, 3, 80)], ids=str)
def test_equals_the_version_written_from_the_paper(shape):
    sample = views(*shape)
    assert lidar(sample).item() == pytest.approx(naive(sample.numpy()), rel=1e-7)


@pytest.mark.parametrize(("delta", "epsilon"), [(1e-6, 1e-8), (1.0, 1e-8), (1e-4, 0.1)])
def test_constants(delta, epsilon):
    sample = views()
    assert lidar(sample, delta, epsilon).item() == pytest.approx(naive(sample.numpy(), delta, epsilon), rel=1e-9)
    assert lidar(sample, delta, epsilon).item() != pytest.approx(lidar(sample).item(), rel=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_objects_that_differ_in_k_directions_alike_have_rank_k(rank):
    centers = torch.cat([torch.eye(6, dtype=torch.float64)[:rank], -torch.eye(6, dtype=torch.float64)[:rank]])
    noise = torch.cat([torch.eye(6, dtype=torch.float64), -torch.eye(6, dtype=torch.float64)])
    assert lidar(centers[:, None] + noise).item() == pytest.approx(rank, rel=1e-5)


def test_without_epsilon_few_objects_span_few_directions():
    sample = views(4, 3, 8)
    measured = lidar(sample, epsilon=0)
    assert 1 < measured <= 3
    assert measured.item() == pytest.approx(naive(sample.numpy(), epsilon=1e-30), rel=1e-9)


def test_directions_in_which_views_differ_count_less():
    """Means with variances 1 and 1, views with 1 and 100: λ = 1 and 1/100."""
    centers = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    noise = torch.tensor([[1.0, 10], [1, -10], [-1, 10], [-1, -10]], dtype=torch.float64)
    p = np.array([100, 1]) / 101
    assert lidar(centers[:, None] + noise, delta=1e-12).item() == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)


def test_objects_with_one_mean_read_zero():
    offsets = torch.tensor([[0.1, 0.7], [0.3, -0.2], [-0.5, 0.4]], dtype=torch.float64)
    shuffled = torch.stack([offsets, offsets.flip(0), offsets[[1, 0, 2]]]) + 0.1
    assert lidar(shuffled).item() == 0
    assert lidar(torch.ones(4, 3, 5)).item() == 0


@pytest.mark.parametrize("shape", [(6, 3, 32), (5, 2, 10), (30, 4, 8)], ids=str)
def test_a_delta_that_drowns_in_rounding_still_counts(shape):
    """Beside views of 1e5 it is lost in float64; where views do not differ it is all there is, so it scales with them."""
    sample = views(*shape)
    expected = lidar(sample, delta=1e-8, epsilon=0).item()
    assert expected == pytest.approx(naive(sample.numpy(), delta=1e-8, epsilon=1e-30), rel=1e-5)
    for scale in (1e3, 1e6, 1e9):
        assert lidar(sample * scale, delta=1e-8 * scale**2, epsilon=0).item() == pytest.approx(expected, rel=1e-5)
        assert lidar(sample * scale, delta=1e-4, epsilon=0).isfinite()


@pytest.mark.parametrize("shape", [(0, 4, 3), (1, 4, 3), (5, 1, 3), (5, 0, 3)], ids=str)
def test_too_few_objects_or_views_read_nan(shape):
    assert lidar(torch.randn(shape)).isnan()


@pytest.mark.parametrize("bad", [NAN, INF])
def test_features_that_are_not_finite_read_nan(bad):
    sample = views()
    sample[3, 1, 2] = bad
    assert lidar(sample).isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_type_is_taken_as_it_is(dtype):
    sample = views().to(dtype)
    torch.testing.assert_close(lidar(sample), lidar(sample.double()), rtol=1e-12, atol=0)


@pytest.mark.parametrize("sizes", [[30], [1] * 30, [7, 0, 23]], ids=str)
def test_merged_moments_are_those_of_all_objects(sizes):
    sample = views(30)
    merged = reduce(merged_view_moments, map(view_moments, sample.split(sizes)), no_view_moments(8))
    torch.testing.assert_close(moment_lidar(merged), lidar(sample), rtol=1e-10, atol=0)
    packed = packed_view_moments(merged)
    assert packed.shape == (2 + 8 + 2 * 64,)
    assert torch.equal(moment_lidar(unpacked_view_moments(packed, 8)), moment_lidar(merged))


def test_objects_may_have_different_numbers_of_views():
    two, four = view_moments(views(10, 2)), view_moments(views(10, 4))
    merged = merged_view_moments(two, four)
    assert merged.freedom == 10 * 1 + 10 * 3
    assert merged.objects.count == 20
    assert moment_lidar(merged).isfinite()


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 4, 5)], ids=str)
def test_refuses_views_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"Expected views of shape \(objects, views, features\), got \("):
        lidar(torch.randn(shape))


@pytest.mark.parametrize(("delta", "epsilon"), [(0, 1e-8), (-1, 1e-8), (NAN, 0), (1e-4, -1e-9)])
def test_refuses_constants_that_leave_it_undefined(delta, epsilon):
    with pytest.raises(ValueError, match=r"Expected delta to be above 0 and epsilon from 0, got delta="):
        lidar(views(), delta, epsilon)
