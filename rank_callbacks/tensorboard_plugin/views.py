"""The views of the Ranks tab: what each reads from the logs and which chart it makes of it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from rank_callbacks.figures.approximation import is_mark
from rank_callbacks.figures.cadence import cadences
from rank_callbacks.figures.collapse import collapse
from rank_callbacks.figures.depth_profile import depth_profile
from rank_callbacks.figures.explanation import how_to_read
from rank_callbacks.figures.gradient_bound import gradient_bound
from rank_callbacks.figures.health import findings
from rank_callbacks.figures.heatmap import heatmap
from rank_callbacks.figures.looks import Figure
from rank_callbacks.figures.selection import OVER_LAYERS
from rank_callbacks.figures.spectrum import spectrum
from rank_callbacks.figures.sweep import sweep
from rank_callbacks.rows import Row
from rank_callbacks.tags import Tag
from rank_callbacks.tensorboard_plugin.choice import Choice
from rank_callbacks.tensorboard_plugin.choices import EMPTY, choices
from rank_callbacks.tensorboard_plugin.series import MOST_READINGS, Logs

__all__ = ["table", "view"]

_BOUNDS_TABLE = Tag("gradient_rank", "bounds", "table")
_NC1 = Tag("neural_collapse", "nc1_pinv", "penultimate")
_GRADIENT_MEASURES = {"bound", "utilization", "effective_rank", "depth"}
# Measures that findings look at, and the groups of which they do.
_HEALTH = {
    "utilization": ("gradient_rank",),
    "effective_rank": ("weight_rank", "feature_rank"),
    "dead_fraction": ("feature_rank",),
    "share_of_training": ("monitor",),
    "every_n_steps": ("monitor",),
}
# Findings count reports in a row, which thinning would break; beyond this it does.
_MOST_OF_HEALTH = 400_000
_ALL = 10**12  # readings in a file: not thinned


class View(NamedTuple):
    """How a view is made.

    Args:
        wanted: Which readings it shows.
        draw: Its chart.
        runs: The runs of which it shows readings.
        last: Whether it shows only the last of each.
    """

    wanted: Callable[[Choice, Tag], bool]
    draw: Callable[[Logs, Choice, list[Row]], Figure]
    runs: Callable[[Choice], tuple[str, ...]] = lambda choice: choice.runs
    last: bool = False


def view(logs: Logs, choice: Choice) -> dict[str, Any]:
    """A view as plain data for the page: ``figure`` or ``findings`` or a ``message`` why there is none, and ``how_to_read``.

    Beside findings stand ``cadences``: how often the monitors of each run have chosen to report.

    Args:
        logs: Of which directory.
        choice: Which view, of what.
    """
    choice = _completed(logs, choice)
    answer: dict[str, Any] = {"choice": choice._asdict(), "figure": None, "findings": None, "message": None, "how_to_read": ""}
    if not logs.listing.runs:
        return answer | {"message": EMPTY}
    if choice.view == "findings":
        rows = _rows_of_health(logs, choice)
        found = {"findings": [one._asdict() for one in findings(rows)], "cadences": [one._asdict() for one in cadences(rows)]}
        return answer | found | {"how_to_read": how_to_read("findings")}
    try:
        how = _VIEWS[choice.view]
        figure = how.draw(logs, choice, _rows(logs, choice, last=how.last))
    except ValueError as nothing:  # which says what to add to the callbacks
        return answer | {"message": str(nothing)}
    return answer | {"figure": figure, "how_to_read": how_to_read(choice.view, choice.group, choice.measure)}


def table(logs: Logs, choice: Choice) -> str:
    """The readings behind a view as comma-separated values, every step of them.

    Columns are run, step, tag and value; of spectra, run, step, tag, index from 1 and value.
    """
    choice = _completed(logs, choice)
    text = io.StringIO()
    writer = csv.writer(text)
    if choice.view == "spectrum":
        writer.writerow(["run", "step", "tag", "index", "value"])
        writer.writerows(_singular_values(logs, choice))
    else:
        writer.writerow(["run", "step", "tag", "value"])
        writer.writerows((run, step, str(tag), value) for run, step, tag, value in _rows(logs, choice, _ALL))
    return text.getvalue()


def _completed(logs: Logs, choice: Choice) -> Choice:
    """The choice with what the reader left open, or what these logs do not have, filled in."""
    known = choices(logs.listing)
    runs = tuple(run for run in known["runs"] if run in choice.runs) or tuple(known["runs"])
    run = choice.run if choice.run in runs else runs[0] if runs else ""
    groups = known["spectra"] if choice.view == "spectrum" else known["groups"]
    group = choice.group if choice.group in groups else next(iter(groups), "")
    measures = list(groups.get(group, {})) if choice.view == "spectrum" else groups.get(group, {}).get("measures", [])
    measure = choice.measure if choice.measure in measures else next(iter(measures), "")
    layers = known["spectra"].get(group, {}).get(measure, []) if choice.view == "spectrum" else []
    layer = _layer(choice.layer, layers)
    x = choice.x if choice.x in known["hyperparameters"] else _first(known["hyperparameters"], "weight_decay")
    accuracy = choice.accuracy if choice.accuracy in known["accuracies"] else next(iter(known["accuracies"]), "")
    return choice._replace(runs=runs, run=run, group=group, measure=measure, layer=layer, x=x, accuracy=accuracy)


def _layer(chosen: str, layers: list[str]) -> str:
    """The layer, or the one that a name of another group means: the weight of a module, the module of a weight."""
    if chosen in layers or not layers:
        return chosen
    related = [name for name in layers if name.startswith(f"{chosen}.") or chosen.startswith(f"{name}.")] if chosen else []
    return related[0] if related else layers[0]


def _first(names: list[str], preferred: str) -> str:
    return preferred if preferred in names else next(iter(names), "")


def _rows(logs: Logs, choice: Choice, most: int = MOST_READINGS, last: bool = False) -> list[Row]:
    """The readings that a view shows, or the whole history of them."""
    how = _VIEWS[choice.view]
    return logs.rows(how.runs(choice), lambda tag: how.wanted(choice, tag), most, last)


def _rows_of_health(logs: Logs, choice: Choice) -> list[Row]:
    """The readings that findings are made of, and those that are NaN by now: all of a large log would take minutes."""
    telling = logs.rows(choice.runs, _tells_health, most=_MOST_OF_HEALTH)
    latest = logs.rows(choice.runs, lambda tag: not _tells_health(tag), last=True)
    broken = {row.tag for row in latest if math.isnan(row.value)}
    return telling + logs.rows(choice.runs, broken.__contains__)


def _tells_health(tag: Tag) -> bool:
    known = _HEALTH.get(tag.measure)
    return known is not None and tag.group.startswith(known) and tag.layer not in OVER_LAYERS


def _one_measure(choice: Choice, tag: Tag) -> bool:
    """A reading of the measure, of where its layer stands, or of how exact its report is."""
    return (tag.group == choice.group and tag.measure in {choice.measure, "depth"}) or is_mark(tag, choice.group)


def _one_run(choice: Choice) -> tuple[str, ...]:
    return (choice.run,)


def _depth_profile(logs: Logs, choice: Choice, rows: list[Row]) -> Figure:
    return depth_profile(rows, choice.group, choice.measure, logs.orders(choice.runs, choice.group))


def _heatmap(logs: Logs, choice: Choice, rows: list[Row]) -> Figure:
    return heatmap(rows, choice.run, choice.group, choice.measure, logs.orders([choice.run], choice.group))


def _spectrum(logs: Logs, choice: Choice, rows: list[Row]) -> Figure:
    by_run, shape = logs.spectra([choice.run], choice.group, choice.layer, choice.measure)
    title = f"{choice.layer} of {choice.run} ({choice.group.replace('_', ' ')})"
    return spectrum(by_run, shape, k=choice.k, title=title)


def _gradient_bound(logs: Logs, choice: Choice, rows: list[Row]) -> Figure:
    reasons = {
        row["layer"]: row["bound by"] for row in logs.table(choice.run, _BOUNDS_TABLE) if {"layer", "bound by"} <= set(row)
    }
    return gradient_bound(rows, [choice.run], reasons=reasons, places=logs.orders([choice.run], "gradient_rank"))


def _collapse(logs: Logs, choice: Choice, rows: list[Row]) -> Figure:
    return collapse(rows, paths=True, places=logs.orders(choice.runs, "weight_rank"))


def _sweep(logs: Logs, choice: Choice, rows: list[Row]) -> Figure:
    series = logs.others(choice.runs, choice.accuracy)
    accuracies = {run: by_step[max(by_step)] for run, by_step in series.items() if by_step}
    return sweep(rows, logs.hyperparameters(choice.runs), choice.x, choice.group, choice.measure, accuracies)


def _singular_values(logs: Logs, choice: Choice) -> Iterator[tuple[str, int, str, int, float]]:
    tag = str(Tag(choice.group, choice.measure, choice.layer))
    for run, by_step in logs.spectra([choice.run], choice.group, choice.layer, choice.measure).by_run.items():
        for step, values in sorted(by_step.items()):
            yield from ((run, step, tag, index, value) for index, value in enumerate(values, start=1))


_VIEWS = {
    "depth_profile": View(_one_measure, _depth_profile),
    "heatmap": View(_one_measure, _heatmap, _one_run),
    "spectrum": View(lambda choice, tag: False, _spectrum, _one_run),
    "gradient_bound": View(
        lambda choice, tag: tag.group == "gradient_rank" and tag.measure in _GRADIENT_MEASURES, _gradient_bound, _one_run
    ),
    "collapse": View(lambda choice, tag: tag.group == "rank_collapse", _collapse),
    "sweep": View(lambda choice, tag: _one_measure(choice, tag) or tag == _NC1, _sweep, last=True),
    "findings": View(lambda choice, tag: _tells_health(tag), lambda logs, choice, rows: {}),
}
