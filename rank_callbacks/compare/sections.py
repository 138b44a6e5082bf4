"""What the report draws, in order: each section with its charts, or with what it lacks."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Container, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from rank_callbacks.compare.compression import compression
from rank_callbacks.compare.final import accuracy_name, final_accuracy, in_order_of, last_readings, mean_over_layers
from rank_callbacks.compare.law import Law, law
from rank_callbacks.compare.network_order import layer_places
from rank_callbacks.compare.run import Run
from rank_callbacks.compare.seeds import SEED, alike
from rank_callbacks.compare.soundness import sound
from rank_callbacks.figures import Figure, collapse, depth_profile, gradient_bound, how_to_read, spectrum, sweep
from rank_callbacks.figures.layer_sweep import layer_sweep
from rank_callbacks.figures.layers import in_order
from rank_callbacks.figures.looks import COLOURS
from rank_callbacks.figures.thinning import thinned
from rank_callbacks.figures.tradeoff import tradeoff
from rank_callbacks.figures.truncation import (
    Truncated,
    accuracy_by_size,
    accuracy_by_tolerance,
    size_by_tolerance,
    truncations,
)
from rank_callbacks.rows import Row
from rank_callbacks.tags import Tag

__all__ = ["Chart", "Section", "sections"]

# Bars of more runs than these are too thin to see, and lines too many to tell apart.
_MOST_RUNS = 8
_HIGH = 620
_LINE = "The dashed line is of least squares, its slope with the 95 % interval; slope 1 is a distance in proportion to TCV/λ."
_RANK = ("weight_rank", "effective_rank")
_BARS = (
    "In the first chart the bar of a mark is the 95 % interval of its mean by Student's t, in the second it reaches from the "
    "lowest run to the highest. A single run has none."
)
_MEANS = (
    "A large mark is the mean of runs that differ in their seed alone, its bars 95 % intervals by Student's t, and a small "
    "one is a run"
)
_STEPS = (
    "No mark of the same kind lies both above one on the line of steps and to its left; as far as that line is level the "
    "network can lose rank for nothing."
)
_TRUNCATION = (
    "In every weight the singular values up to the tolerance, a share of the largest, are set to zero. A curve that stays "
    "level far to the right is of a network that needs few of its directions: two thin factors in place of each matrix would "
    "serve it as well. A mark is the mean over seeds, its bar the 95 % interval; dark curves are small settings."
)


class Chart(NamedTuple):
    """A figure, or why there is none.

    Args:
        title: What it shows.
        json: The figure as strict JSON; empty if there is none.
        missing: Why there is none; empty if there is one.
        folded: Whether it is drawn only when the reader opens it.
    """

    title: str
    json: str
    missing: str = ""
    folded: bool = False


class Section(NamedTuple):
    """Charts on one subject.

    Args:
        title: Its heading.
        help: How to read them.
        charts: In order.
        notes: What is left out, and why.
    """

    title: str
    help: str
    charts: Sequence[Chart]
    notes: Sequence[str] = ()


def sections(runs: Sequence[Run], x: str, accuracy: str | None = None, seed: str = SEED) -> list[Section]:
    """All sections. Means, fit and front are of the sound runs only; charts of single runs show all that have readings.

    Args:
        runs: All that were found.
        x: A hyperparameter.
        accuracy: Name of the metric; None for the one that ``accuracy_name`` finds.
        seed: The hyperparameter in which runs of one setting differ.
    """
    every, good = in_order_of(runs, x), in_order_of(sound(runs, x), x)
    name, groups = accuracy or accuracy_name(every), alike(good, x, seed)
    together = [_rank(good, x, name), _tradeoff(good, groups, x, name), _allowed(good, x), _collapse(good)]
    return [*together, *_of_single_runs(every, groups, x)]


def _of_single_runs(every: Sequence[Run], groups: Sequence[Sequence[Run]], x: str) -> list[Section]:
    """Of each setting the run with the first seed, and all that are not compared."""
    other_seeds = {run.name for group in groups for run in group[1:]}
    drawable = [run for run in every if run.rows or run.spectra]
    firsts = [run for run in drawable if run.name not in other_seeds]
    some, notes = thinned(firsts, _MOST_RUNS), []
    if len(firsts) < len(drawable):
        notes.append(f"Of runs that differ in their seed alone the first is drawn: {len(firsts)} of {len(drawable)} runs.")
    if len(some) < len(firsts):
        left = len(firsts) - len(some)
        notes.append(f"{len(some)} runs are drawn, evenly along {x}; {left} more are not, for want of room.")
    return [_spectra(some, notes), _depths(some, notes), _gradients(some, notes)]


def _rank(good: Sequence[Run], x: str, accuracy: str | None) -> Section:
    rows, settings = _rows(good), {run.name: run.hyperparameters[x] for run in good}
    chosen = {run.name: {x: settings[run.name]} for run in good}
    accuracies = _accuracies(good, accuracy)
    charts = [
        _chart("Each layer", lambda: layer_sweep(rows, settings, x, places=layer_places(good))),
        _chart("Rank, accuracy and neural collapse", lambda: sweep(rows, chosen, x, accuracies=accuracies)),
    ]
    notes = _lacking(accuracies, good, "a final accuracy, and so in no mean of it") if accuracies else []
    return Section(f"Rank against {x}", f"{how_to_read('layer_sweep', *_RANK)} {_BARS}", charts, notes)


def _tradeoff(good: Sequence[Run], groups: Sequence[Sequence[Run]], x: str, accuracy: str | None) -> Section:
    measured = {run.name: mean_over_layers(last_readings(run), *_RANK) for run in good}
    ranks = {name: rank for name, rank in measured.items() if rank is not None}
    accuracies, settings = _accuracies(good, accuracy), {run.name: run.hyperparameters[x] for run in good}
    names = [[run.name for run in group] for group in groups]
    mark = _MEANS if any(len(group) > 1 for group in names) else "Each mark is a run"
    about = f"{mark}; a dark one has a small {x}. {_STEPS}"
    without = [run.name for run in good if run.name not in accuracies or run.name not in ranks]
    notes = [f"Without a final accuracy or rank, and so not drawn: {', '.join(without)}."] if without else []
    charts = [_chart("Trade-off", lambda: tradeoff(ranks, accuracies, settings, x, accuracy or "accuracy", names))]
    return Section("Rank against accuracy", about, charts, notes)


def _allowed(good: Sequence[Run], x: str) -> Section:
    """Of truncation, and of the final spectra."""
    settings = {run.name: run.hyperparameters[x] for run in good}
    truncated, sizes = truncations(chain.from_iterable(run.rows for run in good)), {run.name: compression(run) for run in good}
    charts = [
        _chart("Accuracy after truncation", lambda: accuracy_by_tolerance(truncated, settings, x)),
        _chart("Accuracy against size", lambda: accuracy_by_size(truncated, settings, x)),
        _chart("Parameters that the final spectra need", lambda: _sizes(sizes, settings, x)),
    ]
    notes = [*_lacking(truncated, good, "TruncationMonitor's readings, and so not in the charts of accuracy")]
    whole = {name: one for name, one in sizes.items() if one}
    notes += _lacking(whole, good, "whole spectra with shapes, and so not in the chart of the final spectra")
    return Section("What the ranks allow", _TRUNCATION, charts, notes)


def _sizes(sizes: Mapping[str, Sequence[Truncated]], settings: Mapping[str, float | str], x: str) -> Figure:
    if not any(sizes.values()):
        raise ValueError("Expected spectra of weights with their shapes, got none. Log to TensorBoard with WeightRankMonitor.")
    return size_by_tolerance(sizes, settings, x)


def _lacking(has: Container[str], good: Sequence[Run], what: str) -> list[str]:
    """Of a sweep in which some runs have it."""
    names = [run.name for run in good if run.name not in has]
    return [f"Without {what}: {', '.join(names)}."] if 0 < len(names) < len(good) else []


def _accuracies(runs: Sequence[Run], name: str | None) -> dict[str, float]:
    final = {run.name: final_accuracy(run, name) for run in runs}
    return {run: value for run, value in final.items() if value is not None and math.isfinite(value)}


def _collapse(good: Sequence[Run]) -> Section:
    """With the fitted line where there is one."""
    rows, notes = _rows(good), []
    try:
        found = law(good)
        notes = [_left_out(found)] if found.left_out else []
    except ValueError as error:
        found = None
        notes = [f"No line is fitted. {error}"]
    places = layer_places(good, "rank_collapse")
    chart = _chart("Distance to rank K", lambda: _with_line(collapse(rows, places=places), found))
    return Section("Does the law of rank collapse hold?", f"{how_to_read('collapse')} {_LINE}", [chart], notes)


def _left_out(found: Law) -> str:
    return (
        f"The line is fitted to {len(found.points)} layers; {found.left_out} more have no place in it, for they are at "
        f"distance 0 (as a head of K rows is), at TCV 0, without weight decay, or NaN."
    )


def _with_line(figure: Figure, found: Law | None) -> Figure:
    """Higher than other charts, for its legend of runs and layers; the line first in it."""
    layout = figure["layout"] | {"height": _HIGH}
    if found is None:
        return {**figure, "layout": layout}
    ratios = [point.variation / point.weight_decay for point in found.points]
    ends = [min(ratios), max(ratios)]
    line = {
        "type": "scatter",
        "mode": "lines",
        "name": f"slope {found.slope:.2g}{_interval(found)},<br>R² {found.explained:.2f}",
        "x": ends,
        "y": [math.exp(found.intercept) * ratio**found.slope for ratio in ends],
        "line": {"color": COLOURS[1], "width": 2, "dash": "dash"},
        "hoverinfo": "skip",
        "legendrank": 1,
    }
    return {"data": [*figure["data"], line], "layout": layout}


def _interval(found: Law) -> str:
    low, high = found.interval
    return f" ({low:.2g} to {high:.2g})" if math.isfinite(low) else ""


def _spectra(some: Sequence[Run], notes: Sequence[str]) -> Section:
    tags = {tag for run in some for tag in run.spectra if tag[:2] == ("weight_rank", "spectrum")}
    layers = in_order((tag.layer for tag in sorted(tags)), _rows(some), "weight_rank", layer_places(some))
    charts = [_spectrum(some, Tag("weight_rank", "spectrum", layer), folded=place > 0) for place, layer in enumerate(layers)]
    return Section("Spectra at the end of each run", how_to_read("spectrum"), charts or [_no_spectra()], notes)


def _no_spectra() -> Chart:
    return _chart("Spectra", lambda: spectrum({}, ()))


def _spectrum(some: Sequence[Run], tag: Tag, folded: bool) -> Chart:
    found = {run.name: run.spectra[tag] for run in some if tag in run.spectra and run.spectra[tag].by_step}
    latest = {name: {max(one.by_step): one.by_step[max(one.by_step)]} for name, one in found.items()}
    shapes = {one.shape for one in found.values()}
    # The Marchenko-Pastur edge is one of a shape: runs that differ have none in common.
    shape = shapes.pop() if len(shapes) == 1 else ()
    return _chart(tag.layer, lambda: spectrum(latest, shape, title=tag.layer), folded)


def _depths(some: Sequence[Run], notes: Sequence[str]) -> Section:
    rows = _rows(some)
    charts = [
        _chart("Weights", lambda: depth_profile(rows, *_RANK, layer_places(some))),
        _chart("Features", lambda: depth_profile(rows, "feature_rank", "effective_rank")),
    ]
    return Section("Depth profiles", how_to_read("depth_profile"), charts, notes)


def _gradients(some: Sequence[Run], notes: Sequence[str]) -> Section:
    rows = _rows(some)
    names, places = [run.name for run in some], layer_places(some, "gradient_rank")
    chart = _chart("Gradient rank", lambda: gradient_bound(rows, names, places=places))
    return Section("Gradient rank against its bound", how_to_read("gradient_bound"), [chart], notes)


def _rows(runs: Sequence[Run]) -> list[Row]:
    return [row for run in runs for row in run.rows]


def _chart(title: str, drawn: Callable[[], Mapping[str, Any]], folded: bool = False) -> Chart:
    """The chart, or the message of the error that says what it lacks."""
    try:
        return Chart(title, json.dumps(drawn(), allow_nan=False, ensure_ascii=False), "", folded)
    except ValueError as error:
        return Chart(title, "", str(error), folded)
