"""What the spectrum of a gradient costs when its rank is known to be small, and what watching gradients costs a training run.

Run ``python -m benchmarks.gradients``. It prints two tables, and the bars that they are held to:

1. **A gradient of 1024 x 1024 that is a sum of b outer products**, in float32. ``factors`` is
   ``outer_product_spectrum`` from the b rows; ``sketch`` is ``low_rank_singular_values`` from the gradient alone;
   ``full`` is ``singular_values``; all against ``torch.linalg.svdvals`` of the gradient. ``error`` is the largest distance
   of a singular value from float64 ``svdvals`` of the float64 product, over the largest singular value.
2. **Share of training.** CPU time that ``GradientRankMonitor()`` adds to a step on which it reports, over 100 steps without,
   in a real Trainer where steps with and without a report alternate; and the same for a callback that calls ``svdvals`` on
   every gradient, as users write it.

Times are CPU time on one thread, the median over rounds with the interquartile range in per cent.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.models import mlp, resnet18, transformer
from benchmarks.timing import in_turn, print_row, silence
from rank_callbacks import GradientRankMonitor
from rank_callbacks.functional import low_rank_singular_values, outer_product_spectrum, singular_values

CADENCE = 100
# Speed-ups over svdvals by route and b, and the largest share of training.
BARS = {("factors", 64): 100.0, ("factors", 128): 35.0, ("sketch", 128): 14.0}
LARGEST_SHARE = 0.01
LARGEST_ERROR = 1e-7


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(prog="python -m benchmarks.gradients", description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--rounds", type=int, default=15, help="after the warm-up; default: %(default)s")
    options.add_argument("--quick", action="store_true", help="one round of small sizes")
    chosen = options.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    width, rounds = (64, 1) if chosen.quick else (1024, chosen.rounds)
    lines = print_spectra(width, [width // 16, width // 8, width // 4], rounds)
    lines += print_shares(chosen.quick)
    print("\nBars" + ("" if lines else ": none, with --quick") + "".join(f"\n{line}" for line in lines))


def print_spectra(width: int, batches: list[int], rounds: int) -> list[str]:
    """Print the first table; return how its bars are met."""
    print_row(
        f"Gradient {width}x{width}", ["svdvals", "factors", "sketch", "full", "x factors", "x sketch", "x full", "error"], 13
    )
    bars = []
    for batch in batches:
        deltas, inputs = torch.randn(batch, width), torch.randn(batch, width)
        calls = routes(deltas, inputs)
        timings = in_turn(calls, rounds)
        gains = {name: timings["svdvals"].median / timing.median for name, timing in timings.items()}
        worst = largest_error(calls, deltas, inputs)
        cells = [*timings.values(), *(f"{gains[name]:.1f}" for name in ("factors", "sketch", "full")), f"{worst:.0e}"]
        print_row(f"b = {batch}", cells, 13)
        bars += [bar(f"{name}, b = {batch}, x svdvals", gains[name], least) for (name, b), least in BARS.items() if b == batch]
        bars += [bar(f"error, b = {batch}", worst, LARGEST_ERROR, most=True)] if width == 1024 else []
    return bars


def routes(deltas: Tensor, inputs: Tensor) -> dict[str, Callable[[], Tensor]]:
    gradient = deltas.mT @ inputs
    generator = torch.Generator().manual_seed(0)
    return {
        "svdvals": partial(torch.linalg.svdvals, gradient),
        "factors": lambda: outer_product_spectrum(deltas, inputs).singular_values,
        "sketch": lambda: low_rank_singular_values(gradient, len(deltas), generator).singular_values,
        "full": partial(singular_values, gradient),
    }


def largest_error(calls: Mapping[str, Callable[[], Tensor]], deltas: Tensor, inputs: Tensor) -> float:
    truth = torch.linalg.svdvals(deltas.double().mT @ inputs.double())
    return max(float((calls[name]() - truth).abs().max() / truth[0]) for name in ("factors", "sketch"))


def print_shares(quick: bool) -> list[str]:
    """Print the second table; return how its bars are met."""
    print_row("\nShare of training", ["step, ms", "report, ms", f"share @{CADENCE}", "naive, ms", f"naive @{CADENCE}"], 13)
    bars = []
    for name, (build, batch, pairs) in (TINY if quick else RUNS).items():
        plain, report = cost_of_a_report(build(), batch, GradientRankMonitor(every_n_steps=_odd), pairs)
        _, naive = cost_of_a_report(build(), batch, Naive(), pairs)
        shares = [report / (CADENCE * plain), naive / (CADENCE * plain)]
        cells = [f"{1e3 * plain:.1f}", f"{1e3 * report:.1f}", f"{shares[0]:.2%}", f"{1e3 * naive:.1f}", f"{shares[1]:.2%}"]
        print_row(name, cells, 13)
        bars += [] if quick else [bar(f"share of training, {name}", shares[0], LARGEST_SHARE, most=True)]
    return bars


def cost_of_a_report(model: nn.Module, batch: Callable[[], Tensor], monitor: Callback, pairs: int) -> tuple[float, float]:
    """CPU seconds of a step, and what a report adds: medians over steps that alternate."""
    clock = Clock()
    with silence():
        trainer = Trainer(
            max_steps=2 * pairs + 2,
            callbacks=[clock.starts, monitor, clock],
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(Classifier(model), DataLoader(Batches(batch), batch_size=None))
    steps = clock.seconds[2:]  # the first two warm up
    return statistics.median(steps[::2]), statistics.median(b - a for a, b in zip(steps[::2], steps[1::2], strict=True))


class Clock(Callback):
    """CPU time of every step, from the start of its batch, seen by the callback that comes first, to its end."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.starts = Starts(self)
        self.began = 0.0

    def on_train_batch_end(self, *_: Any) -> None:  # ruff: ignore[any-type]
        self.seconds.append(time.thread_time() - self.began)


