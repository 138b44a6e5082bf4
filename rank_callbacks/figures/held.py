"""What a chart shows of each layer at a step: its latest reading, and how old that is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from rank_callbacks.figures.approximation import Seen, is_mark
from rank_callbacks.figures.selection import OVER_LAYERS, Values
from rank_callbacks.rows import Row

__all__ = ["Held", "Snapshot", "last_snapshots", "report_steps", "snapshots"]


class Held(NamedTuple):
    """The latest reading of a layer.

    Args:
        value: Of the reading.
        step: When it was read.
    """

    value: float
    step: int


class Snapshot(NamedTuple):
    """What is known of a run's layers at a step.

    Args:
        report: The step of the run's last report.
        layers: Each layer's latest reading, of that report or of an earlier one.
    """

    report: int
    layers: dict[str, Held]

    def old(self, layer: str) -> bool:
        """Whether the run has reported since the layer was read."""
        return layer in self.layers and self.layers[layer].step < self.report

    def when(self, layer: str, step: int | None = None) -> str:
        """When a layer was read, for its hover text; nothing if at ``step``, or without it at the report."""
        known = self.layers.get(layer)
        return f" (step {known.step:,})" if known and known.step != (self.report if step is None else step) else ""

    def seen(self, run: str) -> Seen:
        """What of it counts for a note."""
        steps = [held.step for layer, held in self.layers.items() if layer not in OVER_LAYERS]
        return Seen(run, self.report, len(steps), sum(step == self.report for step in steps))


def report_steps(rows: Iterable[Row], values: Values, group: str, measure: str) -> dict[str, list[int]]:
    """By run: the steps at which it reported.

    A run that says how exact its reports are may read a layer at few of them; where logs were thinned, also between two that
    are left. Its reports are those of which it says so or that have a mean over layers, and the last. Of another run each step
    with a reading is a report.

    Args:
        rows: The long table.
        values: What ``select`` finds in it for the group and measure.
        group: First part of the tags.
        measure: Second part.
    """
    marked: dict[str, set[int]] = {}
    means: dict[str, set[int]] = {}
    for run, step, tag, _ in rows:
        if is_mark(tag, group):
            marked.setdefault(run, set()).add(step)
        elif tag.layer in OVER_LAYERS and tag[:2] == (group, measure):
            means.setdefault(run, set()).add(step)
    told = {run: steps | means.get(run, set()) | {max(values.get(run, steps))} for run, steps in marked.items()}
    return {run: sorted(told.get(run, of_run)) for run, of_run in values.items()}


def snapshots(
    of_run: Mapping[int, Mapping[str, float]], reports: Iterable[int], steps: Iterable[int]
) -> dict[int, Snapshot | None]:
    """What is known of a run at each of some steps; None before its first report.

    Args:
        of_run: Readings by step, then by layer.
        reports: Steps at which it reported.
        steps: In order.

    Example:
        >>> found = snapshots({0: {"a": 1.0, "b": 2.0}, 5: {"a": 3.0}}, reports=[0, 5], steps=[7])[7]
        >>> found.report, found.layers["b"], found.old("a"), found.old("b")
        (5, Held(value=2.0, step=0), False, True)
    """
    events = sorted({*of_run, *reports}, reverse=True)
    reported, read, report, shown = set(reports), dict[str, int](), None, dict[int, Snapshot | None]()
    for step in steps:
        while events and events[-1] <= step:
            now = events.pop()
            report = now if now in reported else report
            read.update(dict.fromkeys(of_run.get(now, ()), now))
        layers = {layer: Held(of_run[when][layer], when) for layer, when in read.items()}
        # A table that has lost a report may have a reading before the first one left.
        shown[step] = None if report is None and not layers else Snapshot(step if report is None else report, layers)
    return shown


def last_snapshots(rows: Iterable[Row], values: Values, group: str, measure: str) -> dict[str, Snapshot]:
    """What is known of each run at its last report.

    Args:
        rows: The long table.
        values: What ``select`` finds in it for the group and measure.
        group: First part of the tags.
        measure: Second part.
    """
    last = {run: steps[-1] for run, steps in report_steps(rows, values, group, measure).items()}
    found = {run: snapshots(of_run, [last[run]], [last[run]])[last[run]] for run, of_run in values.items()}
    return {run: now for run, now in found.items() if now}
