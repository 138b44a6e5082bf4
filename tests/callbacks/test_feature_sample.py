import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rank_callbacks.callbacks.feature_sample import FeatureSample, SampledRows, default_samples, over_processes


def numbered(count: int, width: int = 3) -> Tensor:
    """Rows that say which they are."""
    return torch.arange(count, dtype=torch.float64)[:, None].expand(count, width)


def filled(rows: Tensor, sizes: Any, capacity: int | None, seed: int = 0, labels: Tensor | None = None) -> FeatureSample:
    sample, start = FeatureSample(capacity, seed=seed), 0
    for size in sizes:
        part = slice(start, start + size)
        sample.add(rows[part], None if labels is None else labels[part])
        start += size
    assert start == len(rows)
    return sample


def kept(sample: FeatureSample) -> list[int]:
    """The numbers of the rows that were kept, in order."""
    return sorted(int(row[0]) for row in sample.taken()[0].features)


SPLITS = pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([60], id="all at once"),
        pytest.param([1] * 60, id="one by one"),
        pytest.param([7] * 8 + [4], id="batches of 7"),
        pytest.param([3, 50, 7], id="a large batch among small"),
        pytest.param([0, 60, 0], id="empty batches"),
    ],
)


@SPLITS
@pytest.mark.parametrize("capacity", [2, 9, 59, 60, 61, 1000])
def test_as_many_rows_as_there_is_room_for(capacity: int, sizes: list[int]) -> None:
    """None twice, and the same each time; below the capacity all."""
    sample, again = (filled(numbered(60), sizes, capacity) for _ in range(2))
    rows, draws = sample.taken()
    assert len(set(kept(sample))) == len(rows.features) == len(rows.labels) == len(draws) == min(60, capacity)
    assert kept(sample) == kept(again)
    assert set(rows.labels.tolist()) == {-1}
    assert 0 <= draws.min() <= draws.max() < 1


def test_rows_stay_in_order_below_the_capacity() -> None:
    rows = torch.randn(20, 4)
    assert torch.equal(filled(rows, [6, 6, 8], 20).taken()[0].features, rows)


def chi_square(samples: list[list[int]], count: int) -> float:
    """Of how often each of ``count`` rows is among equally large samples; count − 1 degrees of freedom."""
    counts, share = np.bincount(np.concatenate(samples), minlength=count), len(samples[0]) / count
    mean = len(samples) * share
    # Without replacement a count varies by 1 − share as much as a Poisson number, over all counts less one.
    return ((counts - mean) ** 2).sum() / (mean * (1 - share)) * (count - 1) / count


# Of 39 degrees of freedom: its 0.001 tails.
LIKELY = (15, 72)


@pytest.mark.parametrize("sizes", [[40], [4] * 10, [1] * 40, [30, 10], [5, 5, 30]], ids=str)
def test_each_row_has_the_same_chance(sizes: list[int]) -> None:
    samples = [kept(filled(numbered(40), sizes, 8, seed)) for seed in range(500)]
    assert {len(sample) for sample in samples} == {8}
    assert LIKELY[0] < chi_square(samples, 40) < LIKELY[1]


def test_each_pair_of_rows_has_the_same_chance() -> None:
    """Those of a batch and of two batches: of 6 rows that pass in threes, 15 pairs; the 0.001 tails are 2.7 and 37."""
    samples = [kept(filled(numbered(6), [3, 3], 2, seed)) for seed in range(1500)]
    pairs = [[first * 6 + second] for first, second in samples]
    counts = np.bincount(np.concatenate(pairs), minlength=36)
    counts = counts[[first * 6 + second for first in range(6) for second in range(first + 1, 6)]]
    assert 2.7 < ((counts - 100) ** 2 / 100).sum() < 37


