"""What truncation of the weights to lower rank costs and saves, at each tolerance."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple, TypeAlias

from rank_callbacks.figures.interval import half_width
from rank_callbacks.figures.looks import Figure, axis, layout, plain, ramp, words
from rank_callbacks.figures.settings_axis import SettingsAxis
from rank_callbacks.rows import Row

__all__ = ["Truncated", "accuracy_by_size", "accuracy_by_tolerance", "size_by_tolerance", "truncations"]

_Value: TypeAlias = "float | str"
_ACCURACY, _SHARE = "accuracy_at_rtol_", "parameters_at_rtol_"
_TOLERANCE = "tolerance, share of the largest singular value"
_LEFT = "share of the parameters left"
# Marks of one tolerance stand side by side, or their bars would lie over one another: by this factor, all within another.
_APART, _ALL_WITHIN = 1.05, 1.25


class Truncated(NamedTuple):
    """A network at one tolerance.

    Args:
        rtol: Singular values above this share of the largest are kept in every matrix; 0 for the network as it was trained.
        accuracy: In [0, 1]; NaN where it is not known.
        share: Of the parameters of the matrices that are left, with those in two factors that get smaller by it.
    """

    rtol: float
    accuracy: float
    share: float


class _Point(NamedTuple):
    """The runs of one setting at one tolerance."""

    rtol: float
    share: float
    mean: float
    half: float | None
    runs: int


def truncations(rows: Iterable[Row]) -> dict[str, list[Truncated]]:
    """The last readings of ``TruncationMonitor`` of each run that has any, by tolerance; first the network as it was trained.

    Args:
        rows: The long table.

    Example:
        >>> from rank_callbacks.tags import Tag
        >>> values = {"accuracy": 0.9, "accuracy_at_rtol_0.1": 0.8, "parameters_at_rtol_0.1": 0.25}
        >>> truncations([Row("a", 9, Tag("truncation", name, "network"), value) for name, value in values.items()])
        {'a': [Truncated(rtol=0.0, accuracy=0.9, share=1.0), Truncated(rtol=0.1, accuracy=0.8, share=0.25)]}
    """
    last: dict[str, dict[str, float]] = defaultdict(dict)
    of_truncation = [row for row in rows if row[2][0] == "truncation"]  # by place: there may be millions
    for run, _, tag, value in sorted(of_truncation, key=lambda row: row.step):
        last[run][tag.measure] = value
    return {run: _by_tolerance(readings) for run, readings in last.items()}


def _by_tolerance(readings: Mapping[str, float]) -> list[Truncated]:
    as_trained = [Truncated(0.0, readings["accuracy"], 1.0)] if "accuracy" in readings else []
    rtols = sorted(float(name.removeprefix(_ACCURACY)) for name in readings if name.startswith(_ACCURACY))
    return as_trained + [
        Truncated(rtol, readings[f"{_ACCURACY}{rtol:g}"], readings.get(f"{_SHARE}{rtol:g}", math.nan)) for rtol in rtols
    ]


def accuracy_by_tolerance(
    truncated: Mapping[str, Sequence[Truncated]], settings: Mapping[str, _Value], x: str = "weight_decay"
) -> Figure:
    """A chart of accuracy after truncation against tolerance, a curve a setting; at its left edge the network as trained.

    Runs of the same setting are seeds: a mark is their mean, its bar the 95 % interval of the mean by Student's t. On a log
    axis the curves stand side by side at each tolerance, which the hover text tells.

    Args:
        truncated: By run, as ``truncations`` finds them.
        settings: The hyperparameter by run; a run that is not in it is left out, as is an accuracy that is NaN.
        x: Its name.

    Raises:
        ValueError: If no run is left.
    """
    return _by_rtol("Accuracy after truncation", "accuracy", truncated, settings, x, lambda one: one.accuracy)


def size_by_tolerance(
    truncated: Mapping[str, Sequence[Truncated]], settings: Mapping[str, _Value], x: str = "weight_decay"
) -> Figure:
    """A chart of the share of parameters left against tolerance, a curve a setting, with bars as in the chart of accuracy.

    Args:
        truncated: By run; no accuracy is needed.
        settings: The hyperparameter by run; a run that is not in it is left out.
        x: Its name.

    Raises:
        ValueError: If no run is left.
    """
    return _by_rtol("Parameters left after truncation", _LEFT, truncated, settings, x, lambda one: one.share)


def accuracy_by_size(
    truncated: Mapping[str, Sequence[Truncated]], settings: Mapping[str, _Value], x: str = "weight_decay"
) -> Figure:
    """A chart of accuracy against the share of parameters left, a curve a setting, with bars as in the chart of accuracy.

    Higher at the same share is better; at the right edge is the network as it was trained.

    Args:
        truncated: By run, as ``truncations`` finds them.
        settings: The hyperparameter by run; a run that is not in it is left out, as is what is NaN.
        x: Its name.

    Raises:
        ValueError: If no run is left.

    Example:
        >>> figure = accuracy_by_size({"a": [Truncated(0.0, 0.9, 1.0), Truncated(0.1, 0.8, 0.25)]}, {"a": 0.01})
        >>> figure["data"][0]["x"], figure["data"][0]["y"]
        ([1.0, 0.25], [0.9, 0.8])
    """
    curves = _curves(truncated, settings, lambda one: one.accuracy)
    curves = {value: [point for point in points if math.isfinite(point.share)] for value, points in curves.items()}
    lines = _lines(curves, x, "accuracy", lambda point: point.share)
    around = layout("Accuracy against size", xaxis=axis(_LEFT, rangemode="tozero"), yaxis=axis("accuracy"), showlegend=True)
    return {"data": lines, "layout": around}


def _by_rtol(
    title: str,
    height: str,
    truncated: Mapping[str, Sequence[Truncated]],
    settings: Mapping[str, _Value],
    x: str,
    quantity: Callable[[Truncated], float],
) -> Figure:
    curves = _curves(truncated, settings, quantity)
    along = SettingsAxis(point.rtol for points in curves.values() for point in points)
    lines = _lines(curves, x, height, lambda point: along.place(point.rtol))
    if along.drawn("")["type"] == "log":
        lines = _side_by_side(lines)
    as_trained = " (0: as trained)" if 0.0 in along.values else ""
    upright = axis(height, rangemode="tozero" if height == _LEFT else "normal")
    around = layout(title, xaxis=along.drawn(f"{_TOLERANCE}{as_trained}"), yaxis=upright, showlegend=True)
    return {"data": lines, "layout": around}


def _curves(
    truncated: Mapping[str, Sequence[Truncated]], settings: Mapping[str, _Value], quantity: Callable[[Truncated], float]
) -> dict[_Value, list[_Point]]:
    """By setting in order, then by tolerance."""
    curves: dict[_Value, list[_Point]] = {}
    for value in SettingsAxis(settings[run] for run in truncated if run in settings).values:
        runs = [truncated[run] for run in truncated if settings.get(run) == value]
        points = _points([one for of_run in runs for one in of_run if math.isfinite(quantity(one))], quantity)
        curves |= {value: points} if points else {}
    if not curves:
        raise ValueError(
            "Expected runs with readings of truncation, got none. Add TruncationMonitor to the trainer's callbacks."
        )
    return curves


def _points(known: Sequence[Truncated], quantity: Callable[[Truncated], float]) -> list[_Point]:
    at: dict[float, list[Truncated]] = defaultdict(list)
    for one in known:
        at[one.rtol].append(one)
    return [_point(rtol, at[rtol], [quantity(one) for one in at[rtol]]) for rtol in sorted(at)]


def _point(rtol: float, seeds: Sequence[Truncated], values: Sequence[float]) -> _Point:
    return _Point(rtol, fmean(one.share for one in seeds), fmean(values), half_width(values), len(values))


def _lines(
    curves: Mapping[_Value, Sequence[_Point]], x: str, height: str, across: Callable[[_Point], _Value]
) -> list[dict[str, Any]]:
    """Dark for the first setting, light for the last."""
    return [
        {
            "type": "scatter",
            "name": f"{words(x)} = {_text(value)}",
            "mode": "lines+markers",
            "x": [across(point) for point in points],
            "y": [point.mean for point in points],
            "error_y": {"type": "data", "array": [point.half for point in points], "color": ramp(place, len(curves))},
            "text": [f"<b>{words(x)} = {_text(value)}</b><br>{_hover(point, height)}" for point in points],
            "hovertemplate": "%{text}<extra></extra>",
            "line": {"color": ramp(place, len(curves)), "width": 2},
            "marker": {"size": 7},
        }
        for place, (value, points) in enumerate(curves.items())
    ]


def _side_by_side(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The middle one at the tolerance itself."""
    last = len(lines) - 1
    apart = min(_APART, _ALL_WITHIN ** (1 / max(1, last)))
    return [line | {"x": [x * apart ** (place - last / 2) for x in line["x"]]} for place, line in enumerate(lines)]


def _hover(point: _Point, height: str) -> str:
    within = "" if point.half is None else f" ± {point.half:.2g}"
    left = "" if height == _LEFT or math.isnan(point.share) else f"<br>{_LEFT} {point.share:.3g}"
    at = f"tolerance {point.rtol:g}" if point.rtol else "as trained"
    return f"{at}, {point.runs} run{'' if point.runs == 1 else 's'}<br>{height} {point.mean:.4g}{within}{left}"


def _text(value: _Value) -> str:
    return plain(str(value)) if isinstance(value, str | bool) else f"{value:g}"
