"""A measure against depth, moving with training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from rank_callbacks.tags import Tag

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["depth_profile"]

# By run, then by step, then by layer.
_Values: TypeAlias = "dict[str, dict[int, dict[str, float]]]"

# Okabe and Ito's colours, which the colour-blind can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_PLACE = "depth"


def depth_profile(
    readings: Iterable[tuple[str, int, str, float]], measure: str = "effective_rank", group: str = "feature_rank"
) -> go.Figure:
    """A figure of one measure of every layer against its depth: a slider and a button move it through training.

    Layers stand where the readings ``<group>/depth/<layer>`` of any run place them, which ``FeatureRankMonitor`` logs, and
    without those in the order in which they appear. Runs are lines of one colour each; a run that has no reading at a step
    keeps its last, and a NaN is a gap.

    Args:
        readings: The long table: run, step, tag and value of each, as any logger of the monitors has them.
        measure: Of the tags that are drawn.
        group: First part of these tags.

    Raises:
        ImportError: If plotly is absent.
        ValueError: If no reading has such a tag.

    Example:
        >>> readings = [("run", step, f"feature_rank/effective_rank/layer.{i}", 9.0 - i) for step in (0, 9) for i in range(3)]
        >>> len(depth_profile(readings).frames)
        2
    """
    values, places = _sorted_out(readings, measure, group)
    if not values:
        raise ValueError(f"Expected readings with tags {group}/{measure}/<layer>, got none.")
    layers = sorted(places, key=lambda layer: places[layer])
    steps = sorted({step for of_run in values.values() for step in of_run})
    frames = {step: _lines(values, step, layers) for step in steps}
    return _figure(frames, f"{measure.replace('_', ' ')} ({group.replace('_', ' ')})")


def _sorted_out(readings: Iterable[tuple[str, int, str, float]], measure: str, group: str) -> tuple[_Values, dict[str, float]]:
    """Values of the measure, and where each layer stands."""
    values: _Values = {}
    depths: dict[str, float] = {}
    seen: dict[str, float] = {}
    for run, step, text, value in readings:
        if text.count("/") < 2:
            continue
        tag = Tag.parse(text)
        if tag.group != group or tag.layer.endswith("_over_layers"):
            continue
        if tag.measure == _PLACE:
            depths.setdefault(tag.layer, value)
        elif tag.measure == measure:
            values.setdefault(run, {}).setdefault(step, {})[tag.layer] = value
            seen.setdefault(tag.layer, len(seen))
    return values, {layer: depths.get(layer, len(depths) + place) for layer, place in seen.items()}


def _lines(values: _Values, step: int, layers: list[str]) -> list[dict[str, Any]]:
    """A trace a run, of its last readings up to a step."""
    traces = []
    for place, (run, of_run) in enumerate(values.items()):
        past = [before for before in of_run if before <= step]
        now: Mapping[str, float] = of_run[max(past)] if past else {}
        colour = _COLOURS[place % len(_COLOURS)]
        traces.append(
            {
                "type": "scatter",
                "name": run,
                "x": layers,
                "y": [now.get(layer) for layer in layers],
                "mode": "lines+markers",
                "line": {"color": colour},
                "hovertemplate": "%{x}: %{y:.4g}",
            }
        )
    return traces


def _figure(frames: Mapping[int, list[dict[str, Any]]], title: str) -> go.Figure:
    import plotly.graph_objects as go

    last = max(frames)
    highest = max((y for lines in frames.values() for line in lines for y in line["y"] if y is not None and y == y), default=1)
    at_once = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}, "transition": {"duration": 0}}
    moves = [{"label": str(step), "method": "animate", "args": [[str(step)], at_once]} for step in frames]
    play = {"label": "Play", "method": "animate", "args": [None, {"frame": {"duration": 300}, "fromcurrent": False}]}
    return go.Figure(
        data=frames[last],
        frames=[{"name": str(step), "data": lines} for step, lines in frames.items()],
        layout={
            "template": "simple_white",
            "title": {"text": title},
            "xaxis": {"title": {"text": "layer, from input to output"}, "type": "category"},
            "yaxis": {"title": {"text": title}, "range": [0, 1.05 * highest]},
            "showlegend": len(frames[last]) > 1,
            "sliders": [{"active": len(moves) - 1, "steps": moves, "currentvalue": {"prefix": "step "}, "pad": {"t": 60}}],
            "updatemenus": [{"type": "buttons", "buttons": [play], "x": 0, "y": -0.25, "xanchor": "right", "yanchor": "top"}],
        },
    )
