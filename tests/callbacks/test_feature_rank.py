"""Every reading against NumPy, of features that hooks of the test's own have seen."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from rank_callbacks import FeatureRankMonitor, functional, log_spaced
from rank_callbacks.callbacks.lightning import step_axis
from tests.models import CLASSES, Classifier
from tests.training import QUIET, Recorder, fit

Array = NDArray[np.float64]
Readings = dict[tuple[int, str, str], float]
SUMMARIES = {"mean_over_layers": np.mean, "min_over_layers": np.min, "max_over_layers": np.max}
LAYERS = ["network.0", "network.3"]
DEFAULT = ["effective_rank", "stable_rank", "numerical_rank", "dead_fraction", "dormant_ratio"]
MORE = ["centered_participation_ratio", "corrected_participation_ratio", "centered_energy_rank_0.95"]
MORE += ["rankme", "spectral_norm", "centered_spectral_norm", "energy_rank_0.9", "centered_effective_rank", "saturation"]
MORE += ["alpha_req", "two_nn", "dormant_ratio_0.5"]
SIZES = ["samples", "samples_per_feature"]
DATA = pytest.mark.parametrize("data", ["train", "val", "loader"])


class Net(Classifier):
    """Takes batches of six in order."""

    shuffle = False
    batch_size = 6

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.data, batch_size=self.batch_size)

    val_dataloader = train_dataloader


def net(samples: int = 72, kind: type[Net] = Net) -> Net:
    """Wide enough for a power law, with units that rest."""
    layers = [nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 24), nn.ReLU(), nn.Linear(24, CLASSES)]
    return kind(nn.Sequential(*layers), torch.randn(samples, 6) + 1)


class Witness(pl.Callback):
    """Copies of what layers give out, by what the trainer was at and the step."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names)
        self.outputs: dict[tuple[str, int], dict[str, list[Tensor]]] = {}
        self.handles: list[Any] = []

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        hooks = {name: partial(self.keep, trainer, name) for name in self.names}
        self.handles = [pl_module.get_submodule(name).register_forward_hook(hook) for name, hook in hooks.items()]

    def keep(self, trainer: pl.Trainer, name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        stage = "sanity" if trainer.sanity_checking else "val" if trainer.validating else "train"
        of_step = self.outputs.setdefault((stage, step_axis(trainer)), {})
        of_step.setdefault(name, []).append(output.detach().clone())

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        for handle in self.handles:
            handle.remove()

    def features(self, stage: str, steps: Iterable[int]) -> dict[str, Tensor]:
        seen = [self.outputs[stage, step] for step in steps]
        return {name: torch.cat([part for of_step in seen for part in of_step[name]]) for name in self.names}


class Probe(pl.Callback):
    """What layers make of a loader in eval mode, before each training batch, by step."""

    def __init__(self, names: Iterable[str], loader: Iterable[Any]) -> None:
        self.names, self.loader = list(names), loader
        self.at: dict[int, dict[str, Tensor]] = {}

    @torch.no_grad()
    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        """By hand: the network is a sequence without a mode."""
        of_layers: dict[str, list[Tensor]] = {name: [] for name in self.names}
        with trainer.precision_plugin.forward_context():
            for inputs, _ in self.loader:
                for place, module in enumerate(pl_module.network):
                    inputs = module(inputs)
                    if f"network.{place}" in of_layers:
                        of_layers[f"network.{place}"].append(inputs.clone())
        features = {name: torch.cat(parts) for name, parts in of_layers.items()}
        self.at.setdefault(step_axis(trainer), features)


def naive(features: Tensor) -> dict[str, float]:
    """The measures of a matrix of features, from the formulas."""
    rows = features.detach().double().numpy()
    count, width = rows.shape
    raw, centered = (np.linalg.svd(matrix, compute_uv=False) for matrix in (rows, rows - rows.mean(0)))
    # Singular values of what rounding to the type of the features leaves, as a random matrix.
    noise = 0.3 * torch.finfo(features.dtype).eps * (np.linalg.norm(rows, axis=1).max() + np.linalg.norm(rows, axis=0).max())
    sizes, energy = np.abs(rows).mean(0), centered**2 / (centered**2).sum()
    return {
        "effective_rank": entropy_rank(raw),
        "stable_rank": (raw**2).sum() / raw[0] ** 2,
        "numerical_rank": float((raw > max(1e-3 * raw[0], noise)).sum()),
        "centered_participation_ratio": (centered**2).sum() ** 2 / (centered**4).sum(),
        "corrected_participation_ratio": corrected(rows),
        "centered_energy_rank_0.95": float((energy.cumsum() < 0.95).sum() + 1),
        "dead_fraction": (sizes == 0).mean(),
        "dormant_ratio": (sizes <= 0.025 * sizes.mean()).mean(),
        "dormant_ratio_0.5": (sizes <= 0.5 * sizes.mean()).mean(),
        "rankme": rankme(raw),
        "spectral_norm": raw[0] / np.sqrt(count),
        "centered_spectral_norm": centered[0] / np.sqrt(count),
        "energy_rank_0.9": float(((raw**2).cumsum() < 0.9 * (raw**2).sum()).sum() + 1),
        "centered_effective_rank": entropy_rank(centered),
        "centered_stable_rank": (centered**2).sum() / centered[0] ** 2,
        "saturation": max((energy.cumsum() < 0.99).sum(), 1) / width,
        "alpha_req": power_law(centered),
        "two_nn": nearest_neighbours(rows),
        "samples": float(count),
        "samples_per_feature": count / width,
    }


def entropy_rank(values: Array) -> float:
    share = values[values > 1e-9 * values[0]] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def corrected(rows: Array) -> float:
    """Of the covariance matrix itself."""
    covariance, freedom = np.atleast_2d(np.cov(rows.T)), len(rows) - 1
    trace, square = np.trace(covariance), np.trace(covariance @ covariance)
    return trace**2 / (freedom**2 / ((freedom - 1) * (freedom + 2)) * (square - trace**2 / freedom)) - 2 / freedom


def rankme(values: Array) -> float:
    """With the constant of the paper."""
    share = values / values.sum() + 1e-7
    return float(np.exp(-(share * np.log(share)).sum()))


def power_law(values: Array) -> float:
    places = np.arange(11, min(len(values), 100) + 1)
    places = places[values[places - 1] > 1e-7 * values[0]]
    if len(places) < 10:
        return np.nan
    return -np.polyfit(np.log(places), 2 * np.log(values[places - 1]), 1, w=places**-0.5)[0]


def nearest_neighbours(rows: Array) -> float:
    apart = np.sort(np.linalg.norm(rows[:, None] - rows[None], axis=2), axis=1)
    ratios = np.sort([second / first for first, second in apart[:, 1:3] if first > 0])
    kept = int(0.9 * len(ratios))
    logs, points = np.log(ratios[:kept]), -np.log(1 - np.arange(1, kept + 1) / len(ratios))
    return logs @ points / (logs @ logs)


def expected(reports: Sequence[tuple[int, Mapping[str, Tensor]]], measures: Sequence[str]) -> Readings:
    """All readings of consecutive reports, with the depth in the first."""
    readings: Readings = {}
    for step, features in reports:
        of_layers = {layer: naive(rows) for layer, rows in features.items()}
        for measure in (*measures, *SIZES):
            values = {layer: of[measure] for layer, of in of_layers.items()}
            values |= {name: float(summary(list(values.values()))) for name, summary in SUMMARIES.items()}
            readings |= {(step, measure, layer): value for layer, value in values.items()}
    step, features = reports[0]
    return readings | {(step, "depth", layer): float(place) for place, layer in enumerate(features)}


def read(recorder: Recorder, group: str = "feature_rank") -> Readings:
    """By step, measure and layer."""
    return {(step, *tag.split("/", 2)[1:]): value for (step, tag), value in recorder.readings(group).items()}


def of_layer(recorder: Recorder, measure: str, layer: str) -> dict[int, float]:
    return {step: value for (step, name, where), value in read(recorder).items() if (name, where) == (measure, layer)}


def layers_read(recorder: Recorder) -> set[str]:
    return {layer for _, measure, layer in read(recorder) if measure == "samples"} - SUMMARIES.keys()


def validated(model: pl.LightningModule, *callbacks: pl.Callback, **options: Any) -> Recorder:
    """The rows of a validation without any training."""
    recorder = Recorder()
    pl.Trainer(callbacks=list(callbacks), **(QUIET | {"logger": recorder} | options)).validate(model, verbose=False)
    return recorder


PRECISIONS = [
    pytest.param({}, 1e-6, id="32-true"),
    pytest.param({"precision": "64-true"}, 1e-9, id="64-true"),
    pytest.param({"precision": "bf16-mixed"}, 1e-6, id="bf16-mixed"),
    pytest.param({"precision": "bf16-true"}, 1e-6, id="bf16-true"),
]


def measures_in(options: Mapping[str, Any]) -> list[str]:
    """Features of eight bits repeat and cancel, and exact ties are no matter of formulas."""
    return DEFAULT if "precision" in options and "bf16" in options["precision"] else [*DEFAULT, *MORE]


class TestValues:
    @pytest.mark.parametrize(("options", "rel"), PRECISIONS)
    def test_validation(self, options: dict[str, Any], rel: float) -> None:
        recorder, witness, measures = Recorder(), Witness(LAYERS), measures_in(options)
        monitor = FeatureRankMonitor(measures, LAYERS, every_n_steps=1)
        fit(net(), witness, monitor, logger=recorder, max_epochs=3, num_sanity_val_steps=2, **options)
        reports = [(step, witness.features("val", [step])) for step in (11, 23, 35)]
        assert witness.outputs.keys() > {("sanity", 0)}
        assert read(recorder) == pytest.approx(expected(reports, measures), rel=rel, abs=1e-12, nan_ok=True)

    @pytest.mark.parametrize(("options", "rel"), PRECISIONS)
    @pytest.mark.parametrize(
        ("length", "accumulate", "ends"),
        [
            pytest.param(3, 1, [4, 8, 11], id="windows of three steps"),
            pytest.param(4, 2, [4], id="windows of four steps of two batches"),
        ],
    )
    def test_training(self, length: int, accumulate: int, ends: list[int], options: dict[str, Any], rel: float) -> None:
        recorder, witness, measures = Recorder(), Witness(LAYERS), measures_in(options)
        monitor = FeatureRankMonitor(measures, LAYERS, 4, length, "train")
        fit(net(), witness, monitor, logger=recorder, accumulate_grad_batches=accumulate, **options)
        reports = [(end, witness.features("train", range(end - length + 1, end + 1))) for end in ends]
        assert {len(rows) for _, features in reports for rows in features.values()} == {6 * length * accumulate}
        assert read(recorder) == pytest.approx(expected(reports, measures), rel=rel, abs=1e-12, nan_ok=True)

    @pytest.mark.parametrize(("options", "rel"), PRECISIONS)
    def test_loader(self, options: dict[str, Any], rel: float) -> None:
        dtype = {"64-true": torch.float64, "bf16-true": torch.bfloat16}.get(options.get("precision", ""), torch.float32)
        loader = DataLoader(TensorDataset(torch.randn(40, 6).to(dtype), torch.zeros(40)), batch_size=7)
        recorder, probe, measures = Recorder(), Probe(LAYERS, loader), measures_in(options)
        monitor = FeatureRankMonitor(measures, LAYERS, 5, data=loader)
        fit(net(), probe, monitor, logger=recorder, **options)
        reports = [(step, probe.at[step]) for step in (0, 5, 10, 11)]
        assert read(recorder) == pytest.approx(expected(reports, measures), rel=rel, abs=1e-12, nan_ok=True)

    def test_default_measures_are_those_of_the_signature(self) -> None:
        recorder = validated(net(), FeatureRankMonitor())
        assert {measure for _, measure, _ in read(recorder)} == {*DEFAULT, *SIZES, "depth"}

    def test_rank_one_and_isotropic_features(self) -> None:
        """Known answers: one direction reads 1; the corners of a cube read its dimension, of which delve counts one less."""
        corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4)
        model = Net(nn.Sequential(nn.Identity(), nn.Linear(4, 3, bias=False)), corners)
        model.network[1].weight.data.copy_(torch.outer(torch.tensor([1.0, 2.0, 0.0]), torch.ones(4)))
        measures = ["effective_rank", "centered_participation_ratio", "numerical_rank", "dead_fraction", "saturation"]
        recorder = validated(model, FeatureRankMonitor(measures, "network.*"))
        assert {name: of_layer(recorder, name, "network.0")[0] for name in measures} == pytest.approx(
            {
                "effective_rank": 4,
                "centered_participation_ratio": 4,
                "numerical_rank": 4,
                "dead_fraction": 0,
                "saturation": 3 / 4,
            }
        )
        assert {name: of_layer(recorder, name, "network.1")[0] for name in measures} == pytest.approx(
            dict.fromkeys(measures, 1) | dict.fromkeys(["dead_fraction", "saturation"], 1 / 3), abs=1e-6
        )

    @pytest.mark.parametrize(
        ("measures", "arrays"),
        [
            (["stable_rank"], {"spectrum"}),
            (["saturation"], {"centered_spectrum"}),
            (["stable_rank", "centered_stable_rank"], {"spectrum", "centered_spectrum"}),
            (["dead_fraction"], set()),
        ],
        ids=lambda one: " and ".join(sorted(one)) or "none",
    )
    def test_spectra_of_tensorboard(self, measures: list[str], arrays: set[str], tmp_path: Path) -> None:
        """Singular values over √N, so that their squares are mean energies."""
        witness = Witness(LAYERS)
        fit(net(), witness, FeatureRankMonitor(measures, LAYERS), logger=TensorBoardLogger(tmp_path, "", ""))
        accumulator = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0, "tensors": 0}).Reload()
        tags = [tag for tag in accumulator.Tags()["tensors"] if tag.startswith("feature_rank")]
        assert set(tags) == {f"feature_rank/{array}/{layer}" for array in arrays for layer in LAYERS}
        for layer, rows in witness.features("val", [11]).items():
            matrix = rows.double().numpy()
            for array in arrays:
                (event,) = accumulator.Tensors(f"feature_rank/{array}/{layer}")
                given = matrix - matrix.mean(0) if array == "centered_spectrum" else matrix
                values = np.linalg.svd(given, compute_uv=False) / np.sqrt(len(given))
                np.testing.assert_allclose(make_ndarray(event.tensor_proto), values, rtol=1e-5, atol=1e-6 * values[0])
                assert event.step == 11
            assert f"feature_rank/depth/{layer}" in accumulator.Tags()["scalars"]


