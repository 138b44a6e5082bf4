"""A measure of each layer against a hyperparameter, with how certain it is over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple, TypeAlias

from rank_callbacks.figures.approximation import approximations, noted
from rank_callbacks.figures.explanation import hover_help
from rank_callbacks.figures.held import Snapshot, last_snapshots
from rank_callbacks.figures.interval import half_width
from rank_callbacks.figures.layers import in_order, short_names
from rank_callbacks.figures.looks import OLD, READ, Figure, axis, finite, layout, plain, ramp, reach, run_look, words
from rank_callbacks.figures.selection import found
from rank_callbacks.figures.settings_axis import SettingsAxis
from rank_callbacks.rows import Row

__all__ = ["layer_sweep"]

_Value: TypeAlias = "float | str"

# Lines that ``run_look`` tells apart.
_MOST_APART = 28


class _Point(NamedTuple):
    """The runs of one setting; ``when`` the layer was read, of runs that have reported since."""

    place: _Value
    mean: float
    half: float | None
    runs: int
    when: str


def layer_sweep(
    rows: Iterable[Row],
    settings: Mapping[str, _Value],
    x: str = "weight_decay",
    group: str = "weight_rank",
    measure: str = "effective_rank",
    places: Mapping[str, float] | None = None,
) -> Figure:
    """A chart of the last reading of each layer against a hyperparameter, a line a layer.

    Runs of the same setting are seeds: a mark is their mean, its bar the 95 % interval of the mean by Student's t. A single
    run has no bar. A mark is hollow where a run has reported since the layer was read. Settings that differ by more than a
    factor of eight are on a log axis, 0 alone at its left edge. Of more than 28 layers lines are thin, from dark at the input
    to light at the output.

    Args:
        rows: The long table.
        settings: The hyperparameter by run; a run that is not in it is left out, as is a reading that is NaN or infinite.
        x: Its name.
        group: First part of the tags that are drawn.
        measure: Second part.
        places: Where each layer stands, for runs without readings of depth.

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
    last = last_snapshots(rows, values, group, measure)
    layers = in_order((layer for now in last.values() for layer in now.layers), rows, group, places)
    along = SettingsAxis(settings[run] for run in last)
    about = hover_help(group, measure)
    lines = [
        _line(_look(place, len(layers)), layer, name, _points(layer, last, settings, along), about)
        for place, (layer, name) in enumerate(zip(layers, short_names(layers), strict=True))
    ]
    title = f"{words(measure).capitalize()} of each layer ({words(group)})"
    note = noted(approximations(rows, group), [now.seen(run) for run, now in last.items()], group, measure)
    return {"data": lines, "layout": _layout(lines, f"{title}, {len(values)} runs", note, along, x, measure)}


def _points(
    layer: str, last: Mapping[str, Snapshot], settings: Mapping[str, _Value], along: SettingsAxis
) -> list[_Point | None]:
    """By setting in order; None for the gap between 0, which no log axis has, and the rest."""
    points: list[_Point | None] = []
    for value in along.values:
        runs = [last[run] for run in last if settings[run] == value]
        read = [now for now in runs if layer in now.layers and finite(now.layers[layer].value) is not None]
        if read:
            known, when = [now.layers[layer].value for now in read], dict.fromkeys(now.when(layer) for now in read)
            points.append(_Point(along.place(value), fmean(known), half_width(known), len(known), "".join(when)))
            points += [None] if along.zero_apart and value == 0 else []
    return points


def _look(place: int, many: int) -> dict[str, Any]:
    """Of the line of the ``place``-th of ``many`` layers."""
    return run_look(place) | {"width": 2} if many <= _MOST_APART else {"color": ramp(place, many), "width": 1}


def _line(look: dict[str, Any], layer: str, name: str, points: Sequence[_Point | None], about: str) -> dict[str, Any]:
    old = [bool(point and point.when) for point in points]
    hollow = {"symbol": [OLD if one else READ for one in old]} if any(old) else {}
    return {
        "type": "scatter",
        "name": plain(name),
        "mode": "lines+markers",
        "x": [point and point.place for point in points],
        "y": [point and point.mean for point in points],
        "error_y": {"type": "data", "array": [point and point.half for point in points], "color": look["color"]},
        "text": [point and _hover(layer, point) + about for point in points],
        "hovertemplate": "%{text}<extra></extra>",
        "line": look,
        "marker": {"size": 3 + 2 * look["width"]} | hollow,
    }


def _hover(layer: str, point: _Point) -> str:
    within = "" if point.half is None else f" ± {point.half:.2g}"
    return f"<b>{plain(layer)}</b>: {point.mean:.4g}{within}, {point.runs} run{'' if point.runs == 1 else 's'}{point.when}"


def _layout(lines: list[dict[str, Any]], title: str, note: str, along: SettingsAxis, x: str, measure: str) -> dict[str, Any]:
    upward = reach(line["y"] for line in lines)
    cut = {"range": [0, 1.05 * upward.top]} if upward.beyond else {}
    heights = axis(upward.told(words(measure)), rangemode="tozero", **cut)
    return layout(title, note, xaxis=along.drawn(words(x)), yaxis=heights, showlegend=True)
