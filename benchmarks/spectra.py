"""What an exact spectrum costs and how exact it is, next to what people call today.

Run ``python -m benchmarks.spectra``. It prints four tables:

1. **Single matrices.** ``ours`` is ``singular_values(W)``; ``svdvals`` is ``torch.linalg.svdvals(W)`` as users write it;
   ``tall`` is the same of W or its transpose, whichever is tall: the fair baseline, though not the usual one;
   ``matrix_rank`` is ``torch.linalg.matrix_rank(W)``.
2. **Whole models.** The same over all weight matrices of a network, and WeightWatcher's ``analyze()`` with its defaults.
   That one looks at a model after training, in float64, and fits power laws besides: it does more. Where it takes a
   convolution as one matrix for each position in the kernel, the column ``matrices`` counts them all.
3. **Accuracy.** The largest relative error over all shapes, for every measure in the catalogue: from our spectra and from
   ``svdvals`` in float32, both of the same float32 weights, against ``svdvals`` in float64.
4. **Bars.** How many times faster than ``svdvals`` we want to be at least, and what this run measured.

Times are milliseconds of CPU on one thread: the median over the rounds and, in brackets, the interquartile range in per
cent of it. The candidates take turns within each round, so that a disturbance hits them alike. Under ``x/ours`` stands how
many times faster we are than x: below 1 we are slower.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib import import_module

import torch
from torch import Tensor, nn

from benchmarks.models import mlp, resnet18, transformer
from benchmarks.timing import Call, Timing, in_turn, print_row, silence
from rank_callbacks.callbacks.readings import Spectrum, measured
from rank_callbacks.catalog import MEASURES
from rank_callbacks.functional import singular_values, singular_values_of_each

Shape = tuple[int, int]

# Each model with its width. --quick divides every size by SHRINKAGE.
MODELS: dict[str, tuple[Callable[[int], nn.Module], int]] = {
    "mlp": (mlp, 1024),
    "resnet18": (resnet18, 64),
    "transformer": (transformer, 384),
}
SINGLE_SHAPES = [(4096, 384), (1024, 1024), (768, 3072), (512, 4608)]
SHRINKAGE = 8
BARS = {"768x3072": 5.0, "512x4608": 8.0, "resnet18": 7.0, "transformer": 1.8, "every shape": 0.95}

# Ranks to compare with are 10, the number of classes; other parameters are the catalogue's.
MEASURES_TAKEN = [f"{row.name}_10" if row.parameter and row.default is None else row.name for row in MEASURES.values()]


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    scale, rounds = (SHRINKAGE, 1) if options.quick else (1, options.rounds)
    models = {name: build(width // scale) for name, (build, width) in MODELS.items() if name in options.models}
    single_shapes = [(rows // scale, columns // scale) for rows, columns in SINGLE_SHAPES]
    shapes = list(dict.fromkeys([*shapes_in(models.values()), *single_shapes]))
    gains = print_single_matrices(shapes, rounds)
    gains["every shape"] = min(gains.values())
    gains |= print_whole_models(models, rounds)
    print_accuracy(shapes)
    print_bars({} if options.quick else gains)


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.spectra", description=(__doc__ or "").partition("\n")[0])
    arguments.add_argument("--rounds", type=int, default=15, help="after the warm-up; default: %(default)s")
    arguments.add_argument("--models", nargs="+", choices=MODELS, default=["resnet18", "transformer"])
    arguments.add_argument("--quick", action="store_true", help=f"one round, every size divided by {SHRINKAGE}")
    return arguments


def print_single_matrices(shapes: Iterable[Shape], rounds: int) -> dict[str, float]:
    """Print the times; return how many times faster we are than ``svdvals``, by shape."""
    others = [name for name in CANDIDATES if name != "ours"]
    print_row("Single matrices", [*CANDIDATES, *(f"{other}/ours" for other in others)])
    gains = {}
    for shape in shapes:
        name, matrix = "{}x{}".format(*shape), gaussian(shape)
        timings = in_turn({candidate: partial(call, matrix) for candidate, call in CANDIDATES.items()}, rounds)
        print_row(name, [*timings.values(), *(f"{gain(timings, other):.2f}" for other in others)])
        gains[name] = gain(timings, "svdvals")
    return gains


def print_whole_models(models: Mapping[str, nn.Module], rounds: int) -> dict[str, float]:
    """Print the times; return how many times faster we are than ``svdvals``, by model."""
    analyze = weightwatcher()
    print_row("\nWhole models", ["ms", "x/ours", "matrices"])
    gains = {}
    for name, model in models.items():
        calls, counts = calls_on(model, analyze)
        timings = in_turn(calls, rounds)
        for candidate, timing in timings.items():
            print_row(f"{name}, {candidate}", [timing, f"{gain(timings, candidate):.2f}", counts[candidate]])
        gains[name] = gain(timings, "svdvals")
    return gains


def print_accuracy(shapes: list[Shape]) -> None:
    """Print the largest relative error over the shapes, a row a measure."""
    columns = {}
    for spectrum in (gaussian, trained_like):
        matrices = [spectrum(shape) for shape in shapes]
        for name in ("ours", "svdvals"):
            columns[f"{spectrum.__name__}, {name}"] = largest_errors(CANDIDATES[name], matrices)
    print_row("\nAccuracy", columns, width=22)
    for name in MEASURES_TAKEN:
        print_row(name, [f"{errors[name]:.1e}" for errors in columns.values()], width=22)


def print_bars(gains: Mapping[str, float]) -> None:
    print_row("\nBars", ["at least", "measured"])
    for name, bar in BARS.items():
        if name in gains:
            print_row(name, [bar, f"{gains[name]:.2f}", "ok" if gains[name] >= bar else "MISSED"])
        else:
            print_row(name, [bar, "-"])


def weight_matrices(model: nn.Module) -> dict[str, Tensor]:
    """Weights as users look at them: output channels by everything else."""
    return {name: weight.detach().flatten(1) for name, weight in model.named_parameters() if weight.dim() > 1}


def shapes_in(models: Iterable[nn.Module]) -> list[Shape]:
    return [(len(matrix), matrix[0].numel()) for model in models for matrix in weight_matrices(model).values()]


def gaussian(shape: Shape) -> Tensor:
    """A matrix as an initialisation leaves it."""
    return torch.randn(shape) / math.sqrt(shape[1])


def trained_like(shape: Shape) -> Tensor:
    """Singular values of about 1, 1/2, 1/3, ... for a quarter of the rank, and noise of norm 0.01."""
    rows, columns = shape
    kept = max(1, min(shape) // 4)
    signal = torch.randn(rows, kept) / torch.arange(1, kept + 1) @ torch.randn(kept, columns) / math.sqrt(rows * columns)
    return signal + 0.01 * torch.randn(shape) / (math.sqrt(rows) + math.sqrt(columns))


def tall_svdvals(matrix: Tensor) -> Tensor:
    rows, columns = matrix.shape
    return torch.linalg.svdvals(matrix if rows >= columns else matrix.mT)


CANDIDATES: dict[str, Callable[[Tensor], Tensor]] = {
    "ours": singular_values,
    "svdvals": torch.linalg.svdvals,
    "tall": tall_svdvals,
    "matrix_rank": torch.linalg.matrix_rank,
}


def calls_on(model: nn.Module, analyze: Callable[[nn.Module], int] | None) -> tuple[dict[str, Call], dict[str, int]]:
    """What to time on a model, and how many matrices each candidate measures."""
    weights = weight_matrices(model)
    calls: dict[str, Call] = {name: partial(of_each, call, weights) for name, call in CANDIDATES.items()}
    calls["ours"] = partial(singular_values_of_each, weights)
    counts = dict.fromkeys(calls, len(weights))
    if analyze:
        calls["WeightWatcher"] = partial(analyze, model)
        counts["WeightWatcher"] = analyze(model)
    return calls, counts


def of_each(call: Callable[[Tensor], Tensor], matrices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: call(matrix) for name, matrix in matrices.items()}


def weightwatcher() -> Callable[[nn.Module], int] | None:
    """WeightWatcher's analysis, silent and on one thread, as the number of matrices; None where it is not installed."""
    try:
        with silence():
            watcher = import_module("weightwatcher").WeightWatcher
    except ImportError:
        print("\nWithout WeightWatcher: pip install 'rank-callbacks[bench]' adds it.")
        return None
    import_module("threadpoolctl").threadpool_limits(1)  # SciPy's threads do not listen to torch.set_num_threads

    def analyze(model: nn.Module) -> int:
        with silence():
            return int(watcher(model=model).analyze()["rf"].sum())  # a row a layer, rf slices of a kernel in each

    return analyze


def gain(timings: Mapping[str, Timing], other: str) -> float:
    return timings[other].median / timings["ours"].median


def largest_errors(spectrum: Callable[[Tensor], Tensor], matrices: Iterable[Tensor]) -> dict[str, float]:
    """By measure, the largest relative error of what it says of a spectrum."""
    errors = dict.fromkeys(MEASURES_TAKEN, 0.0)
    for matrix in matrices:
        values, truth = readings(spectrum(matrix), matrix), readings(tall_svdvals(matrix.double()), matrix)
        errors = {name: max(error, relative_error(values[name], truth[name])) for name, error in errors.items()}
    return errors


def readings(values: Tensor, matrix: Tensor) -> dict[str, float]:
    """Every measure of the singular values of a matrix."""
    spectrum = Spectrum.of(values, matrix)
    return {name: float(of_layers["W"]) for name, of_layers in measured({"W": spectrum}, MEASURES_TAKEN).items()}


def relative_error(value: float, truth: float) -> float:
    if value == truth or (math.isnan(value) and math.isnan(truth)):
        return 0.0
    return abs(value / truth - 1) if truth and math.isfinite(value) else math.inf


if __name__ == "__main__":
    main()
