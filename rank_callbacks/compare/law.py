"""Whether the distance to rank K follows TCV over weight decay, as a straight line on log axes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rank_callbacks.compare.final import last_readings
from rank_callbacks.compare.run import Run
from rank_callbacks.figures.interval import t_quantile
from rank_callbacks.figures.selection import OVER_LAYERS
from rank_callbacks.tags import Tag

__all__ = ["Law", "Point", "law"]

# A line goes through any two points and explains all of them.
_FEWEST_POINTS = 3
_Vector = NDArray[np.float64]


class Point(NamedTuple):
    """One layer of one run at its end.

    Args:
        run: Its name.
        layer: Its name.
        variation: The TCV of the layer's input, or its ratio to all variation.
        weight_decay: λ, above 0.
        distance: Of the weight to rank K, above 0.
    """

    run: str
    layer: str
    variation: float
    weight_decay: float
    distance: float


class Law(NamedTuple):
    """A line ln distance = intercept + slope · ln(TCV/λ).

    Args:
        slope: 1 where the distance is proportional to TCV/λ.
        interval: Of 95 % for the slope; infinite with points of one run only.
        intercept: ln distance at TCV/λ = 1.
        explained: R², the share of the variation of ln distance that the line explains.
        explained_by_decay: What a line in ln λ alone explains, without the TCV; NaN if all runs have the same λ.
        slope_within_runs: That of ln distance against ln TCV among layers of the same run, at equal λ therefore; NaN if no run
            has layers of different TCV.
        points: What the line is fitted to.
        runs: How many runs they are of.
        left_out: How many layers of the runs have no logarithm: at distance 0, at TCV 0, without weight decay, NaN.
    """

    slope: float
    interval: tuple[float, float]
    intercept: float
    explained: float
    explained_by_decay: float
    slope_within_runs: float
    points: tuple[Point, ...]
    runs: int
    left_out: int


def law(runs: Sequence[Run], distance: str = "relative_distance_to_rank_k", variation: str = "tcv_ratio_input") -> Law:
    """The line of least squares through all layers of all runs at their end, in ln distance against ln(TCV/λ).

    Zangrando et al. prove an upper bound, distance ≤ constant · TCV/λ: no slope follows from it, but where points lie along
    the bound the slope is 1. Layers of one run are not independent, so the interval is the cluster-robust one, of runs as
    clusters: slope ± t · sqrt(Σ_run (Σ x·e)²) / Σ x² · sqrt(G/(G − 1) · (n − 1)/(n − 2)), with e the residuals, x about its
    mean, n points of G runs and t the quantile with G − 1 degrees of freedom. With few runs even this is too narrow.

    Args:
        runs: What can be compared.
        distance: The measure of distance; ``distance_to_rank_k`` for the one in the unit of the weight.
        variation: The measure of variability; ``tcv_input`` for the one in the unit of the inputs.

    Raises:
        ValueError: If fewer than three points have a logarithm, or all have the same TCV/λ.

    Example:
        >>> tags = {name: Tag("rank_collapse", name, "fc") for name in ("tcv_ratio_input", "weight_decay")}
        >>> far = Tag("rank_collapse", "relative_distance_to_rank_k", "fc")
        >>> from rank_callbacks.rows import Row
        >>> def run(name, decay):
        ...     values = {tags["tcv_ratio_input"]: 0.5, tags["weight_decay"]: decay, far: 1e-4 / decay}
        ...     return Run(name, "csv", {}, [Row(name, 9, tag, value) for tag, value in values.items()], {}, {})
        >>> found = law([run("a", 0.001), run("b", 0.01), run("c", 0.1)])
        >>> round(found.slope, 9), round(found.explained, 9)
        (1.0, 1.0)

    Reference:
        Provable Emergence of Deep Neural Collapse and Low-Rank Bias in L²-Regularized Nonlinear Networks (Zangrando, Deidda,
        Brugiapaglia, Guglielmi and Tudisco, 2026), https://arxiv.org/abs/2402.03991; A Practitioner's Guide to Cluster-Robust
        Inference (Cameron and Miller, 2015), https://doi.org/10.3368/jhr.50.2.317
    """
    layers = [point for run in runs for point in _points(run, distance, variation)]
    points = tuple(point for point in layers if all(map(_has_logarithm, point[2:])))
    over = np.log([point.variation / point.weight_decay for point in points])
    if len(points) < _FEWEST_POINTS or _spread(over) == 0:
        raise ValueError(
            f"Expected {_FEWEST_POINTS} layers or more with weight decay and a {distance} and {variation} above 0, not all of "
            f"the same ratio to weight decay, got {len(points)}. Add RankCollapseMonitor to the callbacks of runs with weight "
            f"decay."
        )
    return _fitted(points, over, len(layers) - len(points))


def _fitted(points: tuple[Point, ...], over: _Vector, left_out: int) -> Law:
    heights = np.log([point.distance for point in points])
    decays = np.log([point.weight_decay for point in points])
    of_run = np.array([point.run for point in points])
    slope, intercept = _line(over, heights)
    return Law(
        slope,
        _interval(over, heights, of_run, slope),
        intercept,
        _explained(over, heights),
        _explained(decays, heights),
        _line(_within(np.log([point.variation for point in points]), of_run), _within(heights, of_run))[0],
        points,
        len(set(of_run)),
        left_out,
    )


def _points(run: Run, distance: str, variation: str) -> Iterator[Point]:
    last = last_readings(run)
    for tag, far in last.items():
        if tag[:2] == ("rank_collapse", distance) and tag.layer not in OVER_LAYERS:
            spread = last.get(Tag("rank_collapse", variation, tag.layer), math.nan)
            yield Point(run.name, tag.layer, spread, _weight_decay(run, last, tag.layer), far)


def _weight_decay(run: Run, last: Mapping[Tag, float], layer: str) -> float:
    """As the monitor read it from the optimizer, or else as the run's hyperparameter; NaN for neither."""
    chosen = run.hyperparameters.get("weight_decay")
    otherwise = math.nan if chosen is None or isinstance(chosen, str) else float(chosen)
    return last.get(Tag("rank_collapse", "weight_decay", layer), otherwise)


