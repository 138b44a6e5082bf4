from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from rank_callbacks import functional
from rank_callbacks.callbacks.feature_moments import FeatureMoments, over_processes
from rank_callbacks.functional import ClassMoments, class_moments

CLASSES = 4
MEASURES = ["nc1_pinv", "nc1_quotient", "nc1_fuzziness", "nc1_pinv_sample_mean", "total_cluster_variation"]
MEASURES += ["class_mean_equinorm", "class_mean_equiangularity", "class_distance_normalized_variance"]


def samples(count: int, width: int) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) % CLASSES
    return torch.randn(count, width, dtype=torch.float64) + 100 + torch.randn(CLASSES, width)[labels], labels


def measures(moments: ClassMoments | None) -> dict[str, float]:
    return {name: float(getattr(functional, name)(moments)) for name in MEASURES}


def filled(rows: Tensor, labels: Tensor, batch: int, **options: Any) -> FeatureMoments:
    moments = FeatureMoments(CLASSES, **options)
    for part, of_part in zip(rows.split(batch), labels.split(batch), strict=True):
        moments.add(part, of_part)
    return moments


@pytest.mark.parametrize("batch", [1, 7, 20, 60])
@pytest.mark.parametrize("width", [2, 5, 10, 30, 200])
def test_rows_kept_and_rows_folded_have_the_measures_of_all_at_once(width: int, batch: int) -> None:
    rows, labels = samples(60, width)
    everything = measures(class_moments(rows, labels, CLASSES, scatter=True))
    kept, folded = (filled(rows, labels, batch) for _ in range(2))
    assert measures(kept.moments()) == pytest.approx(everything, rel=1e-9)
    assert measures(folded.mergeable()) == pytest.approx(everything, rel=1e-9)
    assert folded.mergeable().scatter.shape == (width, width)


def test_rows_are_kept_up_to_twice_their_width() -> None:
    rows, labels = samples(21, 10)
    moments = filled(rows[:20], labels[:20], 5)
    assert moments._folded is None
    assert moments.moments().basis.shape == (10, CLASSES - 1)
    moments.add(rows[20:], labels[20:])
    assert moments._folded.scatter.shape == (10, 10)
    assert moments._rows == moments._labels == []
    assert moments.moments().counts.tolist() == [6, 5, 5, 5]


def test_reading_does_not_end_collecting() -> None:
    rows, labels = samples(60, 10)
    moments = FeatureMoments(CLASSES)
    for seen in range(5, 61, 5):
        moments.add(rows[seen - 5 : seen], labels[seen - 5 : seen])
        expected = class_moments(rows[:seen], labels[:seen], CLASSES, scatter=True)
        assert measures(moments.moments()) == pytest.approx(measures(expected), rel=1e-9)
        if seen % 3 == 0:
            moments.mergeable()


@pytest.mark.parametrize("batch", [4, 60])
def test_ignored_rows(batch: int) -> None:
    rows, labels = samples(60, 5)
    labels[::3] = -100
    moments = filled(rows, labels, batch, ignore_index=-100).moments()
    expected = class_moments(rows[labels >= 0], labels[labels >= 0], CLASSES, scatter=True)
    assert measures(moments) == pytest.approx(measures(expected), rel=1e-9)


@pytest.mark.parametrize("batch", [4, 60])
def test_soft_labels(batch: int) -> None:
    rows, labels = samples(60, 5)
    soft = one_hot(labels).double() * 0.75 + one_hot(labels.roll(1)).double() * 0.25
    expected = class_moments(rows.repeat(4, 1), torch.cat([labels, labels, labels, labels.roll(1)]), CLASSES, scatter=True)
    assert measures(filled(rows, soft, batch).moments()) == pytest.approx(measures(expected), rel=1e-9)


def test_nothing_has_no_moments() -> None:
    moments = FeatureMoments(CLASSES)
    assert moments.moments() is None
    assert moments.mergeable() is None
    assert moments.features is None


def test_all_rows_ignored() -> None:
    moments = filled(torch.randn(6, 5), torch.full((6,), -1), 3, ignore_index=-1)
    assert moments.moments().counts.tolist() == [0] * CLASSES
    assert moments.features == 5


@pytest.mark.parametrize("before", [3, 30], ids=["kept", "folded"])
def test_width_must_not_change(before: int) -> None:
    moments = filled(*samples(before, 5), before)
    assert moments.features == 5
    with pytest.raises(ValueError, match="features of width 5 as before, got 6"):
        moments.add(*samples(3, 6))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1, 4]), "labels from 0 to 3, got 4"),
        (torch.tensor([0, -1, 2]), "labels from 0 to 3, got -1"),
        (torch.tensor([0.0, 1.0, 2.0]), "labels to be integers"),
        (torch.tensor([0, 1]), "a label for each of 3 rows"),
        (torch.ones(3, CLASSES), "sum to 1"),
    ],
)
def test_labels_are_checked_at_once(labels: Tensor, message: str) -> None:
    """Not when the rows are folded, batches later."""
    with pytest.raises(ValueError, match=message):
        FeatureMoments(CLASSES).add(torch.randn(3, 50), labels)


def alone() -> Any:
    return SimpleNamespace(world_size=1)


def test_of_one_process_a_layer_without_rows_is_left_out() -> None:
    rows, labels = samples(20, 5)
    local = {"seen": filled(rows, labels, 20), "unseen": FeatureMoments(CLASSES)}
    got = over_processes(local, CLASSES, alone())
    assert list(got) == ["seen"]
    assert measures(got["seen"]) == pytest.approx(measures(class_moments(rows, labels, CLASSES, scatter=True)), rel=1e-12)


class Gathered:
    """What each of two processes gathers, computed one process after the other."""

    world_size = 2

    def __init__(self, others: list[Tensor]) -> None:
        self.others, self.own, self.strategy = list(others), [], self
        self.root_device = torch.device("cpu")

    def all_gather(self, tensor: Tensor) -> Tensor:
        self.own.append(tensor)
        other = self.others.pop(0) if self.others else torch.zeros_like(tensor)
        return torch.stack([tensor, other])


def test_of_two_processes_the_union_is_measured() -> None:
    """A layer that one process alone has seen, one of both, of other classes, and one of none."""
    rows, labels = samples(60, 5)
    more, of_more = samples(30, 3)
    low, high = labels < 2, labels >= 2
    locals_ = [
        {"both": filled(rows[low], labels[low], 7), "one": FeatureMoments(CLASSES), "none": FeatureMoments(CLASSES)},
        {"both": filled(rows[high], labels[high], 30), "one": filled(more, of_more, 4), "none": FeatureMoments(CLASSES)},
    ]
    widths = [torch.tensor([one.features or 0 for one in local.values()]) for local in locals_]
    packed = []
    for process in (0, 1):  # to learn what each sends
        spy = Gathered([widths[1 - process]])
        over_processes(locals_[process], CLASSES, spy)
        packed.append(spy.own[1])
    for process in (0, 1):
        trainer = Gathered([widths[1 - process], packed[1 - process]])
        got = over_processes(locals_[process], CLASSES, trainer)
        assert list(got) == ["both", "one"]
        assert len(trainer.own) == 2
        assert measures(got["both"]) == pytest.approx(measures(class_moments(rows, labels, CLASSES, scatter=True)), rel=1e-9)
        assert measures(got["one"]) == pytest.approx(measures(class_moments(more, of_more, CLASSES, scatter=True)), rel=1e-9)
