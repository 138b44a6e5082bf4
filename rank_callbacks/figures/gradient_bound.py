"""The rank of each gradient inside the bound that architecture and batch put on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rank_callbacks.figures.held import Snapshot, snapshots
from rank_callbacks.figures.layers import in_order, layer_ticks
from rank_callbacks.figures.looks import COLOURS, Figure, axis, finite, layout, pale, plain
from rank_callbacks.figures.selection import Values, at_or_before, found, layers_of, select
from rank_callbacks.rows import Row

__all__ = ["gradient_bound"]

_GROUP = "gradient_rank"
# Of the bars of all runs together, where layers are 1 apart.
_WIDTH = 0.75
# White inside: seen on the bar of its own colour and on any page.
_DIAMOND = {"symbol": "diamond", "color": "white"}
# More bars than these are hidden by outlines and marks that are not thin.
_MOST_OUTLINED = 60


class _Layer(NamedTuple):
    """What one run's gradient of a layer reads, None for what it does not; and when, if the run has reported since."""

    rank: float | None
    bound: float | None
    effective: float | None
    utilization: float | None
    when: str


def gradient_bound(
    rows: Iterable[Row],
    runs: Sequence[str] | None = None,
    step: int | None = None,
    reasons: Mapping[str, str] | None = None,
    places: Mapping[str, float] | None = None,
) -> Figure:
    """A chart by layer: a pale bar as high as the bound, in it one as high as the rank, and a diamond at the effective rank.

    The rank is utilization times bound: counted at the tolerance max(m, n)·ε, for which the bound is one. A layer without a
    known bound has neither bar. A layer that the shown report did not read keeps its last bars, that of the rank
    hatched, their step on hover.

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
    tables = {"bound": bounds} | {name: select(rows, _GROUP, name) for name in ("utilization", "effective_rank")}
    data = []
    for place, run in enumerate(bounds):
        now = {name: _at(values.get(run, {}), step) for name, values in tables.items()}
        data += _traces(place, run, layers, [_read(layer, now) for layer in layers], reasons or {}, len(bounds))
    return {"data": data, "layout": _layout(layers, _shown_step(bounds, step))}


def _at(of_run: Mapping[int, Mapping[str, float]], step: int | None) -> Snapshot | None:
    """What is known at a step, the last for None."""
    last = max(of_run, default=0) if step is None else step
    return snapshots(of_run, of_run, [last])[last]


def _read(layer: str, now: Mapping[str, Snapshot | None]) -> _Layer:
    read = {name: finite(known.layers[layer].value) for name, known in now.items() if known and layer in known.layers}
    bound, utilization = read.get("bound"), read.get("utilization")
    # A share in float32 times its bound: the rank again but for rounding.
    rank = None if bound is None or utilization is None else round(utilization * bound, 3)
    when = now["bound"].when(layer) if now["bound"] else ""
    return _Layer(rank, bound, read.get("effective_rank"), utilization, when)


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
    one_run = runs == 1
    thin = runs * len(layers) > _MOST_OUTLINED
    bound = {"color": pale(colour), "line": {"color": colour, "width": 0 if thin else 1}}
    diamond = _DIAMOND | {"size": 5 if thin else 9, "line": {"color": colour, "width": 1 if thin else 2}}
    dots = shared | {"type": "scatter", "mode": "markers", "marker": diamond, "showlegend": one_run} | middles
    name = "rank" if one_run else plain(run)
    return [
        bar | {"name": "bound", "y": [one.bound for one in read], "marker": bound, "showlegend": one_run},
        bar | {"name": name, "y": [one.rank for one in read], "marker": {"color": colour} | _hatched(read)},
        dots | {"name": "effective rank", "y": [one.effective for one in read]},
    ]


def _hatched(read: list[_Layer]) -> dict[str, Any]:
    """Bars that are older than their report."""
    return {"pattern": {"shape": ["/" if one.when else "" for one in read]}} if any(one.when for one in read) else {}


def _hover(layer: str, run: str, one: _Layer, reason: str) -> str:
    def written(value: float | None) -> str:
        return "not known" if value is None else f"{value:.4g}"

    share = "" if one.utilization is None else f" ({one.utilization:.0%})"
    lines = [f"<b>{plain(layer)}</b>, {plain(run)}{one.when}", f"rank {written(one.rank)} of {written(one.bound)}{share}"]
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
