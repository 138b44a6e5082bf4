import math
import random

import numpy as np
import pytest
from scipy.stats import linregress, t

from rank_callbacks.compare.law import law
from rank_callbacks.compare.run import Run
from tests.compare.sweeps import distances, made_run, sweep_of


def power_law(slope: float, noise: float = 0.0, runs: int = 5, seed: int = 0) -> list[Run]:
    """Runs of two layers whose distance is a power of TCV/λ, with noise that the layers of a run share in part."""
    random_numbers = random.Random(seed)
    made = []
    for place in range(runs):
        decay, variations = 1e-4 * 3**place, (0.6, 0.15)
        shared = random_numbers.gauss(0, noise)
        far = [1e-3 * (v / decay) ** slope * math.exp(shared + random_numbers.gauss(0, noise / 2)) for v in variations]
        made.append(made_run(f"r{place}", decay, distances(decay, variations, far)))
    return made


@pytest.mark.parametrize("slope", [0.5, 1.0, 2.0])
def test_exact_power_law(slope: float) -> None:
    found = law(power_law(slope))
    assert found.slope == pytest.approx(slope)
    assert found.interval == pytest.approx((slope, slope))
    assert found.intercept == pytest.approx(math.log(1e-3))
    assert found.explained == pytest.approx(1)
    assert found.slope_within_runs == pytest.approx(slope)
    assert (len(found.points), found.runs, found.left_out) == (10, 5, 0)


def test_line_is_scipys() -> None:
    found = law(power_law(1.0, noise=0.5))
    x = np.log([point.variation / point.weight_decay for point in found.points])
    y = np.log([point.distance for point in found.points])
    reference = linregress(x, y)
    assert found.slope == pytest.approx(reference.slope)
    assert found.intercept == pytest.approx(reference.intercept)
    assert found.explained == pytest.approx(reference.rvalue**2)
    decays = np.log([point.weight_decay for point in found.points])
    assert found.explained_by_decay == pytest.approx(linregress(decays, y).rvalue ** 2)


def test_interval_is_the_sandwich_of_matrices() -> None:
    """Cameron and Miller's equations 11 and 12, with all coefficients at once."""
    found = law(power_law(1.0, noise=0.5))
    design = np.array([[1.0, math.log(point.variation / point.weight_decay)] for point in found.points])
    y = np.log([point.distance for point in found.points])
    bread = np.linalg.inv(design.T @ design)
    residuals = y - design @ (bread @ design.T @ y)
    meat = np.zeros((2, 2))
    for run in {point.run for point in found.points}:
        mine = [place for place, point in enumerate(found.points) if point.run == run]
        score = design[mine].T @ residuals[mine]
        meat += np.outer(score, score)
    n, clusters = len(y), found.runs
    variance = clusters / (clusters - 1) * (n - 1) / (n - 2) * (bread @ meat @ bread)[1, 1]
    half = t.ppf(0.975, clusters - 1) * math.sqrt(variance)
    assert found.interval == pytest.approx((found.slope - half, found.slope + half), rel=1e-3)


def test_interval_covers_the_truth_in_most_samples() -> None:
    covered = 0
    for seed in range(200):
        low, high = law(power_law(1.0, noise=0.5, runs=12, seed=seed)).interval
        covered += low <= 1 <= high
    assert 170 <= covered <= 200


def test_distance_that_follows_the_decay_alone() -> None:
    runs = [made_run(f"r{d}", d, distances(d, (0.6, 0.15), (1e-3 / d, 1e-3 / d))) for d in (0.001, 0.01, 0.1)]
    found = law(runs)
    assert found.explained_by_decay == pytest.approx(1)
    assert found.slope_within_runs == pytest.approx(0, abs=1e-9)
    assert found.explained < 0.99


def test_what_has_no_logarithm_is_counted() -> None:
    runs = [*power_law(1.0), made_run("head", 0.1, distances(0.1, (0.5, 0.0), (0.0, 0.1))), sweep_of([0.0])[0]]
    found = law(runs)
    assert found.left_out == 4
    assert found.runs == 5


def test_nan_is_left_out() -> None:
    found = law([*power_law(1.0), made_run("nan", 0.1, distances(0.1, (math.nan, 0.2), (0.1, math.nan)))])
    assert found.left_out == 2
    assert found.slope == pytest.approx(1)


def test_weight_decay_of_the_optimizer_before_that_of_the_hyperparameters() -> None:
    runs = [run._replace(hyperparameters={"weight_decay": 7.0}) for run in power_law(1.0)]
    assert law(runs).slope == pytest.approx(1)
    silent = [run._replace(rows=[row for row in run.rows if row.tag.measure != "weight_decay"]) for run in power_law(1.0)]
    assert law(silent).slope == pytest.approx(1)


def test_one_run_has_no_interval() -> None:
    layers = ("a", "b", "c")
    run = made_run("r", 0.1, distances(0.1, (0.1, 0.2, 0.4), (0.1, 0.3, 0.4), layers))
    found = law([run])
    assert found.interval == (-math.inf, math.inf)
    assert math.isnan(found.explained_by_decay)


@pytest.mark.parametrize(
    "runs",
    [
        [],
        sweep_of([0.0]),
        sweep_of([0.01]),
        [made_run(name, 0.1, distances(0.1, (0.5, 0.5), (0.1, 0.2))) for name in "ab"],
    ],
    ids=["none", "no decay", "two points", "one ratio"],
)
def test_too_little_for_a_line(runs: list[Run]) -> None:
    with pytest.raises(ValueError, match="Expected 3 layers or more with weight decay"):
        law(runs)


def test_other_measures() -> None:
    found = law(power_law(1.0), distance="distance_to_rank_k")
    assert found.intercept == pytest.approx(math.log(2e-3))


def test_ratios_that_differ_by_rounding_alone_have_no_line() -> None:
    runs = [made_run(f"r{v}", v * 0.3, distances(v * 0.3, (v, v), (0.1, 0.2))) for v in (0.1, 0.3, 0.7)]
    with pytest.raises(ValueError, match="not all of the same ratio"):
        law(runs)


@pytest.mark.parametrize("distance", [0.1, 0.3, 0.7])
def test_distances_that_are_all_the_same_leave_nothing_to_explain(distance: float) -> None:
    """Their logarithms differ from their mean by rounding."""
    runs = [made_run(f"r{d}", d, distances(d, (0.6, 0.15), (distance, distance))) for d in (0.001, 0.013, 0.1, 0.2, 0.5)]
    assert math.isnan(law(runs).explained)
