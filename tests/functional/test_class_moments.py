"""Class moments against two passes in NumPy, and merged moments against those of the union."""

from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rank_callbacks.functional import (
    ClassMoments,
    batch_moments,
    class_moments,
    merged_moments,
    nc1_fuzziness,
    nc1_pinv,
    nc1_pinv_sample_mean,
    nc1_svds,
)
from rank_callbacks.functional.class_moments import _NUMBERS_AT_ONCE, contrast_basis, no_moments

NAN, INF = float("nan"), float("inf")
NC1S = [nc1_pinv, nc1_svds, nc1_pinv_sample_mean, nc1_fuzziness]

laws = settings(derandomize=True, deadline=None, max_examples=60)


def naive_moments(features: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Counts, means, variations and scatter, class by class and sample by sample; weights of shape (N, K)."""
    (_, width), num_classes = features.shape, weights.shape[1]
    counts, means = weights.sum(0), np.zeros((num_classes, width))
    variations, scatter = np.zeros(num_classes), np.zeros((width, width))
    for k in range(num_classes):
        if counts[k] == 0:
            continue
        means[k] = features[0] + sum(w * (h - features[0]) for w, h in zip(weights[:, k], features, strict=True)) / counts[k]
        for w, h in zip(weights[:, k], features, strict=True):
            variations[k] += w * np.sum((h - means[k]) ** 2)
            scatter += w * np.outer(h - means[k], h - means[k])
    return counts, means, variations, scatter


def one_hot(labels: torch.Tensor, num_classes: int) -> np.ndarray:
    return np.eye(num_classes)[labels.numpy()]


def assert_moments(measured: ClassMoments, expected: tuple[np.ndarray, ...], rtol: float = 1e-12, atol: float = 1e-12) -> None:
    for one, other in zip((measured.counts, measured.means, measured.variations, measured.scatter), expected, strict=True):
        if one is not None:
            assert one.dtype == torch.float64
            np.testing.assert_allclose(one.numpy(), other, rtol=rtol, atol=atol)


def assert_same(one: ClassMoments, other: ClassMoments, rtol: float = 1e-11) -> None:
    for name in ("counts", "means", "variations", "scatter"):
        left, right = getattr(one, name), getattr(other, name)
        torch.testing.assert_close(left, right, rtol=rtol, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


def clusters(rows: int, width: int, num_classes: int, spread: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Imbalanced clusters: half of the samples in class 0. Every class has one where there are samples enough."""
    labels = torch.randint(num_classes, (rows,)) * torch.randint(2, (rows,))
    labels[: min(rows, num_classes)] = torch.arange(num_classes)[:rows]
    labels = labels[torch.randperm(rows)]
    centers = torch.randn(num_classes, width, dtype=torch.float64)
    return centers[labels] + spread * torch.randn(rows, width, dtype=torch.float64), labels


@pytest.mark.parametrize(("rows", "width", "num_classes"), [(60, 7, 4), (60, 4, 11), (9, 3, 9), (40, 5, 5), (1, 3, 2)])
@pytest.mark.parametrize("moments_of", [class_moments, batch_moments])
@pytest.mark.parametrize("scatter", [False, True])
def test_moments_equal_two_passes(moments_of, scatter, rows, width, num_classes):
    features, labels = clusters(rows, width, num_classes)
    moments = moments_of(features, labels, num_classes, scatter=scatter)
    counts, means, variations, square = naive_moments(features.numpy(), one_hot(labels, num_classes))
    if moments.basis is not None:
        square = moments.basis.mT.numpy() @ square @ moments.basis.numpy()
    assert (moments.scatter is not None) is scatter
    assert_moments(moments, (counts, means, variations, square))


def test_scatter_is_kept_in_the_space_of_contrasts_where_that_is_smaller():
    features, labels = clusters(60, 7, 4)
    moments = class_moments(features, labels, 4, scatter=True)
    assert moments.scatter.shape == (3, 3)
    torch.testing.assert_close(moments.basis.mT @ moments.basis, torch.eye(3, dtype=torch.float64))
    apart = moments.means - moments.means.mean(0)
    torch.testing.assert_close(apart @ moments.basis @ moments.basis.mT, apart)
    assert batch_moments(features, labels, 4, scatter=True).basis is None
    assert class_moments(features, labels, 8, scatter=True).basis is None


@pytest.mark.parametrize("scatter", [False, True])
@pytest.mark.parametrize("extra", [-1, 0, 1, 17])
@pytest.mark.parametrize("parts", [1, 3])
def test_rows_that_fill_parts_or_do_not(parts, extra, scatter):
    width = 2**13
    rows = parts * (_NUMBERS_AT_ONCE // width) + extra
    features, labels = clusters(rows, width, 3)
    moments = class_moments(features, labels, 3, scatter=scatter)
    for k in range(3):
        of_class = features[labels == k]
        torch.testing.assert_close(moments.means[k], of_class.mean(0), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(moments.variations[k], (of_class - of_class.mean(0)).square().sum(), rtol=1e-12, atol=0)
    if scatter:
        centred = (features - moments.means[labels]) @ moments.basis
        torch.testing.assert_close(moments.scatter, centred.mT @ centred, rtol=1e-11, atol=1e-11)


def test_a_row_may_be_wider_than_a_part():
    features = torch.randn(5, _NUMBERS_AT_ONCE + 1)
    moments = class_moments(features, torch.tensor([0, 1, 0, 1, 1]), 2)
    torch.testing.assert_close(moments.means[0], features[[0, 2]].double().mean(0))


def test_soft_labels_in_many_parts_equal_dense_weights():
    features = torch.randn(3000, 64, dtype=torch.float64)
    soft = torch.rand(3000, 5, dtype=torch.float64).softmax(1)  # 15000 pairs of a row and a class, four parts
    moments = class_moments(features, soft, 5, scatter=True)
    means = soft.mT @ features / soft.sum(0)[:, None]
    torch.testing.assert_close(moments.means, means, rtol=1e-12, atol=1e-13)
    variations = torch.stack([soft[:, k] @ (features - means[k]).square().sum(1) for k in range(5)])
    torch.testing.assert_close(moments.variations, variations, rtol=1e-12, atol=0)
    centred = torch.cat([soft[:, k, None].sqrt() * (features - means[k]) for k in range(5)]) @ moments.basis
    torch.testing.assert_close(moments.scatter, centred.mT @ centred, rtol=1e-12, atol=1e-11)


# Soft labels


def mixup(rows: int, num_classes: int) -> torch.Tensor:
    share = torch.rand(rows, 1, dtype=torch.float64)
    one, other = torch.eye(num_classes, dtype=torch.float64)[torch.randint(num_classes, (2, rows))]
    return share * one + (1 - share) * other


def smoothing(rows: int, num_classes: int) -> torch.Tensor:
    labels = torch.eye(num_classes, dtype=torch.float64)[torch.randint(num_classes, (rows,))]
    return 0.9 * labels + 0.1 / num_classes


@pytest.mark.parametrize("make", [mixup, smoothing])
@pytest.mark.parametrize(("width", "num_classes"), [(6, 3), (3, 8)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_soft_labels_are_weights(make, width, num_classes, dtype):
    features, soft = torch.randn(30, width, dtype=torch.float64), make(30, num_classes).to(dtype)
    moments = batch_moments(features, soft, num_classes, scatter=True)
    assert_moments(moments, naive_moments(features.numpy(), soft.double().numpy()))
    in_contrasts = class_moments(features, soft, num_classes, scatter=True)
    for measure in NC1S:
        torch.testing.assert_close(measure(in_contrasts), measure(moments), rtol=1e-10, atol=0)


def test_a_soft_label_of_half_and_half_is_half_a_sample_of_each():
    moments = class_moments(torch.tensor([[2.0], [4.0]]), torch.tensor([[0.5, 0.5], [0.5, 0.5]]), 2, scatter=True)
    assert moments.counts.tolist() == [1, 1]
    assert moments.means.tolist() == [[3], [3]]
    assert moments.variations.tolist() == pytest.approx([1, 1], rel=1e-15)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32], ids=str)
def test_one_hot_labels_are_integers_written_otherwise(dtype):
    features, labels = clusters(40, 6, 4)
    written = torch.nn.functional.one_hot(labels, 4).to(dtype)
    assert_same(batch_moments(features, written, 4, True), batch_moments(features, labels, 4, True), rtol=0)


# Tokens, and what is left out


def test_tokens_are_rows():
    features, labels = clusters(24, 5, 3)
    tokens = class_moments(features.reshape(4, 6, 5), labels.reshape(4, 6), 3, scatter=True)
    assert_same(tokens, class_moments(features, labels, 3, scatter=True), rtol=0)


def test_soft_labels_of_tokens():
    features, soft = torch.randn(4, 6, 5, dtype=torch.float64), mixup(24, 3)
    tokens = class_moments(features, soft.reshape(4, 6, 3), 3)
    assert_moments(tokens, naive_moments(features.reshape(24, 5).numpy(), soft.numpy()))


@pytest.mark.parametrize("moments_of", [class_moments, batch_moments])
def test_ignored_rows_leave_no_trace(moments_of):
    features, labels = clusters(40, 6, 3)
    ignored = torch.arange(40) % 3 == 0  # the first row too, from which others are measured
    masked, spoilt = labels.masked_fill(ignored, -100), features.masked_fill(ignored[:, None], NAN)
    measured = moments_of(spoilt, masked, 3, scatter=True, ignore_index=-100)
    assert_same(measured, moments_of(features[~ignored], labels[~ignored], 3, scatter=True), rtol=0)


def test_a_class_without_samples_is_zero():
    moments = class_moments(torch.randn(6, 4), torch.tensor([0, 2, 2, 0, 2, 2]), 4, scatter=True)
    assert moments.seen.tolist() == [True, False, True, False]
    assert moments.counts.tolist() == [2, 0, 4, 0]
    assert moments.means[[1, 3]].eq(0).all()
    assert moments.variations[[1, 3]].tolist() == [0, 0]
    assert moments.scatter.shape == (1, 1)


@pytest.mark.parametrize("moments_of", [class_moments, batch_moments])
@pytest.mark.parametrize(
    ("features", "labels", "ignore_index"),
    [
        pytest.param(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), None, id="none"),
        pytest.param(torch.zeros(0, 4), torch.zeros(0, 3), None, id="none, soft"),
        pytest.param(torch.ones(2, 4), torch.tensor([-1, -1]), -1, id="all ignored"),
    ],
)
def test_no_samples_have_no_moments(moments_of, features, labels, ignore_index):
    moments = moments_of(features, labels, 3, scatter=True, ignore_index=ignore_index)
    assert_same(moments, no_moments(3, 4, scatter=True), rtol=0)
    assert (moments.counts.shape, moments.means.shape, moments.scatter.shape) == ((3,), (3, 4), (4, 4))


def test_gradients_stop_at_moments():
    features = torch.randn(6, 3, requires_grad=True)
    moments = class_moments(features, torch.tensor([0, 1, 0, 1, 0, 1]), 2, scatter=True)
    assert not any(tensor.requires_grad for tensor in moments)


def test_features_are_left_as_they_are():
    features, labels = clusters(20, 5, 3)
    before = features.clone()
    class_moments(features, mixup(20, 3), 3, scatter=True)
    class_moments(features, labels, 3, scatter=True)
    torch.testing.assert_close(features, before, rtol=0, atol=0)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("row", [0, 7])
def test_what_is_not_finite_is_not_finite_in_the_moments_of_its_class(bad, row):
    features, labels = clusters(20, 5, 3)
    features[row, 2] = bad
    moments = class_moments(features, labels, 3, scatter=True)
    assert moments.variations[labels[row]].isnan()
    assert not moments.means[labels[row]].isfinite().all()
    assert not moments.scatter.isfinite().any()


@pytest.mark.parametrize("num_classes", [1, 0, -3])
@pytest.mark.parametrize("moments_of", [class_moments, batch_moments])
def test_collapse_needs_two_classes(moments_of, num_classes):
    with pytest.raises(ValueError, match=rf"Expected num_classes to be a whole number from 2, got {num_classes}\."):
        moments_of(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), num_classes)


def test_half_a_class_is_refused():
    with pytest.raises(ValueError, match=r"Expected num_classes to be a whole number from 2, got 2\.5\."):
        class_moments(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), 2.5)


