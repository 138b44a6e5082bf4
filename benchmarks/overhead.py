"""What the monitors cost a training run: all of them together, with default settings, and what others cost.

Run ``python -m benchmarks.overhead``. Each model trains for 2,000 steps in a real Trainer with five monitors, which choose
their own cadence. So that this takes minutes, steps that no monitor looks at are left out after the first twenty, and the
clock moves on by the time that those have taken: all else, reports, windows and the steps in them, is done and timed.
Seconds are what the monitors account for themselves (``monitor/share_of_training``) when 2,000 steps are over, ``end`` is
what reports at the end of a training add. ``--real`` takes every step of the MLP, with monitors and without, and compares
CPU times. Wall time on one thread.

For comparison what one report of another tool adds, the median over turns with it and without, over 100 steps: ``svdvals`` of
every weight or gradient as users write it, WeightWatcher's ``analyze``, and delve, which looks at every step.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.models import mlp, resnet18, transformer
from benchmarks.spectra import weightwatcher
from benchmarks.timing import print_row, silence
from rank_callbacks import (
    FeatureRankMonitor,
    GradientRankMonitor,
    NeuralCollapseMonitor,
    RankCollapseMonitor,
    WeightRankMonitor,
)

LARGEST_SHARE = 0.01
STEPS = 2000
PEERS_EVERY = 100


class Run(NamedTuple):
    """A model to train, what one batch of it is, and how many turns to time peers for."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    labels: Callable[[], Tensor]
    classes: int
    turns: int
    steps: int = STEPS


RUNS = {
    "MLP 784-1024x4-10, 128 images": Run(
        mlp, lambda: torch.randn(128, 784), lambda: torch.arange(128) % 10, classes=10, turns=5
    ),
    "ResNet-18, 32 images": Run(
        resnet18, lambda: torch.randn(32, 3, 32, 32), lambda: torch.arange(32) % 10, classes=10, turns=2
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
        partial(mlp, 16), lambda: torch.randn(8, 784), lambda: torch.arange(8) % 10, classes=10, turns=1, steps=300
    )
}


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--quick", action="store_true", help="300 steps of a small model")
    options.add_argument("--real", action="store_true", help="take every step of the MLP, with monitors and without")
    chosen = options.parse_args(arguments)
    torch.set_num_threads(1)
    for name, run in (TINY if chosen.quick else RUNS).items():
        print_account(name, run)
        print_peers(run)
    if chosen.real:
        print_real(next(iter(RUNS.values())))
    print(f"\nBar: all monitors together at most {LARGEST_SHARE:.0%} of {STEPS:,} steps.")


def monitors(classes: int) -> dict[str, Callback]:
    """By the names under which they log their cost; features in training, since there is no validation here."""
    return {
        "weight_rank": WeightRankMonitor(),
        "gradient_rank": GradientRankMonitor(),
        "feature_rank": FeatureRankMonitor(data="train"),
        "neural_collapse": NeuralCollapseMonitor(classes),
        "rank_collapse": RankCollapseMonitor(classes),
    }


def print_account(name: str, run: Run) -> None:
    """Train with all monitors, and print what each has taken."""
    watching = monitors(run.classes)
    account = Account(run.steps)
    with silence(), skipping_clock() as clock, tempfile.TemporaryDirectory() as folder:
        model = Skipping(run.build(), clock, list(watching.values()))
        fit(model, run, [*watching.values(), account], CSVLogger(folder))
    print(f"\n{name}: a step takes {1e3 * model.usual:.1f} ms")
    print_row("monitor", ["every", "reports", "seconds", "share", "end, s"], 14)
    for group in watching:
        every, reports, seconds = (
            account.every.get(group, "-"),
            account.reports.get(group, 0),
            account.at_last_step.get(group, 0.0),
        )
        end = account.at_end.get(group, 0.0) - seconds
        print_row(group, [every, reports, f"{seconds:.2f}", f"{seconds / account.elapsed:.2%}", f"{end:.2f}"], 14)
    share = sum(account.at_last_step.values()) / account.elapsed
    verdict = "ok" if share <= LARGEST_SHARE else "MISSED"
    print_row("all", ["", "", f"{sum(account.at_last_step.values()):.2f}", f"{share:.2%} {verdict}"], 14)


