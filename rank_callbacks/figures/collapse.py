"""How far weights are from rank K, against what the theory of neural rank collapse says moves them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from rank_callbacks.figures.layers import in_order, short_names
from rank_callbacks.figures.looks import GREY, Figure, finite, layout, log_axis, plain, ramp
from rank_callbacks.figures.selection import Values, found, select
from rank_callbacks.figures.thinning import thinned
from rank_callbacks.rows import Row

__all__ = ["collapse"]

_GROUP, _DISTANCE, _VARIATION = "rank_collapse", "relative_distance_to_rank_k", "tcv_ratio_input"
# Each bound's name, width of its tick, and whether it is shown before the reader asks for it.
_BOUNDS = {
    "alignment_bound": ("alignment bound", 3.5, True),
    "certificate_joint": ("joint certificate", 1.5, True),
    "certificate_sharp": ("sharp certificate", 1.0, False),
    "certificate_loose": ("loose certificate", 1.0, False),
}
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star", "pentagon", "hexagram")
_MOST_REPORTS = 20
# Of more layers than these in a run, marks are small and lines faint.
_MOST_LARGE = 60
_THIN = {"color": GREY, "width": 1}
# How far right of the largest value marks without weight decay stand.
_BEYOND = 3.0


class _Mark(NamedTuple):
    """One layer of one run at one step."""

    run: str
    layer: str
    step: int
    distance: float
    variation: float
    weight_decay: float
    bounds: dict[str, float]


def collapse(
    rows: Iterable[Row],
    weight_decays: Mapping[str, float] | None = None,
    paths: bool = False,
    places: Mapping[str, float] | None = None,
) -> Figure:
    """A chart of the relative distance to rank K against the TCV ratio over the weight decay, a mark a layer and run.

    Dark colours are small weight decays, symbols are layers. Above each mark stand ticks at its bounds, relative to the
    weight's norm: wide the alignment bound, narrow the joint certificate; the sharp and the loose one wait in the legend. Runs
    without weight decay, for which the theory says nothing, stand beyond a line at the right. The head, which has no more rows
    than classes, is at distance 0 whatever happens, so a layer that is at 0 in all reports is left out.

    Args:
        rows: The long table.
        weight_decays: λ by run; None, or for a run that is not in it, as ``RankCollapseMonitor`` read it.
        paths: Whether a line leads to each mark from where the layer was at the first report.
        places: Where each layer stands, for runs without readings of depth.

    Raises:
        ValueError: If no reading is a distance to rank K with its variation and weight decay.

    Example:
        >>> from rank_callbacks.tags import Tag
        >>> values = {"relative_distance_to_rank_k": 0.5, "tcv_ratio_input": 0.2, "weight_decay": 0.01}
        >>> rows = [Row("run", 9, Tag("rank_collapse", name, "fc.weight"), value) for name, value in values.items()]
        >>> (mark,) = [trace for trace in collapse(rows)["data"] if trace.get("name") == "λ = 0.01"]
        >>> mark["x"], mark["y"]
        ([20.0], [0.5])
    """
    rows = list(rows)
    marks = list(_marks(rows, found(rows, _GROUP, _DISTANCE), weight_decays or {}))
    moved = {mark.layer for mark in marks if mark.distance > 0}
    marks = [mark for mark in marks if mark.layer in moved and mark.variation > 0]
    if not marks:
        raise ValueError(f"Expected layers with readings {_DISTANCE} and {_VARIATION} above 0 and a weight decay, got none.")
    layers = in_order((mark.layer for mark in marks), rows, _GROUP, places)
    beyond = _BEYOND * max((_x(mark, 0) for mark in marks if mark.weight_decay > 0), default=1.0)
    return {"data": list(_traces(marks, layers, beyond, paths)), "layout": _layout(marks, beyond)}


def _marks(rows: list[Row], distances: Values, weight_decays: Mapping[str, float]) -> Iterator[_Mark]:
    """All that can be placed, by run and step."""
    names = (_VARIATION, "weight_decay", "distance_to_rank_k", *_BOUNDS)
    tables = {name: select(rows, _GROUP, name) for name in names}
    for run, of_run in distances.items():
        for step, now in of_run.items():
            for layer, distance in now.items():
                read = {name: finite(table.get(run, {}).get(step, {}).get(layer)) for name, table in tables.items()}
                variation, decay = read[_VARIATION], weight_decays.get(run, read["weight_decay"])
                if finite(distance) is not None and variation is not None and decay is not None:
                    yield _Mark(run, layer, step, distance, variation, decay, _relative(read, distance))


def _relative(read: Mapping[str, float | None], distance: float) -> dict[str, float]:
    """The bounds over the weight's norm, which is the distance over the relative distance."""
    absolute = read["distance_to_rank_k"]
    if not absolute or not distance:
        return {}
    return {name: value * distance / absolute for name in _BOUNDS if (value := read[name]) is not None}