@pytest.mark.parametrize("moments_of", [class_moments, batch_moments])
def test_labels_that_do_not_fit_are_refused(moments_of):
    with pytest.raises(ValueError, match="Expected a label for each of 2 rows"):
        moments_of(torch.zeros(2, 3), torch.zeros(3, dtype=torch.long), 2)
    with pytest.raises(ValueError, match="Expected labels from 0 to 1, got 2"):
        moments_of(torch.zeros(2, 3), torch.tensor([0, 2]), 2)


# Digits


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("offset", "spread"), [(100, 1e-3), (1e4, 1e-4), (-1e4, 1e-1)])
@pytest.mark.parametrize("moments_of", [class_moments, batch_moments])
def test_a_common_mean_costs_no_digits(moments_of, offset, spread, dtype):
    """Next to two passes on the values as the type rounds them, all of which NumPy holds exactly."""
    features, labels = clusters(50, 6, 3, spread)
    rounded = (features + offset).to(dtype)
    moments = moments_of(rounded, labels, 3, scatter=True)
    _, means, variations, square = naive_moments(rounded.double().numpy(), one_hot(labels, 3))
    if moments.basis is not None:
        square = moments.basis.mT.numpy() @ square @ moments.basis.numpy()
    np.testing.assert_allclose(moments.means.numpy(), means, rtol=1e-15)
    # What NumPy's means are rounded by, 1e-12 at 1e4, is 1e-8 of a spread of 1e-4, and enters squared.
    np.testing.assert_allclose(moments.variations.numpy(), variations, rtol=1e-9, atol=1e-22)
    np.testing.assert_allclose(moments.scatter.numpy(), square, rtol=1e-6, atol=1e-9 * square.max())


