"""Certificates of rank collapse against the proof, written out, and the rank that SGD with weight decay leaves."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rank_callbacks.functional import (
    ClassMoments,
    alignment_bound,
    class_mean_alignment,
    class_mean_gradient,
    class_moments,
    distance_to_rank,
    rank_collapse_certificates,
    sgd_rank_bound,
    singular_values,
)
from rank_callbacks.functional.certificate import class_mean_alignments
from rank_callbacks.functional.class_moments import no_moments

NAN, INF = float("nan"), float("inf")

laws = settings(derandomize=True, deadline=None, max_examples=150)


class Window:
    """Rows that went into a layer over some steps, the gradients of its output, their labels, and the layer's gradient."""

    def __init__(
        self,
        seed: int = 0,
        rows: int = 40,
        shape: tuple[int, int] = (7, 9),
        num_classes: int = 3,
        steps: int = 5,
        spread: float = 0.5,
    ) -> None:
        generator = np.random.default_rng(seed)
        height, width = shape
        self.num_classes, self.steps = num_classes, steps
        self.labels = generator.integers(num_classes, size=rows)
        self.inputs = generator.standard_normal((num_classes, width))[self.labels] * generator.choice([0.1, 1, 10])
        self.inputs += generator.standard_normal((rows, width)) * spread
        self.deltas = generator.standard_normal((num_classes, height))[self.labels] * generator.choice([0.1, 1])
        self.deltas += generator.standard_normal((rows, height)) * spread
        self.weight = generator.standard_normal(shape) * generator.choice([0.1, 1, 10])
        self.gradient = sum(np.outer(d, z) for d, z in zip(self.deltas, self.inputs, strict=True)) / steps

    def at_a_critical_point(self, weight_decay: float) -> "Window":
        self.weight = -self.gradient / weight_decay
        return self

    @property
    def moments(self) -> tuple[ClassMoments, ClassMoments]:
        labels = torch.from_numpy(self.labels)
        inputs, deltas = torch.from_numpy(self.inputs), torch.from_numpy(self.deltas)
        return class_moments(inputs, labels, self.num_classes), class_moments(deltas, labels, self.num_classes)

    def certificates(self, weight_decay: float) -> list[float]:
        weight, gradient = torch.from_numpy(self.weight), torch.from_numpy(self.gradient)
        bounds = rank_collapse_certificates(weight, gradient, *self.moments, weight_decay, self.steps)
        assert all(bound.dtype == torch.float64 and bound.shape == () for bound in bounds)
        return [bound.item() for bound in bounds]

    def distance(self) -> float:
        return distance_to_rank(singular_values(torch.from_numpy(self.weight)), self.num_classes, relative=False).item()

    def class_mean_part(self) -> np.ndarray:
        """M, sample by sample."""
        total = np.zeros_like(self.weight)
        for k in set(self.labels):
            of_class = self.labels == k
            for _ in range(of_class.sum()):
                total += np.outer(self.deltas[of_class].mean(0), self.inputs[of_class].mean(0))
        return total / self.steps

    def within_class_part(self) -> np.ndarray:
        """C as the proof defines it, not as G − M."""
        total = np.zeros_like(self.weight)
        for k in set(self.labels):
            of_class = self.labels == k
            for delta, z in zip(self.deltas[of_class], self.inputs[of_class], strict=True):
                total += np.outer(delta - self.deltas[of_class].mean(0), z - self.inputs[of_class].mean(0))
        return total / self.steps

    def variation(self, rows: np.ndarray) -> float:
        return sum(np.sum((rows[self.labels == k] - rows[self.labels == k].mean(0)) ** 2) for k in set(self.labels))


def windows() -> st.SearchStrategy[Window]:
    return st.builds(
        Window,
        seed=st.integers(0, 10_000),
        rows=st.integers(1, 60),
        shape=st.sampled_from([(7, 9), (12, 6), (4, 4), (3, 20)]),
        num_classes=st.integers(2, 5),
        steps=st.sampled_from([1, 3, 40]),
        spread=st.sampled_from([0.0, 1e-3, 1.0]),
    )


def assert_ascending(*values: float, slack: float) -> None:
    assert all(lower <= upper + slack for lower, upper in pairwise(values)), values


