"""What a sweep shows, in sentences made from its numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from statistics import fmean

from rank_callbacks.compare.final import accuracy_name, final_accuracy, in_order_of, last_readings, mean_over_layers
from rank_callbacks.compare.law import Law, law
from rank_callbacks.compare.run import Run
from rank_callbacks.compare.seeds import SEED, alike
from rank_callbacks.compare.soundness import sound
from rank_callbacks.figures.selection import OVER_LAYERS
from rank_callbacks.figures.tradeoff import Traded, over_seeds, pareto_front
from rank_callbacks.figures.truncation import Truncated, truncations
from rank_callbacks.rows import Row
from rank_callbacks.tags import Tag

__all__ = ["summary"]

_RANK = ("weight_rank", "effective_rank")
# Readings are float32, and rounding may put a distance above a bound that it equals.
_ROUNDING = 1e-5
# Of a hundred, of an accuracy in [0, 1].
_POINT = 0.01


def summary(runs: Sequence[Run], x: str = "weight_decay", accuracy: str | None = None, seed: str = SEED) -> list[str]:
    """What the runs show, a sentence or two on each subject.

    These are: how many can be compared, rank and accuracy from the least to the greatest ``x``, the best trade-off, what
    truncation leaves, the law of rank collapse, its certificates, and gradients against their bounds. Only runs with which
    nothing is wrong are spoken of, seeds as their mean. What no run has logged has no sentence.

    Args:
        runs: All that were found.
        x: A hyperparameter.
        accuracy: Name of the metric; None for the one that ``accuracy_name`` finds.
        seed: The hyperparameter in which runs of one setting differ.

    Example:
        >>> summary([Run("a", "csv", {}, [], {}, {})])
        ['None of the 1 runs can be compared: each has a problem, named below.']
    """
    good = in_order_of(sound(runs, x), x)
    if not good:
        return [f"None of the {len(runs)} runs can be compared: each has a problem, named below."]
    name = accuracy or accuracy_name(runs)
    found = {run.name: final_accuracy(run, name) for run in good}
    accuracies = {run: value for run, value in found.items() if value is not None and math.isfinite(value)}
    last = {run.name: last_readings(run) for run in good}
    ranks = {run: rank for run, of_run in last.items() if (rank := mean_over_layers(of_run, *_RANK)) is not None}
    settings = {run.name: run.hyperparameters[x] for run in good}
    groups = [[run.name for run in group] for group in alike(good, x, seed)]
    return [
        _counted(runs, good, settings, x),
        *_moved(last, ranks, accuracies, settings, x),
        *_traded(over_seeds(ranks, accuracies, groups), settings, x),
        *_truncated(chain.from_iterable(run.rows for run in good), settings, x),
        *_lawful(good),
        *_certified(last),
        *_used(last),
    ]


def _counted(runs: Sequence[Run], good: Sequence[Run], settings: Mapping[str, float | str], x: str) -> str:
    others = len(runs) - len(good)
    left = (
        f" {others} cannot be and {'is' if others == 1 else 'are'} in no mean, fit or front; why is below." if others else ""
    )
    values = len(set(settings.values()))
    return f"{len(good)} of {len(runs)} runs are compared, with {values} value{'' if values == 1 else 's'} of {x}.{left}"


def _moved(
    last: Mapping[str, Mapping[Tag, float]],
    ranks: Mapping[str, float],
    accuracies: Mapping[str, float],
    settings: Mapping[str, float | str],
    x: str,
) -> Iterator[str]:
    """From the first to the last setting."""
    values = list(dict.fromkeys(settings[run] for run in settings if run in ranks))
    if len(values) < 2:
        return
    ends = [[run for run in ranks if settings[run] == value] for value in (values[0], values[-1])]
    before, after = (fmean(ranks[run] for run in end) for end in ends)
    text = f"From {x} {_number(values[0])} to {_number(values[-1])} the effective rank of the weights, mean over layers, "
    text += f"{_goes(before, after)}{_most_moved(last, ends)}"
    known = [[accuracies[run] for run in end if run in accuracies] for end in ends]
    if all(known):
        text += f", while the accuracy {_goes(fmean(known[0]), fmean(known[1]))}"
    yield f"{text}."


def _goes(before: float, after: float) -> str:
    """Of numbers that read the same nothing is said to move."""
    if f"{before:.3g}" == f"{after:.3g}":
        return f"stays at {before:.3g}"
    return f"{'falls' if after < before else 'rises'} from {before:.3g} to {after:.3g}"


def _most_moved(last: Mapping[str, Mapping[Tag, float]], ends: Sequence[Sequence[str]]) -> str:
    """The layer whose rank changes by the largest factor."""
    of_runs = [{tag.layer for tag in last[run] if tag[:2] == _RANK} - OVER_LAYERS for end in ends for run in end]
    layers = sorted(set.intersection(*of_runs))
    moves = {layer: [fmean(last[run][Tag(*_RANK, layer)] for run in end) for end in ends] for layer in layers}
    factors = {layer: abs(math.log(after / before)) for layer, (before, after) in moves.items() if before > 0 and after > 0}
    if len(factors) < 2:
        return ""
    layer = max(factors, key=lambda layer: factors[layer])
    return f" (most in {layer}: {moves[layer][0]:.3g} to {moves[layer][1]:.3g})"


def _traded(traded: Mapping[str, Traded], settings: Mapping[str, float | str], x: str) -> Iterator[str]:
    """The lowest rank that costs next to nothing, of means where seeds differ."""
    front = pareto_front({run: one.rank for run, one in traded.items()}, {run: one.accuracy for run, one in traded.items()})
    if not front:
        return
    best, least = traded[front[-1]], traded[front[-1]].accuracy
    point = _POINT if least <= 1 else 100 * _POINT  # however the accuracy is written
    cheapest = next(run for run in front if traded[run].accuracy >= least - point)
    is_mean = any(len(one.runs) > 1 for one in traded.values())
    what = "settings, as means over seeds with 95 % intervals," if is_mean else "runs"
    text = f"{len(front)} of {len(traded)} {what} are on the Pareto front of low rank and high accuracy: the best accuracy is "
    text += f"{_accuracy(best)}, at rank {best.rank:.3g} ({x} {_number(settings[front[-1]])}{_seeds(best)})"
    if cheapest == front[-1]:
        yield f"{text}; no {'setting' if is_mean else 'run'} of lower rank is within 1 point of it."
    else:
        yield f"{text}; the lowest rank within 1 point of it has {_cheapest(cheapest, traded[cheapest], settings, x)}."


def _cheapest(name: str, one: Traded, settings: Mapping[str, float | str], x: str) -> str:
    setting = f"{x} {_number(settings[name])}"
    less = f"at rank {one.rank:.3g} and accuracy {_accuracy(one)}{_seeds(one)}"
    return f"{name} ({setting}, {less})" if len(one.runs) == 1 else f"{setting} ({less})"


def _accuracy(one: Traded) -> str:
    """How certain a mean is belongs to it: a point may be less than that."""
    return f"{one.accuracy:.3g}" + ("" if one.accuracy_half is None else f" ± {one.accuracy_half:.2g}")


def _seeds(one: Traded) -> str:
    return f", {len(one.runs)} seeds" if len(one.runs) > 1 else ""


def _truncated(rows: Iterable[Row], settings: Mapping[str, float | str], x: str) -> Iterator[str]:
    """What truncation leaves at the greatest and at the least setting that have it."""
    found = truncations(rows)
    values = list(dict.fromkeys(settings[run] for run in settings if run in found))
    texts = []
    for value in dict.fromkeys(values[-1:] + values[:1]):
        means = _means_at([found[run] for run in found if settings[run] == value])
        if len(means) > 1:
            texts.append(f"at {x} {_number(value)} {_kept(means)}")
    if texts:
        text = "; ".join(texts)
        yield f"{text[0].upper()}{text[1:]}. These are the largest of the tolerances tried that cost 1 point at most."


def _means_at(runs: Sequence[Sequence[Truncated]]) -> list[Truncated]:
    """Over seeds, at every tolerance that all have, as trained first; empty without that."""
    by_rtol = [{one.rtol: one for one in run if math.isfinite(one.accuracy)} for run in runs]
    common = sorted(set.intersection(*map(set, by_rtol)))
    alike = {rtol: [run[rtol] for run in by_rtol] for rtol in common} if 0.0 in common else {}
    return [
        Truncated(rtol, fmean(one.accuracy for one in seeds), fmean(one.share for one in seeds))
        for rtol, seeds in alike.items()
    ]


def _kept(means: Sequence[Truncated]) -> str:
    as_trained, *others = means
    cheap = [one for one in others if one.accuracy >= as_trained.accuracy - _POINT]
    if not cheap:
        return f"truncation at {others[0].rtol:g} and above costs more than 1 point of {as_trained.accuracy:.3g}"
    best = cheap[-1]
    return (
        f"truncation at {best.rtol:g} keeps {best.share:.0%} of the parameters at accuracy {best.accuracy:.3g} "
        f"({as_trained.accuracy:.3g} without)"
    )


def _lawful(good: Sequence[Run]) -> Iterator[str]:
    try:
        found = law(good)
    except ValueError:
        return
    low, high = found.interval
    within = f"95 % interval {low:.2g} to {high:.2g}" if math.isfinite(low) else "no interval: points of one run only"
    yield (
        f"Over {len(found.points)} layers of {found.runs} runs with weight decay the relative distance to rank K goes as "
        f"(TCV ratio / λ) to the power {found.slope:.2g} ({within}), which explains {found.explained:.0%} of its variation on "
        f"a log scale{_by_decay_alone(found)}{_within_runs(found)}. {_verdict(found)}"
    )


def _by_decay_alone(found: Law) -> str:
    return "" if math.isnan(found.explained_by_decay) else f"; λ without the TCV explains {found.explained_by_decay:.0%}"


def _within_runs(found: Law) -> str:
    """What the TCV tells where λ is the same."""
    slope = found.slope_within_runs
    return "" if math.isnan(slope) else f"; between layers of a run it goes as the TCV ratio to the power {slope:.2g}"


def _verdict(found: Law) -> str:
    """What the interval allows to say, and no more."""
    low, high = found.interval
    if low <= 0 <= high:
        return "The interval holds 0: these runs are too few, or too different, to show that the distance follows TCV/λ."
    if high < 0:
        return "The distance rises where TCV/λ falls, which nobody expects of the law of Zangrando et al.: look at the chart."
    if low <= 1 <= high:
        return "The interval holds 1, a distance in proportion to TCV/λ as in the bound of Zangrando et al."
    how = "more steeply" if low > 1 else "less steeply"
    return f"The distance falls with TCV/λ, {how} than in proportion, which the bound of Zangrando et al. does not exclude."


def _certified(last: Mapping[str, Mapping[Tag, float]]) -> Iterator[str]:
    """Whether distances keep to their certificates, and how many of these say anything."""
    cases = [case for of_run in last.values() for case in _distances(of_run)]
    if not cases:
        return
    held = sum(distance <= bound * (1 + _ROUNDING) for distance, bound, _ in cases)
    telling = sum(bound < norm for _, bound, norm in cases)
    tells = f"below the weight's norm, where it says something, for {telling or 'none'}"
    yield f"The joint certificate holds for {held} of {len(cases)} weights that are not of rank K anyway, and is {tells}."


def _distances(last: Mapping[Tag, float]) -> Iterator[tuple[float, float, float]]:
    """Distance to rank K, its certificate and the norm of each weight that is not of rank K anyway."""
    for tag, bound in last.items():
        if tag[:2] == ("rank_collapse", "certificate_joint") and tag.layer not in OVER_LAYERS:
            distance, relative = (
                last.get(Tag("rank_collapse", name, tag.layer), math.nan)
                for name in ("distance_to_rank_k", "relative_distance_to_rank_k")
            )
            if distance > 0 and relative > 0 and math.isfinite(bound):
                yield distance, bound, distance / relative


def _used(last: Mapping[str, Mapping[Tag, float]]) -> Iterator[str]:
    shares = {
        (run, tag.layer): value
        for run, of_run in last.items()
        for tag, value in of_run.items()
        if tag[:2] == ("gradient_rank", "utilization") and tag.layer not in OVER_LAYERS and math.isfinite(value)
    }
    if shares:
        run, layer = min(shares, key=lambda place: shares[place])
        yield (
            f"At the end gradients have {fmean(shares.values()):.0%} of the rank that architecture and batch allow, mean over "
            f"layers and runs; least has {layer} in {run}, {shares[run, layer]:.0%}."
        )


def _number(value: float | str) -> str:
    return str(value) if isinstance(value, str | bool) else f"{value:g}"