def test_the_first_row_may_lie_far_from_the_others():
    features, labels = clusters(50, 6, 3, 1e-2)
    features[0], labels[0] = 1e6, 0
    moments = class_moments(features, labels, 3)
    assert_moments(moments, naive_moments(features.numpy(), one_hot(labels, 3)), rtol=1e-9, atol=1e-9)


def test_samples_in_one_point_have_exactly_no_variation():
    features = torch.full((999, 4), 0.1, dtype=torch.float64)  # their sum over their number is another
    moments = class_moments(features, torch.arange(999) % 3, 3, scatter=True)
    assert moments.means.eq(0.1).all()
    assert moments.variations.tolist() == [0, 0, 0]
    assert moments.scatter.eq(0).all()


def test_one_sample_a_class_has_no_variation():
    moments = class_moments(1e4 + torch.randn(5, 8, dtype=torch.float64), torch.randperm(5), 5, scatter=True)
    assert moments.variations.max() < 1e-22
    assert moments.scatter.abs().max() < 1e-22


# Union


def in_parts(features: torch.Tensor, labels: torch.Tensor, cuts: list[int], num_classes: int) -> list[ClassMoments]:
    edges = [0, *sorted(cuts), len(features)]
    parts = [slice(start, end) for start, end in pairwise(edges)]
    return [batch_moments(features[part], labels[part], num_classes, scatter=True) for part in parts]


