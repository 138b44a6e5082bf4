import math
import pickle
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rank_callbacks.callbacks import every, log_spaced
from rank_callbacks.callbacks.schedule import Windows


@pytest.mark.parametrize("n", [1, 2, 7, 100])
def test_every_says_yes_at_multiples(n: int) -> None:
    assert [step for step in range(301) if every(n)(step)] == list(range(0, 301, n))


@pytest.mark.parametrize("n", [0, -1, -100, 0.5, 2.5, float("nan")])
def test_every_refuses_what_is_not_a_whole_number_from_one(n: float) -> None:
    with pytest.raises(ValueError, match=f"every_n_steps to be a whole number from 1, got {n}"):
        every(n)


@pytest.mark.parametrize(
    ("per_decade", "steps"),
    [
        (1, [0, 1, 10, 100, 1000]),
        (2, [0, 1, 3, 10, 32, 100, 316, 1000]),
        (3, [0, 1, 2, 5, 10, 22, 46, 100, 215, 464, 1000]),
    ],
)
def test_log_spaced_steps(per_decade: int, steps: list[int]) -> None:
    assert [step for step in range(2000) if log_spaced(per_decade)(step)] == steps


@given(per_decade=st.integers(1, 60))
@settings(derandomize=True, deadline=None, max_examples=20)
def test_log_spaced_is_what_rounding_a_logarithmic_grid_gives(per_decade: int) -> None:
    grid = {0} | {round(10 ** (place / per_decade)) for place in range(4 * per_decade)}
    assert {step for step in range(9000) if log_spaced(per_decade)(step)} == {step for step in grid if step < 9000}


@pytest.mark.parametrize("per_decade", [1, 7, 10, 50])
@pytest.mark.parametrize("power", range(16))
def test_log_spaced_says_yes_at_powers_of_ten(per_decade: int, power: int) -> None:
    assert log_spaced(per_decade)(10**power)


def test_log_spaced_is_evenly_spaced_far_out() -> None:
    schedule = log_spaced(10)
    steps = [step for step in range(100_000, 1_000_000) if schedule(step)]
    assert len(steps) == 10
    assert [after / before for before, after in pairwise(steps)] == pytest.approx([10**0.1] * 9, rel=1e-5)


@pytest.mark.parametrize("per_decade", [0, -3])
def test_log_spaced_refuses_less_than_one(per_decade: int) -> None:
    with pytest.raises(ValueError, match=f"per_decade to be a whole number from 1, got {per_decade}"):
        log_spaced(per_decade)


@pytest.mark.parametrize("schedule", [every(3), log_spaced(4)], ids=str)
def test_schedules_are_values(schedule: every | log_spaced) -> None:
    copy = pickle.loads(pickle.dumps(schedule))
    assert copy == schedule
    assert hash(copy) == hash(schedule)


def run(windows: Windows, steps: int, batches: int = 1) -> list[tuple[int, int]]:
    """The first and last step of each window, as a monitor goes through them: none is opened within another."""
    found, first = [], None
    for step in range(steps):
        for batch in range(batches):
            if first is None and windows.begin(step):
                first = step
            if first is not None and batch == batches - 1 and windows.end(step):
                found.append((first, step))
                first = None
    return found


