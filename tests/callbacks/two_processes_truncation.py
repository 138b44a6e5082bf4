"""Trains in two processes and one: ``python -m tests.callbacks.two_processes_truncation FOLDER`` saves what each one saw."""

import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from rank_callbacks import TruncationMonitor
from tests.models import CLASSES, Classifier, two_layers
from tests.training import Recorder, fit, outcome

EPOCHS = 3
# Of the seven batches of validation, by the number of processes.
SHARES = {1: [range(7)], 2: [range(5), range(5, 7)]}


class Save(pl.Callback):
    """Writes what a process is left with when its training ends."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        rows = {key: value for logger in trainer.loggers for key, value in logger.readings("truncation").items()}
        metrics = {tag: value.item() for tag, value in trainer.callback_metrics.items() if tag.startswith("truncation")}
        seen = {"outcome": outcome(trainer, pl_module), "rows": rows, "metrics": metrics}
        torch.save(seen, f"{self.path}-{trainer.global_rank}.pt")


class Shared(Classifier):
    """Trains on halves of each batch; validates on uneven shares of batches, of which the last is smaller."""

    def __init__(self, processes: int) -> None:
        super().__init__(two_layers(), torch.randn(48, 6))
        self.unseen, self.labels = torch.randn(53, 6), torch.randint(CLASSES, (53,))
        self.processes = processes

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    def train_dataloader(self) -> DataLoader:
        start, end = self.trainer.global_rank, self.processes
        parts = [[tensor[first : first + 8][start::end] for tensor in self.data.tensors] for first in range(0, 48, 8)]
        return DataLoader(parts, batch_size=None)

    def val_dataloader(self) -> DataLoader:
        mine = SHARES[self.processes][self.trainer.global_rank]
        parts = [[self.unseen[8 * at : 8 * at + 8], self.labels[8 * at : 8 * at + 8]] for at in mine]
        return DataLoader(parts, batch_size=None)


def run(path: Path, *callbacks: pl.Callback, processes: int = 2) -> None:
    pl.seed_everything(0, verbose=False)
    strategy = "ddp_fork" if processes > 1 else "auto"
    options = {"devices": processes, "strategy": strategy, "max_epochs": EPOCHS, "use_distributed_sampler": False}
    fit(Shared(processes), *callbacks, Save(path), logger=Recorder(), **options)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for processes in (1, 2):
        run(folder / f"watched-{processes}", TruncationMonitor([0.7, 0.3]), processes=processes)
    run(folder / "unwatched-2")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
