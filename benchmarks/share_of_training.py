"""What the monitors cost a training run at their default cadence.

Run ``python -m benchmarks.share_of_training``. In a real Trainer, runs of steps that a monitor watches take turns with as
many that it does not: one step for the monitors of weights and gradients, a window of 8 for those of features. ``report`` is
the CPU time that one report adds with all that it needs, the median over the turns; the share is that over the time of the
steps from one report to the next at the monitor's default cadence. For comparison, a callback that calls ``svdvals`` on every
gradient, as users write it. CPU time on one thread.
"""

from __future__ import annotations

import argparse
import inspect
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.models import mlp, resnet18, transformer
from benchmarks.timing import print_row, silence
from rank_callbacks import (
    FeatureRankMonitor,
    GradientRankMonitor,
    NeuralCollapseMonitor,
    RankCollapseMonitor,
    WeightRankMonitor,
)

LARGEST_SHARE = 0.01
WINDOW = 8


class Run(NamedTuple):
    """A model to train, what one batch of it is, and how many turns to time."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    labels: Callable[[], Tensor]
    classes: int
    turns: int


RUNS = {
    "MLP 784-1024x4-10, 128 images": Run(
        mlp, lambda: torch.randn(128, 784), lambda: torch.arange(128) % 10, classes=10, turns=7
    ),
    "ResNet-18, 32 images": Run(
        resnet18, lambda: torch.randn(32, 3, 32, 32), lambda: torch.arange(32) % 10, classes=10, turns=3
    ),
    "transformer, 8 x 256 tokens": Run(
        transformer,
        lambda: torch.randint(0, 103, (8, 256)),
        lambda: torch.arange(8 * 256).reshape(8, 256) % 103,
        classes=103,
        turns=2,
    ),
}
TINY = {
    "MLP 784-16x4-10, 8 images": Run(
        partial(mlp, 16), lambda: torch.randn(8, 784), lambda: torch.arange(8) % 10, classes=10, turns=1
    )
}


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.share_of_training", description=(__doc__ or "").partition("\n")[0]
    )
    options.add_argument("--quick", action="store_true", help="one turn of a small model")
    chosen = options.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print_row("Share of training", ["monitor", "every", "step, ms", "report, ms", "share"], 22)
    for name, run in (TINY if chosen.quick else RUNS).items():
        for title, monitor, window, cadence in watchers(run.classes):
            step, report = cost_of_a_report(run, monitor, window)
            share = report / (cadence * step)
            verdict = "" if title == "svdvals" else (" ok" if share <= LARGEST_SHARE else " MISSED")
            cells = [title, cadence, f"{1e3 * step:.1f}", f"{1e3 * report:.1f}", f"{share:.2%}{verdict}"]
            print_row(name, cells, 22)
    print(f"\nBar: at most {LARGEST_SHARE:.0%} for each monitor.")


def watchers(classes: int) -> Iterator[tuple[str, Callback, int, int]]:
    """Name, callback that watches every other turn, steps in a turn, and its default cadence."""
    steps, windows = partial(_every_other, 1), partial(_every_other, WINDOW)
    watching: list[tuple[type[Callback], Callback, int]] = [
        (WeightRankMonitor, WeightRankMonitor(every_n_steps=steps), 1),
        (GradientRankMonitor, GradientRankMonitor(every_n_steps=steps), 1),
        (FeatureRankMonitor, FeatureRankMonitor(data="train", every_n_steps=windows, window=WINDOW), WINDOW),
        (NeuralCollapseMonitor, NeuralCollapseMonitor(classes, every_n_steps=windows, window=WINDOW), WINDOW),
        (RankCollapseMonitor, RankCollapseMonitor(classes, every_n_steps=windows, window=WINDOW), WINDOW),
    ]
    for kind, monitor, window in watching:
        yield kind.__name__, monitor, window, inspect.signature(kind).parameters["every_n_steps"].default
    yield "svdvals", Naive(), 1, 100


def _every_other(window: int, step: int) -> bool:
    """The last step of every other turn."""
    return step % (2 * window) == 2 * window - 1


def cost_of_a_report(run: Run, monitor: Callback, window: int) -> tuple[float, float]:
    """CPU seconds of a step, and what a report adds: medians over turns."""
    clock = Clock()
    with silence():
        trainer = Trainer(
            max_steps=2 * window * run.turns + 2 * window,
            callbacks=[clock.starts, monitor, clock],
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(Classifier(run.build()), DataLoader(Batches(run), batch_size=None))
    turns = [sum(clock.seconds[start : start + window]) for start in range(2 * window, len(clock.seconds), window)]
    plain, watched = turns[::2], turns[1::2]
    return statistics.median(plain) / window, statistics.median(b - a for a, b in zip(plain, watched, strict=True))


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
        if _every_other(1, trainer.global_step):
            for parameter in pl_module.parameters():
                if parameter.grad is not None and parameter.dim() > 1:
                    torch.linalg.svdvals(parameter.grad.flatten(1))


class Classifier(LightningModule):
    """Any model that gives logits in its last dimension, trained by SGD with weight decay."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        logits = self.model(batch[0])
        return nn.functional.cross_entropy(logits.flatten(0, -2), batch[1].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, weight_decay=1e-3)


class Batches(IterableDataset[tuple[Tensor, Tensor]]):
    """The same batch without end."""

    def __init__(self, run: Run) -> None:
        self.batch = run.inputs(), run.labels()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield self.batch


if __name__ == "__main__":
    main()
