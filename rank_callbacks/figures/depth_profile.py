"""A measure against depth, moving with training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rank_callbacks.figures.explanation import hover_help
from rank_callbacks.figures.layers import in_order, layer_ticks
from rank_callbacks.figures.looks import Figure, axis, finite, layout, plain, run_look, words
from rank_callbacks.figures.selection import at_or_before, found, layers_of
from rank_callbacks.figures.thinning import thinned
from rank_callbacks.rows import Row

__all__ = ["depth_profile"]

# A slider has no more places than that on a screen.
_MOST_FRAMES = 100
# Of more layers than these, markers hide the line.
_MOST_MARKERS = 60


def depth_profile(
    rows: Iterable[Row],
    group: str = "feature_rank",
    measure: str = "effective_rank",
    places: Mapping[str, float] | None = None,
) -> Figure:
    """A chart of one measure of every layer against its depth: a slider and a button move it through training.

    Runs are lines. A run that has no reading at a step keeps its last, and a NaN or infinity is a gap. Of more than 100 steps,
    100 are shown, evenly, with the first and the last.

    Args:
        rows: The long table: every reading of the runs to show.
        group: First part of the tags that are drawn.
        measure: Second part.
        places: Where each layer stands, for runs without readings of depth.

    Raises:
        ValueError: If no reading has such a tag.

    Example:
        >>> from rank_callbacks.tags import Tag
        >>> tags = [Tag("feature_rank", "effective_rank", f"block.{i}") for i in range(3)]
        >>> figure = depth_profile([Row("run", step, tag, 9.0) for step in (0, 5) for tag in tags])
        >>> [frame["name"] for frame in figure["frames"]], figure["data"][0]["y"]
        (['0', '5'], [9.0, 9.0, 9.0])
    """
    rows = list(rows)
    values = found(rows, group, measure)
    found_layers = layers_of(report for of_run in values.values() for report in of_run.values())
    layers = in_order(found_layers, rows, group, places)
    steps = thinned(sorted({step for of_run in values.values() for step in of_run}), _MOST_FRAMES)
    frames = {step: [_heights(of_run, step, layers) for of_run in values.values()] for step in steps}
    lines = [_line(place, run, layers, hover_help(group, measure)) for place, run in enumerate(values)]
    return {
        "data": [line | {"y": heights} for line, heights in zip(lines, frames[steps[-1]], strict=True)],
        "layout": _layout(f"{words(measure)} ({words(group)})", layers, frames, len(values)),
        "frames": [{"name": str(step), "data": [{"y": heights} for heights in now]} for step, now in frames.items()],
    }


def _heights(of_run: dict[int, dict[str, float]], step: int, layers: list[str]) -> list[float | None]:
    _, now = at_or_before(of_run, step) or (step, {})
    return [finite(now.get(layer)) for layer in layers]


def _line(place: int, run: str, layers: list[str], about: str) -> dict[str, Any]:
    look = run_look(place)
    return {
        "type": "scatter",
        "name": plain(run),
        "x": list(range(len(layers))),
        "text": [plain(layer) for layer in layers],
        "mode": "lines+markers" if len(layers) <= _MOST_MARKERS else "lines",
        "line": look | {"width": 2},
        "marker": {"size": 7},
        "hovertemplate": f"<b>%{{text}}</b>: %{{y:.4g}}{about}",
    }


def _layout(title: str, layers: list[str], frames: Mapping[int, list[list[float | None]]], runs: int) -> dict[str, Any]:
    heights = [height for now in frames.values() for line in now for height in line if height is not None]
    reach = [1.05 * min(0.0, min(heights, default=0.0)), 1.05 * max(heights, default=1.0)]
    return layout(
        title,
        xaxis=axis("layer, from input to output", range=[-0.5, len(layers) - 0.5], **layer_ticks(layers)),
        # One range for all steps, or a fall could not be seen.
        yaxis=axis(title, range=reach),
        showlegend=runs > 1,
        sliders=[_slider(list(frames))],
        updatemenus=[_buttons()],
        margin={"l": 70, "r": 30, "t": 130, "b": 60},
    )


def _slider(steps: list[int]) -> dict[str, Any]:
    at_once = {"mode": "immediate", "frame": {"duration": 0, "redraw": False}, "transition": {"duration": 0}}
    moves = [{"label": str(step), "method": "animate", "args": [[str(step)], at_once]} for step in steps]
    now = {"prefix": "step ", "xanchor": "right"}
    # Above the chart: below, names of layers may be long.
    place = {"x": 0.12, "len": 0.88, "y": 1, "yanchor": "bottom", "pad": {"b": 15}}
    return {"active": len(steps) - 1, "steps": moves, "currentvalue": now, **place}


def _buttons() -> dict[str, Any]:
    """Play from the first step, and pause."""
    moving = {"mode": "immediate", "frame": {"duration": 150, "redraw": False}, "transition": {"duration": 0}}
    play = {"label": "▶", "method": "animate", "args": [None, moving | {"fromcurrent": True}]}
    still = {"mode": "immediate", "frame": {"duration": 0, "redraw": False}, "transition": {"duration": 0}}
    pause = {"label": "❚❚", "method": "animate", "args": [[None], still]}
    place = {"x": 0, "y": 1, "xanchor": "left", "yanchor": "bottom", "pad": {"b": 25}, "direction": "left"}
    return {"type": "buttons", "showactive": False, "buttons": [play, pause], **place}
