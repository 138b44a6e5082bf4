"""Layers against steps of one run, colour for the value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rank_callbacks.figures.approximation import approximations, noted
from rank_callbacks.figures.explanation import hover_help
from rank_callbacks.figures.held import Snapshot, report_steps, snapshots
from rank_callbacks.figures.layers import in_order, layer_ticks
from rank_callbacks.figures.looks import VIRIDIS, Figure, axis, finite, layout, plain, words
from rank_callbacks.figures.selection import found, layers_of
from rank_callbacks.figures.thinning import thinned
from rank_callbacks.rows import Row

__all__ = ["heatmap"]

# More columns than these are narrower than a few pixels.
_MOST_STEPS = 300
_PALE = {"opacity": 0.45, "showscale": False}


def heatmap(rows: Iterable[Row], run: str, group: str, measure: str, places: Mapping[str, float] | None = None) -> Figure:
    """A chart of one run: layers from input at the top to output, a column a report, colour relative to a layer's largest.

    Columns are as wide for each report, whatever the steps between them. A layer that was not read for a report keeps its last
    reading, pale, in a second trace; its step is on hover. A NaN, an infinity or no reading so far is a gap. A layer that is 0
    throughout is as dark as can be. ``meta`` of a trace has the layers' names as they are, row by row. Under the title stands
    what readings are bounds, and how old the oldest is, where monitors say so.

    Args:
        rows: The long table.
        run: Which run.
        group: First part of the tags that are drawn.
        measure: Second part.
        places: Where each layer stands, for runs without readings of depth.

    Raises:
        ValueError: If there is no such run, or none of its readings has such a tag.

    Example:
        >>> from rank_callbacks.tags import Tag
        >>> tag = Tag("weight_rank", "stable_rank", "head.weight")
        >>> figure = heatmap([Row("run", 0, tag, 4.0), Row("run", 9, tag, 1.0)], "run", "weight_rank", "stable_rank")
        >>> figure["data"][0]["z"]
        [[1.0, 0.25]]
    """
    rows = list(rows)
    if run not in (runs := dict.fromkeys(row.run for row in rows)) and runs:
        raise ValueError(f"Expected the name of a run, got {run!r}. Choose from {', '.join(runs)}.")
    mine = [row for row in rows if row.run == run]
    values = found(mine, group, measure)
    layers = in_order(layers_of(values[run].values()), mine, group, places)
    reports = report_steps(mine, values, group, measure)[run]
    columns = snapshots(values[run], reports, thinned(reports, _MOST_STEPS))
    note = noted(approximations(mine, group), [now.seen(run) for now in columns.values() if now], group, measure)
    title = f"{words(measure)} ({words(group)}) of {plain(run)}"
    return {"data": _traces(columns, layers, hover_help(group, measure)), "layout": _layout(title, note, layers)}


def _traces(columns: Mapping[int, Snapshot | None], layers: list[str], about: str) -> list[dict[str, Any]]:
    """What was read at each report; and where a layer's last reading is older, that, pale."""
    cells = [[_value(now, layer) for now in columns.values()] for layer in layers]
    when = [[now.when(layer, step) if now else "" for step, now in columns.items()] for layer in layers]
    shares = [_relative(row) for row in cells]
    least = -1 if any(share is not None and share < 0 for row in shares for share in row) else 0
    trace = _trace([str(step) for step in columns], layers, least, about)
    read = trace | {"z": _where(shares, when, old=False), "customdata": cells}
    if not any(map(any, when)):
        return [read]
    hover = trace["hovertemplate"].replace(", %{z", "%{text}, %{z")
    pale = {"z": _where(shares, when, old=True), "customdata": cells, "text": when, "hovertemplate": hover}
    return [read, trace | _PALE | pale]


def _value(now: Snapshot | None, layer: str) -> float | None:
    return finite(now.layers[layer].value) if now and layer in now.layers else None


def _where(shares: list[list[float | None]], when: list[list[str]], old: bool) -> list[list[float | None]]:
    rows = zip(shares, when, strict=True)
    return [[share if bool(step) == old else None for share, step in zip(*row, strict=True)] for row in rows]


def _trace(steps: list[str], layers: list[str], least: int, about: str) -> dict[str, Any]:
    many = len(VIRIDIS) - 1
    return {
        "type": "heatmap",
        "x": steps,
        "y": [plain(layer) for layer in layers],
        "meta": {"layers": layers},
        "colorscale": [[place / many, colour] for place, colour in enumerate(VIRIDIS)],
        "zmin": least,
        "zmax": 1,
        "colorbar": {"title": {"text": "share of the layer's largest", "side": "right"}, "outlinewidth": 0, "thickness": 14},
        "hoverongaps": False,
        "hovertemplate": f"<b>%{{y}}</b>, step %{{x}}<br>%{{customdata:.4g}}, %{{z:.0%}} of its largest{about}<extra></extra>",
    }


def _relative(row: list[float | None]) -> list[float | None]:
    largest = max((abs(value) for value in row if value is not None), default=0.0) or 1.0
    return [None if value is None else value / largest for value in row]


def _layout(title: str, note: str, layers: list[str]) -> dict[str, Any]:
    return layout(
        title,
        note,
        xaxis=axis("step of the report", type="category", showgrid=False, nticks=12, tickangle=0),
        yaxis=axis(type="category", autorange="reversed", showgrid=False, **layer_ticks(layers)),
    )
