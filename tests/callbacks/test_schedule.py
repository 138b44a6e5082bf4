import pickle
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rank_callbacks.callbacks import every, log_spaced


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
