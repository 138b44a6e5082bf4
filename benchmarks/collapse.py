"""What the measures of neural collapse cost and how exact they are, next to how they are computed today.

Run ``python -m benchmarks.collapse``. From N float32 features of D dimensions in K classes every candidate computes NC1 by the
pseudo-inverse, the cluster variation ratio, CDNV and the equal norms of NC2. It prints three tables:

1. **Memory.** How much the peak of resident memory rises above that of a process that has the features and has multiplied
   matrices, in MiB; each candidate in a process of its own.
2. **Time.** ``ours`` is ``class_moments`` and the measures; ``ours, batches`` is ``batch_moments`` merged over batches of 256.
   ``K cov`` is what public packages do, in float32: class means, then a covariance of D x D for each class, their average, and
   ``torch.linalg.pinv`` of the D x D between-class covariance. ``pooled`` is the cheapest way to write that: one product of
   all centred features. ``streamed`` is the usual accumulator: float64 sums of h and hhᵀ over batches of 256, then ``pinv`` in
   float64. Milliseconds of CPU on one thread: the median over the rounds and, in brackets, the interquartile range in per cent
   of it; candidates take turns within each round. ``x/ours`` is how many times faster ``ours`` is than x, and ``x/batches``
   how many times faster ``ours, batches`` is.
3. **Accuracy.** What each candidate says at D = 512 and K = 100, and its relative error, from features of spread 0.1 within
   classes, and from collapsed ones: a spread of 1e-3 about class means 1 apart, all about a common mean of 100. The truth is
   the plain formulas in float64, in two passes over the same features.
"""

from __future__ import annotations

import argparse
import math
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.timing import Timing, in_turn, print_row
from rank_callbacks.functional import (
    batch_moments,
    class_distance_normalized_variance,
    class_mean_equinorm,
    class_moments,
    cluster_variation_ratio,
    merged_moments,
    nc1_pinv,
)
from rank_callbacks.functional.class_moments import ClassMoments

BATCH = 256
# K covariances of more than this, in GiB, are not made: an average of them is what is wanted.
MOST_MEMORY = 4.0
# At least so many times faster than the cheapest of the usual ways, and at most so far off in either regime. Where there are
# more classes than features, NC1 needs what the others compute, and we do it in float64.
BARS = {"D = 2048, K = 10": 15.0, "D = 2048, K = 100": 10.0, "K below D": 1.3}
LARGEST_ERROR = 1e-6


class Case(NamedTuple):
    """Features of ``width`` dimensions in ``classes`` classes; ``offset`` is the mean that they share."""

    width: int
    classes: int
    rows: int
    spread: float = 0.1
    offset: float = 0.0

    def __str__(self) -> str:
        return f"N = {self.rows}, D = {self.width}, K = {self.classes}"

    def draw(self) -> tuple[Tensor, Tensor]:
        """Float32 features about class means that are 1 apart, and their labels in random order."""
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(self.rows)[torch.randperm(self.rows, generator=generator)] % self.classes
        means = torch.randn(self.classes, self.width, generator=generator) / math.sqrt(2 * self.width)
        features = torch.randn(self.rows, self.width, generator=generator).mul_(self.spread / math.sqrt(self.width))
        for rows, of_rows in zip(features.split(BATCH), labels.split(BATCH), strict=True):  # so that no peak is left behind
            rows += means[of_rows] + self.offset
        return features, labels


class Values(NamedTuple):
    """What is computed, in its order in the tables."""

    nc1_pinv: float
    variation_ratio: float
    cdnv: float
    equinorm: float


# As many samples in each class: the usual ways are written for that.
CASES = [Case(width, classes, max(8200, 10 * classes)) for width in (512, 2048) for classes in (10, 100, 1000)]
TINY = [Case(16, 3, 96), Case(16, 40, 400)]
Candidate = Callable[[Tensor, Tensor, int], Values]


def ours(features: Tensor, labels: Tensor, classes: int) -> Values:
    return of_moments(class_moments(features, labels, classes, scatter=True))


def ours_in_batches(features: Tensor, labels: Tensor, classes: int) -> Values:
    parts = zip(features.split(BATCH), labels.split(BATCH), strict=True)
    moments = (batch_moments(rows, of_rows, classes, scatter=True) for rows, of_rows in parts)
    return of_moments(reduce(merged_moments, moments))