class TestWindows:
    @pytest.mark.parametrize("batches", [1, 3])
    @pytest.mark.parametrize(
        ("every_n_steps", "length", "windows"),
        [
            pytest.param(1, None, [(s, s) for s in range(30)], id="every step"),
            pytest.param(4, 1, [(s, s) for s in range(0, 30, 4)], id="of one step"),
            pytest.param(4, 3, [(s - 2, s) for s in range(4, 30, 4)], id="of three steps"),
            pytest.param(4, 4, [(s - 3, s) for s in range(4, 30, 4)], id="one after the other"),
            pytest.param(10, None, [(3, 10), (13, 20)], id="of eight by default"),
            pytest.param(5, None, [(s - 4, s) for s in range(5, 30, 5)], id="or of as many as there are"),
            pytest.param(lambda step: step in {2, 9, 20}, None, [(2, 9), (13, 20)], id="function"),
            pytest.param(lambda step: step in {2, 9, 11, 20}, 3, [(0, 2), (7, 9), (18, 20)], id="overlap is left out"),
            pytest.param(log_spaced(1), 2, [(0, 1), (9, 10)], id="log-spaced"),
        ],
    )
    def test_windows_end_on_schedule(self, every_n_steps: Any, length: int | None, windows: Any, batches: int) -> None:
        assert run(Windows(every_n_steps, length), 30, batches) == windows

    @pytest.mark.parametrize("batches", [1, 3])
    @pytest.mark.parametrize(
        ("every_n_steps", "length", "steps", "windows"),
        [
            pytest.param(10, 3, 19, [(8, 10), (16, 18)], id="after a scheduled one"),
            pytest.param(10, 3, 21, [(8, 10), (18, 20)], id="which is scheduled itself"),
            pytest.param(10, 3, 22, [(8, 10), (18, 20)], id="one is open that ends a step before"),
            pytest.param(10, 3, 23, [(8, 10), (18, 20)], id="one is open at the last step but two"),
            pytest.param(10, 3, 24, [(8, 10), (18, 20), (21, 23)], id="one has ended a step before"),
            pytest.param(10, 3, 20, [(8, 10), (17, 19)], id="in the place of one that would end after training"),
            pytest.param(4, 4, 12, [(1, 4), (5, 8)], id="one is open, and the next would end after training"),
            pytest.param(lambda step: step == 50, 3, 12, [(9, 11)], id="nothing is scheduled in training"),
            pytest.param(10, 8, 8, [(0, 7)], id="training of a window"),
            pytest.param(10, 8, 9, [(1, 8)], id="training of a step more"),
            pytest.param(10, 8, 7, [(0, 6)], id="training of a step less"),
            pytest.param(10, None, 1, [(0, 0)], id="training of a step"),
            pytest.param(lambda step: step in {2, 4}, 3, 2, [(0, 1)], id="training shorter than a scheduled window"),
            pytest.param(lambda step: step in {2, 4}, 3, 4, [(0, 2)], id="the first is open"),
            pytest.param(10, 1, 18, [(0, 0), (10, 10), (17, 17)], id="of one step"),
            pytest.param(10, 1, 21, [(0, 0), (10, 10), (20, 20)], id="of one step, which is scheduled"),
            pytest.param(1, 1, 3, [(0, 0), (1, 1), (2, 2)], id="every step"),
        ],
    )
    def test_last_window_ends_with_training(
        self, every_n_steps: Any, length: int | None, steps: int, windows: Any, batches: int
    ) -> None:
        known = Windows(every_n_steps, length)
        known.restart(last=steps - 1)
        assert run(known, steps, batches) == windows

    @given(every_n_steps=st.integers(1, 12), length=st.integers(1, 12), steps=st.integers(1, 40))
    @settings(derandomize=True, deadline=None, max_examples=300)
    def test_last_window_leaves_the_others_alone(self, every_n_steps: int, length: int, steps: int) -> None:
        length = min(length, every_n_steps)
        scheduled, known = Windows(every_n_steps, length), Windows(every_n_steps, length)
        known.restart(last=steps - 1)
        before, windows, first = run(scheduled, steps), run(known, steps), max(steps - length, 0)
        free = all(end < first for _, end in before)
        assert windows == before + [(first, steps - 1)] * free

    @pytest.mark.parametrize("last", [math.inf, -1, -2])
    def test_end_of_training_that_is_not_known(self, last: float) -> None:
        """To Lightning it is less than no step where the data does not tell."""
        windows = Windows(10, 3)
        windows.restart(last)
        assert run(windows, 33) == [(8, 10), (18, 20), (28, 30)]

    def test_restart_forgets_the_last_step(self) -> None:
        windows = Windows(10, 3)
        windows.restart(last=14)
        assert run(windows, 15) == [(8, 10), (12, 14)]
        windows.restart()
        assert run(windows, 24) == [(8, 10), (18, 20)]

    def test_begins_once_a_step(self) -> None:
        """However many batches accumulate in it."""
        windows = Windows(2, 1)
        assert [windows.begin(step) for step in (0, 0, 0, 1, 1, 2, 2)] == [True, False, False, False, False, True, False]

    def test_does_not_end_before_it_has_begun(self) -> None:
        windows = Windows(2, 1)
        assert not any(windows.end(step) for step in range(10))
        windows.begin(2)
        assert windows.end(2)
        windows.restart()
        assert not windows.end(2)

    def test_ends_late_rather_than_not_at_all(self) -> None:
        """Where a step is left out."""
        windows = Windows(4, 2)
        assert windows.begin(3)
        assert [windows.end(step) for step in (3, 5)] == [False, True]

    def test_restart_forgets_the_step(self) -> None:
        windows = Windows(1)
        assert [windows.begin(0), windows.begin(0)] == [True, False]
        windows.restart()
        assert windows.begin(0)

    @pytest.mark.parametrize("length", [0, -1, 1.5, 5])
    def test_length_must_fit(self, length: float) -> None:
        with pytest.raises(ValueError, match=f"window to be a whole number of steps from 1 to every_n_steps, got {length}"):
            Windows(4, length)

    def test_any_length_fits_a_function(self) -> None:
        assert Windows(lambda step: True, 1000).length == 1000
        assert Windows(log_spaced()).length == 8

    @pytest.mark.parametrize("every_n_steps", [0, -3, 2.5])
    def test_schedule_must_be_one(self, every_n_steps: float) -> None:
        with pytest.raises(ValueError, match=f"every_n_steps to be a whole number from 1, got {every_n_steps}"):
            Windows(every_n_steps)

    def test_pickle(self) -> None:
        windows = pickle.loads(pickle.dumps(Windows(4, 3)))
        assert run(windows, 10) == [(2, 4), (6, 8)]
