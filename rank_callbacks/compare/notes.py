"""What is wrong with runs, in words: as each tells by itself, and beside the others."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

from rank_callbacks.compare.run import Run

__all__ = ["noted"]

# NaN where it does not apply, as to a loss that has another part.
_MAY_BE_NAN = {"certificate_loose"}
# Runs that were asked for different lengths do not tell that one of them is cut short.
_LENGTHS = {"epochs", "max_epochs", "num_epochs", "steps", "max_steps", "num_steps"}
# Of these the ones that say how far a run meant to go, by the unit that its log counts in; others may count something else.
_MEANT = {"epoch": ("max_epochs", "epochs", "num_epochs"), "step": ("max_steps",)}
# A last validation or report may come a step sooner or later.
_AS_LONG = 0.95


def noted(runs: Sequence[Run], any_length: bool = False) -> list[Run]:
    """The runs, with what is wrong with them added to their notes, and readings that are NaN to their remarks.

    A run is empty, has no hyperparameters, or ends before others that were asked for as much, or before the epochs or steps
    among its hyperparameters, and its log does not tell that it finished: it failed, was stopped or is still running. Ends are
    compared in epochs where all have logged them, and in steps otherwise. Nothing tells of a run that fails after its last
    reading.

    Args:
        runs: That belong together.
        any_length: Whether a run that ends before others is taken for finished, as early stopping leaves it.
    """
    short = {} if any_length else _short(runs)
    return [
        run._replace(notes=[*run.notes, *short.get(run.name, ()), *_lacking(run)], remarks=[*run.remarks, *_broken(run)])
        for run in runs
    ]


def _short(runs: Sequence[Run]) -> dict[str, list[str]]:
    """A note for each run that ends before others, by its name."""
    alike: dict[frozenset[tuple[str, object]], list[Run]] = defaultdict(list)
    for run in runs:
        if _step(run) is not None:
            alike[frozenset((name, run.hyperparameters[name]) for name in _LENGTHS & run.hyperparameters.keys())].append(run)
    of_itself = {run.name: [note] for run in runs for note in _short_of_itself(run)}
    return of_itself | {run.name: [note] for group in alike.values() for run, note in _short_of(group)}


def _short_of(runs: Sequence[Run]) -> Iterator[tuple[Run, str]]:
    unit, as_long, ends = "epoch", 1.0, [_epoch(run) for run in runs]
    if None in ends:
        unit, as_long, ends = "step", _AS_LONG, [_step(run) for run in runs]
    most = max(end for end in ends if end is not None)
    for run, end in zip(runs, ends, strict=True):
        if end is not None and end < as_long * most and not run.finished:
            yield run, f"Ends at {unit} {end:g}, others at {most:g}: failed, stopped or still running."


def _short_of_itself(run: Run) -> Iterator[str]:
    """Whether it ends before it meant to: by more than the longest time between two of its readings, for a log is no clock."""
    known = [
        (unit, name, counts, float(meant))
        for unit, names in _MEANT.items()
        for name in names
        if isinstance(meant := run.hyperparameters.get(name), float | int) and meant > 0 and (counts := _counts(run, unit))
    ]
    # The first limit that is reached ends a run.
    if known and not run.finished and all(_is_short(counts, meant) for _, _, counts, meant in known):
        unit, name, counts, meant = known[0]
        yield f"Ends at {unit} {counts[-1]:g}, with {name}={meant:g}: failed, stopped or still running."


def _counts(run: Run, unit: str) -> list[float]:
    """The epochs, or the steps, that a run has readings of."""
    if unit == "epoch":
        return sorted({value for _, value in run.metrics.get("epoch", ()) if math.isfinite(value)})
    return sorted({float(at) for series in run.metrics.values() for at, _ in series} | {float(row.step) for row in run.rows})


def _is_short(counts: Sequence[float], meant: float) -> bool:
    """Epochs and steps count from 0."""
    longest = max(later - sooner for sooner, later in pairwise([-1.0, *counts]))
    return counts[-1] + longest < meant - 1


def _epoch(run: Run) -> float | None:
    series = run.metrics.get("epoch", ())
    return series[-1][1] if series else None


def _step(run: Run) -> float | None:
    """The last step that a run has anything of; None if it is empty."""
    steps = [series[-1][0] for series in run.metrics.values() if series] + [row.step for row in run.rows[-1:]]
    return max(steps, default=None)


def _lacking(run: Run) -> Iterator[str]:
    if _step(run) is None:
        yield "Empty: it has logged no numbers."
    if not run.hyperparameters:
        yield "Has logged no hyperparameters."


def _broken(run: Run) -> Iterator[str]:
    broken = [row for row in run.rows if math.isnan(row.value) and row.tag.measure not in _MAY_BE_NAN]
    if broken:
        yield f"{len(broken)} of its {len(run.rows)} readings are NaN, the first at step {broken[0].step}: {broken[0].tag}."
