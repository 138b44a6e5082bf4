"""Trains in two processes and one: ``python -m tests.callbacks.two_processes_network_rank FOLDER`` saves what each one saw."""

import sys
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rank_callbacks import NetworkRankMonitor
from tests.models import CLASSES, Classifier
from tests.training import Recorder, fit, outcome

MEASURES = ["jacobian_rank", "jacobian_rank_0.3", "perturbed_pca_dimension"]
MEASURES += ["classification_dimension", "centered_classification_dimension", "independence_deficit"]
# Of twelve samples in a step, by the number of processes.
SHARES = {1: [torch.arange(12)], 2: [torch.arange(8), torch.arange(8, 12)]}
EPOCHS = 2


class Save(pl.Callback):
    """Writes what a process is left with when its training ends."""

    def __init__(self, path: Path, monitors: tuple[NetworkRankMonitor, ...], told: list[warnings.WarningMessage]) -> None:
        self.path, self.monitors, self.told = path, monitors, told

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        seen = {
            "outcome": outcome(trainer, pl_module),
            "metrics": {tag: value.item() for tag, value in trainer.callback_metrics.items() if tag.startswith("network_")},
            "rows": {key: value for logger in trainer.loggers for key, value in logger.readings("network_rank").items()},
            "deficit": [row for monitor in self.monitors for row in map(tuple, monitor.deficit or ())],
            "warnings": [str(one.message) for one in self.told if "network_rank" in str(one.message)],
        }
        torch.save(seen, f"{self.path}-{trainer.global_rank}.pt")


class Uneven(Classifier):
    """Twelve samples a step, of which the first of two processes takes eight and the second four; in order of their inputs.

    Some of the samples have no label: in ``unlabelled`` all of the second process. ``failing`` fails there, at lone inputs.
    The weights rest: shares of a batch that are not equal weigh gradients otherwise.
    """

    def __init__(self, processes: int, unlabelled: bool = False, failing: bool = False) -> None:
        network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, CLASSES))
        network[-1].weight.data.mul_(100)
        inputs = torch.randn(36, 6)
        super().__init__(network, inputs)
        logits = network(inputs).detach()
        network[-1].bias.data.sub_(logits.mean(0))
        labels = (logits - logits.mean(0)).argmax(1).reshape(3, 12)
        if unlabelled:
            labels[:, 8:] = -100
        self.data = TensorDataset(inputs, labels.flatten())
        self.processes, self.failing = processes, failing

    def forward(self, inputs: Tensor) -> Tensor:
        if self.failing and self.trainer.global_rank == 1 and len(inputs) == 1:
            raise MemoryError
        return self.network(inputs)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.network(batch[0]), batch[1], ignore_index=-100, reduction="sum")
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def train_dataloader(self) -> DataLoader:
        samples = SHARES[self.processes][self.trainer.global_rank]
        parts = [[tensor[start : start + 12][samples] for tensor in self.data.tensors] for start in (0, 12, 24)]
        return DataLoader(parts, batch_size=None)

    val_dataloader = train_dataloader


def run(path: Path, *monitors: NetworkRankMonitor, processes: int = 2, **options: bool) -> None:
    pl.seed_everything(0, verbose=False)
    strategy = "ddp_fork" if processes > 1 else "auto"
    arguments = {"devices": processes, "strategy": strategy, "max_epochs": EPOCHS, "use_distributed_sampler": False}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit(Uneven(processes, **options), *monitors, Save(path, monitors, told), logger=Recorder(), **arguments)


def inputs() -> Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    common: dict[str, Any] = {"num_classes": CLASSES, "copies": 8, "ignore_index": -100}
    for processes in (1, 2):
        for name, given in (("odd", inputs()), ("lone", inputs()[:1])):
            run(folder / f"{name}-{processes}", NetworkRankMonitor(MEASURES, inputs=given, **common), processes=processes)
        probed = NetworkRankMonitor(MEASURES, inputs=inputs(), probes=3, **common)
        run(folder / f"probed-{processes}", probed, processes=processes)
        unlabelled = NetworkRankMonitor(MEASURES, inputs=inputs(), **common)
        run(folder / f"unlabelled-{processes}", unlabelled, processes=processes, unlabelled=True)
    run(folder / "batch-2", NetworkRankMonitor(["jacobian_rank"], inputs=3))
    run(folder / "failing-2", NetworkRankMonitor(MEASURES, inputs=inputs(), **common), failing=True)
    run(folder / "unwatched-2")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