@pytest.mark.parametrize("size", [1, 7, 25])
def test_never_more_than_the_capacity_is_held(size: int) -> None:
    """Nor kept alive by views of what has left."""
    sample, held = FeatureSample(10), []
    for _ in range(50):
        sample.add(torch.randn(size, 3))
        storages = {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in sample._rows}
        held.append(sum(storages.values()) // (3 * 4))
    assert max(held) == len(sample) == 10
    assert len(sample.taken()[0].features) == 10


def test_rows_that_passed_in_inference_mode_can_leave_in_another() -> None:
    sample = FeatureSample(5)
    with torch.inference_mode():
        sample.add(numbered(30))
    sample.add(numbered(30) + 30)
    rows, draws = sample.taken()
    together = FeatureSample(5)
    together.add(numbered(30))
    together.add(numbered(30) + 30)
    assert kept(sample) == kept(together)
    assert len(draws) == len(rows.features) == 5


def test_reading_does_not_end_collecting() -> None:
    samples = []
    for seed in range(500):
        sample = FeatureSample(8, seed=seed)
        for part in numbered(40).split(10):
            sample.add(part)
            sample.taken()
        samples.append(kept(sample))
    assert LIKELY[0] < chi_square(samples, 40) < LIKELY[1]


@pytest.mark.parametrize("capacity", [12, 100])
def test_labels_stay_with_their_rows(capacity: int) -> None:
    labels = torch.randint(5, (60,))
    rows = filled(numbered(60), [13] * 4 + [8], capacity, labels=labels).taken()[0]
    assert torch.equal(rows.labels, labels[rows.features[:, 0].long()])
    assert rows.labels.dtype == torch.int64


def test_rows_of_several_dimensions() -> None:
    """Tokens of samples, each with a label, without those that do not count."""
    rows, labels = numbered(60).reshape(10, 6, 3), torch.arange(60).reshape(10, 6)
    keep = torch.rand(10, 6) < 0.5
    sample = FeatureSample(1000)
    sample.add(rows, labels, keep)
    assert kept(sample) == labels[keep].tolist()
    assert torch.equal(sample.taken()[0].labels, sample.taken()[0].features[:, 0].long())
    bounded = FeatureSample(7)
    bounded.add(rows, labels, keep)
    assert len(kept(bounded)) == 7
    assert set(kept(bounded)) < set(labels[keep].tolist())


def test_rows_that_do_not_count_draw_nothing() -> None:
    """So padding has no say in which rows are kept."""
    padded, plain = FeatureSample(5), FeatureSample(5)
    rows = numbered(40).reshape(20, 2, 3)
    keep = torch.tensor([True, False]).expand(20, 2)
    for part, counted in zip(rows.split(6), keep.split(6), strict=True):
        padded.add(part, None, counted)
        plain.add(part[:, 0])
    assert kept(padded) == kept(plain)


def test_no_row_that_counts() -> None:
    sample = FeatureSample(5)
    sample.add(numbered(4), None, torch.zeros(4, dtype=torch.bool))
    assert (len(sample), sample.width) == (0, 3)
    assert over_processes({"layer": sample}, SimpleNamespace(world_size=1)) == {}


def test_rows_are_copies() -> None:
    """What follows in the network may work in place."""
    for capacity in (3, 100):
        rows = numbered(10).clone()
        sample = FeatureSample(capacity)
        sample.add(rows)
        rows.fill_(-1)
        assert min(kept(sample)) >= 0


def test_random_state_is_left_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # ruff: ignore[numpy-legacy-random]
    filled(torch.ones(60, 2), [20] * 3, 5).taken()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # ruff: ignore[numpy-legacy-random]
    assert random.getstate() == before[2]


def test_other_seeds_keep_other_rows() -> None:
    assert len({tuple(kept(filled(numbered(60), [60], 10, seed))) for seed in range(20)}) == 20


@pytest.mark.parametrize(
    ("features", "classes", "rows"),
    [(1, 1, 1024), (256, 1, 1024), (257, 1, 1028), (2048, 1, 8192), (2049, 1, 8188), (256, 10, 10_240), (10**7, 1, 2)],
)
def test_default_capacity(features: int, classes: int, rows: int) -> None:
    """4·D from 1,024 to 8,192 for each class, and no more than 64 MiB of float32."""
    assert default_samples(features, classes) == rows
    assert rows == 2 or rows * features * 4 <= 2**26


def test_default_capacity_is_that_of_the_width() -> None:
    sample = FeatureSample(classes=2)
    sample.add(torch.ones(3, 300))
    assert sample.capacity == 2400


def test_refusal() -> None:
    sample = filled(numbered(6), [6], 10)
    sample.refuse("because")
    assert (sample.refused, len(sample), sample.width) == ("because", 0, None)


def test_clearing() -> None:
    sample = filled(numbered(60), [20] * 3, 5)
    sample.taken()
    sample.clear()
    assert (sample.refused, len(sample), sample.width) == (None, 0, None)
    sample.add(numbered(60))
    assert len(sample) == 5


class Gathered:
    """What each of two processes gathers, computed one process after the other."""

    world_size = 2

    def __init__(self, others: list[Tensor]) -> None:
        self.others, self.own, self.strategy = list(others), [], self
        self.root_device = torch.device("cpu")

    def all_gather(self, tensor: Tensor) -> Tensor:
        self.own.append(tensor)
        other = self.others.pop(0) if self.others else torch.zeros_like(tensor)
        assert other.shape == tensor.shape  # or processes would wait for each other for ever
        return torch.stack([tensor, other])


def exchanged(*locals_: dict[str, FeatureSample]) -> list[dict[str, SampledRows]]:
    """What each of two processes makes of its samples and those of the other."""
    sizes = []
    for local in locals_:
        spy = Gathered([])
        over_processes(local, spy)
        sizes.append(spy.own[0])
    blocks = []
    for process in (0, 1):  # to learn what each sends
        spy = Gathered([sizes[1 - process]])
        over_processes(locals_[process], spy)
        blocks.append(spy.own[1:])
    trainers = [Gathered([sizes[1 - process], *blocks[1 - process]]) for process in (0, 1)]
    got = [over_processes(local, trainer) for local, trainer in zip(locals_, trainers, strict=True)]
    assert not any(trainer.others for trainer in trainers)
    return got


@pytest.mark.parametrize("capacity", [20, 200])
def test_samples_of_two_processes_are_those_with_the_smallest_draws_of_both(capacity: int) -> None:
    """With their labels; of uneven shares as well."""
    rows, labels = numbered(100), torch.arange(100) % 7
    locals_ = [
        {"layer": filled(rows[:70], [10] * 7, capacity, 0, labels[:70])},
        {"layer": filled(rows[70:], [30], capacity, 1, labels[70:])},
    ]
    taken = [local["layer"].taken() for local in locals_]
    draws = {float(d): int(row[0]) for one, of_rows in taken for row, d in zip(one.features, of_rows, strict=True)}
    expected = sorted(draws[draw] for draw in sorted(draws)[:capacity])
    assert len(expected) == min(capacity, 100)
    for got in exchanged(*locals_):
        numbers = got["layer"].features[:, 0].long()
        assert sorted(numbers.tolist()) == expected
        assert torch.equal(got["layer"].labels, labels[numbers])


def test_each_row_of_two_processes_has_the_same_chance() -> None:
    """Of 31 rows in one and 9 in the other."""
    samples = []
    for seed in range(0, 600, 2):
        parts = filled(numbered(40)[:31], [10, 21], 8, seed), filled(numbered(40)[31:], [9], 8, seed + 1)
        got, _ = exchanged(*({"layer": part} for part in parts))
        samples.append([int(row[0]) for row in got["layer"].features])
    assert {len(sample) for sample in samples} == {8}
    assert LIKELY[0] < chi_square(samples, 40) < LIKELY[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_processes_exchange_rows_as_they_are(dtype: torch.dtype) -> None:
    rows = torch.randn(20, 4, dtype=torch.float64).to(dtype)
    both = exchanged({"layer": filled(rows[:12], [12], 50)}, {"layer": filled(rows[12:], [8], 50, 1)})
    for got in both:
        assert got["layer"].features.dtype == dtype
        assert torch.equal(got["layer"].features.double().sort(0).values, rows.double().sort(0).values)


def test_layers_that_one_process_lacks_or_refuses() -> None:
    """No process waits, and both leave out the same."""
    locals_ = []
    for process in (0, 1):
        local = {name: FeatureSample(10, seed=process) for name in ("one", "none", "refused", "widths", "both")}
        local["both"].add(torch.ones(3, 2))
        local["widths"].add(torch.ones(3, 2 + process))
        local["refused"].add(torch.ones(3, 2))
        if process:
            local["one"].add(torch.ones(4, 5))
            local["refused"].refuse("because")
        locals_.append(local)
    for got in exchanged(*locals_):
        assert {name: tuple(rows.features.shape) for name, rows in got.items()} == {"one": (4, 5), "both": (6, 2)}