@laws
@given(
    st.lists(st.integers(0, 40), max_size=6),
    st.sampled_from([(5, 3), (2, 9)]),
    st.sampled_from([0.0, 1e4]),
    st.booleans(),
)
def test_merged_moments_of_any_partition_are_those_of_the_union(cuts, size, offset, by_class):
    """Cuts that are equal leave a part empty; sorted by class, most classes are missing in a part."""
    width, num_classes = size
    features, labels = clusters(40, width, num_classes)
    features += offset
    if by_class:
        order = labels.argsort()
        features, labels = features[order], labels[order]
    parts = in_parts(features, labels, cuts, num_classes)
    union = batch_moments(features, labels, num_classes, scatter=True)
    from_the_left = reduce(merged_moments, parts)
    from_the_right = reduce(lambda after, before: merged_moments(before, after), reversed(parts))
    assert_same(from_the_left, union, rtol=1e-9)
    assert_same(from_the_right, union, rtol=1e-9)


def test_merging_soft_labels():
    features, soft = torch.randn(30, 4, dtype=torch.float64), mixup(30, 3)
    parts = [batch_moments(features[part], soft[part], 3, True) for part in (slice(11), slice(11, 30))]
    assert_same(merged_moments(*parts), batch_moments(features, soft, 3, True))


