"""One training that logs to everything."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import pytorch_lightning as pl
import wandb
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from rank_callbacks import NeuralCollapseMonitor, RankCollapseMonitor, WeightRankMonitor
from tests.models import CLASSES, mlp
from tests.training import Recorder, Weights, fit
from tests.writers.test_writers import offline

SETTINGS = {"weight_decay": 5e-4, "optimizer": {"name": "<b>SGD</b>", "nesterov": True}, "widths": [4, 3], "epochs": 2}


class Validated(pl.Callback):
    """Logs an accuracy, as a module does."""

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.log("val/accuracy", 0.5 + trainer.current_epoch / 3)


@pytest.fixture(scope="session")
def settings() -> dict[str, object]:
    return SETTINGS


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Recorder, Weights]]:
    """The folder of all logs, and what was logged."""
    path = tmp_path_factory.mktemp("sources")
    with offline(path):
        recorder, weights = Recorder(), Weights()
        to_wandb = WandbLogger(offline=True, save_dir=path)
        loggers = [
            TensorBoardLogger(path, name="event files", version="", default_hp_metric=False),
            CSVLogger(path, name="table", version=""),
            to_wandb,
            recorder,
        ]
        for logger in loggers:
            logger.log_hyperparams(SETTINGS)
        monitors = [
            WeightRankMonitor(every_n_steps=2, change=True),
            NeuralCollapseMonitor(CLASSES, every_n_steps=2, window=2),
            RankCollapseMonitor(CLASSES, every_n_steps=2, window=2),
        ]
        fit(mlp(batches=4), *monitors, weights, Validated(), logger=loggers, max_epochs=2)
        for logger in loggers:
            logger.finalize("success")
        to_wandb.experiment.finish()
        wandb.teardown()
        yield path, recorder, weights