def print_peers(run: Run) -> None:
    """Print what others would take of the same training."""
    for name, peer, every in (
        ("svdvals of weights", Naive(gradients=False), PEERS_EVERY),
        ("svdvals of gradients", Naive(gradients=True), PEERS_EVERY),
        ("WeightWatcher", WeightWatcher(), PEERS_EVERY),
        ("delve", Delve(), 1),
    ):
        try:
            step, report = cost_of_a_report(run, peer)
        except ImportError:
            print_row(name, ["-", "not installed"], 14)
        else:
            print_row(name, [every, "", "", f"{report / (every * step):.2%}"], 14)


def print_real(run: Run) -> None:
    """CPU time and memory of every step, with monitors and without, in turn."""
    plain, watched = (statistics.median(times) for times in zip(*(both(run) for _ in range(2)), strict=True))
    print(f"\nEvery step taken: {plain:.1f} s without monitors, {watched:.1f} s with: {watched / plain - 1:+.2%} of CPU time.")


def both(run: Run) -> tuple[float, float]:
    return cpu_seconds(run, []), cpu_seconds(run, list(monitors(run.classes).values()))


def cpu_seconds(run: Run, callbacks: list[Callback]) -> float:
    """CPU time of ten to 2,000 steps."""
    clock = Between(10, run.steps)
    with silence():
        fit(Classifier(run.build()), run, [*callbacks, clock], False)
    return clock.seconds