class Starts(Callback):
    """Tells a clock that a batch begins."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_start(self, *_: Any) -> None:  # ruff: ignore[any-type]
        self.clock.began = time.thread_time()


class Naive(Callback):
    """The callback that users write: ``svdvals`` of every gradient."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: object) -> None:
        if _odd(trainer.global_step):
            for parameter in pl_module.parameters():
                if parameter.grad is not None and parameter.dim() > 1:
                    torch.linalg.svdvals(parameter.grad.flatten(1))


class Classifier(LightningModule):
    """Any model that gives logits in its last dimension, trained by SGD on random labels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        logits = self.model(batch).flatten(0, -2)
        return nn.functional.cross_entropy(logits, torch.arange(len(logits)) % logits.shape[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Batches(IterableDataset[Tensor]):
    """The same batch without end."""

    def __init__(self, batch: Callable[[], Tensor]) -> None:
        self.batch = batch()

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield self.batch


Run = tuple[Callable[[], nn.Module], Callable[[], Tensor], int]
RUNS: dict[str, Run] = {
    "MLP 784-1024x4-10, 128 images": (mlp, lambda: torch.randn(128, 784), 15),
    "ResNet-18, 128 images": (resnet18, lambda: torch.randn(128, 3, 32, 32), 3),
    "transformer, 8 x 256 tokens": (transformer, lambda: torch.randint(0, 103, (8, 256)), 5),
}
TINY: dict[str, Run] = {"MLP 784-16x4-10, 8 images": (partial(mlp, 16), lambda: torch.randn(8, 784), 1)}


def _odd(step: int) -> bool:
    return step % 2 == 1


def bar(name: str, measured: float, limit: float, most: bool = False) -> str:
    met = measured <= limit if most else measured >= limit
    direction, verdict = "at most" if most else "at least", "ok" if met else "MISSED"
    return f"{name.ljust(44)} {direction} {limit:<8g} measured {measured:<10.3g} {verdict}"


if __name__ == "__main__":
    main()
