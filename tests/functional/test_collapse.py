"""Measures of neural collapse against known answers, laws, and naive versions written from the formulas."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rank_callbacks.functional import (
    ClassMoments,
    batch_moments,
    between_class_variation,
    class_distance_normalized_variance,
    class_mean_equiangularity,
    class_mean_equinorm,
    class_moments,
    cluster_variation_ratio,
    equiangularity,
    equinorm,
    minority_collapse,
    nc1_fuzziness,
    nc1_pinv,
    nc1_pinv_sample_mean,
    nc1_quotient,
    nc1_svds,
    nearest_center_mismatch,
    self_duality,
    self_duality_zhu,
    simplex_distance,
    total_cluster_variation,
)
from rank_callbacks.functional.class_moments import no_moments

NAN, INF = float("nan"), float("inf")


def class_mean_simplex_distance(moments: ClassMoments) -> torch.Tensor:
    means = moments.means[moments.seen]
    return simplex_distance(means - means.mean(0))


OF_THE_SCATTER = {
    "nc1_pinv": nc1_pinv,
    "nc1_svds": nc1_svds,
    "nc1_pinv_sample_mean": nc1_pinv_sample_mean,
    "nc1_fuzziness": nc1_fuzziness,
}
OF_MOMENTS = OF_THE_SCATTER | {
    "total_cluster_variation": total_cluster_variation,
    "between_class_variation": between_class_variation,
    "cluster_variation_ratio": cluster_variation_ratio,
    "nc1_quotient": nc1_quotient,
    "class_mean_equinorm": class_mean_equinorm,
    "class_mean_equiangularity": class_mean_equiangularity,
    "simplex_distance": class_mean_simplex_distance,
    "class_distance_normalized_variance": class_distance_normalized_variance,
}
OF_A_CLASSIFIER = {"self_duality": self_duality, "self_duality_zhu": self_duality_zhu}
IN_THE_UNIT_SQUARED = {"total_cluster_variation", "between_class_variation"}

of_moments = pytest.mark.parametrize("name", OF_MOMENTS)
laws = settings(derandomize=True, deadline=None, max_examples=100)


def value(name: str, features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> float:
    measured = OF_MOMENTS[name](class_moments(features, labels, num_classes, scatter=True))
    assert measured.dtype == torch.float64
    assert measured.shape == ()
    return measured.item()


def clusters(
    rows: int = 80, width: int = 6, num_classes: int = 4, spread: float = 0.3, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Imbalanced clusters: more than half of the samples in class 0, and at least one in every class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (rows,), generator=generator) * torch.randint(2, (rows,), generator=generator)
    labels[:num_classes] = torch.arange(num_classes)
    labels = labels[torch.randperm(rows, generator=generator)]
    centers = torch.randn(num_classes, width, dtype=torch.float64, generator=generator)
    return centers[labels] + spread * torch.randn(rows, width, dtype=torch.float64, generator=generator), labels


# Known answers


def sines_and_cosines() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features of 3 classes of 4 samples, their labels, and a classifier; all for counts from 0."""
    k, i, j = torch.meshgrid(*(torch.arange(size).double() for size in (3, 4, 5)), indexing="ij")
    features = (1 + 2 * k + j).sin() + 0.1 * (3 * i + (j + 1) * (k + 1)).cos()
    classifier = (torch.arange(3)[:, None] + 2 * torch.arange(5)).double().cos()
    return features.reshape(12, 5), torch.arange(3).repeat_interleave(4), classifier


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("total_cluster_variation", 0.025120666085651222),
        ("between_class_variation", 2.5272142179835253),
        ("nc1_svds", 0.0096978352093701),
        ("nc1_fuzziness", 0.0096978352093701),
        ("nc1_pinv", 0.0032326117364566997),
        ("nc1_pinv_sample_mean", 0.0032326117364566997),
        ("nc1_quotient", 0.009940062028336919),
        ("cluster_variation_ratio", 0.009842229655068402),
        ("class_mean_equinorm", 0.1399587139100833),
        ("class_mean_equiangularity", 0.1377091101278839),
        ("simplex_distance", 0.30188465267471176),
        ("class_distance_normalized_variance", 0.003492278507422375),
    ],
)
def test_known_answers(name, expected):
    features, labels, _ = sines_and_cosines()
    assert value(name, features, labels, 3) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("measure", "expected"), [(self_duality, 1.9272518858779777), (self_duality_zhu, 1.321823733159576)])
