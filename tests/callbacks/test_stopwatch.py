import time

import pytest

from rank_callbacks.callbacks.stopwatch import Stopwatch


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def report(stopwatch: Stopwatch, clock: Clock, measuring: float, writing: float, step: int) -> dict[str, float]:
    with stopwatch:
        clock.now += measuring
        cost = stopwatch.cost("weight_rank", step)
        clock.now += writing
    return {tag.measure: value for tag, value in cost.items()}


def test_seconds_are_those_of_this_report_and_the_share_is_of_all(clock: Clock) -> None:
    stopwatch = Stopwatch()
    assert report(stopwatch, clock, measuring=2, writing=3, step=0) == {"seconds": 2}
    clock.now += 4
    assert report(stopwatch, clock, measuring=1, writing=0, step=1) == {"seconds": 1, "share_of_training": (2 + 3 + 1) / 10}
    clock.now += 10
    assert report(stopwatch, clock, measuring=5, writing=0, step=2) == {"seconds": 5, "share_of_training": 11 / 25}


def test_blocks_before_the_telling_are_part_of_the_report(clock: Clock) -> None:
    stopwatch = Stopwatch()
    with stopwatch:
        clock.now += 2
    clock.now += 5
    assert report(stopwatch, clock, measuring=1, writing=0, step=3) == {"seconds": 3, "share_of_training": 3 / 8}


def test_restart_forgets(clock: Clock) -> None:
    stopwatch = Stopwatch()
    report(stopwatch, clock, measuring=7, writing=7, step=0)
    stopwatch.restart()
    clock.now += 1
    assert report(stopwatch, clock, measuring=1, writing=0, step=1) == {"seconds": 1, "share_of_training": 0.5}
