"""The rank of each gradient inside the bound that architecture and batch put on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rank_callbacks.figures.layers import in_order, layer_ticks
from rank_callbacks.figures.looks import COLOURS, Figure, axis, finite, layout, pale, plain
from rank_callbacks.figures.selection import Values, at_or_before, found, layers_of, select
from rank_callbacks.rows import Row

__all__ = ["gradient_bound"]

_GROUP = "gradient_rank"
# Of the bars of all runs together, where layers are 1 apart.
_WIDTH = 0.75


class _Layer(NamedTuple):
    """What one run's gradient of a layer reads; None for what it does not."""

    rank: float | None
    bound: float | None
    effective: float | None
    utilization: float | None


def gradient_bound(
    rows: Iterable[Row],
    runs: Sequence[str] | None = None,
    step: int | None = None,
    reasons: Mapping[str, str] | None = None,
    places: Mapping[str, float] | None = None,
) -> Figure:
    """A chart by layer: a pale bar as high as the bound, in it one as high as the rank, and a diamond at the effective rank.

    The rank is utilization times bound: counted at the tolerance max(m, n)·ε, for which the bound is one. A layer without a
    known bound has neither bar.

    Args:
        rows: The long table.
        runs: Which runs, side by side; None for all.
        step: The last report up to this step is shown; None for the latest.
        reasons: What bound each layer's gradient at the first report, for the hover text.
        places: Where each layer stands, for runs without readings of depth.

    Raises:
        ValueError: If no reading is a bound of these runs.

    Example:
        >>> from rank_callbacks.tags import Tag
        >>> values = {"bound": 10.0, "utilization": 0.5, "effective_rank": 3.2}
        >>> rows = [Row("run", 0, Tag("gradient_rank", name, "head.weight"), value) for name, value in values.items()]
        >>> figure = gradient_bound(rows)
        >>> [trace["y"] for trace in figure["data"]]
        [[10.0], [5.0], [3.2]]
    """
    rows = [row for row in rows if runs is None or row.run in runs]
    bounds = found(rows, _GROUP, "bound")
    found_layers = layers_of(report for of_run in bounds.values() for report in of_run.values())
    layers = in_order(found_layers, rows, _GROUP, places)
    others = {measure: select(rows, _GROUP, measure) for measure in ("utilization", "effective_rank")}
    data = []
    for place, run in enumerate(bounds):
        read = [_read(layer, run, step, {"bound": bounds, **others}) for layer in layers]
        data += _traces(place, run, layers, read, reasons or {}, len(bounds))
    return {"data": data, "layout": _layout(layers, _shown_step(bounds, step))}


def _read(layer: str, run: str, step: int | None, tables: Mapping[str, Values]) -> _Layer:
    now = {}
    for measure, values in tables.items():
        _, report = at_or_before(values.get(run, {}), step) or (0, {})
        now[measure] = finite(report.get(layer))
    bound, utilization = now["bound"], now["utilization"]
    # A share in float32 times its bound: the rank again but for rounding.
    rank = None if bound is None or utilization is None else round(utilization * bound, 3)
    return _Layer(rank, bound, now["effective_rank"], utilization)


def _traces(
    place: int, run: str, layers: list[str], read: list[_Layer], reasons: Mapping[str, str], runs: int
) -> list[dict[str, Any]]:
    colour = COLOURS[place % len(COLOURS)]
    shared = {
        "x": list(range(len(layers))),
        "text": [_hover(layer, run, one, reasons.get(layer, "")) for layer, one in zip(layers, read, strict=True)],
        "hovertemplate": "%{text}<extra></extra>",
        "legendgroup": run,
    }
    # Placed here and not by plotly, which would place the rank beside its bound, and marks elsewhere where layers are gaps.
    width = _WIDTH / runs
    left = place * width - _WIDTH / 2
    bar = shared | {"type": "bar", "textposition": "none", "width": width, "offset": left}
    middles = {"x": [layer + left + width / 2 for layer in range(len(layers))]}
    hollow = {"color": pale(colour), "line": {"color": colour, "width": 1}}
    # White inside: seen on the bar of its own colour and on any page.
    diamond = {"symbol": "diamond", "size": 9, "color": "white", "line": {"color": colour, "width": 2}}
    one_run = runs == 1
    dots = shared | {"type": "scatter", "mode": "markers", "marker": diamond, "showlegend": one_run} | middles
    return [
        bar | {"name": "bound", "y": [one.bound for one in read], "marker": hollow, "showlegend": one_run},
        bar | {"name": "rank" if one_run else plain(run), "y": [one.rank for one in read], "marker": {"color": colour}},
        dots | {"name": "effective rank", "y": [one.effective for one in read]},
    ]


def _hover(layer: str, run: str, one: _Layer, reason: str) -> str:
    def written(value: float | None) -> str:
        return "not known" if value is None else f"{value:.4g}"

    share = "" if one.utilization is None else f" ({one.utilization:.0%})"
    lines = [f"<b>{plain(layer)}</b>, {plain(run)}", f"rank {written(one.rank)} of {written(one.bound)}{share}"]
    lines += [f"effective rank {written(one.effective)}"] + (
        [f"at the first report bound by: {plain(reason)}"] if reason else []
    )
    return "<br>".join(lines)


def _shown_step(bounds: Values, step: int | None) -> int | None:
    """The latest step that is drawn; None if all is later than asked for."""
    return max((found_at[0] for of_run in bounds.values() if (found_at := at_or_before(of_run, step))), default=None)


def _layout(layers: list[str], step: int | None) -> dict[str, Any]:
    when = "" if step is None else f" at step {step}"
    return layout(
        f"Rank of gradients against its bound{when}",
        xaxis=axis("layer, from input to output", range=[-0.5, len(layers) - 0.5], **layer_ticks(layers)),
        yaxis=axis("rank", rangemode="tozero"),
        barmode="overlay",
    )