def test_known_answers_of_a_classifier(measure, expected):
    features, labels, classifier = sines_and_cosines()
    assert measure(class_moments(features, labels, 3), classifier).item() == pytest.approx(expected, rel=1e-12)


def test_known_answers_of_predictions_and_variance():
    features, labels, classifier = sines_and_cosines()
    moments = class_moments(features, labels, 3)
    predictions = (features @ classifier.mT).argmax(1)
    assert nearest_center_mismatch(features, predictions, moments.means).item() == pytest.approx(2 / 3, rel=1e-15)
    total = total_cluster_variation(moments) + between_class_variation(moments)
    assert total.item() == pytest.approx(2.5523348840691766, rel=1e-12)


def simplex(num_classes: int, width: int, scale: float = 1.0) -> torch.Tensor:
    """Vertices of a simplex about 0, turned at random."""
    directions = torch.linalg.qr(torch.randn(width, num_classes, dtype=torch.float64)).Q.mT
    return scale * (directions - directions.mean(0))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(("num_classes", "width"), [(2, 2), (3, 3), (4, 30), (10, 12)])
def test_at_collapse_every_measure_is_zero(num_classes, width, scale):
    means = simplex(num_classes, width, scale)
    labels = torch.arange(num_classes).repeat(3)
    features = (means + 5 * scale)[labels]
    for name in OF_MOMENTS.keys() - {"between_class_variation"}:
        assert value(name, features, labels, num_classes) == pytest.approx(0, abs=1e-13 * max(scale**2, 1)), name
    moments = class_moments(features, labels, num_classes)
    assert between_class_variation(moments).item() == pytest.approx(scale**2 * (num_classes - 1) / num_classes)
    for measure in OF_A_CLASSIFIER.values():
        assert measure(moments, 0.37 * means).item() == pytest.approx(0, abs=1e-13)
    assert nearest_center_mismatch(features, labels, moments.means).item() == 0


def test_opposite_classifier_is_as_far_as_can_be():
    means = simplex(3, 5)
    moments = class_moments(means, torch.arange(3), 3)
    assert self_duality(moments, -means).item() == pytest.approx(4)
    assert self_duality_zhu(moments, -means).item() == pytest.approx(2)


def test_variance_of_two_points_and_their_distance():
    """Class 0 at −1 and 1, class 1 at 10: Var 1 and 0, 10 apart."""
    features, labels = torch.tensor([[-1.0], [1.0], [10.0]]), torch.tensor([0, 0, 1])
    known = {
        "total_cluster_variation": 2 / 3,
        "between_class_variation": 2 / 3 * (10 / 3) ** 2 + 1 / 3 * (20 / 3) ** 2,
        "nc1_quotient": 2 / 3 / 25,
        "nc1_svds": 2 / 3 / 25,
        "nc1_pinv": 2 / 3 / 50,
        "nc1_pinv_sample_mean": 2 / 3 / (((10 / 3) ** 2 + (20 / 3) ** 2) / 2) / 2,
        "nc1_fuzziness": 2 / 3 / (200 / 9),
        "class_distance_normalized_variance": 1 / 200,
        "class_mean_equinorm": 0,
        "class_mean_equiangularity": 0,
    }
    for name, expected in known.items():
        assert value(name, features, labels, 2) == pytest.approx(expected, rel=1e-14, abs=1e-15), name


def test_norms_and_angles_of_vectors():
    vectors = torch.tensor([[1.0, 0.0], [0.0, 3.0], [-2.0, 0.0]])  # norms 1, 3, 2; cosines 0, −1, 0
    assert equinorm(vectors).item() == pytest.approx(0.5)
    assert equiangularity(vectors).item() == pytest.approx((0.5 + 0.5 + 0.5) / 3)
    assert simplex_distance(torch.eye(2)).item() == pytest.approx(((0.5**0.5 - 0.5) ** 2 * 2 + 0.5) ** 0.5)


