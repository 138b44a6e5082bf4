"""Dead and dormant features against known answers and loops over units."""

import numpy as np
import pytest
import torch

from rank_callbacks.functional import dead_fraction, dormant_ratio

NAN, INF = float("nan"), float("inf")
each = pytest.mark.parametrize("measure", [dead_fraction, dormant_ratio])


def layer(count: int = 50, width: int = 40) -> torch.Tensor:
    """After a ReLU: features of very different sizes, every fourth silent."""
    sizes = torch.logspace(-4, 0, width, dtype=torch.float64)
    sizes[::4] = 0
    return (torch.randn(count, width, dtype=torch.float64) * sizes).relu()


def naive_dormant(features: np.ndarray, tau: float) -> float:
    scores = [np.mean(np.abs(features[:, unit])) for unit in range(features.shape[1])]
    mean = sum(scores) / len(scores)
    return sum(score / mean <= tau for score in scores) / len(scores)


@pytest.mark.parametrize("tau", [0, 0.01, 0.025, 0.1, 1])
def test_dormant_ratio_equals_its_formula(tau):
    features = layer()
    assert dormant_ratio(features, tau).item() == pytest.approx(naive_dormant(features.numpy(), tau))


def test_default_threshold_is_the_papers():
    sizes = torch.ones(41, dtype=torch.float64)
    sizes[0] = 0.025 / (1 + (1 - 0.025) / 40)
    assert dormant_ratio(sizes[None] * 0.999 + 0.001 * (sizes == sizes[1])[None]).item() == pytest.approx(1 / 41)
    sizes[0] *= 1.02
    assert dormant_ratio(sizes[None]).item() == 0


def test_a_feature_is_dead_if_no_row_wakes_it():
    features = torch.tensor([[0.0, 0.0, -1.0, 1e-30], [0.0, 2.0, 1.0, 0.0]])
    assert dead_fraction(features).item() * 4 == 1
    assert dead_fraction(layer()).item() == pytest.approx(0.25)


def test_negative_values_do_not_cancel():
    features = torch.tensor([[1.0, 1.0], [-1.0, 1.0]])
    assert dead_fraction(features) == dormant_ratio(features) == 0


def test_without_a_threshold_dormant_is_dead():
    assert dormant_ratio(layer(), tau=0) == dead_fraction(layer())


@each
def test_a_silent_layer_reads_one(measure):
    assert measure(torch.zeros(5, 3)).item() == 1


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64], ids=str)
def test_any_type_and_leading_dimensions(measure, dtype):
    features = (8 * layer(24, 6)).to(dtype)
    measured = measure(features.view(2, 3, 4, 6))
    assert measured.dtype == torch.float64
    assert measured.shape == ()
    assert torch.equal(measured, measure(features.double()))


@each
def test_types_without_an_absolute_value(measure):
    """−(−128) is −128 in int8, and booleans have none."""
    assert measure(torch.tensor([[-128, 0, 100]], dtype=torch.int8)).item() == pytest.approx(1 / 3)
    assert measure(torch.tensor([[True, False, True]])).item() == pytest.approx(1 / 3)


@each
@pytest.mark.parametrize("bad", [NAN, INF])
def test_features_that_are_not_finite_read_nan(measure, bad):
    features = layer()
    features[3, 5] = bad
    assert measure(features).isnan()


@each
def test_without_rows_nan(measure):
    assert measure(torch.zeros(0, 4)).isnan()


@pytest.mark.parametrize("tau", [-0.1, NAN])
def test_refuses_a_threshold_below_zero(tau):
    with pytest.raises(ValueError, match=rf"Expected tau to be a number from 0, got {tau}\."):
        dormant_ratio(layer(), tau)
