"""Rank, accuracy and neural collapse of many runs against a hyperparameter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from statistics import fmean
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from rank_callbacks.figures.approximation import approximations, noted
from rank_callbacks.figures.explanation import hover_help
from rank_callbacks.figures.held import Snapshot, last_snapshots
from rank_callbacks.figures.layers import in_order, short_names
from rank_callbacks.figures.looks import COLOURS, GREY, OLD, READ, Figure, axis, finite, layout, plain, reach, words
from rank_callbacks.figures.selection import OVER_LAYERS, final, nothing, select
from rank_callbacks.figures.settings_axis import SettingsAxis
from rank_callbacks.rows import Row

__all__ = ["sweep"]

_MEAN = "mean_over_layers"
_GAP = 0.09
_FAINT = 0.35
_MOST_NAMES = 5
_Value: TypeAlias = "float | str"


class _Line(NamedTuple):
    """One quantity of each run; ``when`` it was read, by run that has reported since."""

    name: str
    values: Mapping[str, float]
    faint: bool = False
    when: Mapping[str, str] = MappingProxyType({})


class _Panel(NamedTuple):
    """What one panel shows, in which colour, on which scale."""

    title: str
    lines: list[_Line]
    about: str
    colour: int
    scale: str


class _Point(NamedTuple):
    """The runs of one setting, and of each when it was read if it has reported since."""

    value: _Value
    place: _Value
    values: list[float]
    runs: list[str]
    when: list[str]


def sweep(
    rows: Iterable[Row],
    hyperparameters: Mapping[str, Mapping[str, _Value]],
    x: str = "weight_decay",
    group: str = "weight_rank",
    measure: str = "effective_rank",
    accuracies: Mapping[str, float] | None = None,
    nc1: tuple[str, str, str] = ("neural_collapse", "nc1_pinv", "penultimate"),
) -> Figure:
    """A chart of up to three panels against a hyperparameter: the final rank, the accuracy and NC1, each of all runs.

    Runs of the same value are one mark at their mean, with a bar over their range. The first panel has the mean over layers in
    bold and each layer faint, hollow where a run has reported since the layer was read. Values that differ by more than a
    factor of eight are on a log axis, 0 at its left edge, joined by dots. A panel for which no run has a value is left out.
    Under the title stands what readings are bounds, and how old the oldest is, where monitors say so.

    Args:
        rows: The long table; a run's last readings count.
        hyperparameters: By run, then by name, as the runs logged them.
        x: Which of them; text is drawn as categories, and a run that lacks it is left out.
        group: First part of the tags of the rank.
        measure: Second part.
        accuracies: Of each run at its end, in [0, 1], whatever it was logged as.
        nc1: The tag of the third panel.

    Raises:
        ValueError: If no run has the hyperparameter, or no reading has such a tag.

    Example:
        >>> from rank_callbacks.tags import Tag
        >>> rows = [Row(run, 9, Tag("weight_rank", "effective_rank", "mean_over_layers"), 8.0) for run in "ab"]
        >>> (mean,) = sweep(rows, {"a": {"weight_decay": 0.1}, "b": {"weight_decay": 0.2}})["data"]
        >>> mean["x"], mean["y"]
        ([0.1, 0.2], [8.0, 8.0])
    """
    rows = list(rows)
    settings = {run: chosen[x] for run, chosen in hyperparameters.items() if x in chosen}
    if not settings:
        known = sorted({name for chosen in hyperparameters.values() for name in chosen})
        raise ValueError(f"Expected runs with the hyperparameter {x!r}, got {', '.join(known) or 'none at all'}.")
    values = {run: of_run for run, of_run in select(rows, group, measure, means=True).items() if run in settings}
    if not values:
        raise nothing(rows, group, measure)
    ranks = last_snapshots(rows, values, group, measure)
    note = noted(approximations(rows, group), [last.seen(run) for run, last in ranks.items()], group, measure)
    collapses = {run: last[nc1[2]] for run, of_run in select(rows, *nc1[:2]).items() if nc1[2] in (last := final(of_run))}
    lines = _rank_lines(ranks, rows, group)
    panels = [
        _Panel(f"{words(measure)} ({words(group)})", lines, hover_help(group, measure), 0, "linear"),
        _Panel("accuracy", [_Line("accuracy", accuracies or {})], "", 1, "linear"),
        _Panel("NC1", [_Line(words(nc1[1]), collapses)], hover_help(*nc1[:2]), 2, "log"),
    ]
    return _figure(x, settings, [panel for panel in panels if _has_values(panel, settings)], note)


def _rank_lines(ranks: Mapping[str, Snapshot], rows: list[Row], group: str) -> list[_Line]:
    """The mean over layers, and behind it each layer."""
    layers = in_order((layer for last in ranks.values() for layer in last.layers if layer not in OVER_LAYERS), rows, group)
    of_layers = [_rank_line(name, layer, ranks) for layer, name in zip(layers, short_names(layers), strict=True)]
    return [*(line._replace(faint=True) for line in of_layers), _rank_line("mean over layers", _MEAN, ranks)]


def _rank_line(name: str, layer: str, ranks: Mapping[str, Snapshot]) -> _Line:
    known = {run: last for run, last in ranks.items() if layer in last.layers}
    old = {run: last.when(layer) for run, last in known.items() if last.old(layer)}
    return _Line(name, {run: last.layers[layer].value for run, last in known.items()}, when=old)


def _has_values(panel: _Panel, settings: Mapping[str, _Value]) -> bool:
    return any(run in settings and finite(value) is not None for line in panel.lines for run, value in line.values.items())


def _figure(x: str, settings: Mapping[str, _Value], panels: list[_Panel], note: str) -> Figure:
    along = SettingsAxis(settings.values())
    data = [trace for place, panel in enumerate(panels) for trace in _traces(place, panel, settings, along)]
    around = layout(f"{len(settings)} runs by {words(x)}", note, showlegend=False, annotations=[], hovermode="closest")
    width = (1 - _GAP * (len(panels) - 1)) / len(panels)
    for place, panel in enumerate(panels):
        left = place * (width + _GAP)
        number = "" if place == 0 else str(place + 1)
        around[f"xaxis{number}"] = along.drawn(words(x)) | {"domain": [left, min(1.0, left + width)], "anchor": f"y{number}"}
        more = {"anchor": f"x{number}", "rangemode": "tozero" if place == 0 else "normal"}
        title, around[f"yaxis{number}"] = _title_and_axis(panel, more)
        over = {"text": f"<b>{title}</b>", "x": left, "y": 1, "xref": "paper", "yref": "paper", "showarrow": False}
        around["annotations"].append(over | {"xanchor": "left", "yanchor": "bottom"})
    return {"data": data, "layout": around}


def _title_and_axis(panel: _Panel, more: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Upwards; if it is linear not as far as a line that is far beyond the others."""
    upward = reach(map(finite, line.values.values()) for line in panel.lines)
    if panel.scale == "log" or not upward.beyond:
        return panel.title, axis(type=panel.scale, **more)
    return upward.told(panel.title), axis(type=panel.scale, range=[0, 1.05 * upward.top], **more)


