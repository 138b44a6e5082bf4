"""Trains with a dashboard in two processes: ``python -m tests.callbacks.two_processes_dashboard FOLDER``."""

import sys
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger

from rank_callbacks import RankDashboard, WeightRankMonitor
from rank_callbacks.tags import Tag
from rank_callbacks.writers import Report, write_report
from tests.models import mlp
from tests.training import fit


class Save(pl.Callback):
    """Lets a rank fall, counts the warnings of it, and writes what a process is left with."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for step, value in enumerate([8.0, 1.0, 1.0]):
                write_report(trainer, Report(step, {Tag("weight_rank", "effective_rank", "made_up"): value}, {}))
        self.alerts = sum("is down to" in str(warning.message) for warning in caught)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        progress = {tag: float(value) for tag, value in trainer.progress_bar_metrics.items() if "_rank/" in tag}
        torch.save({"progress": progress, "alerts": self.alerts}, self.path / f"{trainer.global_rank}.pt")


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    pl.seed_everything(0, verbose=False)
    dashboard = RankDashboard(progress_bar=["effective_rank/mean_over_layers"], alerts=True)
    logger = TensorBoardLogger(folder, name="", version="")
    fit(mlp(), dashboard, WeightRankMonitor(), Save(folder), logger=logger, devices=2, strategy="ddp_fork")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