class TestClasses:
    @pytest.mark.parametrize("scalars", ["auto", "all"])
    @DATA
    def test_each_class_alone(self, data: str, scalars: Any) -> None:
        """Twelve batches of six of three classes; the last batch alone has one sample of a fourth, and of a fifth none."""
        model, recorder, witness = net(), Recorder(), Witness(LAYERS)
        labels = model.data.tensors[1]
        labels[-1] = 3
        model.training_step = lambda batch, batch_idx: model.network(batch[0]).square().mean()
        given = model.val_dataloader() if data == "loader" else data
        probe = Probe(LAYERS, model.val_dataloader())
        measures = ["effective_rank", "centered_stable_rank", "two_nn"]
        window = {"every_n_steps": 12, "window": 12} if data == "train" else {"every_n_steps": 11}
        monitor = FeatureRankMonitor(measures, LAYERS, data=given, num_classes=5, scalars=scalars, **window)
        watch = probe if data == "loader" else witness
        fit(model, watch, monitor, logger=recorder, limit_val_batches=None if data == "val" else 0)
        steps = recorder.steps("feature_rank")
        assert steps == {"train": [11], "val": [11], "loader": [0, 11]}[data]
        features = probe.at[11] if data == "loader" else witness.features(data, {"train": range(12), "val": [11]}[data])
        got = {key[1:]: value for key, value in read(recorder).items() if key[0] == 11 and key[2] not in SUMMARIES}
        values: dict[tuple[str, str], float] = {}
        for layer, rows in features.items():
            of_classes = [naive(rows[labels == label]) for label in range(3)]
            for measure in measures[:2]:
                each = [of[measure] for of in of_classes]
                values |= {(f"{measure}_of_class_{label}", layer): value for label, value in enumerate(each)}
                values[f"{measure}_mean_over_classes", layer] = np.mean(each)
                values[f"{measure}_min_over_classes", layer] = min(each)
                values[f"{measure}_lowest_class", layer] = float(np.argmin(each))
            values |= {(measure, layer): naive(rows)[measure] for measure in (*measures, *SIZES)}
            values["samples_per_class", layer] = 0.0
        if data != "loader":
            values |= {("depth", layer): float(place) for place, layer in enumerate(LAYERS)}
        assert got == pytest.approx(values, rel=1e-5)
        assert not any("lowest" in measure for _, measure, layer in read(recorder) if layer in SUMMARIES)

    def test_least_of_classes(self) -> None:
        model = net(18)
        model.data.tensors[1][:4] = 0
        counts = torch.bincount(model.data.tensors[1]).tolist()
        recorder = validated(model, FeatureRankMonitor(["stable_rank"], LAYERS, num_classes=CLASSES))
        assert of_layer(recorder, "samples_per_class", "network.0")[0] == min(counts) < 6

    @pytest.mark.parametrize(("classes", "shown"), [(100, True), (101, False)])
    def test_classes_one_by_one_up_to_two_hundred_in_all_layers(self, classes: int, shown: bool) -> None:
        recorder = validated(net(), FeatureRankMonitor(["stable_rank"], LAYERS, num_classes=classes))
        measures = {measure for _, measure, _ in read(recorder)}
        assert ("stable_rank_of_class_0" in measures) == shown
        assert {"stable_rank_mean_over_classes", "stable_rank_min_over_classes", "stable_rank_lowest_class"} < measures
        everything = validated(net(), FeatureRankMonitor(["stable_rank"], LAYERS, num_classes=classes, scalars="all"))
        assert "stable_rank_of_class_0" in {measure for _, measure, _ in read(everything)}

    @pytest.mark.parametrize("kind", ["integers", "one-hot", "soft", "function"])
    def test_labels_of_every_kind(self, kind: str) -> None:
        model = net()
        labels = model.data.tensors[1]
        hot = nn.functional.one_hot(labels, CLASSES)
        given = {"one-hot": hot, "soft": hot * 0.4 + 0.2}.get(kind, labels)
        where = (lambda batch: batch[1].clone()) if kind == "function" else None
        same = Net(model.network, model.data.tensors[0])
        same.data = TensorDataset(model.data.tensors[0], given)
        monitors = [FeatureRankMonitor(["stable_rank"], LAYERS, num_classes=CLASSES, labels=one) for one in (None, where)]
        assert read(validated(same, monitors[1])) == read(validated(model, monitors[0]))

    def test_ignored_samples_belong_to_no_class(self) -> None:
        model, witness = net(), Witness(LAYERS)
        labels = model.data.tensors[1]
        labels[labels == 1] = -100
        monitor = FeatureRankMonitor(["stable_rank"], LAYERS, num_classes=CLASSES, ignore_index=-100)
        recorder = validated(model, witness, monitor)
        rows = witness.features("val", [0])["network.0"]
        assert of_layer(recorder, "stable_rank_of_class_2", "network.0")[0] == pytest.approx(
            naive(rows[labels == 2])["stable_rank"]
        )
        assert "stable_rank_of_class_1" not in {measure for _, measure, _ in read(recorder)}
        assert of_layer(recorder, "samples", "network.0") == {0: 72}
        assert of_layer(recorder, "samples_per_class", "network.0") == {0: 0}


