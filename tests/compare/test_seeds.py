import math

import pytest
from scipy.stats import t

from rank_callbacks.compare.run import Run
from rank_callbacks.compare.seeds import Spread, alike, over_seeds


def run_of(name: str, **settings: float | str) -> Run:
    return Run(name, "csv", settings, [], {}, {})


RUNS = [
    run_of("a", weight_decay=0.1, lr=1.0, seed=10),
    run_of("b", weight_decay=0.1, lr=1.0, seed=9),
    run_of("c", weight_decay=0.1, lr=2.0, seed=9),
    run_of("d", weight_decay=0.1, lr=2.0),
    run_of("e", weight_decay=0.2, lr=1.0, seed=9),
]


def names(groups: list[list[Run]]) -> list[list[str]]:
    return [[run.name for run in group] for group in groups]


def test_all_but_the_seed_is_in_common_and_the_least_seed_first() -> None:
    assert names(alike(RUNS)) == [["b", "a"], ["c", "d"], ["e"]]


def test_what_is_compared_by_the_seed_is_never_together() -> None:
    assert names(alike(RUNS[:3], x="seed")) == [["a"], ["b"], ["c"]]


def test_another_hyperparameter_is_the_seed() -> None:
    assert names(alike(RUNS, seed="lr")) == [["a"], ["b", "c"], ["d"], ["e"]]


def test_mean_and_interval_of_what_is_finite() -> None:
    """With scipy's quantile; NaN and what was not logged are in no mean, and alone they stay."""
    runs = [run_of(name, weight_decay=0.1, seed=seed) for seed, name in enumerate("abc")]
    cells = [[1.0, math.nan, None, 5.0], [2.0, math.nan, None, math.inf], [6.0, math.nan, None, 7.0]]
    rows = [[run.name, 0.1, *of_run] for run, of_run in zip(runs, cells, strict=True)]
    (row,) = over_seeds(rows, alike(runs))
    assert row[:2] == ["a and 2 more", 0.1]
    deviation = math.sqrt((4 + 1 + 9) / 2)
    assert row[2] == Spread(3.0, pytest.approx(t.ppf(0.975, 2) * deviation / math.sqrt(3), rel=1e-3), 3)
    assert math.isnan(row[3])
    assert row[4] is None
    assert row[5] == Spread(6.0, pytest.approx(t.ppf(0.975, 1), rel=1e-3), 2)


def test_a_row_alone_stays_as_it_is() -> None:
    rows = [["a", 0.1, 1.0], ["b", 0.1, 2.0], ["c", 0.1, 3.0]]
    assert over_seeds(rows, [RUNS[:2]])[1] == rows[2]
    assert over_seeds(rows, []) == rows