def _x(mark: _Mark, beyond: float) -> float:
    return mark.variation / mark.weight_decay if mark.weight_decay > 0 else beyond


def _traces(marks: list[_Mark], layers: list[str], beyond: float, paths: bool) -> Iterator[dict[str, Any]]:
    latest = {(mark.run, mark.layer): mark for mark in marks}
    symbols = {layer: _SYMBOLS[place % len(_SYMBOLS)] for place, layer in enumerate(layers)}
    points: list[dict[str, Any]] = []
    decay_of = {mark.run: mark.weight_decay for mark in latest.values()}
    decays = sorted(set(decay_of.values()))
    for run in sorted(decay_of, key=lambda run: decay_of[run]):
        mine = sorted((mark for mark in latest.values() if mark.run == run), key=lambda mark: layers.index(mark.layer))
        decay, colour = decay_of[run], ramp(decays.index(decay_of[run]), len(decays))
        first = run == next(other for other, same in decay_of.items() if same == decay)
        points.append(_points(mine, colour, symbols, beyond) | {"showlegend": first, "name": f"λ = {decay:g}"})
        yield from _bars(mine, colour, beyond)
        if paths:
            yield _path([mark for mark in marks if mark.run == run], colour, beyond)
    yield from points
    yield from _keys(layers, symbols, latest.values())


def _points(marks: list[_Mark], colour: str, symbols: Mapping[str, str], beyond: float) -> dict[str, Any]:
    look = {"symbol": [symbols[mark.layer] for mark in marks], "size": 7 if _is_crowded(marks) else 12, "color": colour}
    return {
        "type": "scatter",
        "mode": "markers",
        "legendgroup": f"{marks[0].weight_decay:g}",
        "hovertemplate": "%{text}<extra></extra>",
        "text": [_hover(mark) for mark in marks],
        "x": [_x(mark, beyond) for mark in marks],
        "y": [mark.distance or None for mark in marks],
        "marker": look | {"line": {"color": GREY, "width": 1}},
    }


def _is_crowded(marks: Iterable[_Mark]) -> bool:
    """Whether large marks would lie on one another."""
    return len({mark.layer for mark in marks}) > _MOST_LARGE


def _opacity(marks: Iterable[_Mark]) -> float:
    """Of lines from one mark to another."""
    return 0.25 if _is_crowded(marks) else 0.6


def _hover(mark: _Mark) -> str:
    lines = [f"<b>{plain(mark.layer)}</b>, {plain(mark.run)}, step {mark.step}"]
    lines += [f"distance to rank K, sqrt(Σ<sub>i&gt;K</sub> σ<sub>i</sub>²): {mark.distance:.3g} of ‖W‖"]
    lines += [f"TCV ratio of the input, tr Σ<sub>W</sub> / tr Σ<sub>T</sub>: {mark.variation:.3g}"]
    lines += [f"λ = {mark.weight_decay:g}"]
    lines += [f"{_BOUNDS[name][0]}: {value:.3g} of ‖W‖" for name, value in mark.bounds.items()]
    return "<br>".join(lines)