class Emits(nn.Module):
    def forward(self, given: Any) -> Any:
        return given


class Zoo(nn.Module):
    """Outputs of every shape, all of which it keeps."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("tokens", "turned", "pair", "named", "vector", "scalar", "integers", "never", "nothing"):
            self.add_module(name, Emits())
        self.conv, self.twice, self.head = nn.Conv2d(2, 4, 3), nn.Linear(4, 4), nn.Linear(4, CLASSES)
        self.relu, self.recurrent = nn.ReLU(inplace=True), nn.LSTM(4, 3)
        self.kept: dict[str, Tensor] = {}

    def forward(self, images: Tensor) -> Tensor:
        conv = self.conv(images)
        self.kept["conv"] = conv.detach().clone()
        tokens = self.tokens(self.relu(conv).flatten(2).mT)
        self.turned(tokens.transpose(0, 1))
        recurrent, _ = self.recurrent(tokens.transpose(0, 1))
        self.pair((tokens[:, 0], None))
        self.named({"count": 3, "hidden": [tokens[:, 1]]})
        self.vector(tokens[:, 0, 0])
        self.scalar(tokens.mean())
        self.integers(tokens.argmax(-1))
        self.nothing(None)
        twice = torch.cat([self.twice(tokens[:, 2]), self.twice(tokens[:, 3])])
        kept = {"tokens": tokens, "turned": tokens, "recurrent": recurrent.transpose(0, 1), "pair": tokens[:, 0]}
        kept |= {"named": tokens[:, 1], "vector": tokens[:, 0, 0], "twice": twice, "relu": conv.relu()}
        self.kept |= {name: tensor.detach().clone() for name, tensor in kept.items()}
        return self.head(tokens[:, 4])


def zoo(samples: int = 6) -> Net:
    """Images of which the network makes three positions by three, of four channels."""
    return Net(Zoo(), torch.randn(samples, 2, 5, 5))


WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "positions": lambda rows: rows.flatten(0, 1),
    "mean": lambda rows: rows.mean(1),
    "flat": lambda rows: rows.flatten(1),
}


class TestLayers:
    @pytest.mark.parametrize("maps", ["positions", "mean", "flat"])
    @DATA
    def test_outputs_of_every_shape(self, maps: Any, data: str) -> None:
        """As they were before what followed worked in place."""
        model, recorder, measures = zoo(), Recorder(), ["effective_rank", "corrected_participation_ratio", "dead_fraction"]
        given = model.val_dataloader() if data == "loader" else data
        monitor = FeatureRankMonitor(measures, None, 1, data=given, maps=maps)
        fit(model, monitor, logger=recorder, limit_val_batches=int(data == "val"))
        assert recorder.steps("feature_rank") == [0]
        kept = model.network.kept
        maps_of = {"conv": kept["conv"].flatten(2).mT, "relu": kept["relu"].flatten(2).mT}
        maps_of |= {name: kept[name] for name in ("tokens", "turned", "recurrent")}
        features = kept | {"vector": kept["vector"][:, None]} | {name: WAYS[maps](rows) for name, rows in maps_of.items()}
        if maps == "flat":
            features |= {name: kept[name].flatten(1) for name in ("conv", "relu")}
        values = {
            (0, measure, f"network.{name}"): naive(rows)[measure]
            for name, rows in features.items()
            for measure in (*measures, *SIZES)
        }
        got = {key: value for key, value in read(recorder).items() if key in values}
        # Loaders are looked at before the step, and then the training batch passes: kept are features of the same weights.
        assert got == pytest.approx(values, rel=1e-4, abs=1e-6, nan_ok=True)
        assert layers_read(recorder) - {layer for _, _, layer in values} == {"network.head"}

    @pytest.mark.parametrize("maps", ["positions", "mean", "flat"])
    @pytest.mark.parametrize("data", ["train", "val"])
    def test_sequences_have_channels(self, maps: Any, data: str) -> None:
        """Four of them at eight positions, and at seven for the last convolution and what follows."""
        layers = [nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4), nn.Tanh(), nn.Conv1d(4, 4, 2), nn.ReLU(inplace=True)]
        model = Net(nn.Sequential(*layers, nn.Flatten(), nn.Linear(28, CLASSES)), torch.randn(12, 3, 8))
        names, measures = [f"network.{place}" for place in range(5)], ["effective_rank", "dead_fraction"]
        recorder, witness = Recorder(), Witness(names)
        fit(model, witness, FeatureRankMonitor(measures, names, 2, data=data, maps=maps), logger=recorder)
        assert recorder.steps("feature_rank") == [1]
        values = {
            (1, measure, name): naive(WAYS[maps](rows.transpose(1, 2)))[measure]
            for name, rows in witness.features(data, [1] if data == "val" else [0, 1]).items()
            for measure in (*measures, *SIZES)
        }
        got = {key: value for key, value in read(recorder).items() if key in values}
        assert got == pytest.approx(values, rel=1e-4, abs=1e-6)

    def test_depth_is_the_order_in_which_layers_run(self) -> None:
        recorder = validated(zoo(), FeatureRankMonitor(["stable_rank"]))
        order = ["conv", "relu", "tokens", "turned", "recurrent", "pair", "named", "vector", "twice", "head"]
        depth = {layer: value for (_, measure, layer), value in read(recorder).items() if measure == "depth"}
        assert depth == {f"network.{name}": place for place, name in enumerate(order)}

    @pytest.mark.filterwarnings("ignore:feature_rank of")
    def test_depth_is_told_once_a_fit(self) -> None:
        monitor = FeatureRankMonitor(["stable_rank"], LAYERS, every_n_steps=1)
        for _ in range(2):
            recorder = Recorder()
            fit(net(), monitor, logger=recorder, max_epochs=3)
            assert of_layer(recorder, "depth", "network.3") == {11: 1.0}

    def test_what_cannot_be_read_is_told_once(self, recwarn: pytest.WarningsRecorder) -> None:
        names = ["never", "scalar", "integers", "nothing", "pair"]
        recorder = Recorder()
        fit(zoo(), FeatureRankMonitor(layers=[f"network.{name}" for name in names]), logger=recorder, max_epochs=3)
        told = sorted(str(warning.message) for warning in recwarn if "feature_rank" in str(warning.message))
        assert told == [
            "feature_rank of network.integers has no reading: it gives a tensor of torch.int64 and shape (6, 9).",
            "feature_rank of network.never has no reading: no row of it counted, or another process refused it.",
            "feature_rank of network.nothing has no reading: it gives no tensor but NoneType.",
            "feature_rank of network.scalar has no reading: it gives a tensor of torch.float32 and shape ().",
        ]
        assert layers_read(recorder) == {"network.pair"}

    def test_layers_that_were_not_named_are_left_out_silently(self, recwarn: pytest.WarningsRecorder) -> None:
        recorder = validated(zoo(), FeatureRankMonitor(["stable_rank"]))
        assert "network.scalar" not in layers_read(recorder)
        assert not [warning for warning in recwarn if "feature_rank" in str(warning.message)]

    def test_model_without_any_features_is_told_so(self) -> None:
        """Even where no layer was named."""
        model = Net(nn.Sequential(Emits()), torch.randint(5, (12, 4)))
        model.training_step = lambda batch, batch_idx: None
        with pytest.warns(UserWarning, match=r"feature_rank of network\.0 has no reading: it gives a tensor of torch.int64"):
            recorder = validated(model, FeatureRankMonitor())
        assert recorder.readings("feature_rank") == {}

    def test_layer_that_changes_its_width(self) -> None:
        class Growing(Net):
            def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
                self.network[1](self.network[0](batch[0]))
                self.network[2](torch.ones(len(batch[0]), 2 + batch_idx))

        model = Growing(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), Emits()), torch.randn(24, 6))
        with pytest.warns(UserWarning, match=r"network\.2 has no reading: its features were 2 numbers wide, and then 3\."):
            recorder = validated(model, FeatureRankMonitor(layers="network.*"))
        assert layers_read(recorder) == {"network.0", "network.1"}

    @pytest.mark.parametrize(
        ("layers", "names"),
        [
            pytest.param(None, {f"network.{place}" for place in range(5)}, id="along the depth"),
            pytest.param("network.0", {"network.0"}, id="name"),
            pytest.param("network.[12]", {"network.1", "network.2"}, id="glob"),
            pytest.param("network", {"network"}, id="a module itself, not what is inside"),
            pytest.param(lambda name: name.endswith("3"), {"network.3"}, id="function"),
        ],
    )
    def test_selection(self, layers: Any, names: set[str]) -> None:
        assert layers_read(validated(net(), FeatureRankMonitor(["stable_rank"], layers))) == names

    def test_losses_and_metrics_inside_the_module(self) -> None:
        class Judged(Net):
            def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
                logits = self(batch[0])
                self.loss(logits, batch[1])
                self.accuracy(logits, batch[1])

        model = net(kind=Judged)
        model.loss, model.accuracy = nn.CrossEntropyLoss(), MulticlassAccuracy(CLASSES)
        assert layers_read(validated(model, FeatureRankMonitor(["stable_rank"]))) == {f"network.{k}" for k in range(5)}

    def test_names_are_those_of_the_model_that_was_wrapped(self) -> None:
        class Outer(nn.Module):
            """As ``torch.compile`` wraps a module."""

            def __init__(self, inner: nn.Module) -> None:
                super().__init__()
                self._orig_mod = inner

            def forward(self, inputs: Tensor) -> Tensor:
                return self._orig_mod(inputs)

        model = net()
        plain = validated(model, FeatureRankMonitor(["stable_rank"]))
        model.network = Outer(model.network)
        assert read(validated(model, FeatureRankMonitor(["stable_rank"]))) == read(plain)
        assert layers_read(validated(model, FeatureRankMonitor(["stable_rank"], "network.0"))) == {"network.0"}

    @pytest.mark.parametrize("count", [200, 201])
    @pytest.mark.parametrize("scalars", ["auto", "all"])
    def test_beyond_two_hundred_layers_only_summaries_unless_asked(self, scalars: Any, count: int) -> None:
        model = Net(nn.Sequential(*[nn.Linear(6, 6) for _ in range(count)]), torch.randn(12, 6))
        recorder = validated(model, FeatureRankMonitor(["stable_rank"], scalars=scalars, num_classes=CLASSES))
        per_layer = scalars == "all" or count == 200
        assert len(layers_read(recorder)) == (count if per_layer else 0)
        found = {(measure, layer) for _, measure, layer in read(recorder)}
        assert {("stable_rank", name) for name in SUMMARIES} < found
        assert any(measure == "depth" for measure, _ in found) == per_layer
        assert any(measure == "stable_rank_lowest_class" for measure, _ in found) == per_layer


class Masked(Net):
    """Batches are dicts, with a mask of padding."""

    def train_dataloader(self) -> DataLoader:
        inputs, mask = self.data.tensors
        rows = [{"x": x, "mask": m, "y": k % 2} for k, (x, m) in enumerate(zip(inputs, mask, strict=True))]
        return DataLoader(rows, batch_size=self.batch_size)

    val_dataloader = train_dataloader

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.network(batch["x"])

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self(batch)


class Turn(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens.transpose(0, 1)


def masked(kind: torch.dtype = torch.bool) -> tuple[Masked, Tensor]:
    """Twelve samples of up to five tokens, with NaN for padding, and at least one token."""
    mask = torch.arange(5) < torch.arange(12)[:, None] % 5 + 1
    model = Masked(nn.Sequential(nn.Linear(4, 7), nn.Tanh(), Turn(), Emits()), torch.randn(12, 5, 4))
    inputs = model.data.tensors[0].masked_fill(~mask[..., None], torch.nan)
    model.data = TensorDataset(inputs, mask.to(kind))
    return model, mask


class TestMask:
    @pytest.mark.parametrize("maps", ["positions", "mean"])
    @pytest.mark.parametrize("kind", [torch.bool, torch.long, torch.float32], ids=str)
    @pytest.mark.parametrize("where", ["mask", lambda batch: batch["mask"]], ids=["key", "function"])
    def test_padding_is_left_out(self, where: Any, kind: torch.dtype, maps: Any) -> None:
        """Of samples by tokens, and of tokens by samples."""
        model, mask = masked(kind)
        recorder = validated(model, FeatureRankMonitor(DEFAULT, ["network.1", "network.2"], maps=maps, mask=where))
        with torch.no_grad():
            tokens = model.network[:2](model.data.tensors[0])
        rows = (
            tokens[mask]
            if maps == "positions"
            else torch.stack([one[of].mean(0) for one, of in zip(tokens, mask, strict=True)])
        )
        features = {"network.1": rows, "network.2": rows}
        assert read(recorder) == pytest.approx(expected([(0, features)], DEFAULT), rel=1e-5, abs=1e-9)

    def test_sample_without_a_token_has_no_row(self) -> None:
        model, mask = masked()
        mask[3] = False
        model.data = TensorDataset(model.data.tensors[0], mask)
        for maps, count in (("positions", int(mask.sum())), ("mean", 11)):
            recorder = validated(model, FeatureRankMonitor(["stable_rank"], "network.1", maps=maps, mask="mask"))
            assert of_layer(recorder, "samples", "network.1")[0] == count
            assert np.isfinite(of_layer(recorder, "stable_rank", "network.1")[0])

    def test_labels_of_samples_are_those_of_their_tokens(self) -> None:
        model, mask = masked()
        monitor = FeatureRankMonitor(["stable_rank"], "network.1", mask="mask", labels="y", num_classes=2)
        recorder = validated(model, monitor)
        with torch.no_grad():
            tokens = model.network[:2](model.data.tensors[0])
        for label in range(2):
            rows = tokens[label::2][mask[label::2]]
            got = of_layer(recorder, f"stable_rank_of_class_{label}", "network.1")
            assert got[0] == pytest.approx(naive(rows)["stable_rank"], rel=1e-6)

    def test_what_has_no_tokens_is_not_masked(self) -> None:
        model, _ = masked()
        model.network.append(nn.Linear(4, 3))
        model.network.forward = lambda inputs: model.network[4](inputs[:, 0])
        recorder = validated(model, FeatureRankMonitor(["stable_rank"], "network.4", mask="mask"))
        assert of_layer(recorder, "samples", "network.4") == {0: 12}

    def test_views_are_means_without_padding(self) -> None:
        model, mask = masked()
        recorder = validated(
            model, FeatureRankMonitor(["lidar"], "network.1", maps="mean", mask="mask", views=2), limit_val_batches=1
        )
        with torch.no_grad():
            tokens = model.network[:2](model.data.tensors[0])[:6]
        means = torch.stack([one[of].mean(0) for one, of in zip(tokens, mask[:6], strict=True)])
        value = float(functional.lidar(means.unflatten(0, (2, 3)).transpose(0, 1)))
        assert of_layer(recorder, "lidar", "network.1")[0] == pytest.approx(value, rel=1e-6)


class TestSampling:
    def test_rows_are_bounded_and_the_same_at_each_report(self) -> None:
        """The weights rest, so the readings are the same if the rows are."""
        model, recorder = net(), Recorder()
        model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), lr=0.0)
        monitor = FeatureRankMonitor(["effective_rank", "two_nn"], LAYERS, every_n_steps=1, samples=10)
        fit(model, monitor, logger=recorder, max_epochs=3)
        assert set(of_layer(recorder, "samples", "network.3").values()) == {10}
        (_, first), *others = ((step, of_layer(recorder, "effective_rank", "network.3")[step]) for step in (11, 23, 35))
        assert {value for _, value in others} == {first}
        whole = Recorder()
        fit(model, FeatureRankMonitor(["effective_rank"], LAYERS), logger=whole)
        assert of_layer(whole, "effective_rank", "network.3")[11] != pytest.approx(first, rel=0.01)

    def test_readings_are_of_the_rows_that_are_kept(self) -> None:
        model, witness, kept = net(), Witness(LAYERS), {}
        monitor = FeatureRankMonitor(DEFAULT, LAYERS, samples=30)

        class Look(pl.Callback):
            def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
                kept.update({name: sample.taken()[0].features for name, sample in monitor._hooks.samples.items()})

        recorder = validated(model, witness, Look(), monitor)
        assert read(recorder) == pytest.approx(expected([(0, kept)], DEFAULT), rel=1e-6, abs=1e-12)
        for name, rows in witness.features("val", [0]).items():
            passed = {tuple(row.tolist()) for row in rows}
            assert {tuple(row.tolist()) for row in kept[name]} < passed
            assert len(kept[name]) == 30

    @pytest.mark.parametrize(("classes", "count"), [(None, 1024), (2, 2048), (3, 2160)])
    def test_default_is_1024_rows_a_class_for_narrow_layers(self, classes: int | None, count: int) -> None:
        model = Net(nn.Sequential(nn.Linear(6, 5)), torch.randn(72, 30, 6))
        model.data.tensors[1].remainder_(classes or CLASSES)
        recorder = validated(model, FeatureRankMonitor(["stable_rank"], "network.0", num_classes=classes))
        assert of_layer(recorder, "samples", "network.0") == {0: count}


class Views(Net):
    """Twelve objects, whose two views stand in a batch or pass one call after the other."""

    batch_size = 8
    in_calls = False

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        for part in batch[0].chunk(2) if self.in_calls else [batch[0]]:
            self(part)


class TestLidar:
    @pytest.mark.parametrize("in_calls", [False, True], ids=["in a batch", "in calls"])
    def test_views(self, in_calls: bool) -> None:
        """View by view: the second half of a batch are other views of the objects of the first."""
        model = Views(nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True)), torch.randn(24, 6))
        model.in_calls = in_calls
        recorder = validated(model, FeatureRankMonitor(["lidar", "stable_rank"], "network.*", views=2))
        with torch.no_grad():
            first = model.network[0](model.data.tensors[0])
        for name, rows in {"network.0": first, "network.1": first.relu()}.items():
            views = torch.cat([batch.unflatten(0, (2, 4)).transpose(0, 1) for batch in rows.split(8)])
            assert of_layer(recorder, "lidar", name)[0] == pytest.approx(float(functional.lidar(views)), rel=1e-9)
            assert of_layer(recorder, "samples", name) == {0: 24}

    @pytest.mark.parametrize("maps", ["positions", "mean", "flat"])
    def test_views_of_maps(self, maps: Any) -> None:
        """Are the means of positions, and all numbers if flat."""
        model = Views(nn.Sequential(nn.Conv1d(3, 4, 1), Emits()), torch.randn(24, 3, 2, 2))
        model.network[0] = nn.Conv2d(3, 4, 1)
        recorder = validated(model, FeatureRankMonitor(["lidar"], "network.0", maps=maps, views=4))
        with torch.no_grad():
            rows = model.network[0](model.data.tensors[0])
        rows = rows.flatten(1) if maps == "flat" else rows.mean((2, 3))
        views = torch.cat([batch.unflatten(0, (4, 2)).transpose(0, 1) for batch in rows.split(8)])
        assert of_layer(recorder, "lidar", "network.0")[0] == pytest.approx(float(functional.lidar(views)), rel=1e-6)

    def test_batch_that_is_no_multiple_of_the_views(self) -> None:
        """The layer is left out whole: nobody knows which rows belong together."""
        model = Views(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)), torch.randn(19, 6))
        with pytest.warns(
            UserWarning, match=r"network\.0 has no reading: its 3 rows in a batch are not 2 views of each sample"
        ):
            recorder = validated(model, FeatureRankMonitor(["lidar", "stable_rank"], "network.0", views=2))
        assert recorder.readings("feature_rank") == {}

    def test_without_lidar_views_are_not_asked_for(self) -> None:
        recorder = validated(net(), FeatureRankMonitor(["stable_rank"], LAYERS, views=5))
        assert layers_read(recorder) == set(LAYERS)


class TestSteps:
    def test_schedule(self) -> None:
        recorder = Recorder()
        monitor = FeatureRankMonitor(["stable_rank"], LAYERS, log_spaced(per_decade=3), 1, "train")
        fit(net(), monitor, logger=recorder)
        assert recorder.steps("feature_rank") == [0, 1, 2, 5, 10, 11]

    def test_first_validation_loader_counts(self) -> None:
        class TwoLoaders(Net):
            def val_dataloader(self) -> list[DataLoader]:
                return [DataLoader(self.data, batch_size=6), DataLoader(self.data, batch_size=72)]

            def validation_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
                self.network(batch[0])

        assert of_layer(validated(net(kind=TwoLoaders), FeatureRankMonitor()), "samples", "network.0") == {0: 72}

    def test_validation_inside_a_window_of_training_does_not_count(self) -> None:
        recorder, witness = Recorder(), Witness(LAYERS)
        monitor = FeatureRankMonitor(["stable_rank"], LAYERS, 4, 4, "train")
        fit(net(), witness, monitor, logger=recorder, val_check_interval=2)
        assert ("val", 3) in witness.outputs
        assert set(of_layer(recorder, "samples", "network.0").values()) == {24}

    def test_steps_go_on_after_a_resume(self, tmp_path: Path) -> None:
        path = str(tmp_path / "twelve.ckpt")
        fit(net(), FeatureRankMonitor(["stable_rank"], LAYERS, 5, 2, "train")).save_checkpoint(path)
        recorder, monitor = Recorder(), FeatureRankMonitor(["stable_rank"], LAYERS, 5, 2, "train")
        fit(net(), monitor, logger=recorder, max_epochs=2, ckpt_path=path)
        assert recorder.steps("feature_rank") == [15, 20, 23]
        assert of_layer(recorder, "depth", "network.0") == {15: 0}

    @DATA
    def test_each_fit_of_a_monitor_starts_anew(self, data: str) -> None:
        monitor, recorders = None, []
        for _ in range(2):
            torch.manual_seed(0)
            recorders.append(Recorder())
            model = net()
            given = model.val_dataloader() if data == "loader" else data
            monitor = monitor or FeatureRankMonitor(["stable_rank"], LAYERS, 5, 2 if data == "train" else None, given)
            fit(model, monitor, logger=recorders[-1], max_epochs=2)
        assert read(recorders[0]) == read(recorders[1])
        assert len(recorders[0].steps("feature_rank")) > 1


class TestNaN:
    @pytest.mark.parametrize("measures", [[*DEFAULT, "two_nn"], ["dead_fraction"], ["two_nn"], ["saturation"]], ids=str)
    @DATA
    def test_nan_reads_nan_and_warns_once_a_layer(
        self, data: str, measures: list[str], recwarn: pytest.WarningsRecorder
    ) -> None:
        """And training goes on."""

        class Poisoned(Net):
            def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
                finite = batch[0].isfinite().all(1)
                loss = super().training_step([part[finite] for part in batch], batch_idx)
                if not finite.all():
                    with torch.no_grad():
                        self.network(batch[0])
                return loss

        model, recorder = net(kind=Poisoned), Recorder()
        model.network[1] = nn.Hardtanh()
        model.data.tensors[0][[1, 38], 0] = torch.inf  # which the second layer stops
        given = model.val_dataloader() if data == "loader" else data
        monitor = FeatureRankMonitor(measures, ["network.0", "network.1"], 6, 6, given)
        fit(model, monitor, logger=recorder, max_epochs=2)
        steps = recorder.steps("feature_rank")
        assert len(steps) > 1
        for measure in measures:
            assert all(np.isnan(value) for value in of_layer(recorder, measure, "network.0").values())
            assert all(np.isfinite(value) for value in of_layer(recorder, measure, "network.1").values())
        told = [str(warning.message) for warning in recwarn if "NaN" in str(warning.message)]
        reason = f"a NaN or infinity passed through it before step {steps[0]}"
        assert told == [f"feature_rank of network.0 has no reading: {reason}."]
        assert np.isfinite(model.losses).all()
        assert len(model.losses) == 24

    @pytest.mark.parametrize("data", ["train", "val"])
    def test_one_row_reads_nan_and_is_told(self, data: Any, recwarn: pytest.WarningsRecorder) -> None:
        class Single(Net):
            batch_size = 1

        model, recorder, measures = net(3, Single), Recorder(), [*DEFAULT, *MORE]
        monitor = FeatureRankMonitor(measures, LAYERS, 1, data=data)
        fit(model, monitor, logger=recorder, limit_val_batches=1, max_epochs=2)
        assert len(recorder.steps("feature_rank")) > 1
        for (_, measure, layer), value in read(recorder).items():
            assert np.isnan(value) == (measure in measures), (measure, layer)
        assert set(of_layer(recorder, "samples", "network.0").values()) == {1}
        told = [str(warning.message) for warning in recwarn if "feature_rank" in str(warning.message) or "NaN" in str(warning)]
        assert told == [f"feature_rank of {name} has no reading: it had one row." for name in LAYERS]

    def test_batches_of_one_make_a_sample(self) -> None:
        class Single(Net):
            batch_size = 1

        recorder, witness = Recorder(), Witness(LAYERS)
        fit(net(24, Single), witness, FeatureRankMonitor(DEFAULT, LAYERS), logger=recorder)
        reports = [(23, witness.features("val", [23]))]
        assert read(recorder) == pytest.approx(expected(reports, DEFAULT), rel=1e-6, abs=1e-12)

    def test_silent_layer(self) -> None:
        """No direction is left: ranks are 0, and every unit is dead."""
        model = net()
        nn.init.constant_(model.network[2].weight, -1)
        nn.init.constant_(model.network[2].bias, -1)
        recorder = validated(model, FeatureRankMonitor(layers="network.3"))
        ones = {"dead_fraction", "dormant_ratio"}
        assert {name: of_layer(recorder, name, "network.3")[0] for name in DEFAULT} == {n: float(n in ones) for n in DEFAULT}
