"""Rank against accuracy, and the runs that no other beats in both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from rank_callbacks.figures.interval import half_width
from rank_callbacks.figures.looks import COLOURS, GREY, Figure, axis, finite, layout, plain, ramp, words

__all__ = ["Traded", "over_seeds", "pareto_front", "tradeoff"]

# More labels than these cover one another.
_MOST_LABELS = 12
_HOVER = "%{customdata}<br>effective rank %{x:.4g}, accuracy %{y:.4g}<extra></extra>"


class Traded(NamedTuple):
    """Runs that differ in their seed alone, as one.

    Args:
        rank: Their mean.
        accuracy: Their mean.
        rank_half: Half of the 95 % interval of the mean rank, by Student's t; None for a single run.
        accuracy_half: The same of the accuracy.
        runs: Their names.
    """

    rank: float
    accuracy: float
    rank_half: float | None
    accuracy_half: float | None
    runs: tuple[str, ...]


def over_seeds(
    ranks: Mapping[str, float], accuracies: Mapping[str, float], alike: Sequence[Sequence[str]] = ()
) -> dict[str, Traded]:
    """Rank and accuracy of each group of runs by the name of its first, in the order of ``ranks``.

    Args:
        ranks: By run.
        accuracies: By run; one that lacks either, or of which one is NaN or infinite, is in no mean.
        alike: Names of runs that differ in their seed alone, by group; a run that is in none stands for itself.

    Example:
        >>> found = over_seeds({"a": 9.0, "b": 5.0, "c": 4.0}, {"a": 0.9, "b": 0.8, "c": 0.7}, [["a", "b"]])
        >>> {name: (one.rank, one.runs) for name, one in found.items()}
        {'a': (7.0, ('a', 'b')), 'c': (4.0, ('c',))}
    """
    group_of = {run: group for group in alike for run in group}
    known = dict.fromkeys(_both(ranks, accuracies))
    groups = {group[0]: group for run in known if (group := [one for one in group_of.get(run, [run]) if one in known])}
    return {
        name: _traded([ranks[run] for run in group], [accuracies[run] for run in group], group)
        for name, group in groups.items()
    }


def _traded(ranks: Sequence[float], accuracies: Sequence[float], runs: Sequence[str]) -> Traded:
    return Traded(fmean(ranks), fmean(accuracies), half_width(ranks), half_width(accuracies), tuple(runs))


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
    alike: Sequence[Sequence[str]] = (),
) -> Figure:
    """A chart of accuracy against rank, a mark a run, with a line of steps through the runs that no other beats in both.

    Dark colours are small settings, as in the chart of the distance to rank K. What lies right of the line or under it has a
    higher rank or a lower accuracy than need be. Runs that differ in their seed alone are one mark at their means, with bars
    of their 95 % intervals, and a small one each: the line is of means.

    Args:
        ranks: The mean effective rank, by run.
        accuracies: By run; a run without is left out, as is one of which either is NaN or infinite.
        settings: The hyperparameter by run, for colours and labels.
        x: Its name.
        accuracy: Name of the metric.
        alike: Names of runs that differ in their seed alone, by group.

    Raises:
        ValueError: If no run has both.

    Example:
        >>> figure = tradeoff({"a": 9.0, "b": 5.0}, {"a": 0.9, "b": 0.8})
        >>> [trace["x"] for trace in figure["data"]]
        [[5.0, 9.0], [9.0, 5.0]]
    """
    marks = over_seeds(ranks, accuracies, alike)
    if not marks:
        raise ValueError("Expected runs with both an effective rank and an accuracy, got none. Log an accuracy in the model.")
    chosen = settings or {}
    colours = _colours(marks, chosen)
    along = axis("effective rank, mean over layers", rangemode="tozero")
    around = layout("Accuracy against rank", xaxis=along, yaxis=axis(plain(accuracy)), showlegend=True)
    data = [_front(marks), *_seeds(marks, ranks, accuracies, colours), _marks(marks, colours, chosen, x)]
    return {"data": data, "layout": around}


def _colours(marks: Mapping[str, Traded], settings: Mapping[str, float | str]) -> dict[str, str]:
    values = sorted({settings[run] for run in marks if run in settings}, key=lambda value: (isinstance(value, str), value))
    return {run: ramp(values.index(settings[run]), len(values)) if run in settings else GREY for run in marks}


def _front(marks: Mapping[str, Traded]) -> dict[str, Any]:
    """Steps: between two runs of the front nothing better than the lower is known."""
    front = pareto_front({run: one.rank for run, one in marks.items()}, {run: one.accuracy for run, one in marks.items()})
    return {
        "type": "scatter",
        "name": "Pareto front",
        "mode": "lines",
        "x": [marks[run].rank for run in front],
        "y": [marks[run].accuracy for run in front],
        "line": {"shape": "hv", "color": COLOURS[1], "width": 2},
        "hoverinfo": "skip",
    }


def _seeds(
    marks: Mapping[str, Traded], ranks: Mapping[str, float], accuracies: Mapping[str, float], colours: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The single runs behind means; none where no mark is a mean."""
    runs = [(first, run) for first, one in marks.items() if len(one.runs) > 1 for run in one.runs]
    if not runs:
        return []
    dots = {
        "type": "scatter",
        "name": "single seeds",
        "mode": "markers",
        "x": [ranks[run] for _, run in runs],
        "y": [accuracies[run] for _, run in runs],
        "marker": {"size": 6, "color": [colours[first] for first, _ in runs], "line": {"color": GREY, "width": 1}},
        "customdata": [f"<b>{plain(run)}</b>" for _, run in runs],
        "hovertemplate": _HOVER,
    }
    return [dots]


def _marks(
    marks: Mapping[str, Traded], colours: Mapping[str, str], settings: Mapping[str, float | str], x: str
) -> dict[str, Any]:
    labels = [_label(settings.get(run)) for run in marks]
    spread = any(len(one.runs) > 1 for one in marks.values())
    return {
        "type": "scatter",
        "name": "means over seeds" if spread else "runs",
        "mode": "markers+text" if len(marks) <= _MOST_LABELS else "markers",
        "x": [one.rank for one in marks.values()],
        "y": [one.accuracy for one in marks.values()],
        "marker": {"size": 12, "color": [*colours.values()], "line": {"color": GREY, "width": 1}},
        "text": labels,
        # Above a mark is its bar.
        "textposition": "top right" if spread else "top center",
        "cliponaxis": False,
        "customdata": [
            f"<b>{_names(one)}</b><br>{words(x)} = {label or 'not known'}"
            for one, label in zip(marks.values(), labels, strict=True)
        ],
        "hovertemplate": _HOVER,
    } | (_bars(marks) if spread else {})


def _bars(marks: Mapping[str, Traded]) -> dict[str, Any]:
    shared = {"type": "data", "color": GREY, "thickness": 1}
    across, up = [one.rank_half for one in marks.values()], [one.accuracy_half for one in marks.values()]
    return {"error_x": shared | {"array": across}, "error_y": shared | {"array": up}}


def _names(one: Traded) -> str:
    more = f" and {len(one.runs) - 1} more" if len(one.runs) > 1 else ""
    return f"{plain(one.runs[0])}{more}"


def _label(value: float | str | None) -> str:
    if value is None:
        return ""
    return plain(str(value)) if isinstance(value, str | bool) else f"{value:g}"