def _has_logarithm(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _line(x: _Vector, y: _Vector) -> tuple[float, float]:
    """Slope and intercept of least squares; NaN where all x are the same."""
    spread = _spread(x)
    if spread == 0:
        return math.nan, math.nan
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread
    return slope, float(y.mean() - slope * x.mean())


def _spread(x: _Vector) -> float:
    """The sum of squares about the mean; 0 for equal numbers, which differ from their mean by rounding."""
    spread = float(((x - x.mean()) ** 2).sum())
    return spread if spread > len(x) * (1e-12 * max(1.0, float(np.abs(x).max()))) ** 2 else 0.0


def _explained(x: _Vector, y: _Vector) -> float:
    """R²; NaN where there is nothing to explain or nothing to explain it by."""
    slope, intercept = _line(x, y)
    total = _spread(y)
    return 1 - float(((y - intercept - slope * x) ** 2).sum()) / total if total > 0 else math.nan


def _interval(x: _Vector, y: _Vector, of_run: NDArray[np.str_], slope: float) -> tuple[float, float]:
    runs, n = sorted(set(of_run)), len(x)
    if len(runs) == 1:
        return -math.inf, math.inf
    about = x - x.mean()
    pull = about * (y - y.mean() - slope * about)
    clusters = sum(float(pull[of_run == run].sum()) ** 2 for run in runs)
    few = len(runs) / (len(runs) - 1) * (n - 1) / (n - 2)
    half = t_quantile(len(runs) - 1) * math.sqrt(clusters * few) / float((about**2).sum())
    return slope - half, slope + half


def _within(values: _Vector, of_run: NDArray[np.str_]) -> _Vector:
    """About the mean of each run."""
    return values - np.array([values[of_run == run].mean() for run in of_run])