def _traces(place: int, panel: _Panel, settings: Mapping[str, _Value], along: SettingsAxis) -> Iterator[dict[str, Any]]:
    number = "" if place == 0 else str(place + 1)
    for line in panel.lines:
        points = _points(line, settings, along)
        if points:
            look = {"xaxis": f"x{number}", "yaxis": f"y{number}", "type": "scatter", "opacity": _FAINT if line.faint else 1}
            color = GREY if line.faint else COLOURS[panel.colour]
            yield look | _marks(line, points, color, panel.about, along.zero_apart)
            if along.zero_apart and len(points) > 1 and points[0].value == 0:
                yield look | _across(points[:2], color)


def _points(line: _Line, settings: Mapping[str, _Value], along: SettingsAxis) -> list[_Point]:
    """By setting in order: what the runs that chose it have."""
    points, values = [], line.values
    for value in along.values:
        runs = [run for run, chosen in settings.items() if chosen == value and finite(values.get(run)) is not None]
        if runs:
            when = [line.when.get(run, "") for run in runs]
            points.append(_Point(value, along.place(value), [float(values[run]) for run in runs], runs, when))
    return points


def _marks(line: _Line, points: list[_Point], color: str, about: str, zero_apart: bool) -> dict[str, Any]:
    gap = 1 if zero_apart and points[0].value == 0 and len(points) > 1 else 0  # no line from 0, which no log axis has
    hollow = {"symbol": _with_gap([OLD if any(point.when) else READ for point in points], gap)} if line.when else {}
    return {
        "name": plain(line.name),
        "mode": "lines+markers",
        "x": _with_gap([point.place for point in points], gap),
        "y": _with_gap([fmean(point.values) for point in points], gap),
        "error_y": _range(points, gap) | {"visible": not line.faint, "color": color},
        "text": _with_gap([_hover(line.name, point) + about for point in points], gap),
        "hovertemplate": "%{text}<extra></extra>",
        "line": {"color": color, "width": 1 if line.faint else 3},
        "marker": {"color": color, "size": 4 if line.faint else 9} | hollow,
    }


def _range(points: list[_Point], gap: int) -> dict[str, Any]:
    """How far the runs of each setting reach over and under their mean."""
    means = [fmean(point.values) for point in points]
    over = [max(point.values) - mean for point, mean in zip(points, means, strict=True)]
    under = [mean - min(point.values) for point, mean in zip(points, means, strict=True)]
    return {"type": "data", "symmetric": False, "array": _with_gap(over, gap), "arrayminus": _with_gap(under, gap)}


def _with_gap(values: list[Any], gap: int) -> list[Any]:
    return [*values[:1], None, *values[1:]] if gap else values


def _hover(name: str, point: _Point) -> str:
    low, high = min(point.values), max(point.values)
    between = "" if low == high else f" ({low:.4g} to {high:.4g})"
    named = [plain(run) + when for run, when in zip(point.runs, point.when, strict=True)]
    runs = ", ".join(named[:_MOST_NAMES]) + (", …" if len(named) > _MOST_NAMES else "")
    return f"<b>{plain(name)}</b>: {fmean(point.values):.4g}{between}<br>{runs}"


def _across(points: list[_Point], color: str) -> dict[str, Any]:
    """Dots from 0 to the least positive value."""
    heights = [fmean(point.values) for point in points]
    line = {"color": color, "width": 1, "dash": "dot"}
    return {"mode": "lines", "x": [point.place for point in points], "y": heights, "line": line, "hoverinfo": "skip"}