def rounding(window: Window, weight_decay: float) -> float:
    """What may be left of differences of terms that cancel."""
    return 1e-13 * (np.linalg.norm(window.weight) + np.linalg.norm(window.gradient) / weight_decay)


@laws
@given(windows(), st.sampled_from([1e-4, 1e-3, 1e-2, 0.1, 1.0]), st.booleans())
def test_each_bound_lies_above_the_one_before(window, weight_decay, critical):
    """Classes are drawn at random: no partition, weight or window is too wild."""
    if critical:
        window.at_a_critical_point(weight_decay)
    assert_ascending(window.distance(), *window.certificates(weight_decay)[:3], slack=rounding(window, weight_decay))


@pytest.mark.parametrize("shape", [(7, 9), (90, 3000)], ids=["one part", "parts"])
def test_alignments_by_parts_are_those_of_the_whole(shape):
    window = Window(shape=shape)
    weight, means = torch.from_numpy(window.weight), class_mean_gradient(*window.moments, window.steps)
    alignment, bound = class_mean_alignments(weight, *window.moments, window.steps)
    torch.testing.assert_close(alignment, class_mean_alignment(weight, means), rtol=1e-12, atol=0)
    torch.testing.assert_close(bound, alignment_bound(weight, means), rtol=1e-12, atol=0)


def test_alignments_with_no_class_means_are_those_of_the_whole():
    window = Window()
    inputs, deltas = window.moments
    nothing = inputs._replace(means=torch.zeros_like(inputs.means))
    weight = torch.from_numpy(window.weight)
    alignment, bound = class_mean_alignments(weight, nothing, deltas, window.steps)
    assert alignment.isnan()
    assert bound.item() == pytest.approx(np.linalg.norm(window.weight))


@laws
@given(windows(), st.sampled_from([1e-4, 1e-2, 1.0]), st.booleans())
def test_the_alignment_bound_lies_above_the_distance(window, weight_decay, critical):
    if critical:
        window.at_a_critical_point(weight_decay)
    weight, means = torch.from_numpy(window.weight), class_mean_gradient(*window.moments, window.steps)
    bound = alignment_bound(weight, means).item()
    slack = rounding(window, weight_decay)
    assert_ascending(window.distance(), bound, np.linalg.norm(window.weight), slack=slack)
    # The distance to the multiple −M/λ cannot be less than to the best one.
    assert_ascending(bound, window.certificates(weight_decay)[0], slack=slack)


