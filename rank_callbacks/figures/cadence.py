"""How often monitors report that have chosen so themselves, in words."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from rank_callbacks.rows import Row
from rank_callbacks.tags import Tag

__all__ = ["Cadence", "cadences", "chosen_cadences", "is_cadence"]


class Cadence(NamedTuple):
    """What the monitors of a run have chosen.

    Args:
        run: Its name.
        text: In a sentence. Not escaped: names stand in it as they are.
    """

    run: str
    text: str


def is_cadence(tag: Tag) -> bool:
    """Whether a tag tells how often a monitor reports.

    Example:
        >>> is_cadence(Tag("monitor", "every_n_steps", "weight_rank"))
        True
    """
    return tag[:2] == ("monitor", "every_n_steps")


def chosen_cadences(rows: Iterable[Row]) -> dict[str, dict[str, int]]:
    """By run, then by monitor: the steps between its reports, as it has chosen last; none that the user has chosen."""
    last: dict[str, dict[str, tuple[int, float]]] = {}
    for run, step, tag, value in rows:
        if is_cadence(tag) and 0 < value < math.inf and step >= last.setdefault(run, {}).get(tag.layer, (step, 0))[0]:
            last[run][tag.layer] = step, value
    return {run: {monitor: int(value) for monitor, (_, value) in of_run.items()} for run, of_run in last.items() if of_run}


def cadences(rows: Iterable[Row]) -> list[Cadence]:
    """A sentence for each run whose monitors have chosen how often they report: gaps between its readings are meant.

    Args:
        rows: The long table.

    Example:
        >>> cadences([Row("a", 10, Tag("monitor", "every_n_steps", "weight_rank"), 2000.0)])[0].text
        'weight_rank reports every 2,000 steps, which keeps the monitors within their share of the time.'
    """
    return [Cadence(run, _sentence(chosen)) for run, chosen in chosen_cadences(rows).items()]


def _sentence(chosen: dict[str, int]) -> str:
    (first, steps), *others = sorted(chosen.items())
    parts = [f"{first} reports every {steps:,} steps", *(f"{monitor} every {steps:,}" for monitor, steps in others)]
    return f"{', '.join(parts)}, which keeps the monitors within their share of the time."
