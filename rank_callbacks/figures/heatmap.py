"""Layers against steps of one run, colour for the value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rank_callbacks.figures.explanation import hover_help
from rank_callbacks.figures.layers import in_order, layer_ticks
from rank_callbacks.figures.looks import VIRIDIS, Figure, axis, finite, layout, plain, words
from rank_callbacks.figures.selection import found, layers_of
from rank_callbacks.figures.thinning import thinned
from rank_callbacks.rows import Row

__all__ = ["heatmap"]

# More columns than these are narrower than a few pixels.
_MOST_STEPS = 300


def heatmap(rows: Iterable[Row], run: str, group: str, measure: str, places: Mapping[str, float] | None = None) -> Figure:
    """A chart of one run: layers from input at the top to output, a column a report, colour relative to a layer's largest.

    Columns are as wide for each report, whatever the steps between them. A NaN, an infinity or no reading is a gap. A layer
    that is 0 throughout is as dark as can be. ``meta`` of the trace has the layers' names as they are, row by row.

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
    by_step = found(mine, group, measure)[run]
    layers = in_order(layers_of(by_step.values()), mine, group, places)
    steps = thinned(list(by_step), _MOST_STEPS)
    cells = [[finite(by_step[step].get(layer)) for step in steps] for layer in layers]
    title = f"{words(measure)} ({words(group)}) of {plain(run)}"
    return {"data": [_cells(cells, steps, layers, hover_help(group, measure))], "layout": _layout(title, layers)}


def _cells(cells: list[list[float | None]], steps: list[int], layers: list[str], about: str) -> dict[str, Any]:
    shares = [_relative(row) for row in cells]
    many = len(VIRIDIS) - 1
    return {
        "type": "heatmap",
        "x": [str(step) for step in steps],
        "y": [plain(layer) for layer in layers],
        "z": shares,
        "customdata": cells,
        "meta": {"layers": layers},
        "colorscale": [[place / many, colour] for place, colour in enumerate(VIRIDIS)],
        "zmin": -1 if any(share is not None and share < 0 for row in shares for share in row) else 0,
        "zmax": 1,
        "colorbar": {"title": {"text": "share of the layer's largest", "side": "right"}, "outlinewidth": 0, "thickness": 14},
        "hoverongaps": False,
        "hovertemplate": f"<b>%{{y}}</b>, step %{{x}}<br>%{{customdata:.4g}}, %{{z:.0%}} of its largest{about}<extra></extra>",
    }


def _relative(row: list[float | None]) -> list[float | None]:
    largest = max((abs(value) for value in row if value is not None), default=0.0) or 1.0
    return [None if value is None else value / largest for value in row]


def _layout(title: str, layers: list[str]) -> dict[str, Any]:
    return layout(
        title,
        xaxis=axis("step of the report", type="category", showgrid=False, nticks=12, tickangle=0),
        yaxis=axis(type="category", autorange="reversed", showgrid=False, **layer_ticks(layers)),
    )
