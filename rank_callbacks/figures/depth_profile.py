"""A measure against depth, moving with training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rank_callbacks.figures.approximation import Approximation, approximations, noted
from rank_callbacks.figures.explanation import hover_help
from rank_callbacks.figures.held import Snapshot, report_steps, snapshots
from rank_callbacks.figures.layers import in_order, layer_ticks
from rank_callbacks.figures.looks import OLD, READ, Figure, axis, finite, layout, noted_title, plain, reach, run_look, words
from rank_callbacks.figures.selection import found, layers_of
from rank_callbacks.figures.thinning import thinned
from rank_callbacks.rows import Row

__all__ = ["depth_profile"]

# A slider has no more places than that on a screen.
_MOST_FRAMES = 100
# Of more layers than these, markers hide the line.
_MOST_MARKERS = 60
_MARKER = {"size": 7}


def depth_profile(
    rows: Iterable[Row],
    group: str = "feature_rank",
    measure: str = "effective_rank",
    places: Mapping[str, float] | None = None,
) -> Figure:
    """A chart of one measure of every layer against its depth: a slider and a button move it through training.

    Runs are lines. A layer without a reading at a step keeps its last: hollow where the run has reported since, its step on
    hover. A NaN or infinity is a gap. Of more than 100 steps, 100 are shown, evenly, with the first and the last. Under the
    title stands what readings are bounds, and how old the oldest is, where monitors say so.

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
    reports = report_steps(rows, values, group, measure)
    steps = thinned(sorted({step for of_run in reports.values() for step in of_run}), _MOST_FRAMES)
    known = {run: snapshots(of_run, reports[run], steps) for run, of_run in values.items()}
    moves = {run: _moves(of_run, layers) for run, of_run in known.items()}
    lines = [
        _line(place, run, layers, "customdata" in moves[run][steps[0]], hover_help(group, measure))
        for place, run in enumerate(values)
    ]
    frames = {step: [of_run[step] for of_run in moves.values()] for step in steps}
    title, notes = f"{words(measure)} ({words(group)})", _notes(approximations(rows, group), known, steps, group, measure)
    return {
        "data": [line | now for line, now in zip(lines, frames[steps[-1]], strict=True)],
        "layout": _layout(title, layers, frames, len(values), notes),
        "frames": [{"name": str(step), "data": now} | _frame_title(title, step, notes) for step, now in frames.items()],
    }


def _moves(of_run: Mapping[int, Snapshot | None], layers: list[str]) -> dict[int, dict[str, Any]]:
    """What changes in a run's line, by step: its heights; its marks and hover texts where some reading is of another step."""
    moves: dict[int, dict[str, Any]] = {step: {"y": _heights(now, layers)} for step, now in of_run.items()}
    if any(now and now.when(layer, step) for step, now in of_run.items() for layer in layers):
        for step, now in of_run.items():
            moves[step] |= {"customdata": [now.when(layer, step) if now else "" for layer in layers]}
    if any(now and now.old(layer) for now in of_run.values() for layer in layers):
        for step, now in of_run.items():
            symbols = [OLD if now and now.old(layer) else READ for layer in layers]
            moves[step] |= {"marker": _MARKER | {"symbol": symbols}}
    return moves


def _heights(now: Snapshot | None, layers: list[str]) -> list[float | None]:
    return [finite(now.layers[layer].value) if now and layer in now.layers else None for layer in layers]


def _notes(
    said: Mapping[tuple[str, int], Approximation],
    known: Mapping[str, Mapping[int, Snapshot | None]],
    steps: list[int],
    group: str,
    measure: str,
) -> dict[int, str]:
    """What a reader must know at each step; nothing at all where there is nothing to say at any."""
    if not said:
        return {}
    seen = {step: [now.seen(run) for run, of_run in known.items() if (now := of_run[step])] for step in steps}
    notes = {step: noted(said, runs, group, measure) for step, runs in seen.items()}
    return notes if any(notes.values()) else {}


def _frame_title(title: str, step: int, notes: Mapping[int, str]) -> dict[str, Any]:
    return {"layout": {"title": {"text": noted_title(title, notes[step])}}} if notes else {}


def _line(place: int, run: str, layers: list[str], dated: bool, about: str) -> dict[str, Any]:
    look, when = run_look(place), "%{customdata}" if dated else ""
    return {
        "type": "scatter",
        "name": plain(run),
        "x": list(range(len(layers))),
        "text": [plain(layer) for layer in layers],
        "mode": "lines+markers" if len(layers) <= _MOST_MARKERS else "lines",
        "line": look | {"width": 2},
        "marker": {**_MARKER},
        "hovertemplate": f"<b>%{{text}}</b>: %{{y:.4g}}{when}{about}",
    }


def _layout(
    title: str, layers: list[str], frames: Mapping[int, list[dict[str, Any]]], runs: int, notes: Mapping[int, str]
) -> dict[str, Any]:
    steps = list(frames)
    return layout(
        title,
        notes.get(steps[-1], ""),
        xaxis=axis("layer, from input to output", range=[-0.5, len(layers) - 0.5], **layer_ticks(layers)),
        yaxis=_height_axis(title, frames.values()),
        showlegend=runs > 1,
        sliders=[_slider(steps, bool(notes))],
        updatemenus=[_buttons(bool(notes))],
        margin={"l": 70, "r": 30, "t": 148 if notes else 130, "b": 60},
    )


def _height_axis(title: str, frames: Iterable[list[dict[str, Any]]]) -> dict[str, Any]:
    """One range for all steps, or a fall could not be seen; not as far up as a layer that is far beyond the others."""
    by_layer = list(zip(*(line["y"] for now in frames for line in now), strict=True))
    lowest = min((height for layer in by_layer for height in layer if height is not None), default=0.0)
    upward = reach(by_layer)
    return axis(upward.told(title), range=[1.05 * min(0.0, lowest), 1.05 * upward.top])


def _slider(steps: list[int], redraw: bool) -> dict[str, Any]:
    """A place a step; ``redraw`` for a title that changes with the step."""
    at_once = {"mode": "immediate", "frame": {"duration": 0, "redraw": redraw}, "transition": {"duration": 0}}
    moves = [{"label": str(step), "method": "animate", "args": [[str(step)], at_once]} for step in steps]
    now = {"prefix": "step ", "xanchor": "right"}
    # Above the chart: below, names of layers may be long.
    place = {"x": 0.12, "len": 0.88, "y": 1, "yanchor": "bottom", "pad": {"b": 15}}
    return {"active": len(steps) - 1, "steps": moves, "currentvalue": now, **place}


def _buttons(redraw: bool) -> dict[str, Any]:
    """Play from the first step, and pause."""
    moving = {"mode": "immediate", "frame": {"duration": 150, "redraw": redraw}, "transition": {"duration": 0}}
    play = {"label": "▶", "method": "animate", "args": [None, moving | {"fromcurrent": True}]}
    still = {"mode": "immediate", "frame": {"duration": 0, "redraw": False}, "transition": {"duration": 0}}
    pause = {"label": "❚❚", "method": "animate", "args": [[None], still]}
    place = {"x": 0, "y": 1, "xanchor": "left", "yanchor": "bottom", "pad": {"b": 25}, "direction": "left"}
    return {"type": "buttons", "showactive": False, "buttons": [play, pause], **place}
