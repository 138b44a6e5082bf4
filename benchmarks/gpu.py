"""What the monitors cost a training run on a GPU, and how often they make the host wait for it.

Run ``python -m benchmarks.gpu`` where PyTorch sees a CUDA device; elsewhere it says so and measures nothing. ResNet-50 on 64
images of 224 x 224 pixels with all five monitors, and GPT-2 small on 8 x 1024 tokens with those of weights, gradients and
features (its classes are 50,257 tokens, more than features), both with default settings, in bf16-mixed. Batches lie on the
GPU.

1. **Time.** Seconds of a step over ``--steps`` real steps after the first 20, in turn without monitors and with; the device is
   waited for at both ends alone. ``monitors`` is what they account for themselves.
2. **Waiting.** Calls in one step with which the host waits for the device, and copies from device to host, as
   ``torch.profiler`` counts them: in steps that no monitor looks at, in those that one looks at, and in those that end
   with a report; beside them the steps of a training without monitors. The monitors are told to report every 16 steps.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from benchmarks.memory import ALL, EveryNSteps, monitors
from benchmarks.models import gpt2_small, resnet50
from benchmarks.overhead import Batches, Classifier, Run, is_looking
from benchmarks.timing import print_row, silence

WARM_UP = 20
EVERY, PROFILED = 16, 50
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "Memcpy DtoH")
KINDS = ("no monitor", "nobody looks", "one looks", "report")


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--steps", type=int, default=500, help="that are timed; default: %(default)s")
    options.add_argument("--rounds", type=int, default=3, help="trainings without monitors and with; default: %(default)s")
    chosen = options.parse_args(arguments)
    if not torch.cuda.is_available():
        print("No GPU here: nothing was measured.")
        return
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}")
    for name, (run, names) in cases(torch.device("cuda")).items():
        print_times(name, run, names, chosen.steps, chosen.rounds)
        print_waits(run, names)


def cases(device: torch.device) -> dict[str, tuple[Run, Sequence[str]]]:
    """Runs by name, and the monitors that watch them."""
    images = partial(torch.randn, 64, 3, 224, 224, device=device)
    tokens = partial(torch.randint, 50257, (8, 1024), device=device)
    return {
        "ResNet-50, 64 images": (Run(resnet50, images, partial(torch.randint, 1000, (64,), device=device), 1000, 0), ALL),
        "GPT-2 small, 8 x 1024 tokens": (Run(gpt2_small, tokens, tokens, 50257, 0), ALL[:3]),
    }


def print_times(name: str, run: Run, names: Sequence[str], steps: int, rounds: int) -> None:
    """Milliseconds of a step without monitors and with."""
    turns = [(step_time(run, (), steps), step_time(run, names, steps)) for _ in range(rounds)]
    plain, watched = (statistics.median(turn[place][0] for turn in turns) for place in (0, 1))
    added = statistics.median(b[0] / a[0] - 1 for a, b in turns)
    print_row(f"\n{name}", ["step, ms", "with, ms", "added", "monitors"], 14)
    own = statistics.median(share for _, (_, share) in turns)
    print_row("", [f"{1e3 * plain:.2f}", f"{1e3 * watched:.2f}", f"{added:+.2%}", f"{own:.2%}"], 14)


def step_time(run: Run, names: Sequence[str], steps: int) -> tuple[float, float]:
    """Seconds of a step, and the share of them that the monitors account for."""
    watching = [monitors(run.classes, "auto")[name] for name in names]
    clock = Clock(WARM_UP, steps)
    fit(run, [*watching, clock], WARM_UP + steps + 1)
    elapsed = max((one._stopwatch.elapsed for one in watching), default=1.0)  # type: ignore[attr-defined]
    return clock.seconds / steps, sum(one._stopwatch.total for one in watching) / elapsed  # type: ignore[attr-defined]


def print_waits(run: Run, names: Sequence[str]) -> None:
    """The mean of each kind of call in a step of each kind."""
    counts = {**waits(run, (), "auto"), **waits(run, names, EVERY)}
    print_row("calls in a step", [*WAITS, "steps"], 24)
    for kind in KINDS:
        of_kind = counts.get(kind, [])
        means = [f"{statistics.fmean(step[call] for step in of_kind):.1f}" if of_kind else "-" for call in WAITS]
        print_row(kind, [*means, len(of_kind)], 24)


def waits(run: Run, names: Sequence[str], every: EveryNSteps) -> Mapping[str, list[Counter[str]]]:
    """Counts of the calls of steps after the first report, by kind of step."""
    watching = [monitors(run.classes, every)[name] for name in names]
    profiled = Profiled(watching)
    fit(run, [profiled.begins, *watching, profiled], PROFILED)
    return profiled.counts


def fit(run: Run, callbacks: list[Callback], steps: int) -> None:
    """Train on the GPU, or on the CPU where the batch lies there."""
    batches = Batches(run)
    is_cuda = batches.batch[0].is_cuda
    with silence():
        trainer = Trainer(
            max_steps=steps,
            callbacks=callbacks,
            accelerator="gpu" if is_cuda else "cpu",
            devices=1,
            precision="bf16-mixed" if is_cuda else "32-true",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        torch.manual_seed(0)
        trainer.fit(Classifier(run.build()), DataLoader(batches, batch_size=None))


class Clock(Callback):
    """Wall time of steps after a warm-up, all that they have put into the device's queue included."""

    def __init__(self, begin: int, steps: int) -> None:
        self.begin, self.end = begin, begin + steps
        self.seconds = 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        if trainer.global_step in {self.begin, self.end}:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize()
            self.seconds = time.perf_counter() - self.seconds


class Profiled(Callback):
    """Counts, in each step from the first report's window on, the calls that wait. It comes last, ``begins`` first."""

    def __init__(self, watching: Sequence[Callback]) -> None:
        self.counts: defaultdict[str, list[Counter[str]]] = defaultdict(list)
        self.begins = Begins(self)
        self._watching: Sequence[Any] = watching
        self._profile: profile | None = None
        self._looks, self._reports = False, 0.0

    def begin(self) -> None:
        self._reports = self._last_reports()
        self._profile = profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * torch.cuda.is_available()])
        self._profile.start()

    def on_train_batch_start(self, *_: Any) -> None:  # ruff: ignore[any-type]
        self._looks = any(is_looking(monitor) for monitor in self._watching)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:  # ruff: ignore[any-type]
        if self._profile is None:
            return
        self._profile.stop()
        results: Any = self._profile.profiler.kineto_results  # type: ignore[union-attr]
        names: list[str] = [event.name() for event in results.events()]
        if trainer.global_step > EVERY + 1:  # the first reports build what is built once
            self.counts[self._kind()].append(Counter({call: sum(name.startswith(call) for name in names) for call in WAITS}))

    def _kind(self) -> str:
        if not self._watching:
            return KINDS[0]
        if self._last_reports() != self._reports:
            return KINDS[3]
        return KINDS[2] if self._looks else KINDS[1]

    def _last_reports(self) -> float:
        """Changes with every report."""
        return sum(float(monitor.cadence._last_report or 0) for monitor in self._watching)


class Begins(Callback):
    """Begins to profile before any monitor looks."""

    def __init__(self, profiled: Profiled) -> None:
        self.profiled = profiled

    def on_train_batch_start(self, *_: Any) -> None:  # ruff: ignore[any-type]
        self.profiled.begin()


if __name__ == "__main__":
    main()
