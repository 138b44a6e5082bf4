"""Which readings at a step are bounds, and how old those are that a report had no time for, in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from rank_callbacks.catalog import find_measure
from rank_callbacks.figures.layers import shortened
from rank_callbacks.figures.looks import plain, words
from rank_callbacks.rows import Row
from rank_callbacks.tags import Tag

__all__ = ["Approximation", "Seen", "approximations", "is_mark", "noted"]

_COUNT, _AGE = "approximate_layers", "spectrum_age"
# On which side of the truth a measure is that a report takes from leading singular values, where it has no time for all.
_SIDES = {
    "stable_rank": "upper bound",
    "distance_to_rank": "upper bound",
    "relative_distance_to_rank": "upper bound",
    "spectral_norm": "lower bound",
    "energy_at_rank": "lower bound",
    "frobenius_norm": "",  # exact all the same
}
# Up to so many singular values; beyond, a measure needs the whole spectrum.
_MOST_VALUES = 32
# The change of a weight is read with the weight, but only from whole spectra.
_MARKED_AS = {"weight_change_rank": "weight_rank"}
# More names than these are no subtitle.
_MOST_NAMES = 3


class Approximation(NamedTuple):
    """What a run says of one of its reports.

    Args:
        layers: How many were read from leading singular values alone.
        age: Steps since the oldest whole spectrum that is still shown; None where it reads none of these layers.
    """

    layers: int = 0
    age: int | None = None


class Seen(NamedTuple):
    """What a chart shows of a run at a step.

    Args:
        run: Its name.
        report: Step of the report.
        layers: With a reading, of it or of an earlier one.
        fresh: With a reading of it.
    """

    run: str
    report: int
    layers: int
    fresh: int


def is_mark(tag: Tag, group: str) -> bool:
    """Whether a tag says of a group's reports how exact they are.

    Example:
        >>> is_mark(Tag("monitor", "approximate_layers", "weight_rank"), "weight_rank")
        True
    """
    return tag.group == "monitor" and tag.measure in {_COUNT, _AGE} and tag.layer == _MARKED_AS.get(group, group)


def approximations(rows: Iterable[Row], group: str) -> dict[tuple[str, int], Approximation]:
    """By run and step: what runs say of reports that are not exact. A report of which nothing is said is exact.

    Args:
        rows: The long table.
        group: Of the readings.
    """
    found: dict[tuple[str, int], Approximation] = {}
    for run, step, tag, value in rows:
        if is_mark(tag, group) and 0 <= value < math.inf:
            said = {"layers": int(value)} if tag.measure == _COUNT else {"age": int(value)}
            found[run, step] = found.get((run, step), Approximation())._replace(**said)
    return {report: said for report, said in found.items() if said.layers or said.age}


def noted(said: Mapping[tuple[str, int], Approximation], seen: Sequence[Seen], group: str, measure: str) -> str:
    """What a reader must know of the readings that a chart shows; nothing where all are exact and of their report.

    Args:
        said: What ``approximations`` finds.
        seen: The reports that are shown: one a run, or several of one run in order.
        group: Of the readings.
        measure: Of the readings.

    Example:
        >>> said = {("a", 500): Approximation(layers=4, age=200)}
        >>> noted(said, [Seen("a", 500, layers=5, fresh=5)], "weight_rank", "stable_rank")
        'stable rank: upper bound in 4 of 5 layers'
        >>> noted(said, [Seen("a", 500, layers=5, fresh=1), Seen("b", 500, 5, 5)], "weight_rank", "effective_rank")
        'effective rank: oldest spectrum 200 steps old (a)'
    """
    marked = [_Marked(one, said[one.run, one.report]) for one in seen if (one.run, one.report) in said]
    side = _side(group, measure)
    found = [_age(marked), _unread(marked, seen)] if side is None else [_bounds(marked, side)]
    facts = [fact + _where(of, seen) for fact, of in found if of]
    return f"{words(measure)}: {', '.join(facts)}" if facts else ""


class _Marked(NamedTuple):
    """A report that is shown, and what is said of it."""

    seen: Seen
    said: Approximation


# In words, and the reports of which it is true.
_Fact: TypeAlias = "tuple[str, list[Seen]]"


def _side(group: str, measure: str) -> str | None:
    """On which side of the truth a reading may be, the empty text if on none; None where it needs the whole spectrum."""
    try:
        row, parameter = find_measure(measure)
    except ValueError:
        return None
    too_many = row.parameter == "k" and (parameter or 0) > _MOST_VALUES
    return None if too_many or group in _MARKED_AS else _SIDES.get(row.name)


def _bounds(marked: Sequence[_Marked], side: str) -> _Fact:
    of = [one.seen for one in marked if one.said.layers and side]
    counts, totals = [one.said.layers for one in marked if one.said.layers], {one.layers for one in of}
    whole = f" of {total}" if len(totals) == 1 and (total := min(totals)) >= max(counts) else ""
    return (f"{side} in {_range(counts)}{whole} layers" if of else "", of)


def _age(marked: Sequence[_Marked]) -> _Fact:
    of = [one.seen for one in marked if one.said.age]
    ages = [one.said.age for one in marked if one.said.age]
    return (f"oldest spectrum {_range(ages)} steps old" if of else "", of)


def _unread(marked: Sequence[_Marked], seen: Sequence[Seen]) -> _Fact:
    """Layers of which no whole spectrum has been read by now: those of the report, less those that have a reading."""
    last = {one.run: one for one in seen}
    now = [one for one in marked if last[one.seen.run] == one.seen and one.seen.layers and one.said.age is not None]
    lacking = {one.seen: one.said.layers + one.seen.fresh - one.seen.layers for one in now}
    of = [one for one, count in lacking.items() if count > 0]
    return (f"{_range([lacking[one] for one in of])} layers not read yet" if of else "", of)


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _where(of: Sequence[Seen], seen: Sequence[Seen]) -> str:
    """In which runs, where there is more than one; of one run at how many of its reports."""
    runs, every = list(dict.fromkeys(one.run for one in of)), {one.run for one in seen}
    if len(every) == 1:
        return "" if len(of) == len(seen) or len(of) == 1 else f" at {len(of)} of {len(seen)} reports"
    names = ", ".join(plain(shortened(run)) for run in runs)
    return f" ({names})" if len(runs) <= _MOST_NAMES else f" ({len(runs)} of {len(every)} runs)"
