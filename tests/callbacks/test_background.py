import copy
import pickle
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rank_callbacks import WeightRankMonitor
from rank_callbacks.callbacks.background import Background, Copy
from rank_callbacks.tags import Tag
from rank_callbacks.writers import Report
from tests.processes import run_script, seen

TAG = Tag("weight_rank", "stable_rank", "weight")
TENSORS = {"weight": torch.full((2, 2), 3.0)}


def take(copy: Copy) -> dict[str, Tensor]:
    return {name: copy(tensor) for name, tensor in TENSORS.items()}


def finish(copies: Mapping[str, Tensor], step: int = 5, release: threading.Event | None = None) -> Report:
    if release is not None:
        release.wait(60)
    return Report(step, {TAG: float(copies["weight"].sum())}, {}, {})


def fails(copies: Mapping[str, Tensor]) -> Report:
    raise RuntimeError("out of memory")


@pytest.fixture
def background() -> Any:
    one = Background()
    yield one
    one.close()


def test_nothing_of_the_cpu_is_taken(background: Background) -> None:
    assert not background.takes(TENSORS.values())
    assert not background.takes([])


def test_up_to_a_gibibyte_of_another_device_is_taken(background: Background) -> None:
    elsewhere = torch.empty(2**14, 2**14, device="meta")
    assert background.takes([elsewhere])
    assert not background.takes([elsewhere, elsewhere[:1]])
    assert not background.takes([elsewhere, torch.empty(1)])


def test_report_comes_once_with_its_own_step(background: Background) -> None:
    assert background.collect() is None
    background.start(take, finish)
    assert background.collect(is_waited_for=True) == Report(5, {TAG: 12.0}, {}, {})
    assert background.collect(is_waited_for=True) is None


def test_report_under_way_is_not_waited_for_and_others_are_dropped(background: Background) -> None:
    release = threading.Event()
    background.start(take, partial(finish, release=release))
    assert background.collect() is None
    assert background.cost("weight_rank") == {}
    assert background.drops()
    assert background.drops()
    assert background.cost("weight_rank") == {Tag("monitor", "dropped_reports", "weight_rank"): 2.0}
    release.set()
    report = background.collect(is_waited_for=True)
    assert report is not None
    assert report.step == 5
    assert not background.drops()
    background.start(take, partial(finish, step=20))
    report = background.rescue()
    assert report is not None
    assert report.step == 20


def test_failure_is_a_warning_and_the_next_report_is_read(background: Background) -> None:
    background.start(take, fails)
    with pytest.warns(UserWarning, match="no readings: RuntimeError: out of memory"):
        assert background.collect(is_waited_for=True) is None
    background.start(take, finish)
    assert background.collect(is_waited_for=True) is not None


def test_closed_it_has_nothing_under_way(background: Background) -> None:
    background.start(take, finish)
    background.close()
    assert background.collect(is_waited_for=True) is None
    assert background.rescue() is None


def test_monitor_can_be_copied_and_sent() -> None:
    monitor = WeightRankMonitor()
    assert copy.deepcopy(monitor).measures == pickle.loads(pickle.dumps(monitor)).measures


def test_two_processes(tmp_path: Path) -> None:
    """One finishes, both have the report; and what fails on the one leaves the other waiting for nothing."""
    run_script("tests.callbacks.two_processes_background", tmp_path)
    first, second = seen(tmp_path, "background")
    assert first["report"] == second["report"] == Report(5, {TAG: 12.0}, {}, {})
    assert first["unfinished"] is second["unfinished"] is None
    assert first["dropped"] == second["dropped"] == 1
    assert first["failed"] is second["failed"] is None
    assert (first["threads"], second["threads"]) == (1, 0)
    assert first["alone"] == 1
    assert (first["rescued"] is None, second["rescued"] is None) == (False, True)
