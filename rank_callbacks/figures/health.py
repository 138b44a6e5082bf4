"""What deserves a look, in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from rank_callbacks.figures.cadence import chosen_cadences
from rank_callbacks.figures.selection import OVER_LAYERS
from rank_callbacks.rows import Row
from rank_callbacks.tags import Tag

__all__ = ["Finding", "findings"]

# Early in training batches fill the bound: below a tenth of it, nine directions in ten have gone since.
LOW_UTILIZATION = 0.1
# One batch may be odd; five reports in a row are not.
REPORTS_IN_A_ROW = 5
# Half is beyond what batches and reports differ by, and what weight decay does on purpose passes it too: a notice, no alarm.
FALLEN_TO = 0.5
# Random ReLU layers wake nearly every unit; with half of them dead a layer has half of its width.
DEAD_HALF = 0.5
# Less than this is a unit or two that data of another day would wake.
DEAD_GROWTH = 0.1
# The monitors are made to stay under 1 %; from 5 % on an epoch is longer by a part that a user notices.
COSTLY_SHARE = 0.05
# What makes a monitor report less often, where it is not the number of steps.
_WAYS_OUT = {"network_rank": "raise every_n_epochs"}
# Where samples are few, or the gradient has parts that the theorem does not know, NaN is their answer.
_NAN_BY_DEFINITION = {"corrected_participation_ratio", "certificate_loose"}

Severity = Literal["error", "warning", "notice"]
_ORDER: dict[str, int] = {"error": 0, "warning": 1, "notice": 2}
_History = list[tuple[int, float]]


class Finding(NamedTuple):
    """One thing that deserves a look.

    Args:
        severity: ``"error"`` for NaN, ``"warning"`` for what costs learning or time, ``"notice"`` for what may be meant.
        run: Where it is.
        layer: Of which layer; of several, or of none, the empty text.
        step: Since when.
        text: What it is, with layer and step, in a sentence or two. Not escaped: names stand in it as they are.
    """

    severity: Severity
    run: str
    layer: str
    step: int
    text: str


def findings(rows: Iterable[Row]) -> list[Finding]:
    """What deserves a look in these runs: worst first, then by step; each thing once, at the step where it began.

    - Readings that are NaN, by layer: which, since when, and whether they have recovered.
    - A gradient whose rank is below a tenth of its bound in five reports in a row.
    - A layer whose effective rank, of weight or features, fell to half of its first reading.
    - A layer half of whose features are dead, or a tenth more than at first.
    - Monitors that together take more than 5 % of the time of training.

    Steps without a reading are no finding: monitors choose how often they report, and may read layers in turn.

    Args:
        rows: The long table. Means over layers are looked at nowhere but in their layers. No readings make no findings.

    Example:
        >>> tag = Tag("weight_rank", "effective_rank", "fc.weight")
        >>> for finding in findings([Row("run", 0, tag, 40.0), Row("run", 500, tag, 12.0)]):
        ...     print(finding.text)
        The effective rank of the weight fc.weight is down to 12 at step 500, from 40 at step 0; below half since step 500.
    """
    rows = list(rows)
    histories = _histories(rows)
    found = [*_not_a_number(histories), *_costly(histories, chosen_cadences(rows))]
    for (run, tag), history in histories.items():
        known = [(step, value) for step, value in history if math.isfinite(value)]
        found += [finding for finding in _of_reading(run, tag, known) if finding is not None] if known else []
    return sorted(found, key=lambda finding: (_ORDER[finding.severity], finding.step, finding.run, finding.layer))


def _histories(rows: Iterable[Row]) -> dict[tuple[str, Tag], _History]:
    """The readings of each tag by step; of the same step twice, after a restart, the last."""
    by_step: dict[tuple[str, Tag], dict[int, float]] = {}
    for run, step, tag, value in rows:
        if tag.layer not in OVER_LAYERS:
            by_step.setdefault((run, tag), {})[step] = value
    return {key: sorted(history.items()) for key, history in by_step.items()}


def _of_reading(run: str, tag: Tag, known: _History) -> Iterator[Finding | None]:
    """What the finite readings of one tag show."""
    if tag[:2] == ("gradient_rank", "utilization"):
        yield _low_gradient(run, tag, known)
    elif tag.measure == "effective_rank" and tag.group in {"weight_rank", "feature_rank"}:
        yield _fallen(run, tag, known)
    elif tag.measure == "dead_fraction":
        yield _dead(run, tag, known)


def _not_a_number(histories: Mapping[tuple[str, Tag], _History]) -> Iterator[Finding]:
    """NaN by run, group and layer: a finding for all of the measures together."""
    since: dict[tuple[str, str, str], dict[str, int]] = {}
    recovered: dict[tuple[str, str, str], bool] = {}
    for (run, tag), history in histories.items():
        steps = [step for step, value in history if math.isnan(value)]
        # One that never was a number tells nothing, unless it is a measure that any finite matrix has.
        if steps and tag.measure not in _NAN_BY_DEFINITION and (len(steps) < len(history) or tag.measure == "effective_rank"):
            place = (run, tag.group, tag.layer)
            since.setdefault(place, {})[tag.measure] = steps[0]
            recovered[place] = recovered.get(place, True) and not math.isnan(history[-1][1])
    for (run, group, layer), measures in since.items():
        step = min(measures.values())
        now = " It has recovered since." if recovered[run, group, layer] else ""
        what = f"{group} of {layer} reads NaN since step {step} ({', '.join(sorted(measures))}).{now}"
        yield Finding("error", run, layer, step, what + " Look for a NaN or infinity in loss, data or learning rate.")


def _low_gradient(run: str, tag: Tag, known: _History) -> Finding | None:
    low = 0
    for place, (step, value) in enumerate(known):
        low = low + 1 if value < LOW_UTILIZATION else 0
        if low == REPORTS_IN_A_ROW:
            began = known[place - REPORTS_IN_A_ROW + 1][0]
            text = (
                f"The gradient of {tag.layer} has less than a tenth of the rank that its bound allows, in {REPORTS_IN_A_ROW} "
                f"reports in a row from step {began} on: {value:.0%} at step {step}."
            )
            return Finding("warning", run, tag.layer, began, text)
    return None


def _fallen(run: str, tag: Tag, known: _History) -> Finding | None:
    (start, first), (now, last) = known[0], known[-1]
    if not last <= FALLEN_TO * first or first == 0:
        return None
    crossed = now
    for step, value in reversed(known):  # the fall that lasted, not a dip before it
        if value > FALLEN_TO * first:
            break
        crossed = step
    what = "weight" if tag.group == "weight_rank" else "features of"
    text = (
        f"The effective rank of the {what} {tag.layer} is down to {last:.3g} at step {now}, from {first:.3g} at step {start}; "
        f"below half since step {crossed}."
    )
    return Finding("notice", run, tag.layer, crossed, text)


def _dead(run: str, tag: Tag, known: _History) -> Finding | None:
    first, (now, last) = known[0][1], known[-1]
    if last <= DEAD_HALF and last < first + DEAD_GROWTH:
        return None
    began = next(step for step, value in known if value > DEAD_HALF or value >= first + DEAD_GROWTH)
    text = (
        f"{last:.0%} of the features of {tag.layer} are 0 for every input at step {now}, after {first:.0%} at first; "
        f"beyond what is usual since step {began}."
    )
    return Finding("warning", run, tag.layer, began, text)


def _costly(histories: Mapping[tuple[str, Tag], _History], cadences: Mapping[str, Mapping[str, int]]) -> Iterator[Finding]:
    """The monitors of a run together, each with its part."""
    shares: dict[str, dict[str, tuple[int, float]]] = {}
    for (run, tag), history in histories.items():
        if tag[:2] == ("monitor", "share_of_training") and math.isfinite(history[-1][1]):
            shares.setdefault(run, {})[tag.layer] = history[-1]
    for run, parts in shares.items():
        step, total = max(step for step, _ in parts.values()), sum(share for _, share in parts.values())
        if total > COSTLY_SHARE:
            dearest = sorted(parts.items(), key=lambda part: -part[1][1])
            each = ", ".join(f"{monitor} {share:.1%}" for monitor, (_, share) in dearest)
            way_out = _way_out(dearest[0][0], cadences.get(run, {}))
            text = f"The monitors take {total:.0%} of the time of training up to step {step} ({each}): {way_out}."
            yield Finding("warning", run, "", step, text)


def _way_out(dearest: str, chosen: Mapping[str, int]) -> str:
    """What to do about the dearest monitor: of one that has chosen for itself nobody has to raise the steps."""
    if dearest not in chosen:
        return f"{_WAYS_OUT.get(dearest, 'raise every_n_steps')} of {dearest}"
    return f"{dearest} has chosen to report every {chosen[dearest]:,} steps, and its share falls as training goes on"