def _bars(marks: list[_Mark], colour: str, beyond: float) -> Iterator[dict[str, Any]]:
    """A stem from each mark to its bounds, and the ticks of each kind of bound."""
    stems = [(_x(mark, beyond), y) for mark in marks for y in _stem(mark)]
    shared = {"type": "scatter", "legendgroup": f"{marks[0].weight_decay:g}", "showlegend": False, "hoverinfo": "skip"}
    line = {"line": {"color": colour, "width": 1}, "opacity": _opacity(marks)}
    yield shared | {"mode": "lines", "x": [x for x, _ in stems], "y": [y for _, y in stems]} | line
    for name, (_, width, shown) in _BOUNDS.items():
        ends = [(_x(mark, beyond), mark.bounds.get(name)) for mark in marks]
        tick = {"symbol": "line-ew", "size": 5 if _is_crowded(marks) else 9, "line": {"width": width, "color": colour}}
        visible = {} if shown else {"visible": "legendonly", "legendgroup": name}
        yield shared | {"mode": "markers", "x": [x for x, _ in ends], "y": [y for _, y in ends], "marker": tick} | visible


def _stem(mark: _Mark) -> tuple[float | None, ...]:
    shown = [mark.bounds[name] for name, (_, _, shown) in _BOUNDS.items() if shown and name in mark.bounds]
    return (mark.distance or None, max(shown, default=None), None)


def _path(marks: list[_Mark], colour: str, beyond: float) -> dict[str, Any]:
    """Where the layers of a run came from, a gap between one and the next."""
    ends: list[tuple[float | None, float | None]] = []
    for layer in dict.fromkeys(mark.layer for mark in marks):
        way = thinned([mark for mark in marks if mark.layer == layer], _MOST_REPORTS)
        ends += [(_x(mark, beyond), mark.distance or None) for mark in way] + [(None, None)]
    look = {"line": {"color": colour, "width": 1, "dash": "dot"}, "opacity": _opacity(marks), "mode": "lines"}
    shared = {"type": "scatter", "legendgroup": f"{marks[0].weight_decay:g}", "showlegend": False, "hoverinfo": "skip"}
    return shared | look | {"x": [x for x, _ in ends], "y": [y for _, y in ends]}


def _keys(layers: list[str], symbols: Mapping[str, str], marks: Iterable[_Mark]) -> Iterator[dict[str, Any]]:
    """The legend of symbols and of ticks: a line each, with nothing in the chart."""
    empty = {"type": "scatter", "x": [None], "y": [None], "mode": "markers", "hoverinfo": "skip"}
    if len(layers) <= len(_SYMBOLS):
        for layer, name in zip(layers, short_names(layers), strict=True):
            yield empty | {"name": plain(name), "marker": {"symbol": symbols[layer], "size": 10, "color": GREY}}
    known = {name for mark in marks for name in mark.bounds}
    for name, (title, width, shown) in _BOUNDS.items():
        if name in known:
            tick = {"symbol": "line-ew", "size": 11, "line": {"width": width, "color": GREY}}
            more = {} if shown else {"legendgroup": name, "visible": "legendonly"}
            yield empty | {"name": title, "marker": tick} | more


def _layout(marks: list[_Mark], beyond: float) -> dict[str, Any]:
    limit = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 1, "y1": 1, "line": _THIN | {"dash": "dot"}}
    edge = beyond / _BEYOND**0.5
    beside = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": edge, "x1": edge, "line": _THIN}
    # Plotly takes the place of an annotation on a log axis as a power of ten.
    over = {"text": "λ = 0", "x": math.log10(beyond), "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False}
    without = any(mark.weight_decay <= 0 for mark in marks)
    return layout(
        "Distance to rank K, against within-class variability over weight decay",
        xaxis=log_axis("TCV ratio of the layer's input / λ", [_x(mark, beyond) for mark in marks]),
        yaxis=log_axis("distance to rank K, relative to ‖W‖", [mark.distance for mark in marks]),
        shapes=[limit, beside] if without else [limit],
        annotations=[over] if without else [],
    )
