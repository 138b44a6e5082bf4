"""What the monitors add to the peak memory of a training run: all of them together, and one at a time.

Run ``python -m benchmarks.memory``. Each row is a training of its own, each figure of it from processes of its own with one
thread, copies of one that has imported everything and trained nothing:

* **resident**: the most memory that the process had at a time (``ru_maxrss``), libraries and their work space included; the
  median over ``--rounds`` processes, and in brackets how far they are apart. Code and work space that LAPACK's first spectrum
  loads, of whatever size, is printed apart, and is in every row, with monitors or without.
* **tensors**: the most that PyTorch's CPU allocator had handed out at a time, added up from each allocation and release that
  the profiler sees. What MKL and oneDNN allocate for themselves is not in it: that shows in the first column alone.
* **Python**: the most that Python objects and NumPy arrays took at a time (``tracemalloc``, which sees no tensor).

``reports`` are those that were written. With ``every 8``, as a user may ask for, each is of all layers. ``default`` is as the
monitors come but for one thing: the cadence that they choose is set to eight steps as well, so that in 48 steps they report
six times and layers take turns, the largest of them within the first two windows. Real cadences are longer, and reports the
same. What is added is held to the peak of a training of as many steps without monitors.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from benchmarks.overhead import RUNS, TINY, Account, Batches, Classifier
from benchmarks.timing import print_row, silence
from rank_callbacks import (
    FeatureRankMonitor,
    GradientRankMonitor,
    NeuralCollapseMonitor,
    RankCollapseMonitor,
    WeightRankMonitor,
)
from rank_callbacks.functional import singular_values

EveryNSteps: TypeAlias = "int | Literal['auto']"

LARGEST_SHARE = 0.02
EVERY = 8
STEPS: dict[EveryNSteps, int] = {"auto": 6 * EVERY, EVERY: 2 * EVERY + 1}
ALL = ("weight_rank", "gradient_rank", "feature_rank", "neural_collapse", "rank_collapse")
MODELS = dict(zip(("mlp", "resnet18", "transformer"), RUNS, strict=True))
MIB = 2**20
# Linux counts in KiB, macOS in bytes.
UNIT = 1 if sys.platform == "darwin" else 1024


class Peaks(NamedTuple):
    """MiB at the peak, and reports that were written."""

    resident: float = 0.0
    apart: float = 0.0
    tensors: float = 0.0
    python: float = 0.0
    reports: int = 0


def main(arguments: list[str] | None = None) -> None:
    chosen = parser().parse_args(arguments)
    torch.set_num_threads(1)
    if chosen.quick:
        print_run(next(iter(TINY)), rounds=1, singly=False)
        return
    print(f"The first spectra load {in_a_process(loaded).resident:.0f} MiB once, which each row has.")
    for name in chosen.models:
        print_run(MODELS[name], chosen.rounds, singly=True)
    print(f"\nBar: all monitors with default settings add at most {LARGEST_SHARE:.0%} to each peak.")


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options.add_argument("--rounds", type=int, default=1, help="processes for each resident peak; default: %(default)s")
    options.add_argument("--quick", action="store_true", help="a small model with all monitors, one round")
    return options


def print_run(run: str, rounds: int, singly: bool) -> None:
    """The peaks of one model's training without monitors, and what monitors add to them."""
    print_row(f"\n{run}", ["reports", "resident, MiB", "tensors, MiB", "Python, MiB", "most added"], 20)
    for every in STEPS if singly else [EVERY]:
        own = measured(run, every, (), rounds)
        title = f"no monitor, {STEPS[every]} steps"
        print_row(title, ["", f"{own.resident:.0f} (±{own.apart:.0f})", f"{own.tensors:.1f}", f"{own.python:.1f}"], 20)
        for names in [ALL, *((one,) for one in ALL)] if singly and every == "auto" else [ALL]:
            title = f"{'all' if names == ALL else names[0]}, {'default' if every == 'auto' else f'every {every}'}"
            is_judged = every == "auto" and names == ALL
            print_row(title, against(own, measured(run, every, names, rounds), is_judged), 20)


