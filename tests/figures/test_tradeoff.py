import json
import math
import random

import pytest
from scipy.stats import t

from rank_callbacks.figures.tradeoff import over_seeds, pareto_front, tradeoff


def naive_front(ranks: dict[str, float], accuracies: dict[str, float]) -> set[str]:
    """Runs that no other is as good as in both and better than in one."""

    def beats(one: str, other: str) -> bool:
        as_good = ranks[one] <= ranks[other] and accuracies[one] >= accuracies[other]
        return as_good and (ranks[one], accuracies[one]) != (ranks[other], accuracies[other])

    return {run for run in ranks if not any(beats(other, run) for other in ranks)}


@pytest.mark.parametrize("seed", range(20))
def test_front_is_the_naive_one(seed: int) -> None:
    numbers = random.Random(seed)
    # Few values, so that many are equal.
    ranks = {str(run): float(numbers.randint(1, 6)) for run in range(12)}
    accuracies = {run: numbers.randint(1, 6) / 10 for run in ranks}
    front = pareto_front(ranks, accuracies)
    assert set(front) == naive_front(ranks, accuracies)
    assert len(front) == len(set(front))
    assert [ranks[run] for run in front] == sorted(ranks[run] for run in front)


def test_nan_and_missing_beat_nothing() -> None:
    ranks = {"a": 5.0, "b": math.nan, "c": 1.0, "d": 1.0}
    assert pareto_front(ranks, {"a": 0.5, "b": 0.9, "c": math.nan}) == ["a"]


def test_chart() -> None:
    ranks, accuracies = {"a": 5.0, "b": 2.0, "c": 6.0}, {"a": 0.9, "b": 0.8, "c": 0.7}
    figure = tradeoff(ranks, accuracies, {"a": 0.1, "b": 0.2, "c": "<b>"})
    front, marks = figure["data"]
    assert (front["x"], front["y"]) == ([2.0, 5.0], [0.8, 0.9])
    assert (marks["x"], marks["y"]) == ([5.0, 2.0, 6.0], [0.9, 0.8, 0.7])
    assert marks["text"] == ["0.1", "0.2", "&lt;b&gt;"]
    json.dumps(figure, allow_nan=False)


# One lucky seed of a setting whose mean is beaten in both.
SEEDS = {"a1": (20.0, 0.99), "a2": (30.0, 0.5), "a3": (25.0, 0.4), "b1": (9.0, 0.9), "b2": (11.0, 0.8)}
ALIKE = [["a1", "a2", "a3"], ["b1", "b2"]]


def of_seeds() -> tuple[dict[str, float], dict[str, float]]:
    return {run: rank for run, (rank, _) in SEEDS.items()}, {run: accuracy for run, (_, accuracy) in SEEDS.items()}


def test_means_and_intervals_over_seeds() -> None:
    found = over_seeds(*of_seeds(), ALIKE)
    assert {name: one[:2] for name, one in found.items()} == {"a1": (25, pytest.approx(0.63)), "b1": (10, pytest.approx(0.85))}
    assert found["a1"].rank_half == pytest.approx(t.ppf(0.975, 2) * 5 / math.sqrt(3), rel=1e-3)
    assert found["b1"].accuracy_half == pytest.approx(t.ppf(0.975, 1) * 0.05, rel=1e-3)


def test_a_seed_without_accuracy_is_in_no_mean() -> None:
    ranks, accuracies = of_seeds()
    found = over_seeds(ranks, accuracies | {"b1": math.nan}, ALIKE)
    assert found["b2"] == (11.0, 0.8, None, None, ("b2",))


def test_front_is_of_means_where_seeds_differ() -> None:
    figure = tradeoff(*of_seeds(), dict.fromkeys(SEEDS, 0.1), alike=ALIKE)
    front, dots, marks = figure["data"]
    assert (front["x"], front["y"]) == ([10.0], [pytest.approx(0.85)])
    assert dots["x"] == [20.0, 30.0, 25.0, 9.0, 11.0]
    assert marks["x"] == [25.0, 10.0]
    assert marks["error_y"]["array"][1] == pytest.approx(t.ppf(0.975, 1) * 0.05, rel=1e-3)
    assert marks["customdata"][0].startswith("<b>a1 and 2 more</b>")
    json.dumps(figure, allow_nan=False)


def test_colours_follow_the_setting() -> None:
    runs = dict.fromkeys("abc", 1.0)
    _, marks = tradeoff(runs, runs, {"a": 0.1, "b": 0.2})["data"]
    assert len(set(marks["marker"]["color"])) == 3


def test_many_runs_have_no_labels() -> None:
    runs = {str(run): float(run) for run in range(20)}
    assert tradeoff(runs, runs)["data"][1]["mode"] == "markers"


def test_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="Expected runs with both an effective rank and an accuracy"):
        tradeoff({"a": 1.0}, {"b": 1.0})
