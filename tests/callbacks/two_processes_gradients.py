"""Trains in two processes and one: ``python -m tests.callbacks.two_processes_gradients FOLDER`` saves what each one saw."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from rank_callbacks import GradientRankMonitor
from tests.gradients import BATCH, Gradients, Wide, wide
from tests.models import Classifier, transformer
from tests.training import Recorder, fit, outcome


class Save(pl.Callback):
    """Writes what a process is left with when its training ends."""

    def __init__(self, path: Path, gradients: Gradients) -> None:
        self.path, self.gradients = path, gradients

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        metrics = {tag: value.item() for tag, value in trainer.callback_metrics.items() if "_rank/" in tag}
        rows = {(s, tag): value for logger in trainer.loggers for s, tag, value in logger.rows if "_rank/" in tag}
        seen = {"outcome": outcome(trainer, pl_module), "metrics": metrics, "rows": rows, "gradients": self.gradients.at}
        torch.save(seen, f"{self.path}-{trainer.global_rank}.pt")


class OfTwenty(Wide):
    batch_size = 2 * BATCH


def monitor() -> GradientRankMonitor:
    return GradientRankMonitor(["numerical_rank", "frobenius_norm"], every_n_steps=1, update=True, moments=True)


def run(path: Path, model: Callable[[], Classifier], *callbacks: pl.Callback, processes: int = 2) -> None:
    pl.seed_everything(0, verbose=False)
    gradients, strategy = Gradients(), "ddp_fork" if processes > 1 else "auto"
    everything = (gradients, *callbacks, Save(path, gradients))
    fit(model(), *everything, logger=Recorder(), devices=processes, strategy=strategy, max_epochs=4)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    # The two batches of ten are all the data, which one process takes in a batch of twenty.
    run(folder / "two", lambda: wide(batches=2), monitor())
    run(folder / "one", lambda: wide(batches=2, kind=OfTwenty), monitor(), processes=1)
    run(folder / "watched", transformer, monitor())
    run(folder / "unwatched", transformer)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
