"""Real logs for the tests of the Ranks tab, and TensorBoard's two ways to read them."""

from __future__ import annotations

import argparse
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.data_ingester import LocalDataIngester
from tensorboard.context import RequestContext
from tensorboard.data.server_ingester import SubprocessServerDataIngester, get_server_binary
from tensorboard.util.grpc_util import ChannelCredsType

from rank_callbacks import (
    FeatureRankMonitor,
    GradientRankMonitor,
    NeuralCollapseMonitor,
    RankCollapseMonitor,
    WeightRankMonitor,
)
from rank_callbacks.tags import Tag
from rank_callbacks.writers import MatrixSpectrum, Report, write_report
from tests.models import CLASSES, Classifier, two_layers
from tests.training import QUIET, Recorder, Weights, fit

EVERY, BATCHES = 2, 8


class Decaying(Classifier):
    """A classifier under SGD with weight decay, which it says it is, and which validates as if it were right."""

    def __init__(self, weight_decay: float, batches: int) -> None:
        super().__init__(two_layers(), torch.randn(4 * batches, 6))
        self.weight_decay = weight_decay

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.log("accuracy", 0.5 + self.weight_decay)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, weight_decay=self.weight_decay)


class Run(NamedTuple):
    """What one fit logged, as a logger of our own and the weights themselves have it."""

    readings: dict[tuple[int, str], float]
    weights: Weights


def train(folder: Path, name: str, weight_decay: float = 0.01, batches: int = BATCHES, prefix: str = "") -> Run:
    """One short run with five monitors, logged to ``folder/name``."""
    torch.manual_seed(0)
    recorder, weights = Recorder(), Weights()
    logger = TensorBoardLogger(folder, name="", version=name, prefix=prefix, default_hp_metric=False)
    monitors = [
        WeightRankMonitor(every_n_steps=EVERY),
        GradientRankMonitor(every_n_steps=EVERY),
        FeatureRankMonitor(every_n_steps=EVERY),
        NeuralCollapseMonitor(CLASSES, every_n_steps=EVERY, window=EVERY),
        RankCollapseMonitor(CLASSES, every_n_steps=EVERY, window=EVERY),
    ]
    logger.log_hyperparams({"weight_decay": weight_decay, "optimizer": "SGD"}, {"final": 0.0})
    fit(Decaying(weight_decay, batches), *monitors, weights, logger=[recorder, logger])
    logger.finalize("success")
    return Run({(step, tag): value for step, tag, value in recorder.rows}, weights)


@contextmanager
def provider(kind: str, folder: Path, **samples: int) -> Generator[Any]:
    """TensorBoard's data provider of a folder that it has read, the fast one or the slow one."""
    if kind == "slow":
        yield _slow(folder, samples)
        return
    ingester = SubprocessServerDataIngester(
        server_binary=get_server_binary(),
        logdir=str(folder),
        reload_interval=1,
        channel_creds_type=ChannelCredsType.LOCAL,
        samples_per_plugin=samples,
    )
    ingester.start()
    try:
        _wait_until_read(ingester.data_provider)
        yield ingester.data_provider
    finally:
        ingester._stdin_handle.close()  # of which the server dies


def _slow(folder: Path, samples: dict[str, int]) -> Any:
    flags = argparse.Namespace(
        logdir=str(folder),
        logdir_spec="",
        samples_per_plugin=samples,
        purge_orphaned_data=True,
        max_reload_threads=1,
        reload_multifile=False,
        reload_multifile_inactive_secs=0,
        detect_file_replacement=None,
        reload_interval=0,  # once, and before it returns
        reload_task="blocking",
    )
    ingester = LocalDataIngester(flags)
    ingester.start()
    return ingester.data_provider


def _wait_until_read(provider: Any) -> None:
    """Until nothing has been added for a fifth of a second."""
    seen, same = None, 0
    while same < 4:
        time.sleep(0.05)
        series = provider.list_scalars(RequestContext(), experiment_id="", plugin_name="scalars")
        now = [(run, tag, entry.max_step) for run, tags in series.items() for tag, entry in tags.items()]
        seen, same = now, same + 1 if now == seen else 0


def write(
    folder: Path,
    name: str,
    *reports: dict[Tag, float],
    spectra: dict[Tag, MatrixSpectrum] | None = None,
    prefix: str = "",
) -> None:
    """Reports of scalars at steps 0, 1, 2, ..., the first with spectra, as the monitors write them."""
    logger = TensorBoardLogger(folder, name="", version=name, prefix=prefix)
    trainer = pl.Trainer(**QUIET | {"logger": logger})
    for step, scalars in enumerate(reports):
        write_report(trainer, Report(step, scalars, spectra or {} if step == 0 else {}))
    logger.finalize("success")


def event_file(folder: Path) -> Path:
    """The one event file of a run."""
    (file,) = folder.glob("events.out*")
    return file