@pytest.mark.parametrize("empty_first", [True, False])
def test_merging_nothing_changes_nothing(empty_first):
    moments, nothing = batch_moments(*clusters(20, 4, 3), 3, True), no_moments(3, 4, scatter=True)
    assert_same(merged_moments(*((nothing, moments) if empty_first else (moments, nothing))), moments, rtol=0)
    assert_same(merged_moments(nothing, nothing), nothing, rtol=0)


def test_merging_leaves_both_sides_as_they_are():
    sides = [batch_moments(*clusters(20, 4, 3), 3, True) for _ in range(2)]
    before = [ClassMoments(*(None if tensor is None else tensor.clone() for tensor in side)) for side in sides]
    merged_moments(*sides)
    for side, as_it_was in zip(sides, before, strict=True):
        assert_same(side, as_it_was, rtol=0)


def test_many_merges_lose_no_digits():
    features, labels = clusters(2000, 3, 4, 1e-3)
    features += 100
    merged = reduce(merged_moments, in_parts(features, labels, list(range(2, 2000, 2)), 4))
    assert_same(merged, batch_moments(features, labels, 4, True), rtol=1e-8)


def test_a_class_that_only_one_side_has_keeps_its_moments():
    one, other = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1e9, -1e9], [1e9, -1e9]])
    merged = merged_moments(
        batch_moments(one, torch.tensor([0, 0]), 3, True), batch_moments(other, torch.tensor([2, 2]), 3, True)
    )
    assert merged.means.tolist() == [[2, 3], [0, 0], [1e9, -1e9]]
    assert merged.variations.tolist() == pytest.approx([4, 0, 0], rel=1e-15, abs=0)
    assert merged.scatter.tolist() == [[2, 2], [2, 2]]


@pytest.mark.parametrize("sides", [(False, True), (True, False), (False, False)])
def test_the_union_has_a_scatter_only_where_both_sides_have(sides):
    features, labels = clusters(20, 4, 3)
    assert merged_moments(*(batch_moments(features, labels, 3, scatter) for scatter in sides)).scatter is None


def test_scatters_of_contrasts_do_not_merge():
    features, labels = clusters(20, 4, 3)
    whole = batch_moments(features, labels, 3, scatter=True)
    in_contrasts = class_moments(features, labels, 3, scatter=True)
    for merged in (merged_moments(in_contrasts, whole), merged_moments(whole, in_contrasts)):
        assert merged.scatter is None
        torch.testing.assert_close(merged.variations, 2 * whole.variations)


@pytest.mark.parametrize("bad", [NAN, INF])
def test_what_is_not_finite_stays_so_in_a_union(bad):
    features, labels = clusters(20, 4, 3)
    whole = batch_moments(features, labels, 3, True)
    spoilt = batch_moments(features.index_fill(0, torch.tensor([3]), bad), labels, 3, True)
    for merged in (merged_moments(whole, spoilt), merged_moments(spoilt, whole)):
        assert merged.variations[labels[3]].isnan()
        assert merged.scatter.isnan().all()


# Coordinates


@pytest.mark.parametrize("offset", [0, 1e4])
@pytest.mark.parametrize(
    ("rows", "width", "num_classes"), [(60, 8, 3), (60, 5, 5), (60, 3, 7), (30, 40, 6), (300, 20, 60), (60, 6, 20)]
)
@pytest.mark.parametrize("measure", NC1S)
def test_contrasts_and_features_give_one_nc1(measure, rows, width, num_classes, offset):
    features, labels = clusters(rows, width, num_classes)
    labels[labels == 1] = 0  # a class without samples
    in_contrasts = class_moments(features + offset, labels, num_classes, scatter=True)
    of_features = batch_moments(features + offset, labels, num_classes, scatter=True)
    torch.testing.assert_close(measure(in_contrasts), measure(of_features), rtol=1e-8 if offset else 1e-11, atol=0)


def test_a_basis_of_contrasts_spans_all_differences():
    points = torch.randn(4, 9, dtype=torch.float64) + 1e3
    basis = contrast_basis(points)
    assert basis.shape == (9, 3)
    torch.testing.assert_close(basis.mT @ basis, torch.eye(3, dtype=torch.float64))
    apart = points[:, None] - points
    torch.testing.assert_close(apart @ basis @ basis.mT, apart)
    assert contrast_basis(torch.randn(9, 4)).shape == (4, 4)
    assert contrast_basis(torch.randn(1, 4)).shape == (4, 0)
