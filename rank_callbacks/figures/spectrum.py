"""Singular values of one layer, now and before."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rank_callbacks.figures.looks import GREY, Figure, axis, finite, layout, log_axis, plain, run_look
from rank_callbacks.figures.thinning import thinned

__all__ = ["marchenko_pastur_edge", "spectrum"]

# Curves of one run: enough to see a movement, few enough to tell apart.
_CURVES = 5
# On a log axis the head is wide and the tail narrow: a spectrum of 16,384 values is the same curve with these.
_HEAD, _TAIL = 200, 800
_Steps = Mapping[int, Sequence[float]]


def spectrum(
    spectra: Mapping[str, _Steps],
    shape: Sequence[int],
    tolerance: float = 1e-3,
    k: int | None = None,
    title: str = "singular values",
) -> Figure:
    """A chart of a layer's singular values on log axes: the latest bold, earlier ones faint, with what they are held against.

    A dashed line is at the tolerance times the largest value, a dotted one at the Marchenko-Pastur edge, both of the latest
    spectrum of each run; a vertical one at rank K. Values that are 0, NaN or infinite are left out.

    Args:
        spectra: By run, then by step: singular values, descending. A run without a step is left out.
        shape: Of the matrix. Only one of two dimensions has a Marchenko-Pastur edge.
        tolerance: Relative to the largest singular value.
        k: The number of classes, or None for no line.
        title: What has these singular values.

    Raises:
        ValueError: If there is no spectrum.

    Example:
        >>> figure = spectrum({"run": {0: [2.0, 1.0], 9: [2.0, 0.0]}}, shape=(2, 2))
        >>> [line["y"] for line in figure["data"][:2]]
        [[2.0, 1.0], [2.0]]
    """
    runs = {run: dict(sorted(steps.items())) for run, steps in spectra.items() if steps}
    if not runs:
        raise ValueError(
            "Expected a spectrum, got none. Add WeightRankMonitor, GradientRankMonitor or FeatureRankMonitor to the trainer's "
            "callbacks: they log spectra to TensorBoard."
        )
    data = [line for place, run in enumerate(runs) for line in _of_run(place, run, runs[run], shape, tolerance, len(runs))]
    if k is not None:
        data += _rank_line(k, data)
    return {"data": data, "layout": _layout(title, shape, [height for line in data for height in line["y"]])}


def marchenko_pastur_edge(singular_values: Sequence[float], shape: Sequence[int]) -> float | None:
    """The largest singular value that a random matrix of that size and norm would have; None unless it has two dimensions.

    sqrt(Σ s_i² / mn) · (√m + √n).

    Example:
        >>> marchenko_pastur_edge([3.0, 4.0], (4, 9))
        4.166666666666667
    """
    if len(shape) != 2 or not math.prod(shape):
        return None
    m, n = shape
    norm = math.sqrt(sum(value**2 for value in singular_values))
    return finite(norm / math.sqrt(m * n) * (math.sqrt(m) + math.sqrt(n)))


def _of_run(
    place: int, run: str, steps: _Steps, shape: Sequence[int], tolerance: float, runs: int
) -> Iterator[dict[str, Any]]:
    """Curves of a run from the earliest to the latest, and its two levels."""
    shown = thinned(list(steps), _CURVES if runs == 1 else 2)
    for order, step in enumerate(shown):
        share = 1 if len(shown) == 1 else order / (len(shown) - 1)
        yield _curve(place, run if runs > 1 else "", step, steps[step], share)
    latest = [float(value) for value in steps[shown[-1]]]
    levels = {f"{tolerance:g} · σ₁": (finite(tolerance * max(latest, default=0)), "dash")}
    levels["Marchenko-Pastur edge"] = (marchenko_pastur_edge(latest, shape), "dot")
    for name, (height, dash) in levels.items():
        if height:
            yield _level(place, name, height, len(latest), dash)


def _curve(place: int, run: str, step: int, values: Sequence[float], share: float) -> dict[str, Any]:
    """One spectrum; ``share`` is 0 for the earliest and 1 for the latest."""
    seen = [(index, float(value)) for index, value in enumerate(values, start=1) if _is_seen(value)]
    kept = seen[:_HEAD] + thinned(seen[_HEAD:], _TAIL)
    return {
        "type": "scatter",
        "name": f"{plain(run)} step {step}".strip(),
        "legendgroup": run,
        "showlegend": share == 1 or not run,
        "x": [index for index, _ in kept],
        "y": [value for _, value in kept],
        "mode": "lines" if len(values) > 64 else "lines+markers",
        "line": {"color": run_look(place)["color"], "width": 3.5 if share == 1 else 1.5},
        "marker": {"size": 5},
        "opacity": 1 if share == 1 else 0.25 + 0.45 * share,
        "hovertemplate": "σ<sub>%{x}</sub> = %{y:.4g}",
    }


def _is_seen(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _level(place: int, name: str, height: float, last: int, dash: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "name": name,
        "legendgroup": name,
        "showlegend": place == 0,
        "x": [1, last],
        "y": [height, height],
        "mode": "lines",
        "line": {"color": run_look(place)["color"], "width": 1.5, "dash": dash},
        "hovertemplate": f"{name} = %{{y:.4g}}<extra></extra>",
    }


def _rank_line(k: int, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A vertical line at rank K, as high as what is drawn; none where nothing is."""
    heights = [height for line in data for height in line["y"]]
    if not heights:
        return []
    line = {"color": GREY, "width": 2}
    hover = f"rank K = {k}<extra></extra>"
    ends = [min(heights), max(heights)]
    return [
        {
            "type": "scatter",
            "name": f"rank K = {k}",
            "x": [k, k],
            "y": ends,
            "mode": "lines",
            "line": line,
            "hovertemplate": hover,
        }
    ]


def _layout(title: str, shape: Sequence[int], heights: list[float]) -> dict[str, Any]:
    return layout(
        f"{plain(title)}, {' × '.join(map(str, shape))}",
        xaxis=axis("index i", type="log", dtick=1),
        yaxis=log_axis("singular value σ<sub>i</sub>", heights),
        showlegend=True,
    )
