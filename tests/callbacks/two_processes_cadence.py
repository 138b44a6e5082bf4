"""Trains two processes with monitors that choose their cadence: ``python -m tests.callbacks.two_processes_cadence FOLDER``."""

import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from rank_callbacks import (
    FeatureRankMonitor,
    GradientRankMonitor,
    NeuralCollapseMonitor,
    RankCollapseMonitor,
    WeightRankMonitor,
)
from tests.models import CLASSES, Classifier
from tests.training import Recorder, fit

STEPS = 130


class Uneven(Classifier):
    """Wide enough that spectra take turns; the second process is slower than the first, and would choose otherwise."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        time.sleep(1e-3 + 3e-3 * self.global_rank)
        return super().training_step(batch, batch_idx)


class Save(pl.Callback):
    """Writes what a process is left with when its training ends."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        chosen = [one.cadence.every_n_steps for one in trainer.callbacks if hasattr(one, "cadence")]
        rows = [row for logger in trainer.loggers for row in logger.rows]
        seen = {"chosen": chosen, "rows": rows, "metrics": list(trainer.callback_metrics)}
        torch.save(seen, f"{self.path}-{trainer.global_rank}.pt")


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    pl.seed_everything(0, verbose=False)
    deep = [nn.Linear(8, 8) for _ in range(20)]
    network = nn.Sequential(nn.Linear(150, 140), nn.ReLU(), nn.Linear(140, 8), *deep, nn.Linear(8, CLASSES))
    given: dict[str, Any] = {"max_overhead": 0.2}
    monitors = [
        WeightRankMonitor(**given),
        GradientRankMonitor(**given),
        FeatureRankMonitor(**given),
        NeuralCollapseMonitor(CLASSES, **given),
        RankCollapseMonitor(CLASSES, **given),
    ]
    options = {"devices": 2, "strategy": "ddp_fork", "val_check_interval": 20}
    fit(Uneven(network, torch.randn(8 * STEPS, 150)), *monitors, Save(folder / "auto"), logger=Recorder(), **options)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
