"""Which runs can be compared, and what is wrong with the others."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from rank_callbacks.compare.final import last_readings
from rank_callbacks.compare.run import Hyperparameters, Run
from rank_callbacks.figures.selection import OVER_LAYERS
from rank_callbacks.logged_names import natural_order
from rank_callbacks.tags import Tag

__all__ = ["problems", "sound"]

# What ranks are compared by: NaN at the end, it has diverged. Of other readings each chart and fit leaves out what is NaN.
_NEEDED = ("weight_rank", "effective_rank")
# Times differ between two logs of the same training, or two trainings with the same seed.
_TIMES = "monitor"
_MOST_NAMES = 3
# One of them is what runs are to be compared by.
_MOST_SETTINGS = 20


def problems(runs: Sequence[Run], x: str = "weight_decay") -> dict[str, list[str]]:
    """What is wrong with each run, in words, by its name: its own notes, and what only the others show.

    A run without a finite ``x``, without readings, with other layers than most, or with a NaN or infinity among its last
    effective ranks has a problem of its own; so has one with the last readings of another, to the bit, and its settings as far
    as both have logged them: the same training again, which would count twice. A run that has none has an empty list.

    Args:
        runs: To be compared.
        x: The hyperparameter that they are compared by.

    Example:
        >>> problems([Run("a", "csv", {}, [], {}, {})])["a"]
        ['no hyperparameter weight_decay', 'no readings of any monitor']
    """
    last = {run.name: last_readings(run) for run in runs}
    layers = {name: _layers(of_run) for name, of_run in last.items()}
    usual = Counter(of_run for of_run in layers.values() if of_run).most_common(1)
    most = usual[0][0] if usual else frozenset()
    wrong = {run.name: [*run.notes, *_setting(run, x), *_readings(last[run.name], layers[run.name], most)] for run in runs}
    for name, other in _again([run for run in runs if not wrong[run.name]], last):
        wrong[name].append(f"the readings and settings of {other} again: the same training, which counts once")
    return wrong


def sound(runs: Sequence[Run], x: str = "weight_decay") -> list[Run]:
    """The runs with which nothing is wrong: only they enter means, fits and fronts.

    Args:
        runs: To be compared.
        x: The hyperparameter that they are compared by.
    """
    wrong = problems(runs, x)
    return [run for run in runs if not wrong[run.name]]


def _layers(last: Mapping[Tag, float]) -> frozenset[str]:
    """Layers whose weights are measured."""
    weights = {"weight_rank", "rank_collapse"}
    return frozenset(tag.layer for tag in last if tag.group in weights and tag.layer not in OVER_LAYERS)


def _setting(run: Run, x: str) -> Iterator[str]:
    if x not in run.hyperparameters:
        known = sorted(run.hyperparameters, key=natural_order)
        yield f"no hyperparameter {x}" + (f", but {_some(known, _MOST_SETTINGS)}" if known else "")
    elif isinstance(value := run.hyperparameters[x], float) and not math.isfinite(value):
        yield f"the hyperparameter {x} is {value}"


def _readings(last: Mapping[Tag, float], layers: frozenset[str], most: frozenset[str]) -> Iterator[str]:
    if not last:
        yield "no readings of any monitor"
    elif layers != most:
        yield f"other layers than most runs: {_difference(layers, most)}"
    broken = {tag.layer for tag, value in last.items() if tag[:2] == _NEEDED and not math.isfinite(value)}
    if broken:
        yield f"effective ranks that are NaN or infinite at the end: {_some(sorted(broken - OVER_LAYERS or broken))}"


def _again(runs: Sequence[Run], last: Mapping[str, Mapping[Tag, float]]) -> Iterator[tuple[str, str]]:
    """Each run that is another once more, and the name of that, the first."""
    first: defaultdict[object, list[Run]] = defaultdict(list)
    for run in runs:
        tags = sorted(tag for tag in last[run.name] if tag.group != _TIMES)
        values = np.array([last[run.name][tag] for tag in tags])
        # Not all loggers keep more than float32.
        alike = first[tuple(tags), values.astype(np.float32).tobytes()]
        other = next((one for one in alike if _same_settings(one.hyperparameters, run.hyperparameters)), None)
        if other is None:
            alike.append(run)
        elif tags:
            yield run.name, other.name


def _same_settings(one: Hyperparameters, other: Hyperparameters) -> bool:
    """As far as both are known: ``RankDashboard`` tells TensorBoard alone of a weight decay that the module does not name."""
    return all(one[name] == other[name] for name in one.keys() & other.keys())


def _difference(layers: frozenset[str], most: frozenset[str]) -> str:
    more, fewer = sorted(layers - most), sorted(most - layers)
    parts = [f"has {_some(more)}" if more else "", f"lacks {_some(fewer)}" if fewer else ""]
    return ", ".join(part for part in parts if part)


def _some(names: Sequence[str], most: int = _MOST_NAMES) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