def of_moments(moments: ClassMoments) -> Values:
    measures = (nc1_pinv, cluster_variation_ratio, class_distance_normalized_variance, class_mean_equinorm)
    return Values(*(float(measure(moments)) for measure in measures))


def k_covariances(features: Tensor, labels: Tensor, classes: int) -> Values:
    """A covariance for each class, then their average, as public packages do it."""
    means = torch.stack([features[labels == k].mean(0) for k in range(classes)])
    covariances = []
    for k in range(classes):
        centred = features[labels == k] - means[k]
        covariances.append(centred.mT @ centred / len(centred))
    variances = torch.stack([covariance.trace() for covariance in covariances])
    return of_covariance(torch.stack(covariances).mean(0), means, variances)


def pooled(features: Tensor, labels: Tensor, classes: int) -> Values:
    """One product of all features, less their class means."""
    counts = torch.bincount(labels, minlength=classes)[:, None]
    means = features.new_zeros(classes, features.shape[1]).index_add_(0, labels, features) / counts
    centred = features - means[labels]
    variances = features.new_zeros(classes).index_add_(0, labels, centred.square().sum(1)) / counts[:, 0]
    return of_covariance(centred.mT @ centred / len(features), means, variances)


def streamed(features: Tensor, labels: Tensor, classes: int) -> Values:
    """Float64 sums of h and of hhᵀ over batches, and what is left when the means' part is taken off."""
    width = features.shape[1]
    sums, squares = torch.zeros(classes, width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
    norms, counts = torch.zeros(classes, dtype=torch.float64), torch.bincount(labels, minlength=classes)[:, None]
    for rows, of_rows in zip(features.split(BATCH), labels.split(BATCH), strict=True):
        wide = rows.double()
        sums.index_add_(0, of_rows, wide)
        norms.index_add_(0, of_rows, wide.square().sum(1))
        squares += wide.mT @ wide
    means = sums / counts
    variances = norms / counts[:, 0] - means.square().sum(1)
    return of_covariance((squares - sums.mT @ means) / len(features), means, variances)


def of_covariance(within: Tensor, means: Tensor, variances: Tensor) -> Values:
    """The measures as they are written from the formulas, for balanced classes."""
    classes = len(means)
    directions = means - means.mean(0)
    between = directions.mT @ directions / classes
    nc1 = (within @ torch.linalg.pinv(between)).trace() / classes
    first, second = torch.triu_indices(classes, classes, offset=1)
    cdnv = ((variances[first] + variances[second]) / (2 * torch.cdist(means, means)[first, second].square())).mean()
    norms = directions.norm(dim=1)
    ratio = within.trace() / (within.trace() + between.trace())
    return Values(float(nc1), float(ratio), float(cdnv), float(norms.std() / norms.mean()))


def truth(features: Tensor, labels: Tensor, classes: int) -> Values:
    """The formulas in float64, in two passes."""
    wide = features.double()
    means = torch.stack([wide[labels == k].mean(0) for k in range(classes)])
    centred = wide - means[labels]
    variances = torch.stack([centred[labels == k].square().sum(1).mean() for k in range(classes)])
    directions = means - means.mean(0)
    between, within = directions.mT @ directions / classes, centred.mT @ centred / len(wide)
    nc1 = (within @ torch.linalg.pinv(between, rtol=1e-10, hermitian=True)).trace() / classes
    pairs = [(k, other) for k in range(classes) for other in range(k)]
    halves = [(variances[k] + variances[other]) / (2 * (means[k] - means[other]).square().sum()) for k, other in pairs]
    norms = directions.norm(dim=1)
    ratio = within.trace() / (within.trace() + between.trace())
    return Values(float(nc1), float(ratio), float(torch.stack(halves).mean()), float(norms.std() / norms.mean()))


CANDIDATES: dict[str, Candidate] = {
    "ours": ours,
    "ours, batches": ours_in_batches,
    "K cov": k_covariances,
    "pooled": pooled,
    "streamed": streamed,
}
USUAL = ["K cov", "pooled", "streamed"]


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(prog="python -m benchmarks.collapse", description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--rounds", type=int, default=3, help="after the warm-up; default: %(default)s")
    options.add_argument("--quick", action="store_true", help="one round of small sizes")
    options.add_argument("--peak-of", nargs=4, metavar=("CANDIDATE", "D", "K", "N"), help=argparse.SUPPRESS)
    chosen = options.parse_args(arguments)
    torch.set_num_threads(1)
    if chosen.peak_of:
        name, *sizes = chosen.peak_of
        print(peak_memory(CANDIDATES[name], Case(*map(int, sizes))))
        return
    cases = TINY if chosen.quick else CASES
    print_memory(cases)  # first: on Linux a process starts with the peak of the one that starts it
    gains = print_times(cases, 1 if chosen.quick else chosen.rounds)
    worst = print_accuracy(TINY[0] if chosen.quick else CASES[1])
    print_bars({} if chosen.quick else gains, worst)


def can_be_held(name: str, case: Case) -> bool:
    """Whether a candidate needs no more memory than a machine has."""
    return name != "K cov" or 2 * 4 * case.classes * case.width**2 <= MOST_MEMORY * 2**30


def print_times(cases: list[Case], rounds: int) -> dict[str, float]:
    """Print the times; return how many times faster we are than the cheapest of the usual ways, by case."""
    print_row("\nTime", [*CANDIDATES, *(f"{name}/ours" for name in USUAL), "streamed/batches"])
    gains = {}
    for case in cases:
        features, labels = case.draw()
        calls = {name: partial(c, features, labels, case.classes) for name, c in CANDIDATES.items() if can_be_held(name, case)}
        timings = in_turn(calls, rounds)
        ratios = [gain(timings, name, "ours") for name in USUAL] + [gain(timings, "streamed", "ours, batches")]
        print_row(str(case), [*(timings.get(name, "too large") for name in CANDIDATES), *(f"{ratio:.2f}" for ratio in ratios)])
        least = min(ratio for ratio in ratios[:-1] if not math.isnan(ratio))
        gains[f"D = {case.width}, K = {case.classes}"] = least
        if case.classes < case.width:
            gains["K below D"] = min(gains.get("K below D", math.inf), least)
    return gains


def gain(timings: Mapping[str, Timing], other: str, own: str) -> float:
    return timings[other].median / timings[own].median if other in timings else math.nan


def print_memory(cases: list[Case]) -> None:
    print_row("Memory", ["features", *CANDIDATES])
    for case in cases:
        peaks = [f"{peak_in_a_process(name, case):.0f}" if can_be_held(name, case) else "too large" for name in CANDIDATES]
        print_row(str(case), [f"{case.rows * case.width * 4 / 2**20:.0f}", *peaks])


def peak_in_a_process(name: str, case: Case) -> float:
    sizes = map(str, (case.width, case.classes, case.rows))
    command = [sys.executable, "-m", "benchmarks.collapse", "--peak-of", name, *sizes]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def peak_memory(candidate: Candidate, case: Case) -> float:
    """MiB by which a candidate raises the peak of this process."""
    small = Case(8, 2, 32).draw()
    candidate(*small, 2)  # libraries load what they need
    features, labels = case.draw()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    candidate(features, labels, case.classes)
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit


def print_accuracy(case: Case) -> float:
    """Print what the candidates say; return our largest relative error."""
    worst = 0.0
    for regime, changed in {
        "spread": case._replace(spread=0.1),
        "collapse": case._replace(spread=1e-3, offset=100.0),
    }.items():
        features, labels = changed.draw()
        expected = truth(features, labels, case.classes)
        print_row(f"\nAccuracy, {regime}", Values._fields, 24)
        print_row("truth", [f"{value:.6g}" for value in expected], 24)
        for name, candidate in CANDIDATES.items():
            values = candidate(features, labels, case.classes)
            errors = [abs(value / wanted - 1) for value, wanted in zip(values, expected, strict=True)]
            print_row(name, [f"{value:.6g} ({error:.0e})" for value, error in zip(values, errors, strict=True)], 24)
            worst = max([worst, *errors]) if name.startswith("ours") else worst
    return worst


def print_bars(gains: Mapping[str, float], worst: float) -> None:
    print_row("\nBars", ["bar", "measured"])
    for name, bar in BARS.items():
        if name in gains:
            print_row(name, [f">= {bar}", f"{gains[name]:.2f}", "ok" if gains[name] >= bar else "MISSED"])
        else:
            print_row(name, [f">= {bar}", "-"])
    print_row("relative error", [f"<= {LARGEST_ERROR}", f"{worst:.0e}", "ok" if worst <= LARGEST_ERROR else "MISSED"])


if __name__ == "__main__":
    main()
