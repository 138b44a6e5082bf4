"""A measure of each layer against a hyperparameter, with how certain it is over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple, TypeAlias

from rank_callbacks.figures.explanation import hover_help
from rank_callbacks.figures.interval import half_width
from rank_callbacks.figures.layers import in_order, short_names
from rank_callbacks.figures.looks import Figure, axis, finite, layout, plain, run_look, words
from rank_callbacks.figures.selection import Values, final, found
from rank_callbacks.figures.settings_axis import SettingsAxis
from rank_callbacks.rows import Row

__all__ = ["layer_sweep"]

_Value: TypeAlias = "float | str"


class _Point(NamedTuple):
    """The runs of one setting."""

    place: _Value
    mean: float
    half: float | None
    runs: int


def layer_sweep(
    rows: Iterable[Row],
    settings: Mapping[str, _Value],
    x: str = "weight_decay",
    group: str = "weight_rank",
    measure: str = "effective_rank",
) -> Figure:
    """A chart of the last reading of each layer against a hyperparameter, a line a layer.

    Runs of the same setting are seeds: a mark is their mean, its bar the 95 % interval of the mean by Student's t. A single
    run has no bar. Settings that differ by more than a factor of eight are on a log axis, 0 alone at its left edge.

    Args:
        rows: The long table.
        settings: The hyperparameter by run; a run that is not in it is left out, as is a reading that is NaN or infinite.
        x: Its name.
        group: First part of the tags that are drawn.
        measure: Second part.

    Raises:
        ValueError: If no reading of these runs has such a tag.

    Example:
        >>> from rank_callbacks.tags import Tag
        >>> rows = [Row(run, 9, Tag("weight_rank", "effective_rank", "fc"), value) for run, value in (("a", 8.0), ("b", 6.0))]
        >>> (line,) = layer_sweep(rows, {"a": 0.1, "b": 0.1})["data"]
        >>> line["x"], line["y"], [round(half, 2) for half in line["error_y"]["array"]]
        ([0.1], [7.0], [12.71])
    """
    rows = [row for row in rows if row.run in settings]
    values = found(rows, group, measure)
    last = {run: final(of_run) for run, of_run in values.items()}
    layers = in_order((layer for of_run in last.values() for layer in of_run), rows, group)
    along = SettingsAxis(settings[run] for run in last)
    about = hover_help(group, measure)
    lines = [
        _line(place, layer, name, _points(layer, last, settings, along), about)
        for place, (layer, name) in enumerate(zip(layers, short_names(layers), strict=True))
    ]
    return {"data": lines, "layout": _layout(values, along, x, group, measure)}


def _points(
    layer: str, last: Mapping[str, Mapping[str, float]], settings: Mapping[str, _Value], along: SettingsAxis
) -> list[_Point | None]:
    """By setting in order; None for the gap between 0, which no log axis has, and the rest."""
    points: list[_Point | None] = []
    for value in along.values:
        runs = [run for run in last if settings[run] == value]
        known = [number for run in runs if (number := finite(last[run].get(layer))) is not None]
        if known:
            points.append(_Point(along.place(value), fmean(known), half_width(known), len(known)))
            points += [None] if along.zero_apart and value == 0 else []
    return points


def _line(place: int, layer: str, name: str, points: Sequence[_Point | None], about: str) -> dict[str, Any]:
    look = run_look(place)
    return {
        "type": "scatter",
        "name": plain(name),
        "mode": "lines+markers",
        "x": [point and point.place for point in points],
        "y": [point and point.mean for point in points],
        "error_y": {"type": "data", "array": [point and point.half for point in points], "color": look["color"]},
        "text": [point and _hover(layer, point) + about for point in points],
        "hovertemplate": "%{text}<extra></extra>",
        "line": look | {"width": 2},
        "marker": {"size": 7},
    }


def _hover(layer: str, point: _Point) -> str:
    within = "" if point.half is None else f" ± {point.half:.2g}"
    return f"<b>{plain(layer)}</b>: {point.mean:.4g}{within}, {point.runs} run{'' if point.runs == 1 else 's'}"


def _layout(values: Values, along: SettingsAxis, x: str, group: str, measure: str) -> dict[str, Any]:
    title = f"{words(measure).capitalize()} of each layer ({words(group)}), {len(values)} runs"
    return layout(title, xaxis=along.drawn(words(x)), yaxis=axis(words(measure), rangemode="tozero"), showlegend=True)
