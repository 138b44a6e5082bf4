"""Rank against accuracy, and the runs that no other beats in both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rank_callbacks.figures.looks import COLOURS, GREY, Figure, axis, finite, layout, plain, ramp, words

__all__ = ["pareto_front", "tradeoff"]

# More labels than these cover one another.
_MOST_LABELS = 12


def pareto_front(ranks: Mapping[str, float], accuracies: Mapping[str, float]) -> list[str]:
    """The runs for which none has a lower rank at the same accuracy or a higher one, nor a higher accuracy at the same rank.

    A run that lacks one of the two, or of which one is NaN or infinite, is not among them and beats none. Runs that are equal
    in both stand together.

    Args:
        ranks: By run.
        accuracies: By run.

    Returns:
        Names of runs, by rank.

    Example:
        >>> pareto_front({"a": 9.0, "b": 5.0, "c": 7.0}, {"a": 0.9, "b": 0.8, "c": 0.7})
        ['b', 'a']
    """
    front: list[str] = []
    for run in sorted(_both(ranks, accuracies), key=lambda run: (ranks[run], -accuracies[run])):
        last = front[-1] if front else None
        equal = last is not None and (ranks[run], accuracies[run]) == (ranks[last], accuracies[last])
        if last is None or equal or accuracies[run] > accuracies[last]:
            front.append(run)
    return front


def _both(ranks: Mapping[str, float], accuracies: Mapping[str, float]) -> list[str]:
    return [run for run in ranks if finite(ranks[run]) is not None and finite(accuracies.get(run)) is not None]


def tradeoff(
    ranks: Mapping[str, float],
    accuracies: Mapping[str, float],
    settings: Mapping[str, float | str] | None = None,
    x: str = "weight_decay",
    accuracy: str = "accuracy",
) -> Figure:
    """A chart of accuracy against rank, a mark a run, with a line of steps through the runs that no other beats in both.

    Dark colours are small settings, as in the chart of the distance to rank K. What lies right of the line or under it has a
    higher rank or a lower accuracy than need be.

    Args:
        ranks: The mean effective rank, by run.
        accuracies: By run; a run without is left out, as is one of which either is NaN or infinite.
        settings: The hyperparameter by run, for colours and labels.
        x: Its name.
        accuracy: Name of the metric.

    Raises:
        ValueError: If no run has both.

    Example:
        >>> figure = tradeoff({"a": 9.0, "b": 5.0}, {"a": 0.9, "b": 0.8})
        >>> [trace["x"] for trace in figure["data"]]
        [[5.0, 9.0], [9.0, 5.0]]
    """
    runs = _both(ranks, accuracies)
    if not runs:
        raise ValueError("Expected runs with both an effective rank and an accuracy, got none. Log an accuracy in the model.")
    chosen = settings or {}
    front = pareto_front(ranks, accuracies)
    along = axis("effective rank, mean over layers", rangemode="tozero")
    around = layout("Accuracy against rank", xaxis=along, yaxis=axis(plain(accuracy)), showlegend=True)
    return {"data": [_front(front, ranks, accuracies), _marks(runs, ranks, accuracies, chosen, x)], "layout": around}


def _front(front: Sequence[str], ranks: Mapping[str, float], accuracies: Mapping[str, float]) -> dict[str, Any]:
    """Steps: between two runs of the front nothing better than the lower is known."""
    return {
        "type": "scatter",
        "name": "Pareto front",
        "mode": "lines",
        "x": [ranks[run] for run in front],
        "y": [accuracies[run] for run in front],
        "line": {"shape": "hv", "color": COLOURS[1], "width": 2},
        "hoverinfo": "skip",
    }


def _marks(
    runs: Sequence[str],
    ranks: Mapping[str, float],
    accuracies: Mapping[str, float],
    settings: Mapping[str, float | str],
    x: str,
) -> dict[str, Any]:
    values = sorted({settings[run] for run in runs if run in settings}, key=lambda value: (isinstance(value, str), value))
    colours = [ramp(values.index(settings[run]), len(values)) if run in settings else GREY for run in runs]
    return {
        "type": "scatter",
        "name": "runs",
        "mode": "markers+text" if len(runs) <= _MOST_LABELS else "markers",
        "x": [ranks[run] for run in runs],
        "y": [accuracies[run] for run in runs],
        "marker": {"size": 12, "color": colours, "line": {"color": GREY, "width": 1}},
        "text": [_label(settings.get(run)) for run in runs],
        "textposition": "top center",
        "cliponaxis": False,
        "customdata": [f"<b>{plain(run)}</b><br>{words(x)} = {_label(settings.get(run)) or 'not known'}" for run in runs],
        "hovertemplate": "%{customdata}<br>effective rank %{x:.4g}, accuracy %{y:.4g}<extra></extra>",
    }


def _label(value: float | str | None) -> str:
    if value is None:
        return ""
    return plain(str(value)) if isinstance(value, str | bool) else f"{value:g}"
