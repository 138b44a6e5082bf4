"""Trains in two processes and one: ``python -m tests.callbacks.two_processes_features FOLDER`` saves what each one saw."""

import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from rank_callbacks import NeuralCollapseMonitor
from tests.models import CLASSES, Classifier
from tests.training import Recorder, fit, outcome

LAYERS = ["network.0", "network.1", "alone", "never"]
BATCHES = 6
EPOCHS = 3


class Save(pl.Callback):
    """Writes what a process is left with when its training ends."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        metrics = {tag: value.item() for tag, value in trainer.callback_metrics.items() if tag.startswith("neural_")}
        rows = {key: value for logger in trainer.loggers for key, value in logger.readings("neural_collapse").items()}
        seen = {"outcome": outcome(trainer, pl_module), "metrics": metrics, "rows": rows}
        torch.save(seen, f"{self.path}-{trainer.global_rank}.pt")


class InOrder(Classifier):
    """Twelve samples a step, of which each of two processes takes six: the first those of classes 0 and 1 alone.

    ``alone`` runs in the second process, or for its samples in the only one. SGD does not tell the runs apart.
    """

    def __init__(self, in_one: bool) -> None:
        network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, CLASSES))
        labels = torch.tensor([0, 0, 1, 2, 0, 1, 1, 2, 1, 0, 0, 2]).repeat(BATCHES)
        inputs = torch.randn(len(labels), 6) + torch.randn(CLASSES, 6)[labels]
        super().__init__(network, inputs)
        self.data = TensorDataset(inputs, labels)
        self.alone, self.never, self.in_one = nn.Identity(), nn.Identity(), in_one

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if self.trainer.global_rank == 1:
            self.alone(self.network[:2](batch[0]).detach() * 2)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)

    def train_dataloader(self) -> DataLoader:
        sampler = None
        if not self.in_one:
            sampler = DistributedSampler(self.data, 2, self.trainer.global_rank, shuffle=False)
        return DataLoader(self.data, batch_size=12 if self.in_one else 6, sampler=sampler)

    val_dataloader = train_dataloader


def probe() -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    return DataLoader(TensorDataset(torch.randn(20, 6, generator=generator), torch.arange(20) % CLASSES), batch_size=6)


def run(path: Path, *callbacks: pl.Callback, processes: int = 2) -> None:
    pl.seed_everything(0, verbose=False)
    strategy = "ddp_fork" if processes > 1 else "auto"
    options = {"devices": processes, "strategy": strategy, "max_epochs": EPOCHS, "use_distributed_sampler": False}
    fit(InOrder(processes == 1), *callbacks, Save(path), logger=Recorder(), **options)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for data in ("train", "val", "loader"):
        for processes in (1, 2):
            given = probe() if data == "loader" else data
            monitor = NeuralCollapseMonitor(CLASSES, LAYERS, 4, 3, given)
            run(folder / f"{data}-{processes}", monitor, processes=processes)
    run(folder / "unwatched-2")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