@laws
@given(windows(), st.sampled_from([1e-4, 1e-2, 1.0]))
def test_bounds_equal_those_of_the_proof(window, weight_decay):
    means, within = window.class_mean_part(), window.within_class_part()
    residual = np.linalg.norm(window.gradient + weight_decay * window.weight)
    most = math.sqrt(window.variation(window.deltas) * window.variation(window.inputs)) / window.steps
    scale = np.linalg.norm(window.gradient) + weight_decay * np.linalg.norm(window.weight)
    expected = [
        np.linalg.norm(weight_decay * window.weight + means) / weight_decay,
        (np.linalg.norm(within) + residual) / weight_decay,
        (most + residual) / weight_decay,
        residual / (weight_decay * np.linalg.norm(window.weight)),
    ]
    np.testing.assert_allclose(window.certificates(weight_decay), expected, rtol=1e-9, atol=1e-11 * scale / weight_decay)
    np.testing.assert_allclose(class_mean_gradient(*window.moments, window.steps).numpy(), means, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(window.gradient, means + within, rtol=1e-9, atol=1e-11 * scale)


@laws
@given(windows(), st.floats(0.01, 100))
def test_the_window_is_averaged_by_its_steps(window, factor):
    """Rows that make the same gradients twice, and twice the steps, are the same window."""
    means = class_mean_gradient(*window.moments, window.steps)
    torch.testing.assert_close(class_mean_gradient(*window.moments, factor * window.steps), means / factor)


def test_the_class_mean_part_has_no_more_ranks_than_classes():
    for num_classes in (2, 3, 5):
        means = class_mean_gradient(*Window(shape=(12, 11), num_classes=num_classes, seed=3).moments, 1)
        assert torch.linalg.matrix_rank(means) <= num_classes


def test_at_a_critical_point_only_the_part_within_classes_is_left():
    window = Window(seed=1).at_a_critical_point(0.1)
    joint, sharp, loose, residual = window.certificates(0.1)
    within = np.linalg.norm(window.within_class_part())
    assert residual < 1e-14
    assert (joint, sharp) == (pytest.approx(10 * within), pytest.approx(10 * within))
    most = math.sqrt(window.variation(window.deltas) * window.variation(window.inputs)) / window.steps
    assert loose == pytest.approx(10 * most)


def test_rank_collapse_is_certified_where_classes_are_points():
    window = Window(seed=1)
    for k in range(3):
        window.inputs[window.labels == k] = window.inputs[window.labels == k][0]
    window.gradient = window.deltas.T @ window.inputs / window.steps
    window.at_a_critical_point(0.1)
    joint, sharp, loose, _ = (bound / np.linalg.norm(window.weight) for bound in window.certificates(0.1))
    assert max(joint, sharp, loose) < 1e-13
    weight, means = torch.from_numpy(window.weight), class_mean_gradient(*window.moments, window.steps)
    assert class_mean_alignment(weight, means).item() == pytest.approx(1, abs=1e-14)
    assert alignment_bound(weight, means).item() < 1e-13 * np.linalg.norm(window.weight)


def test_alignment_is_the_cosine_with_minus_the_gradient():
    weight, means = torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([[-1.0, 0.0], [0.0, 0.0]]).double()
    assert class_mean_alignment(weight, means).item() == pytest.approx(0.6, rel=1e-15)
    assert alignment_bound(weight, means).item() == 4
    assert class_mean_alignment(weight, -means).item() == pytest.approx(-0.6, rel=1e-15)
    assert alignment_bound(weight, -means).item() == 4


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e-120, 1e120, 1e170, 1e300])
@pytest.mark.parametrize("of", ["weight", "means", "both"])
def test_the_alignment_holds_at_extreme_scales(scale, of):
    """A cosine has no scale; a distance has that of the weight."""
    weight, means = torch.tensor([[3.0, 0.0], [0.0, 4.0]]).double(), torch.tensor([[-1.0, 0.5], [0.0, 0.0]]).double()
    expected, distance = class_mean_alignment(weight, means).item(), alignment_bound(weight, means).item()
    unit = scale if of != "means" else 1.0
    weight, means = weight * unit, means * (scale if of != "weight" else 1.0)
    assert class_mean_alignment(weight, means).item() == pytest.approx(expected, rel=1e-14)
    assert alignment_bound(weight, means).item() == pytest.approx(distance * unit, rel=1e-14)


