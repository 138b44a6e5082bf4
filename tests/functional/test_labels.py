"""Labels in every form in which they come, and those that are refused."""

import pytest
import torch

from rank_callbacks.functional.labels import labelled_rows

NAN, INF = float("nan"), float("inf")
DRAWN = torch.tensor([2, 0, 0, 1])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
def test_integers_are_a_class_a_row(dtype):
    rows, classes, weights = labelled_rows(DRAWN.to(dtype), num_classes=3, rows=4)
    assert rows is None
    assert weights is None
    assert classes.dtype == torch.int64
    assert classes.tolist() == [2, 0, 0, 1]


def test_booleans_are_the_classes_zero_and_one():
    assert labelled_rows(torch.tensor([True, False]), num_classes=2, rows=2).classes.tolist() == [1, 0]


def test_labels_of_tokens_are_taken_in_order():
    assert labelled_rows(DRAWN.reshape(2, 2), num_classes=3, rows=4).classes.tolist() == [2, 0, 0, 1]


def test_a_column_of_labels_is_a_label_a_row():
    assert labelled_rows(DRAWN[:, None], num_classes=3, rows=4).classes.tolist() == [2, 0, 0, 1]


def test_as_many_tokens_as_classes_are_no_soft_labels():
    assert labelled_rows(torch.tensor([[2, 0, 0], [1, 2, 2]]), num_classes=3, rows=6).classes.tolist() == [2, 0, 0, 1, 2, 2]


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(4, 3), (2, 2, 3)], ids=str)
def test_one_hot_labels_are_a_class_a_row(dtype, shape):
    one_hot = torch.nn.functional.one_hot(DRAWN, 3).to(dtype).reshape(shape)
    rows, classes, weights = labelled_rows(one_hot, num_classes=3, rows=4)
    assert (rows.tolist(), classes.tolist(), weights.tolist()) == ([0, 1, 2, 3], [2, 0, 0, 1], [1, 1, 1, 1])
    assert weights.dtype == torch.float64


def test_mixup_makes_two_pairs_a_row():
    mixed = torch.tensor([[0.25, 0.0, 0.75], [0.0, 1.0, 0.0]])
    rows, classes, weights = labelled_rows(mixed, num_classes=3, rows=2)
    assert (rows.tolist(), classes.tolist(), weights.tolist()) == ([0, 0, 1], [0, 2, 1], [0.25, 0.75, 1])


def test_label_smoothing_makes_a_pair_of_every_row_and_class():
    smoothed = torch.nn.functional.one_hot(DRAWN, 3) * 0.9 + 0.1 / 3
    assert len(labelled_rows(smoothed, num_classes=3, rows=4).classes) == 12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_soft_labels_may_be_rounded(dtype):
    soft = torch.rand(50, 10).softmax(1).to(dtype)
    assert labelled_rows(soft, num_classes=10, rows=50).weights.tolist() == soft.double().flatten().tolist()


@pytest.mark.parametrize("ignore_index", [-100, 1, 255])
def test_rows_of_the_ignored_label_have_no_pair(ignore_index):
    labels = torch.tensor([2, ignore_index, 0, ignore_index])
    pairs = labelled_rows(labels, num_classes=3, rows=4, ignore_index=ignore_index)
    assert (pairs.rows.tolist(), pairs.classes.tolist(), pairs.weights) == ([0, 2], [2, 0], None)
    assert pairs.of(torch.arange(4)).tolist() == [0, 2]
    assert pairs.of(torch.arange(4), slice(1, 2)).tolist() == [2]


def test_all_rows_may_be_ignored():
    assert labelled_rows(torch.tensor([-100, -100]), num_classes=3, rows=2, ignore_index=-100).classes.tolist() == []


@pytest.mark.parametrize(
    "labels", [torch.zeros(0, dtype=torch.long), torch.zeros(0, 3), torch.zeros(2, 0, 3)], ids=["integers", "soft", "tokens"]
)
def test_no_rows_have_no_pairs(labels):
    pairs = labelled_rows(labels, num_classes=3, rows=0)
    assert pairs.classes.tolist() == []
    assert pairs.of(torch.zeros(0, 5)).shape == (0, 5)


def test_labels_that_need_a_gradient_give_weights_that_do_not():
    assert not labelled_rows(torch.full((2, 2), 0.5, requires_grad=True), num_classes=2, rows=2).weights.requires_grad


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        pytest.param([0, 3], r"Expected labels from 0 to 2, got 3\. If one of them means no label", id="above"),
        pytest.param([0, -1], r"Expected labels from 0 to 2, got -1\. If one of them", id="below"),
        pytest.param(
            [0, -100], r"got -100\. If one of them means no label, give it as ignore_index\.", id="ignored elsewhere"
        ),
        pytest.param([9, 8, 7, 6, 5, 4, 1], r"got 4, 5, 6, 7, 8\. If", id="many"),
        pytest.param([0.0, 1.0], r"Expected labels to be integers, .* got torch.float32 of shape \(2,\)\.", id="floats"),
        pytest.param([0j, 1j], r"Expected labels to be integers, .* got torch.complex64", id="complex"),
        pytest.param([[0.5, 0.6, 0.0]], "soft labels from 0 that sum to 1 in each row", id="sum above 1"),
        pytest.param([[0.5, 0.4, 0.0]], "soft labels from 0 that sum to 1 in each row", id="sum below 1"),
        pytest.param([[0.0, 0.0, 0.0]], "soft labels from 0 that sum to 1 in each row", id="zero"),
        pytest.param([[1.5, -0.5, 0.0]], "soft labels from 0 that sum to 1 in each row", id="negative"),
        pytest.param([[NAN, 0.5, 0.5]], "soft labels from 0 that sum to 1 in each row", id="NaN"),
        pytest.param([[INF, 0.0, 0.0]], "soft labels from 0 that sum to 1 in each row", id="infinite"),
        pytest.param([[1, 1, 0]], "soft labels from 0 that sum to 1 in each row", id="two classes at once"),
    ],
)
def test_labels_that_say_no_class_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        labelled_rows(torch.tensor(labels), num_classes=3, rows=len(labels))


def test_a_label_beside_the_ignored_one_is_refused_without_a_hint():
    with pytest.raises(ValueError, match=r"Expected labels from 0 to 2, got 3\.$"):
        labelled_rows(torch.tensor([0, -100, 3]), num_classes=3, rows=3, ignore_index=-100)


@pytest.mark.parametrize("shape", [(3,), (5,), (4, 2), (4, 4), (12,), (3, 4), ()], ids=str)
def test_another_number_of_labels_than_of_rows_is_refused(shape):
    with pytest.raises(ValueError, match=r"Expected a label for each of 4 rows, or labels of shape \(4, 3\), got shape"):
        labelled_rows(torch.zeros(shape, dtype=torch.long), num_classes=3, rows=4)