# Laws


@st.composite
def labelled(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Features of imbalanced classes, fewer and more than there are dimensions, near collapse and far from it."""
    width, num_classes = draw(st.sampled_from([(6, 4), (9, 2), (3, 7), (5, 5), (1, 2), (40, 10)]))
    rows = draw(st.integers(num_classes + 5, 80))
    spread = draw(st.sampled_from([1e-3, 0.3, 10.0]))
    return *clusters(rows, width, num_classes, spread, draw(st.integers(0, 1000))), num_classes


@of_moments
@settings(laws, max_examples=15)
@given(labelled(), st.integers(0, 1000))
def test_rotation_translation_and_order_change_nothing(name, data, seed):
    features, labels, num_classes = data
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, dtype=torch.float64, generator=generator)
    rotation = torch.linalg.qr(draw(features.shape[1], features.shape[1])).Q
    order, classes = (torch.randperm(n, generator=generator) for n in (len(labels), num_classes))
    expected = value(name, features, labels, num_classes)
    for changed in (
        value(name, features @ rotation, labels, num_classes),
        value(name, features + 10 * draw(features.shape[1]), labels, num_classes),
        value(name, features[order], labels[order], num_classes),
        value(name, features, classes[labels], num_classes),
        value(name, features, labels, num_classes + 2),  # two classes more that have no samples
    ):
        assert changed == pytest.approx(expected, rel=1e-8, abs=1e-12)


@of_moments
@pytest.mark.parametrize("scale", [2.0**-40, 2.0**40, -1.0])
def test_scale(name, scale):
    features, labels = clusters()
    factor = scale**2 if name in IN_THE_UNIT_SQUARED else 1
    assert value(name, scale * features, labels, 4) == pytest.approx(factor * value(name, features, labels, 4), rel=1e-12)


@of_moments
def test_every_sample_twice_is_the_same(name):
    features, labels = clusters()
    expected = value(name, features, labels, 4)
    assert value(name, features.repeat(2, 1), labels.repeat(2), 4) == pytest.approx(expected, rel=1e-12)


@laws
@given(labelled())
def test_variation_within_and_between_add_up_to_the_variance(data):
    features, labels, num_classes = data
    within, between = (value(f"{name}_variation", *data) for name in ("total_cluster", "between_class"))
    total = (features - features.mean(0)).square().sum(1).mean().item()
    assert within + between == pytest.approx(total, rel=1e-12)
    assert value("cluster_variation_ratio", *data) == pytest.approx(within / total, rel=1e-12)
    assert 0 <= value("cluster_variation_ratio", features, labels, num_classes) <= 1


@laws
@given(labelled())
def test_ranges(data):
    for name in OF_MOMENTS:
        assert value(name, *data) >= 0, name
    assert value("class_mean_equiangularity", *data) <= 2
    assert value("simplex_distance", *data) <= 2
    moments = class_moments(*data)
    classifier = torch.randn_like(moments.means)
    assert 0 <= self_duality(moments, classifier).item() <= 4
    assert 0 <= self_duality_zhu(moments, classifier).item() <= 2


@laws
@given(labelled())
def test_nc1_by_the_notebook_is_as_many_times_larger_as_there_are_classes(data):
    assert value("nc1_svds", *data) == pytest.approx(data[2] * value("nc1_pinv", *data), rel=1e-13)


@laws
@given(labelled())
def test_balanced_classes_make_all_nc1_one(data):
    features, labels, num_classes = data
    features = torch.cat([features[labels == k][:1] for k in range(num_classes)])
    features = torch.cat([features, features + torch.randn_like(features)])
    labels = torch.arange(num_classes).repeat(2)
    values = {name: value(name, features, labels, num_classes) for name in OF_THE_SCATTER}
    for name in ("nc1_svds", "nc1_fuzziness"):
        assert values[name] == pytest.approx(num_classes * values["nc1_pinv"], rel=1e-8)
    assert values["nc1_pinv_sample_mean"] == pytest.approx(values["nc1_pinv"], rel=1e-8)
    within, between = (
        value(f"{name}_variation", features, labels, num_classes) for name in ("total_cluster", "between_class")
    )
    assert value("nc1_quotient", features, labels, num_classes) == pytest.approx(within / between, rel=1e-10)


@laws
@given(labelled(), st.floats(1e-3, 1e3))
def test_a_classifier_may_have_any_scale(data, scale):
    moments = class_moments(*data)
    classifier = torch.randn_like(moments.means)
    for measure in OF_A_CLASSIFIER.values():
        assert measure(moments, scale * classifier).item() == pytest.approx(measure(moments, classifier).item(), rel=1e-10)


@pytest.mark.parametrize("name", sorted(OF_MOMENTS.keys() - {"between_class_variation", "class_mean_equinorm"}))
def test_collapse_is_seen_over_ten_decades(name):
    """Within-class spread from 1 to 1e-10: what measures it falls with its square, the rest stays."""
    generator = torch.Generator().manual_seed(0)
    means, labels = torch.randn(4, 6, dtype=torch.float64, generator=generator), torch.arange(4).repeat(20)
    noise = torch.randn(80, 6, dtype=torch.float64, generator=generator)
    noise -= torch.stack([noise[labels == k].mean(0) for k in range(4)])[labels]  # so that the means stay
    small, tiny = (value(name, means[labels] + spread * noise, labels, 4) for spread in (1e-5, 1e-10))
    factor = 1 if name in {"class_mean_equiangularity", "simplex_distance"} else 1e-10
    assert tiny == pytest.approx(factor * small, rel=1e-4)


# Naive versions


class Naive:
    """The formulas, in two passes, with K covariance matrices and pseudo-inverses of D x D."""

    def __init__(self, features: np.ndarray, weights: np.ndarray) -> None:
        """Weights of shape (N, K): ones and zeros, or soft labels."""
        weights = weights[:, weights.sum(0) > 0]
        features = features - features[0]  # invariant, as is tested above, and NumPy's own means lose no digits
        self.sizes, self.total = weights.sum(0), weights.sum()
        self.C = weights.shape[1]
        self.means = np.stack([weights[:, k] @ features / self.sizes[k] for k in range(self.C)])
        centred = [features - self.means[k] for k in range(self.C)]
        self.covariances = [
            sum(w * np.outer(row, row) for w, row in zip(weights[:, k], centred[k], strict=True)) / self.sizes[k]
            for k in range(self.C)
        ]
        self.within = sum(n * covariance for n, covariance in zip(self.sizes, self.covariances, strict=True)) / self.total
        self.mean_of_means = sum(self.means) / self.C
        self.sample_mean = sum(n * mean for n, mean in zip(self.sizes, self.means, strict=True)) / self.total

    def between(self, mean: np.ndarray, shares: np.ndarray) -> np.ndarray:
        return sum(share * np.outer(h - mean, h - mean) for share, h in zip(shares, self.means, strict=True))

    def trace(self, mean: np.ndarray, shares: np.ndarray) -> float:
        return np.trace(self.within @ np.linalg.pinv(self.between(mean, shares), rcond=1e-11, hermitian=True))

    def cosine(self, one: np.ndarray, other: np.ndarray) -> float:
        return one @ other / (np.linalg.norm(one) * np.linalg.norm(other))

    def measured(self) -> dict[str, float]:
        equal, by_size = np.full(self.C, 1 / self.C), self.sizes / self.total
        within, between = np.trace(self.within), np.trace(self.between(self.sample_mean, by_size))
        directions = self.means - self.mean_of_means
        norms = [np.linalg.norm(direction) for direction in directions]
        pairs = [(k, other) for k in range(self.C) for other in range(self.C) if k != other]
        target = (np.eye(self.C) - np.ones((self.C, self.C)) / self.C) / np.sqrt(self.C - 1)
        products = directions @ directions.T
        return {
            "total_cluster_variation": within,
            "between_class_variation": between,
            "cluster_variation_ratio": within / (within + between),
            "nc1_svds": self.trace(self.mean_of_means, equal),
            "nc1_pinv": self.trace(self.mean_of_means, equal) / self.C,
            "nc1_pinv_sample_mean": self.trace(self.sample_mean, equal) / self.C,
            "nc1_fuzziness": self.trace(self.sample_mean, by_size),
            "nc1_quotient": within / np.trace(self.between(self.mean_of_means, equal)),
            "class_mean_equinorm": np.std(norms, ddof=1) / np.mean(norms),
            "class_mean_equiangularity": np.mean(
                [abs(self.cosine(directions[k], directions[other]) + 1 / (self.C - 1)) for k, other in pairs]
            ),
            "simplex_distance": np.linalg.norm(products / np.linalg.norm(products) - target),
            "class_distance_normalized_variance": np.mean(
                [
                    (np.trace(self.covariances[k]) + np.trace(self.covariances[other]))
                    / (2 * np.sum((self.means[k] - self.means[other]) ** 2))
                    for k, other in pairs
                ]
            ),
        }


def assert_naive(features: torch.Tensor, labels: torch.Tensor, num_classes: int, rel: float) -> None:
    soft = labels.dim() > 1
    weights = labels.double().numpy() if soft else np.eye(num_classes)[labels.numpy()]
    expected = Naive(features.double().numpy(), weights).measured()
    assert expected.keys() == OF_MOMENTS.keys()
    for moments_of in (class_moments, batch_moments):
        moments = moments_of(features, labels, num_classes, scatter=True)
        for name, wanted in expected.items():
            assert OF_MOMENTS[name](moments).item() == pytest.approx(wanted, rel=rel, abs=1e-15), name


@pytest.mark.parametrize(
    ("rows", "width", "num_classes"), [(60, 6, 4), (60, 4, 11), (60, 5, 5), (30, 20, 6), (9, 12, 9), (9, 3, 9), (60, 1, 2)]
)
def test_measures_equal_their_formulas(rows, width, num_classes):
    assert_naive(*clusters(rows, width, num_classes), num_classes, rel=1e-8)


def test_measures_equal_their_formulas_where_classes_have_no_samples():
    features, labels = clusters(60, 7, 3)
    assert_naive(features, torch.tensor([1, 4, 5])[labels], 7, rel=1e-8)


def test_measures_equal_their_formulas_for_soft_labels():
    features, labels = clusters(60, 6, 4)
    share = torch.rand(60, 1, dtype=torch.float64)
    one_hot = torch.eye(4, dtype=torch.float64)[labels]
    assert_naive(features, share * one_hot + (1 - share) * one_hot.flip(0), 4, rel=1e-8)
    assert_naive(features, 0.9 * one_hot + 0.025, 4, rel=1e-8)


@pytest.mark.parametrize("num_classes", [3, 9])
def test_measures_keep_their_digits_far_from_zero(num_classes):
    features, labels = clusters(60, 6, num_classes, spread=1e-4)
    assert_naive(features + 1e4, labels, num_classes, rel=1e-7)


@pytest.mark.parametrize("num_classes", [3, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_measures_keep_the_digits_that_features_have(dtype, num_classes):
    """Next to the naive version in float64 on the same rounded values; bfloat16 rounds some classes to one point."""
    features, labels = clusters(60, 6, num_classes, spread=1e-3)
    assert_naive((20 * features + 100).to(dtype), labels, num_classes, rel=1e-7)


def test_self_duality_equals_its_formulas():
    features, labels = clusters(60, 7, 3)
    classifier = torch.randn(5, 7)
    moments = class_moments(features, torch.tensor([1, 2, 4])[labels], 5)
    means = Naive(features.numpy(), np.eye(3)[labels.numpy()]).means
    directions, weight = means - means.mean(0), classifier[[1, 2, 4]].double().numpy()
    apart = weight / np.linalg.norm(weight) - directions / np.linalg.norm(directions)
    assert self_duality(moments, classifier).item() == pytest.approx(np.linalg.norm(apart) ** 2, rel=1e-12)
    products = weight @ directions.T
    target = (np.eye(3) - 1 / 3) / np.sqrt(2)
    expected = np.linalg.norm(products / np.linalg.norm(products) - target)
    assert self_duality_zhu(moments, classifier).item() == pytest.approx(expected, rel=1e-12)


# Degenerate cases


@of_moments
@pytest.mark.parametrize("moments_of", [class_moments, batch_moments])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("where", [(0, 0), (7, 2), (7, slice(None)), (slice(None), 1), slice(None)], ids=str)
def test_features_that_are_not_finite_read_nan(name, moments_of, bad, where):
    for num_classes in (3, 7):
        features, labels = clusters(20, 5, num_classes)
        features[where] = bad
        assert OF_MOMENTS[name](moments_of(features, labels, num_classes, scatter=True)).isnan()


@pytest.mark.parametrize("measure", OF_A_CLASSIFIER.values())
@pytest.mark.parametrize("bad", [NAN, INF])
def test_self_duality_of_what_is_not_finite_is_nan(measure, bad):
    features, labels = clusters(20, 5, 3)
    classifier = torch.randn(3, 5)
    spoilt = features.index_fill(0, torch.tensor([4]), bad)
    assert measure(class_moments(spoilt, labels, 3), classifier).isnan()
    assert measure(class_moments(features, labels, 3), classifier.index_fill(0, torch.tensor([1]), bad)).isnan()


@of_moments
@pytest.mark.parametrize("width", [2, 5])
def test_no_samples_read_nan(name, width):
    assert OF_MOMENTS[name](no_moments(3, width, scatter=True)).isnan()
    assert OF_MOMENTS[name](class_moments(torch.zeros(0, width), torch.zeros(0, 3), 3, scatter=True)).isnan()


@of_moments
@pytest.mark.parametrize("moments_of", [class_moments, batch_moments])
def test_one_class_reads_nan_but_for_its_variation(name, moments_of):
    moments = moments_of(torch.tensor([[0.0, 1.0, 0.0], [2.0, 1.0, 0.0]]), torch.tensor([1, 1]), 3, scatter=True)
    known = {"total_cluster_variation": 1.0, "between_class_variation": 0.0, "cluster_variation_ratio": 1.0}
    assert OF_MOMENTS[name](moments).item() == pytest.approx(known.get(name, NAN), nan_ok=True)


@pytest.mark.parametrize("measure", OF_A_CLASSIFIER.values())
def test_self_duality_of_one_class_is_nan(measure):
    moments = class_moments(torch.randn(4, 3), torch.zeros(4, dtype=torch.long), 2)
    assert measure(moments, torch.randn(2, 3)).isnan()
    assert measure(no_moments(2, 3, scatter=False), torch.randn(2, 3)).isnan()


@pytest.mark.parametrize("moments_of", [class_moments, batch_moments])
@pytest.mark.parametrize("width", [2, 5])
@pytest.mark.parametrize("offset", [0.0, 4.0])
def test_classes_that_share_their_mean_have_infinite_nc1(moments_of, width, offset):
    one = torch.ones(1, width)
    features = torch.cat([one, -one, 2 * one, -2 * one, 3 * one, -3 * one]) + offset
    moments = moments_of(features, torch.tensor([0, 0, 1, 1, 2, 2]), 3, scatter=True)
    for measure in (*OF_THE_SCATTER.values(), nc1_quotient, class_distance_normalized_variance):
        assert measure(moments).item() == INF
    assert cluster_variation_ratio(moments).item() == 1
    assert class_mean_equiangularity(moments).isnan()


@pytest.mark.parametrize("axis", range(4))
def test_variation_about_a_shared_mean_is_seen_in_any_direction(axis):
    """Without contrasts no direction is a place to look for it."""
    features = torch.eye(4)[axis] * torch.tensor([1.0, -1, 2, -2])[:, None] + 1e4
    moments = class_moments(features, torch.tensor([0, 0, 1, 1]), 2, scatter=True)
    for measure in OF_THE_SCATTER.values():
        assert measure(moments).item() == INF


def test_two_classes_that_share_their_mean_are_infinitely_alike():
    features = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0], [5.0, 5.0], [5.0, 6.0]])
    moments = class_moments(features, torch.tensor([0, 0, 1, 1, 2, 2]), 3, scatter=True)
    assert class_distance_normalized_variance(moments).item() == INF
    assert nc1_pinv(moments).isfinite()  # the third stands apart


def test_all_features_in_one_point_have_no_measure():
    moments = class_moments(torch.full((6, 4), 3.0), torch.tensor([0, 0, 1, 1, 2, 2]), 3, scatter=True)
    assert total_cluster_variation(moments).item() == 0
    for measure in (*OF_THE_SCATTER.values(), nc1_quotient, cluster_variation_ratio, class_distance_normalized_variance):
        assert measure(moments).isnan()


def test_class_means_on_a_line_are_compared_along_it():
    """Σ_B of rank 1 though there are three classes: what lies across the line does not count."""
    along, across = torch.tensor([1.0, 2.0, 2.0]).double() / 3, torch.tensor([2.0, -2.0, 1.0]).double() / 3
    labels = torch.arange(3).repeat_interleave(4)
    inside = torch.tensor([1.0, -1.0, 0.0, 0.0]).double().repeat(3)[:, None] * along
    outside = torch.tensor([0.0, 0.0, 7.0, -7.0]).double().repeat(3)[:, None] * across
    features = torch.tensor([0.0, 1.0, 5.0]).double()[labels][:, None] * along + inside + outside
    expected = 0.5 / torch.tensor([0.0, 1.0, 5.0]).double().var(correction=0).item()
    for moments_of in (class_moments, batch_moments):
        assert nc1_svds(moments_of(features, labels, 3, scatter=True)).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("measure", OF_THE_SCATTER.values())
def test_nc1_needs_a_scatter(measure):
    with pytest.raises(ValueError, match=r"within-class scatter, got none: ask for it by scatter=True\."):
        measure(class_moments(*clusters(20, 5, 3), 3))


@pytest.mark.parametrize("measure", OF_A_CLASSIFIER.values())
@pytest.mark.parametrize("shape", [(2, 5), (3, 4), (5, 3), (3, 5, 1)], ids=str)
def test_a_classifier_of_another_shape_is_refused(measure, shape):
    with pytest.raises(ValueError, match=r"Expected a classifier of shape \(3, 5\)"):
        measure(class_moments(*clusters(20, 5, 3), 3), torch.zeros(shape))


@pytest.mark.parametrize("measure", [equinorm, equiangularity, simplex_distance])
def test_one_vector_has_no_angle(measure):
    assert measure(torch.ones(1, 3)).isnan()
    assert measure(torch.ones(0, 3)).isnan()


@pytest.mark.parametrize("measure", [equinorm, equiangularity, simplex_distance])
@pytest.mark.parametrize("bad", [NAN, INF])
def test_vectors_that_are_not_finite_read_nan(measure, bad):
    assert measure(torch.randn(4, 3).index_fill(0, torch.tensor([1]), bad)).isnan()


def test_a_zero_vector_has_no_angle():
    assert equiangularity(torch.tensor([[1.0, 0.0], [0.0, 0.0]])).isnan()


@pytest.mark.parametrize("measure", [equinorm, equiangularity, simplex_distance])
@pytest.mark.parametrize("scale", [2.0**-60, 2.0**60])
def test_vectors_may_have_any_scale(measure, scale):
    vectors = torch.randn(5, 4)
    assert measure(scale * vectors).item() == pytest.approx(measure(vectors).item(), rel=1e-13)


# The nearest class mean


def naive_mismatch(features: np.ndarray, predictions: np.ndarray, centers: np.ndarray) -> float:
    wrong = 0
    for h, prediction in zip(features, predictions, strict=True):
        distances = [np.linalg.norm(h - center) if np.isfinite(center).all() else np.inf for center in centers]
        wrong += int(np.argmin(distances) != prediction)
    return wrong / len(features)


@pytest.mark.parametrize("unknown", [[], [2], [0, 3]])
@pytest.mark.parametrize("offset", [0, 1e8])
def test_nearest_center_mismatch_equals_a_loop(unknown, offset):
    features, centers = torch.randn(200, 3, dtype=torch.float64) + offset, torch.randn(5, 3, dtype=torch.float64) + offset
    centers[unknown] = NAN
    predictions = torch.randint(5, (200,))
    expected = naive_mismatch(features.numpy(), predictions.numpy(), centers.numpy())
    assert nearest_center_mismatch(features, predictions, centers).item() == pytest.approx(expected, rel=1e-14)
    assert 0 < expected < 1


def test_nearest_center_mismatch_of_tokens():
    features, centers, predictions = torch.randn(24, 3), torch.randn(5, 3), torch.randint(5, (24,))
    tokens = nearest_center_mismatch(features.reshape(4, 6, 3), predictions.reshape(4, 6), centers)
    assert tokens == nearest_center_mismatch(features, predictions, centers)


def test_nearest_center_in_half_precision_is_found_in_double():
    centers = torch.tensor([[100.0], [100.5]], dtype=torch.bfloat16)
    features = torch.tensor([[100.0], [100.5]], dtype=torch.bfloat16)
    assert nearest_center_mismatch(features, torch.tensor([0, 1]), centers).item() == 0


def test_a_sample_that_is_not_finite_is_in_disagreement():
    features, centers = torch.tensor([[0.0], [NAN], [INF], [1.0]]), torch.tensor([[0.0], [1.0]])
    assert nearest_center_mismatch(features, torch.tensor([0, 0, 1, 1]), centers).item() == pytest.approx(1 / 2)


def test_no_samples_have_no_nearest_center():
    assert nearest_center_mismatch(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), torch.randn(2, 3)).isnan()


def test_without_centers_no_sample_is_near_one():
    centers = torch.full((2, 3), NAN)
    assert nearest_center_mismatch(torch.randn(4, 3), torch.tensor([0, 1, 0, 0]), centers).item() == 1


@pytest.mark.parametrize("count", [0, 3, 5])
def test_another_number_of_predictions_is_refused(count):
    with pytest.raises(ValueError, match=rf"Expected a prediction for each of 4 features, got {count}\."):
        nearest_center_mismatch(torch.zeros(4, 3), torch.zeros(count, dtype=torch.long), torch.zeros(2, 3))


# Minority collapse


@pytest.mark.parametrize(
    ("minority", "expected"),
    [
        ([True, True, False, False], 1.0),
        ([True, False, True, False], 0.0),
        ([True, False, False, True], -1.0),
        ([True, True, True, False], 1 / 3),
        ([True, True, True, True], (1 + 0 - 1 + 0 - 1 + 0) / 6),
        ([True, False, False, False], NAN),
        ([False, False, False, False], NAN),
    ],
)
def test_minority_collapse_is_the_mean_cosine(minority, expected):
    classifier = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [-5.0, 0.0]])
    measured = minority_collapse(classifier, torch.tensor(minority))
    assert measured.dtype == torch.float64
    assert measured.item() == pytest.approx(expected, abs=1e-15, nan_ok=True)


def test_minority_collapse_of_a_simplex_is_its_cosine():
    assert minority_collapse(simplex(5, 8), torch.ones(5, dtype=torch.bool)).item() == pytest.approx(-1 / 4)


def test_minority_collapse_rises_as_rows_merge():
    rows = torch.randn(3, 6)
    merged = [
        minority_collapse(rows + pull * rows.mean(0), torch.ones(3, dtype=torch.bool)).item() for pull in (0, 1, 10, 1000)
    ]
    assert all(before < after for before, after in pairwise(merged))
    assert merged[-1] == pytest.approx(1, abs=1e-3)