@pytest.mark.parametrize("factors", [(1e-100, 1e-100), (1e100, 1e60), (1e-5, 1e-160)], ids=str)
def test_alignments_by_parts_hold_at_extreme_scales(factors):
    window = Window()
    inputs, deltas = window.moments
    weight = torch.from_numpy(window.weight)
    expected = class_mean_alignments(weight, inputs, deltas, window.steps)
    scaled = (one._replace(means=one.means * factor) for one, factor in zip((inputs, deltas), factors, strict=True))
    torch.testing.assert_close(class_mean_alignments(weight, *scaled, window.steps), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("shape", [(7, 0), (0, 9), (0, 0)], ids=str)
def test_a_weight_without_numbers_has_no_alignment_and_no_distance(shape):
    weight, means = torch.zeros(shape), torch.zeros(shape, dtype=torch.float64)
    assert class_mean_alignment(weight, means).isnan()
    assert alignment_bound(weight, means).item() == 0
    inputs, deltas = no_moments(3, shape[1], scatter=False), no_moments(3, shape[0], scatter=False)
    alignment, bound = class_mean_alignments(weight, inputs, deltas, steps=1)
    assert alignment.isnan()
    assert bound.item() == 0
    certificates = rank_collapse_certificates(weight, means, inputs, deltas, weight_decay=0.1, steps=1)
    assert certificates.joint.item() == certificates.sharp.item() == 0


@laws
@given(windows())
def test_the_alignment_bound_is_the_sine_of_the_alignment(window):
    weight, means = torch.from_numpy(window.weight), class_mean_gradient(*window.moments, window.steps)
    alignment = class_mean_alignment(weight, means).item()
    assert -1 - 1e-14 <= alignment <= 1 + 1e-14
    expected = np.linalg.norm(window.weight) * math.sqrt(max(0, 1 - alignment**2))
    assert alignment_bound(weight, means).item() == pytest.approx(expected, rel=1e-7)


def test_a_gradient_with_another_part_has_no_loose_bound():
    window = Window(seed=1, rows=200)
    for k in range(3):  # nothing within classes to explain it
        window.inputs[window.labels == k] = window.inputs[window.labels == k].mean(0)
    window.gradient = window.deltas.T @ window.inputs / window.steps
    window.gradient += 0.5 * np.abs(window.gradient).max() * np.random.default_rng(0).standard_normal(window.gradient.shape)
    joint, sharp, loose, _ = window.certificates(0.01)
    assert math.isnan(loose)
    assert_ascending(window.distance(), joint, sharp, slack=0)


def test_a_gradient_that_is_rounded_keeps_its_loose_bound():
    window = Window(seed=1)
    for k in range(3):
        window.inputs[window.labels == k] = window.inputs[window.labels == k].mean(0)
    window.gradient = torch.from_numpy(window.deltas.T @ window.inputs / window.steps).bfloat16().double().numpy()
    _, sharp, loose, _ = window.certificates(0.01)
    assert loose == sharp  # what rounding adds is above the Cauchy-Schwarz bound, which is 0


def test_without_weight_decay_bounds_are_infinite():
    assert Window().certificates(0.0) == [INF, INF, INF, INF]


def test_without_weight_decay_a_gradient_of_zero_bounds_nothing():
    window = Window()
    window.deltas, window.gradient = 0 * window.deltas, 0 * window.gradient
    assert window.certificates(0.0) == [INF, INF, INF, INF]


@pytest.mark.parametrize("numbers_at_once", [1, 9, 20, 10_000])  # rows of 9: one, one, two or all of them
def test_matrices_may_be_read_in_parts(numbers_at_once, monkeypatch):
    window = Window()
    weight, means = torch.from_numpy(window.weight), class_mean_gradient(*window.moments, window.steps)
    monkeypatch.setattr("rank_callbacks.functional.certificate._NUMBERS_AT_ONCE", numbers_at_once)
    joint, sharp, _, residual = window.certificates(0.1)
    residual_norm = np.linalg.norm(window.gradient + 0.1 * window.weight)
    assert joint == pytest.approx(np.linalg.norm(0.1 * weight + means) / 0.1, rel=1e-12)
    assert sharp == pytest.approx((np.linalg.norm(window.within_class_part()) + residual_norm) / 0.1, rel=1e-12)
    assert residual == pytest.approx(residual_norm / np.linalg.norm(0.1 * weight), rel=1e-12)
    cosine = -(weight * means).sum() / (weight.norm() * means.norm())
    assert class_mean_alignment(weight, means).item() == pytest.approx(cosine.item(), rel=1e-12)
    assert alignment_bound(weight, means).item() == pytest.approx((weight.norm() * (1 - cosine**2).sqrt()).item(), rel=1e-12)


def test_no_rows_leave_the_weight_to_its_decay():
    nothing = no_moments(3, 9, scatter=False), no_moments(3, 7, scatter=False)
    weight = torch.randn(7, 9, dtype=torch.float64)
    bounds = rank_collapse_certificates(weight, torch.zeros(7, 9), *nothing, weight_decay=0.1, steps=1)
    norm = torch.linalg.matrix_norm(weight).item()
    assert [bound.item() for bound in bounds] == pytest.approx([norm, norm, norm, 1])
    means = class_mean_gradient(*nothing, steps=1)
    assert alignment_bound(weight, means).item() == pytest.approx(norm)
    assert class_mean_alignment(weight, means).isnan()


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("where", ["weight", "gradient"])
def test_a_matrix_that_is_not_finite_has_no_bound(where, bad):
    window = Window()
    getattr(window, where)[1, 2] = bad
    bounds = window.certificates(0.1)
    # An infinite bound says nothing that is false.
    assert not any(math.isfinite(bound) for bound in bounds[(where == "gradient") :])
    if where == "weight":
        means = class_mean_gradient(*window.moments, window.steps)
        assert alignment_bound(torch.from_numpy(window.weight), means).isnan()
        assert class_mean_alignment(torch.from_numpy(window.weight), means).isnan()


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("where", ["inputs", "deltas"])
def test_rows_that_are_not_finite_leave_no_bound(where, bad):
    window = Window()
    getattr(window, where)[1, 2] = bad
    joint, sharp, loose, _ = window.certificates(0.1)
    assert not any(math.isfinite(bound) for bound in (joint, sharp))
    assert math.isnan(loose)
    means = class_mean_gradient(*window.moments, window.steps)
    assert alignment_bound(torch.from_numpy(window.weight), means).isnan()


def test_weights_in_half_precision_are_measured_in_double():
    window = Window(seed=4)
    window.weight = torch.from_numpy(window.weight).bfloat16()
    expected = rank_collapse_certificates(
        window.weight.double(), torch.from_numpy(window.gradient), *window.moments, 0.1, window.steps
    )
    measured = rank_collapse_certificates(window.weight, torch.from_numpy(window.gradient), *window.moments, 0.1, window.steps)
    assert measured == expected


def test_negative_weight_decay_is_refused():
    with pytest.raises(ValueError, match=r"Expected weight_decay from 0, got -0\.1\."):
        Window().certificates(-0.1)


def test_moments_of_other_rows_are_refused():
    inputs, _ = Window(seed=1).moments
    _, deltas = Window(seed=2).moments
    with pytest.raises(ValueError, match="Expected as many inputs as output gradients in each class"):
        class_mean_gradient(inputs, deltas, 1)
    with pytest.raises(ValueError, match="Expected as many inputs as output gradients in each class"):
        rank_collapse_certificates(torch.zeros(7, 9), torch.zeros(7, 9), inputs, deltas, 0.1, 1)


# Galanti et al., figure 6: B = 6, μ = 0.1 and a penalty of 8e-3‖W‖², which is a weight decay of 1.6e-2 in PyTorch. The figure
# has ln(1/ε) where the theorem has ln(2/ε).
WEIGHT_DECAY = 2 * 8e-3


@pytest.mark.parametrize(("epsilon", "in_the_figure"), [(0.3, 4.52e3), (0.5, 2.60e3), (0.7, 1.34e3)])
def test_the_bounds_of_a_published_figure(epsilon, in_the_figure):
    bound = sgd_rank_bound((10_000, 10_000), 6, learning_rate=0.1, weight_decay=WEIGHT_DECAY, epsilon=2 * epsilon)
    assert bound == pytest.approx(in_the_figure, rel=2e-3)
    of_the_theorem = sgd_rank_bound((10_000, 10_000), 6, learning_rate=0.1, weight_decay=WEIGHT_DECAY, epsilon=epsilon)
    assert of_the_theorem - bound == pytest.approx(6 * math.log(2) / (0.1 * WEIGHT_DECAY))


@pytest.mark.parametrize("shape", [(512, 27), (27, 512)])
def test_no_rank_is_above_the_smaller_side(shape):
    assert sgd_rank_bound(shape, rows=1024 * 128, learning_rate=0.1, weight_decay=5e-4) == 27


def test_the_gradients_that_decay_has_not_forgotten_are_counted():
    """(1 − lr·wd)^n ≤ ε/2 after n steps of `rows` outer products each: no more than the bound, in the limit of small steps."""
    lr, wd, epsilon, rows = 0.1, 1e-3, 0.05, 2
    forgotten = math.log(epsilon / 2) / math.log(1 - lr * wd)
    assert sgd_rank_bound((10**6, 10**6), rows, lr, wd, epsilon) == pytest.approx(rows * forgotten, rel=lr * wd)


@pytest.mark.parametrize(("learning_rate", "weight_decay"), [(0, 0.1), (0.1, 0), (0, 0)])
def test_without_decay_sgd_has_no_bound(learning_rate, weight_decay):
    assert math.isnan(sgd_rank_bound((10, 10), 1, learning_rate, weight_decay))


@pytest.mark.parametrize("epsilon", [0, 2, -1, 2.5, NAN])
def test_sgd_rank_bound_refuses_a_distance_that_is_none(epsilon):
    with pytest.raises(ValueError, match=r"Expected epsilon in \(0, 2\)"):
        sgd_rank_bound((10, 10), 1, 0.1, 0.1, epsilon)


@pytest.mark.parametrize("negative", [(-1, 0.1, 0.1), (1, -0.1, 0.1), (1, 0.1, -0.1)])
def test_sgd_rank_bound_refuses_negative_settings(negative):
    with pytest.raises(ValueError, match="and rows, learning_rate and weight_decay from 0, got"):
        sgd_rank_bound((10, 10), *negative)
