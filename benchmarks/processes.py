"""What a report of all weights takes in one process, and in two that train together.

Run ``python -m benchmarks.processes``. Three processes with one thread each train the same model: one by itself, two by
``strategy="ddp"`` on gloo. In every round first the one reports, then the two, while the others sleep; a report of the two
takes as long as the slower of them. Exact spectra (``method="exact"``), seconds of wall time, the median over the rounds with
the interquartile range in per cent; ``sent`` is what each process hands to collective operations for a report. Nothing but
one number is trained, so that nothing else of size is sent or computed. Wall time needs two cores that are free: the load says
whether they were, and the ratio of CPU times what it would be if they are.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import socket
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.models import gpt2_small, transformer
from benchmarks.timing import print_row
from rank_callbacks import WeightRankMonitor

LARGEST_RATIO = 0.6
MODELS: dict[str, Callable[[], nn.Module]] = {"transformer": transformer, "GPT-2 small": gpt2_small}
TINY: dict[str, Callable[[], nn.Module]] = {"small transformer": partial(transformer, width=96, depth=2, heads=2)}
STEPS = 1000
COLLECTIVES = ("all_reduce", "broadcast", "reduce", "gather", "all_gather")


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(prog="python -m benchmarks.processes", description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--rounds", type=int, default=9, help="after a warm-up; default: %(default)s")
    options.add_argument("--quick", action="store_true", help="a small model, three rounds")
    chosen = options.parse_args(arguments)
    torch.set_num_threads(1)
    print_row("a report of exact spectra", ["one process, s", "two, s", "two / one", "of CPU time", "sent, KiB", "load"])
    for name, build in (TINY if chosen.quick else MODELS).items():
        print_model(name, build, 3 if chosen.quick else chosen.rounds, judged=not chosen.quick)
    print(f"\nBar: two processes take at most {LARGEST_RATIO} of the time of one.")


def print_model(name: str, build: Callable[[], nn.Module], rounds: int, judged: bool) -> None:
    with Team(build, 1) as one, Team(build, 2) as two:
        turns = [(one.report(), two.report()) for _ in range(rounds + 1)][1:]
    alone, together = ([turn[place] for turn in turns] for place in (0, 1))
    ratio, of_cpu = (
        statistics.median(getattr(two, kind) / getattr(one, kind) for one, two in turns) for kind in ("seconds", "cpu_seconds")
    )
    verdict = f" {'ok' if ratio <= LARGEST_RATIO else 'MISSED'}" if judged else ""
    times = [spread([report.seconds for report in reports]) for reports in (alone, together)]
    load = f"{os.getloadavg()[0]:.1f} on {os.cpu_count()}"
    print_row(name, [*times, f"{ratio:.2f}{verdict}", f"{of_cpu:.2f}", f"{together[-1].sent / 1024:.1f}", load])


def spread(seconds: Sequence[float]) -> str:
    low, middle, high = statistics.quantiles(seconds, method="inclusive")
    return f"{middle:.3f} ({(high - low) / middle:.0%})"


class Took(NamedTuple):
    """Of one process for a report: seconds of wall time and of its thread, and bytes for collective operations."""

    seconds: float
    cpu_seconds: float
    sent: int


class Team:
    """Processes that train a model together and wait before each step to be told to go on.

    Args:
        build: Gives the model, alike in all.
        size: Processes.
    """

    def __init__(self, build: Callable[[], nn.Module], size: int) -> None:
        context, port = multiprocessing.get_context("fork"), free_port()
        self._members: list[tuple[BaseProcess, Connection]] = []
        for rank in range(size):
            here, there = context.Pipe()
            process = context.Process(target=train, args=(build, rank, size, port, there), daemon=True)
            process.start()
            there.close()  # so that a process that has died is noticed
            self._members.append((process, here))

    def __enter__(self) -> Team:
        return self

    def report(self) -> Took:
        """Let all take a step: the most that the report takes of one."""
        for _, connection in self._members:
            connection.send(True)
        answers = [connection.recv() for _, connection in self._members]
        return Took(*map(max, zip(*answers, strict=True)))

    def __exit__(self, *_: object) -> None:
        for process, connection in self._members:
            connection.close()
            process.kill()  # Lightning would meet SIGTERM with a collective operation
            process.join()


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def train(build: Callable[[], nn.Module], rank: int, size: int, port: int, connection: Connection) -> None:
    """One process's part of a training that ends with the process."""
    if size > 1:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= address | {"WORLD_SIZE": str(size), "NODE_RANK": "0", "LOCAL_RANK": str(rank)}
    logging.disable()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    monitor = WeightRankMonitor(every_n_steps=1, method="exact")
    trainer = Trainer(
        callbacks=[Told(connection, monitor), monitor],
        accelerator="cpu",
        devices=size,
        strategy="ddp" if size > 1 else "auto",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(Frozen(build()), DataLoader(TensorDataset(torch.ones(2 * STEPS)), batch_size=1))


class Told(Callback):
    """Waits before each step until it is told to go on, and answers with what the step's report took and sent.

    It comes before the monitor in the list of callbacks.
    """

    def __init__(self, connection: Connection, monitor: WeightRankMonitor) -> None:
        self.connection, self.monitor = connection, monitor
        self.began, self.sent = (0.0, 0.0), Sent()

    def on_train_batch_start(self, *_: Any) -> None:  # ruff: ignore[any-type]
        self.connection.recv()
        self.began, self.sent.bytes = self._clocks(), 0

    def on_before_zero_grad(self, *_: Any) -> None:  # ruff: ignore[any-type]
        """The report is over, the step not yet taken."""
        seconds, cpu_seconds = (now - before for now, before in zip(self._clocks(), self.began, strict=True))
        self.connection.send(Took(seconds, cpu_seconds, self.sent.bytes))

    def _clocks(self) -> tuple[float, float]:
        return self.monitor._stopwatch.total, time.thread_time()


class Sent:
    """Counts the bytes that this process hands to collective operations from construction on."""

    def __init__(self) -> None:
        self.bytes = 0
        for name in COLLECTIVES:
            setattr(distributed, name, self._counting(getattr(distributed, name)))

    def _counting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counting(tensor: Any, *args: Any, **kwargs: Any) -> Any:  # ruff: ignore[any-type]
            self.bytes += tensor.numel() * tensor.itemsize if isinstance(tensor, Tensor) else 0
            return function(tensor, *args, **kwargs)

        return counting


class Frozen(LightningModule):
    """A model whose weights stay as they are, next to one number that is trained."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.number = nn.Parameter(torch.ones(()))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (self.number * batch[0]).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.number], lr=0.0)


if __name__ == "__main__":
    main()
