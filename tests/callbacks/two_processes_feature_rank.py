"""Trains in two processes and one: ``python -m tests.callbacks.two_processes_feature_rank FOLDER`` saves what each one saw."""

import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rank_callbacks import FeatureRankMonitor
from tests.models import CLASSES, Classifier
from tests.training import Recorder, fit, outcome

LAYERS = ["network.0", "network.1", "alone", "refused", "widths", "never"]
MEASURES = ["effective_rank", "centered_participation_ratio", "saturation", "two_nn", "dead_fraction", "lidar"]
# Of six objects in a batch, by the number of processes.
SHARES = {1: [torch.arange(6)], 2: [torch.arange(4), torch.tensor([4, 5])]}
BATCHES = 6
EPOCHS = 2


class Save(pl.Callback):
    """Writes what a process is left with when its training ends."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        metrics = {tag: value.item() for tag, value in trainer.callback_metrics.items() if tag.startswith("feature_")}
        rows = {key: value for logger in trainer.loggers for key, value in logger.readings("feature_rank").items()}
        seen = {"outcome": outcome(trainer, pl_module), "metrics": metrics, "rows": rows}
        torch.save(seen, f"{self.path}-{trainer.global_rank}.pt")


class Wide(nn.Module):
    """Repeats features to any width."""

    def forward(self, features: Tensor, times: int) -> Tensor:
        return features.repeat(1, times)


class Uneven(Classifier):
    """Twelve samples a step, of which the first of two processes takes eight and the second four.

    ``alone`` runs in the second process, or for the same samples in the only one; ``refused`` gives integers there, and
    ``widths`` other widths in either. The weights rest: shares of a batch that are not equal weigh gradients otherwise.
    """

    def __init__(self, processes: int) -> None:
        super().__init__(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, CLASSES)), torch.randn(12 * BATCHES, 6))
        self.alone, self.refused, self.widths, self.never = nn.Identity(), nn.Identity(), Wide(), nn.Identity()
        self.processes = processes

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.network[:2](inputs)
        second = self.trainer.global_rank == 1
        if second or self.processes == 1:
            self.alone(hidden[-2:] * 2)
        self.refused(hidden.argmax(1) if second else hidden)
        self.widths(hidden, 1 + second)
        return self.network[2](hidden)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def train_dataloader(self) -> DataLoader:
        parts = [self._share(*(tensor[start : start + 12] for tensor in self.data.tensors)) for start in range(0, 72, 12)]
        return DataLoader(parts, batch_size=None)

    val_dataloader = train_dataloader

    def _share(self, inputs: Tensor, classes: Tensor) -> list[Tensor]:
        """Of the objects that have two views in a batch, those of this process."""
        objects = SHARES[self.processes][self.trainer.global_rank]
        views = torch.cat([objects, objects + 6])
        return [inputs[views], classes[views]]


def probe() -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    return DataLoader(TensorDataset(torch.randn(20, 6, generator=generator), torch.arange(20) % CLASSES), batch_size=10)


def run(path: Path, *callbacks: pl.Callback, processes: int = 2) -> None:
    pl.seed_everything(0, verbose=False)
    strategy = "ddp_fork" if processes > 1 else "auto"
    options = {"devices": processes, "strategy": strategy, "max_epochs": EPOCHS, "use_distributed_sampler": False}
    fit(Uneven(processes), *callbacks, Save(path), logger=Recorder(), **options)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for data in ("train", "val", "loader"):
        for processes in (1, 2):
            given = probe() if data == "loader" else data
            window = 3 if data == "train" else None
            monitor = FeatureRankMonitor(MEASURES, LAYERS, 4, window, given, num_classes=CLASSES, views=2)
            run(folder / f"{data}-{processes}", monitor, processes=processes)
    run(folder / "sampled-2", FeatureRankMonitor(["effective_rank"], "network.0", samples=30))
    run(folder / "unwatched-2")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
