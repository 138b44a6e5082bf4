from collections.abc import Iterable
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rank_callbacks.callbacks.processes import summed_over_processes
from rank_callbacks.callbacks.sharing import owners, shared_singular_values
from tests.callbacks.two_processes import SHAPES
from tests.processes import run_script, seen
from tests.training import assert_identical


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes have saved what they saw."""
    path = tmp_path_factory.mktemp("processes")
    run_script("tests.callbacks.two_processes", path)
    return path


def test_readings_of_two_processes_are_those_of_one(folder: Path) -> None:
    (one,), two = seen(folder, "one"), seen(folder, "two")
    assert len(two) == 2
    assert_identical(two[0]["outcome"]["model"], one["outcome"]["model"])
    assert {step for step, _, _ in one["rows"]} == {0, 2, 4, 6}
    assert two[0]["rows"] == one["rows"]
    assert two[1]["rows"] == []


@pytest.mark.parametrize("name", ["two", "watched"])
def test_callback_metrics_are_equal_on_both_processes(folder: Path, name: str) -> None:
    first, second = seen(folder, name)
    assert first["metrics"] == second["metrics"]
    assert {tag.split("/")[0] for tag in first["metrics"]} == {"weight_rank", "weight_change_rank"}


def test_training_is_bit_identical_with_and_without_the_monitor(folder: Path) -> None:
    watched, unwatched = seen(folder, "watched"), seen(folder, "unwatched")
    assert len(watched) == len(unwatched) == 2
    assert watched[0]["metrics"]
    assert not unwatched[0]["metrics"]
    assert watched[0]["outcome"]["losses"] != watched[1]["outcome"]["losses"]
    for with_monitor, without in zip(watched, unwatched, strict=True):
        assert_identical(with_monitor["outcome"], without["outcome"])


def test_each_process_measures_its_share_alone(folder: Path) -> None:
    first, second = seen(folder, "share")
    assert first["measured"] == ["large"]
    assert sorted(second["measured"]) == ["middle", "small"]


def test_both_processes_get_every_spectrum_from_its_owner(folder: Path) -> None:
    expected = {name: torch.full(SHAPES[name], entry) for name, entry in (("small", 2.0), ("large", 1.0), ("middle", 2.0))}
    for process in seen(folder, "share"):
        assert list(process["values"]) == list(SHAPES)
        assert process["nothing"] == {}
        for name, matrix in expected.items():
            torch.testing.assert_close(process["values"][name], torch.linalg.svdvals(matrix.double()), atol=1e-12, rtol=1e-12)


def test_spectrum_that_fails_on_one_process_is_nan_on_both_and_nobody_waits(folder: Path) -> None:
    for process in seen(folder, "share"):
        assert process["failed"]["impossible"].isnan().all()
        assert len(process["failed"]["impossible"]) == 10
        assert process["failed"]["possible"].tolist() == [1, 1, 1]
    assert len(seen(folder, "sharing")) == 2


COSTS = st.lists(st.floats(0.01, 100), max_size=6).map(lambda costs: {f"matrix {n}": cost for n, cost in enumerate(costs)})


def longest(costs: dict[str, float], owner: Iterable[int], processes: int) -> float:
    """Time that the busiest process takes."""
    busy = [0.0] * processes
    for cost, process in zip(costs.values(), owner, strict=True):
        busy[process] += cost
    return max(busy)


@given(costs=COSTS, processes=st.integers(1, 3))
@settings(derandomize=True, deadline=None)
def test_owners_take_every_matrix_and_at_most_a_third_longer_than_possible(costs: dict[str, float], processes: int) -> None:
    owner = owners(costs, processes)
    assert owner.keys() == costs.keys()
    best = min(longest(costs, shares, processes) for shares in product(range(processes), repeat=len(costs)))
    assert longest(costs, [owner[name] for name in costs], processes) <= 4 / 3 * best + 1e-9


def test_one_process_measures_all_by_itself() -> None:
    values = shared_singular_values({"matrix": torch.eye(3), "block-diagonal": torch.ones(2, 1, 1)})
    assert {name: spectrum.tolist() for name, spectrum in values.items()} == {"matrix": [1, 1, 1], "block-diagonal": [1, 1]}


def test_one_process_leaves_a_sum_where_it_is() -> None:
    """Some accelerators have no float64; "meta" stands for them, from which nothing can be read back."""
    tensor = torch.ones(3, device="meta")
    assert summed_over_processes(tensor) is tensor


def test_owners_are_the_same_for_the_same_costs() -> None:
    costs = {name: 1.0 for name in "abcdef"}
    assert owners(costs, 3) == owners(dict(costs), 3) == {"a": 0, "b": 1, "c": 2, "d": 0, "e": 1, "f": 2}


def test_owners_share_equal_costs_evenly() -> None:
    taken = list(owners({str(n): 2.0 for n in range(12)}, 4).values())
    assert [taken.count(process) for process in range(4)] == [3, 3, 3, 3]