def fit(model: LightningModule, run: Run, callbacks: list[Callback], logger: Any) -> None:  # ruff: ignore[any-type]
    trainer = Trainer(
        max_steps=100 * run.steps,  # the end is far: what monitors add there is counted apart
        callbacks=callbacks,
        accelerator="cpu",
        logger=logger,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    torch.manual_seed(0)
    trainer.fit(model, DataLoader(Batches(run), batch_size=None))


class SkippingClock:
    """The process's clock, which can be moved on."""

    def __init__(self) -> None:
        self.skipped = 0.0
        self.real = time.perf_counter

    def __call__(self) -> float:
        return self.real() + self.skipped


@contextmanager
def skipping_clock() -> Generator[SkippingClock]:
    """The clock that everything in this process reads for a while."""
    clock = SkippingClock()
    time.perf_counter = clock
    try:
        yield clock
    finally:
        time.perf_counter = clock.real


class Classifier(LightningModule):
    """Any model that gives logits in its last dimension, trained by SGD with weight decay."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(inputs)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        logits = self(batch[0])
        return nn.functional.cross_entropy(logits.flatten(0, -2), batch[1].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, weight_decay=1e-3)


class Skipping(Classifier):
    """Takes the steps that a monitor looks at and the first of the others, and jumps over the rest.

    Args:
        model: To train.
        clock: Is moved on by a step's time where one is jumped over.
        watching: Monitors that may look.
    """

    TIMED = 20

    def __init__(self, model: nn.Module, clock: SkippingClock, watching: list[Callback]) -> None:
        super().__init__(model)
        self.clock = clock
        self.watching = watching
        self.taken: list[float] = []
        self.began, self.watched = 0.0, False

    @property
    def usual(self) -> float:
        """Seconds of a step that nobody looks at."""
        return statistics.median(self.taken[2:])

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        self.began = self.clock()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.watched = any(is_looking(monitor) for monitor in self.watching)
        if self.watched or len(self.taken) < self.TIMED:
            return super().training_step(batch, batch_idx)
        return next(self.parameters()).sum() * 0  # the optimizer's step goes on, and is what a step's time has beyond

    def on_train_batch_end(self, outputs: object, batch: object, batch_idx: int) -> None:
        spent = self.clock() - self.began
        if not self.watched and len(self.taken) < self.TIMED:
            self.taken.append(spent)
        elif not self.watched:
            self.clock.skipped += max(0.0, self.usual - spent)


def is_looking(monitor: Callback) -> bool:
    """Whether a monitor has hooks in the model now."""
    return any(getattr(monitor, name, None) is not None for name in ("_capture", "_window", "_hooks"))


class Account(Callback):
    """What monitors have logged of their cost, at the last step and at the end of the training that it stops."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.every: dict[str, int] = {}
        self.reports: dict[str, int] = {}
        self.at_last_step: dict[str, float] = {}
        self.at_end: dict[str, float] = {}
        self.elapsed = 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        if trainer.global_step == self.steps:
            self.at_last_step, self.elapsed = self._totals(trainer), self._elapsed(trainer)
            trainer.should_stop = True

    def receive_report(self, trainer: Trainer, report: Any) -> None:  # ruff: ignore[any-type]
        for tag, value in report.scalars.items():
            if tag[:2] == ("monitor", "seconds"):
                self.reports[tag.layer] = self.reports.get(tag.layer, 0) + 1
            if tag[:2] == ("monitor", "every_n_steps"):
                self.every[tag.layer] = int(value)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.at_end = self._totals(trainer)

    @staticmethod
    def _totals(trainer: Trainer) -> dict[str, float]:
        return {group: one._stopwatch.total for group, one in _monitors_of(trainer)}

    @staticmethod
    def _elapsed(trainer: Trainer) -> float:
        return max(one._stopwatch.elapsed for _, one in _monitors_of(trainer))


def _monitors_of(trainer: Trainer) -> Iterator[tuple[str, Any]]:
    names = {type(monitor): group for group, monitor in monitors(2).items()}
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    yield from ((names[type(one)], one) for one in callbacks if type(one) in names)


class Peer(Callback):
    """Looks at every other step, in ``report``."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        if trainer.global_step % 2:
            self.report(pl_module)

    def report(self, model: LightningModule) -> None:
        raise NotImplementedError


class Naive(Peer):
    """The callback that users write: ``svdvals`` of every weight, or of every gradient."""

    def __init__(self, gradients: bool) -> None:
        self.gradients = gradients

    def report(self, model: LightningModule) -> None:
        for parameter in model.parameters():
            matrix = parameter.grad if self.gradients else parameter.detach()
            if matrix is not None and matrix.dim() > 1:
                torch.linalg.svdvals(matrix.flatten(1))


class WeightWatcher(Peer):
    """The package's analysis of all weights."""

    def __init__(self) -> None:
        with silence():
            self.analyze = weightwatcher()

    def report(self, model: LightningModule) -> None:
        if self.analyze is None:
            raise ImportError("WeightWatcher is not installed.")
        self.analyze(model.model)  # type: ignore[arg-type]


class Delve(Callback):
    """The tracker of the package delve, on all its convolutions and linear layers, in every other step."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        from delve import SaturationTracker

        if trainer.global_step % 2 == 0:
            self.folder = tempfile.TemporaryDirectory()
            self.tracker = SaturationTracker(self.folder.name, save_to="csv", modules=pl_module, device="cpu")

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        if trainer.global_step % 2:
            self.tracker.close()
            self.folder.cleanup()


def cost_of_a_report(run: Run, peer: Callback) -> tuple[float, float]:
    """CPU seconds of a step, and what a report adds: medians over turns of a step with it and one without."""
    clock = Clock()
    with silence():
        trainer = Trainer(
            max_steps=2 * run.turns + 2,
            callbacks=[clock.starts, peer, clock],
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(Classifier(run.build()), DataLoader(Batches(run), batch_size=None))
    watched, plain = clock.seconds[2::2], clock.seconds[3::2]
    return statistics.median(plain), statistics.median(b - a for a, b in zip(plain, watched, strict=True))


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


class Between(Callback):
    """CPU time from one step to another, at which it stops the training."""

    def __init__(self, begin: int, end: int) -> None:
        self.begin, self.end = begin, end
        self.seconds = 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        if trainer.global_step == self.begin:
            self.seconds = -time.thread_time()
        if trainer.global_step == self.end:
            self.seconds += time.thread_time()
            trainer.should_stop = True


class Batches(IterableDataset[tuple[Tensor, Tensor]]):
    """The same batch without end."""

    def __init__(self, run: Run) -> None:
        self.batch = run.inputs(), run.labels()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield self.batch


if __name__ == "__main__":
    main()