def against(own: Peaks, watched: Peaks, is_judged: bool) -> list[str]:
    """What monitors add to each of the peaks, and whether that is within the bar."""
    shares = {kind: getattr(watched, kind) / getattr(own, kind) - 1 for kind in ("resident", "tensors")}
    added = [f"{getattr(watched, kind) - getattr(own, kind):+.1f} ({share:+.1%})" for kind, share in shares.items()]
    verdict = "ok" if max(shares.values()) <= LARGEST_SHARE else "MISSED"
    most = f"{max(shares.values()):+.1%}" + f" {verdict}" * is_judged
    return [f"{watched.reports}", *added, f"{watched.python - own.python:+.1f}", most]


def measured(run: str, every: EveryNSteps, names: Sequence[str], rounds: int) -> Peaks:
    """The peaks of a training, each from processes of its own."""
    residents = [in_a_process(resident, run, every, names).resident for _ in range(rounds)]
    middle, apart = statistics.median(residents), (max(residents) - min(residents)) / 2
    return in_a_process(traced, run, every, names)._replace(resident=middle, apart=apart)


def in_a_process(peaks: Callable[..., Peaks], *arguments: object) -> Peaks:
    """Peaks in a copy of this process, which has imported everything and has trained nothing."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(peaks, arguments)


def resident(run: str, every: EveryNSteps, names: Sequence[str]) -> Peaks:
    """The most that this process has had at a time, of a training that it does."""
    loaded()
    reports = trained(run, every, names)
    return Peaks(resident=most_resident(), reports=reports)


def loaded() -> Peaks:
    """What the first of each kind of decomposition takes, however small, beyond the first product."""
    matrix = torch.eye(96, 128)
    matrix @ matrix.mT
    before = most_resident()
    singular_values(matrix)
    torch.linalg.svdvals(matrix[:8, :8].double())
    torch.linalg.eigh(torch.linalg.qr(matrix).R[:, :96])
    return Peaks(resident=most_resident() - before)


def most_resident() -> float:
    """MiB that this process has had at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT / MIB


def traced(run: str, every: EveryNSteps, names: Sequence[str]) -> Peaks:
    """The other two: to measure them takes memory itself."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as allocations:
        tracemalloc.start()
        reports = trained(run, every, names)
        _, python = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return Peaks(tensors=most_allocated(allocations) / MIB, python=python / MIB, reports=reports)


def trained(run: str, every: EveryNSteps, names: Sequence[str]) -> int:
    """Train to the end; the number of reports."""
    chosen = (RUNS | TINY)[run]
    watching, account = monitors(chosen.classes, every), Account(STEPS[every] + 1)
    with silence(), tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_steps=STEPS[every],
            callbacks=[*(watching[name] for name in names), *([Choice()] if every == "auto" else []), account],
            accelerator="cpu",
            logger=CSVLogger(folder),
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        torch.manual_seed(0)
        trainer.fit(Classifier(chosen.build()), DataLoader(Batches(chosen), batch_size=None))
    return sum(account.reports.values())


def monitors(classes: int, every: EveryNSteps) -> Mapping[str, Callback]:
    """By the names under which they log their cost, all but the cadence as it is by default."""
    return {
        "weight_rank": WeightRankMonitor(every_n_steps=every),
        "gradient_rank": GradientRankMonitor(every_n_steps=every),
        "feature_rank": FeatureRankMonitor(data="train", every_n_steps=every),
        "neural_collapse": NeuralCollapseMonitor(classes, every_n_steps=every),
        "rank_collapse": RankCollapseMonitor(classes, every_n_steps=every),
    }


class Choice(Callback):
    """Sets what monitors that choose their cadence have chosen."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for monitor in trainer.callbacks:  # type: ignore[attr-defined]
            if hasattr(monitor, "cadence"):
                monitor.cadence.load_state_dict({"every_n_steps": EVERY, "last_report": 0})


def most_allocated(allocations: profile) -> int:
    """Bytes of the CPU allocator that were in use at the peak, of those handed out since the profiler began."""
    results: Any = allocations.profiler.kineto_results  # type: ignore[union-attr]
    steps = sorted((one.start_ns(), one.nbytes()) for one in results.events() if one.name() == "[memory]")
    now = most = 0
    for _, change in steps:
        now += change
        most = max(most, now)
    return most


if __name__ == "__main__":
    main()
