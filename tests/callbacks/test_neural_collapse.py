"""Every reading against NumPy and the papers' formulas, of features that the test computes by itself."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from rank_callbacks import NeuralCollapseMonitor, log_spaced
from rank_callbacks.callbacks.lightning import step_axis
from tests.models import CLASSES, Classifier
from tests.training import Recorder, fit

Array = NDArray[np.float64]
Readings = dict[tuple[int, str, str], float]
SUMMARIES = {"mean_over_layers": np.mean, "min_over_layers": np.min, "max_over_layers": np.max}
SIZES = [14, 7, 3]
LAYERS = ["network.0", "network.3"]
WITHIN = ["nc1_pinv", "nc1_quotient", "total_cluster_variation", "cluster_variation_ratio"]
WITHIN += ["class_distance_normalized_variance", "nc1_svds", "nc1_pinv_sample_mean", "nc1_fuzziness"]
OF_FEATURES = [*WITHIN, "class_mean_equinorm", "class_mean_equiangularity"]
OF_CLASSIFIER = ["classifier_equinorm", "classifier_equiangularity", "self_duality", "self_duality_zhu"]
MEASURES = [*OF_FEATURES, *OF_CLASSIFIER, "minority_collapse", "nearest_center_mismatch"]


class Net(Classifier):
    """Takes batches of six in order; of the three classes each is smaller than the one before."""

    shuffle = False
    batch_size = 6

    def __init__(self, network: nn.Module, inputs: Tensor, labels: Tensor) -> None:
        super().__init__(network, inputs)
        self.data: Dataset = TensorDataset(inputs, labels)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.data, batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.data, batch_size=self.batch_size)


def labelled(sizes: Sequence[int] = SIZES) -> Tensor:
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return labels[torch.randperm(len(labels))]


def inputs_of(labels: Tensor, width: int = 6) -> Tensor:
    """Clouds that overlap."""
    return torch.randn(len(labels), width) + torch.randn(CLASSES, width)[labels]


def net(kind: type[Net] = Net, epochs_worth: int = 1) -> Net:
    labels = torch.cat([labelled() for _ in range(epochs_worth)])
    network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, CLASSES))
    return kind(network, inputs_of(labels), labels)


class Seen(NamedTuple):
    features: dict[str, Array]
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]


def watch(network: nn.Sequential, inputs: Tensor, labels: Tensor) -> Seen:
    """What the layers of a network make of a batch."""
    features = {}
    for place, module in enumerate(network):
        if place == len(network) - 1:
            features["penultimate"] = inputs
        inputs = module(inputs)
        features[f"network.{place}"] = inputs
    arrays = {name: tensor.double().numpy() for name, tensor in features.items()}
    return Seen(arrays, labels.numpy(), inputs.argmax(-1).numpy())


def together(batches: Iterable[Seen]) -> Seen:
    every = list(batches)
    features = {name: np.concatenate([batch.features[name] for batch in every]) for name in every[0].features}
    return Seen(features, *(np.concatenate([batch[part] for batch in every]) for part in (1, 2)))


class Witness(pl.Callback):
    """What passes through copies of the network: of training batches, of validation data and of a loader, by step."""

    def __init__(self, loader: Iterable[Any] | None = None) -> None:
        self.loader = loader
        self.batches: dict[int, list[Seen]] = {}
        self.validations: list[tuple[int, Seen, Array]] = []
        self.probes: dict[int, tuple[Seen, Array]] = {}
        self.weights: dict[int, Array] = {}

    @torch.no_grad()
    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: list[Tensor], batch_idx: int) -> None:
        with trainer.precision_plugin.forward_context():
            seen = watch(copy.deepcopy(pl_module.network), *batch[:2])
            if self.loader is not None:
                probe = together(watch(copy.deepcopy(pl_module.network).eval(), *batch) for batch in self.loader)
                self.probes.setdefault(step_axis(trainer), (probe, weight_of(pl_module)))
        self.batches.setdefault(step_axis(trainer), []).append(seen)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        self.weights[step_axis(trainer)] = weight_of(pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            with trainer.precision_plugin.forward_context():
                data = [trainer.precision_plugin.convert_input(batch) for batch in pl_module.val_dataloader()]
                seen = together(watch(copy.deepcopy(pl_module.network).eval(), *batch) for batch in data)
            self.validations.append((step_axis(trainer), seen, weight_of(pl_module)))


def weight_of(model: Any) -> Array:
    return model.network[-1].weight.detach().double().numpy().copy()


def cosines(vectors: Array) -> Array:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return (unit @ unit.T)[~np.eye(len(unit), dtype=bool)]


def equinorm(vectors: Array) -> float:
    norms = np.linalg.norm(vectors, axis=1)
    return np.std(norms, ddof=1) / norms.mean()


def naive(features: Array, labels: NDArray[np.int64]) -> dict[str, float]:
    """The measures of features, from the formulas, with matrices of all features and a loop over samples."""
    classes, counts = np.unique(labels, return_counts=True)
    means = np.stack([features[labels == k].mean(0) for k in classes])
    within = np.zeros((features.shape[1],) * 2)
    for row, label in zip(features, labels, strict=True):
        apart = row - means[list(classes).index(label)]
        within += np.outer(apart, apart) / len(features)

    def between(mean: Array, shares: Array) -> Array:
        return sum(share * np.outer(m - mean, m - mean) for m, share in zip(means, shares, strict=True))

    def against(matrix: Array) -> float:
        return np.trace(within @ np.linalg.pinv(matrix, rcond=1e-12, hermitian=True))

    number = len(classes)
    equal, share = np.full(number, 1 / number), counts / counts.sum()
    ordinary, weighted = between(means.mean(0), equal), between(features.mean(0), share)
    spreads = [((features[labels == k] - mean) ** 2).sum(1).mean() for k, mean in zip(classes, means, strict=True)]
    pairs = [(k, m) for k in range(number) for m in range(k)]
    return {
        "nc1_pinv": against(ordinary) / number,
        "nc1_svds": against(ordinary),
        "nc1_quotient": np.trace(within) / np.trace(ordinary),
        "nc1_pinv_sample_mean": against(between(features.mean(0), equal)) / number,
        "nc1_fuzziness": against(weighted),
        "total_cluster_variation": np.trace(within),
        "cluster_variation_ratio": np.trace(within) / np.trace(within + weighted),
        "class_distance_normalized_variance": np.mean(
            [(spreads[k] + spreads[m]) / (2 * ((means[k] - means[m]) ** 2).sum()) for k, m in pairs]
        ),
        "class_mean_equinorm": equinorm(means - means.mean(0)),
        "class_mean_equiangularity": np.abs(cosines(means - means.mean(0)) + 1 / (number - 1)).mean(),
        "samples_per_class": float(min(counts)) if number == CLASSES else 0.0,
    }


def naive_of_classifier(seen: Seen, weight: Array, minority: Sequence[int] | None) -> dict[str, float]:
    features, number = seen.features["penultimate"], len(weight)
    means = class_means(seen)
    centred = means - means.mean(0)
    product = weight @ centred.T
    simplex = (np.eye(number) - 1 / number) / np.sqrt(number - 1)
    counts = np.bincount(seen.labels, minlength=number)
    rare = np.flatnonzero(counts <= counts.max() / 2) if minority is None else list(minority)
    readings = {
        "classifier_equinorm": equinorm(weight),
        "classifier_equiangularity": np.abs(cosines(weight) + 1 / (number - 1)).mean(),
        "self_duality": ((weight / np.linalg.norm(weight) - centred / np.linalg.norm(centred)) ** 2).sum(),
        "self_duality_zhu": np.linalg.norm(product / np.linalg.norm(product) - simplex),
    }
    assert features.shape[1] == weight.shape[1]
    return readings | ({"minority_collapse": cosines(weight[rare]).mean()} if len(rare) > 1 else {})


def class_means(seen: Seen) -> Array:
    features = seen.features["penultimate"]
    return np.stack([features[seen.labels == k].mean(0) for k in np.unique(seen.labels)])


def mismatch(seen: Seen, centers: Array) -> float:
    """The share of samples whose prediction is not the class of the nearest mean."""
    nearest = [np.linalg.norm(row - centers, axis=1).argmin() for row in seen.features["penultimate"]]
    return float((np.array(nearest) != seen.predictions).mean())


def expected(
    reports: Iterable[tuple[int, Seen, Array]],
    layers: Sequence[str] = LAYERS,
    minority: Sequence[int] | None = None,
    exact: bool = False,
) -> Readings:
    """All readings of consecutive reports; NC4 with the means of the report before, or with its own where ``exact``."""
    readings, centers = {}, None
    for step, seen, weight in reports:
        of_layers = {name: naive(seen.features[name], seen.labels) for name in (*layers, "penultimate")}
        of_layers["penultimate"] |= naive_of_classifier(seen, weight, minority)
        centers = class_means(seen) if exact else centers
        if centers is not None:
            of_layers["penultimate"]["nearest_center_mismatch"] = mismatch(seen, centers)
        centers = class_means(seen)
        for layer, values in of_layers.items():
            readings |= {(step, measure, layer): value for measure, value in values.items()}
    for step, measure in {key[:2] for key in readings}:
        values = [value for key, value in readings.items() if key[:2] == (step, measure)]
        readings |= {(step, measure, name): float(summary(values)) for name, summary in SUMMARIES.items()}
    return readings


def read(recorder: Recorder) -> Readings:
    """By step, measure and layer."""
    rows = recorder.readings("neural_collapse").items()
    return {(step, *tag.split("/", 2)[1:]): value for (step, tag), value in rows}


def of_penultimate(recorder: Recorder, measure: str) -> dict[int, float]:
    return {step: value for (step, name, layer), value in read(recorder).items() if (name, layer) == (measure, "penultimate")}


def window(witness: Witness, end: int, length: int) -> tuple[int, Seen, Array]:
    steps = range(end - length + 1, end + 1)
    return end, together(batch for step in steps for batch in witness.batches[step]), witness.weights[end]


PRECISIONS = [
    pytest.param({}, 1e-6, id="32-true"),
    pytest.param({"precision": "64-true"}, 1e-10, id="64-true"),
    pytest.param({"precision": "bf16-mixed"}, 1e-6, id="bf16-mixed"),
    pytest.param({"precision": "bf16-true"}, 1e-6, id="bf16-true"),
]


class TestValues:
    @pytest.mark.parametrize(("options", "rel"), PRECISIONS)
    @pytest.mark.parametrize(
        ("every_n_steps", "length", "accumulate", "ends"),
        [
            pytest.param(1, 1, 1, range(12), id="every step"),
            pytest.param(4, 3, 1, [4, 8, 11], id="windows of three steps"),
            pytest.param(4, 3, 2, [4], id="windows of three steps of two batches"),
        ],
    )
    def test_training(
        self, every_n_steps: int, length: int, accumulate: int, ends: Sequence[int], options: dict[str, Any], rel: float
    ) -> None:
        recorder, witness = Recorder(), Witness()
        monitor = NeuralCollapseMonitor(CLASSES, LAYERS, every_n_steps, length, measures=MEASURES)
        model = net(Whole if length == 1 else Net, epochs_worth=3)
        fit(model, witness, monitor, logger=recorder, accumulate_grad_batches=accumulate, **options)
        assert len(witness.batches[0]) == accumulate
        reports = [window(witness, end, length) for end in ends if end in witness.batches]
        assert read(recorder) == pytest.approx(expected(reports), rel=rel, abs=1e-12)

    @pytest.mark.parametrize(("options", "rel"), PRECISIONS)
    def test_validation(self, options: dict[str, Any], rel: float) -> None:
        recorder, witness = Recorder(), Witness()
        monitor = NeuralCollapseMonitor(CLASSES, LAYERS, every_n_steps=1, data="val", measures=MEASURES)
        fit(net(), witness, monitor, logger=recorder, max_epochs=3, **options)
        assert [step for step, *_ in witness.validations] == [3, 7, 11]
        assert read(recorder) == pytest.approx(expected(witness.validations), rel=rel, abs=1e-12)

    @pytest.mark.parametrize(("options", "rel"), PRECISIONS)
    def test_loader(self, options: dict[str, Any], rel: float) -> None:
        dtype = {"64-true": torch.float64, "bf16-true": torch.bfloat16}.get(options.get("precision", ""), torch.float32)
        labels = labelled()
        loader = DataLoader(TensorDataset(inputs_of(labels).to(dtype), labels), batch_size=5)
        recorder, witness = Recorder(), Witness(loader)
        monitor = NeuralCollapseMonitor(CLASSES, LAYERS, every_n_steps=2, data=loader, measures=MEASURES)
        fit(net(), witness, monitor, logger=recorder, max_epochs=2, **options)
        reports = [(step, *witness.probes[step]) for step in (0, 2, 4, 6, 7)]
        assert read(recorder) == pytest.approx(expected(reports, exact=True), rel=rel, abs=1e-12)

    def test_centres_of_old_are_not_those_of_now(self) -> None:
        """Without which nothing is said of NC4 above."""
        recorder, witness = Recorder(), Witness()
        fit(net(), witness, NeuralCollapseMonitor(CLASSES, data="val"), logger=recorder, max_epochs=6)
        old = of_penultimate(recorder, "nearest_center_mismatch")
        now = {step: mismatch(seen, class_means(seen)) for step, seen, _ in witness.validations}
        assert any(old[step] != now[step] for step in old)

    def test_default_measures_are_those_of_the_table(self) -> None:
        recorder = Recorder()
        fit(net(Whole, 2), NeuralCollapseMonitor(CLASSES, every_n_steps=1), logger=recorder)
        variants = {"nc1_svds", "nc1_pinv_sample_mean", "nc1_fuzziness", "self_duality_zhu"}
        assert {measure for _, measure, _ in read(recorder)} == {*MEASURES, "samples_per_class"} - variants

    def test_measures_are_chosen(self) -> None:
        recorder = Recorder()
        fit(net(), NeuralCollapseMonitor(CLASSES, every_n_steps=1, measures=["nc1_svds", "self_duality"]), logger=recorder)
        assert {measure for _, measure, _ in read(recorder)} == {"nc1_svds", "self_duality", "samples_per_class"}

    @pytest.mark.parametrize("data", ["train", "val", "loader"])
    def test_collapsed_model_reads_zero(self, data: str) -> None:
        """Features of a simplex, and a classifier that is a multiple of it."""
        model, recorder = collapsed(), Recorder()
        monitor = NeuralCollapseMonitor(
            CLASSES, every_n_steps=1, window=1, data=DataLoader(model.data, 6) if data == "loader" else data, measures=MEASURES
        )
        fit(model, monitor, logger=recorder, precision="64-true", max_epochs=2)
        last = max(recorder.steps("neural_collapse"))
        got = {
            measure: value
            for (step, measure, layer), value in read(recorder).items()
            if (step, layer) == (last, "penultimate")
        }
        samples = {"train": 2, "val": 4, "loader": 4}[data]
        zeros = dict.fromkeys(set(MEASURES) - {"minority_collapse"}, 0.0)
        assert got == pytest.approx(zeros | {"samples_per_class": samples}, abs=1e-12)


class Stream(IterableDataset):
    """Samples of which nobody knows how many there are."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Any]:
        return iter(self.data)


class Whole(Net):
    """Each batch holds all classes, two of them once."""

    def __init__(self, network: nn.Module, inputs: Tensor, labels: Tensor) -> None:
        super().__init__(network, inputs, torch.tensor([0, 1, 0, 0, 2, 0]).repeat(len(labels) // 6))


class Still(Net):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def collapsed() -> Net:
    simplex = torch.eye(CLASSES, dtype=torch.float64) - 1 / CLASSES
    labels = torch.arange(CLASSES).repeat(4)
    model = Still(nn.Sequential(nn.Identity(), nn.Linear(CLASSES, CLASSES)), simplex[labels], labels)
    model.double().network[1].weight.data.copy_(3 * simplex)
    model.network[1].bias.data.zero_()
    return model


class Zoo(nn.Module):
    """Outputs of every shape, all of which it keeps."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("tokens", "turned", "pair", "named", "vector", "scalar", "never", "nothing"):
            self.add_module(name, Emits())
        self.conv, self.twice, self.head = nn.Conv2d(2, 4, 3), nn.Linear(4, 4), nn.Linear(4, CLASSES)
        self.relu = nn.ReLU(inplace=True)
        self.kept: dict[str, Tensor] = {}

    def forward(self, images: Tensor) -> Tensor:
        conv = self.conv(images)
        self.kept["conv"] = conv.detach().clone()
        conv = self.relu(conv)
        tokens = self.tokens(conv.flatten(2).mT)
        self.turned(tokens.transpose(0, 1))
        self.pair((tokens[:, 0], None))
        self.named({"count": 3, "hidden": tokens[:, 1]})
        self.vector(tokens[:, 0, 0])
        self.scalar(tokens.mean())
        self.nothing(None)
        self.twice(tokens[:, 2])
        last = self.twice(tokens[:, 3])
        kept = {"tokens": tokens, "turned": tokens, "pair": tokens[:, 0], "named": tokens[:, 1], "vector": tokens[:, 0, 0]}
        self.kept |= {name: tensor.detach().clone() for name, tensor in (kept | {"twice": last}).items()}
        self.kept["penultimate"] = tokens[:, 4].detach()
        return self.head(tokens[:, 4])


class Emits(nn.Module):
    def forward(self, given: Any) -> Any:
        return given


def zoo() -> Net:
    """Six images of three positions by three, of four channels."""
    labels = torch.tensor([0, 1, 0, 2, 1, 0])
    return Net(Zoo(), torch.randn(6, 2, 5, 5), labels)


def names_read(recorder: Recorder) -> set[str]:
    return {layer for _, _, layer in read(recorder)} - SUMMARIES.keys()


class TestLayers:
    @pytest.mark.parametrize(
        ("layers", "names"),
        [
            pytest.param(None, set(), id="none"),
            pytest.param("network.0", {"network.0"}, id="name"),
            pytest.param(["network.3", "network.0"], {"network.0", "network.3"}, id="names"),
            pytest.param("network.[01]", {"network.0", "network.1"}, id="glob"),
            pytest.param("network", {"network"}, id="a module itself, not what is inside"),
            pytest.param(["network", "network.[1]"], {"network", "network.1"}, id="name and glob"),
            pytest.param("net*", {"network", *(f"network.{place}" for place in range(5))}, id="glob of everything"),
            pytest.param(lambda name: name.endswith("3"), {"network.3"}, id="function"),
        ],
    )
    def test_selection(self, layers: Any, names: set[str]) -> None:
        recorder = Recorder()
        fit(net(), NeuralCollapseMonitor(CLASSES, layers, every_n_steps=1), logger=recorder)
        assert names_read(recorder) == names | {"penultimate"}

    @pytest.mark.parametrize("data", ["train", "val", "loader"])
    @pytest.mark.parametrize("maps", ["mean", "positions", "projection"])
    @pytest.mark.filterwarnings("ignore:neural_collapse of")
    def test_outputs_of_every_shape(self, maps: str, data: str) -> None:
        model, recorder = zoo(), Recorder()
        given = model.val_dataloader() if data == "loader" else data
        monitor = NeuralCollapseMonitor(CLASSES, "network.*", 1, data=given, measures=OF_FEATURES, maps=maps)
        fit(model, monitor, logger=recorder, limit_val_batches=int(data == "val"))
        if data == "train":  # the weights have moved after the readings, but what was kept is of before
            assert recorder.steps("neural_collapse") == [0]
        kept = {name: tensor.double().numpy() for name, tensor in model.network.kept.items()}
        ways: dict[str, Callable[[Array], Array]] = {
            "mean": lambda rows: rows.mean(1),
            "positions": lambda rows: rows.reshape(-1, rows.shape[-1]),
            "projection": lambda rows: rows.reshape(len(rows), -1),
        }
        rows = {"conv": kept["conv"].reshape(6, 4, 9).swapaxes(1, 2), "tokens": kept["tokens"], "turned": kept["turned"]}
        features = kept | {"vector": kept["vector"][:, None]} | {name: ways[maps](given) for name, given in rows.items()}
        if maps == "projection":
            features["conv"] = kept["conv"].reshape(6, -1)
        labels = model.data.tensors[1].numpy()
        readings = {}
        for name, array in features.items():
            of_rows = np.repeat(labels, len(array) // 6)
            layer = name if name == "penultimate" else f"network.{name}"
            readings |= {(0, measure, layer): value for measure, value in naive(array, of_rows).items()}
        got = {key: value for key, value in read(recorder).items() if key[2] in {name for _, _, name in readings}}
        assert got == pytest.approx(readings, rel=1e-5, abs=1e-9)
        assert names_read(recorder) - {name for _, _, name in readings} == {"network.relu", "network.head"}

    def test_what_cannot_be_read_is_told_once(self, recwarn: pytest.WarningsRecorder) -> None:
        model, recorder = zoo(), Recorder()
        monitor = NeuralCollapseMonitor(CLASSES, ["network.never", "network.scalar", "network.nothing", "network.pair"], 1)
        fit(model, monitor, logger=recorder, max_epochs=3)
        told = sorted(str(warning.message) for warning in recwarn if "neural_collapse" in str(warning.message))
        assert told == [
            "neural_collapse of network.never has no reading: nothing passed through it.",
            "neural_collapse of network.nothing has no reading: nothing passed through it.",
            "neural_collapse of network.scalar has no reading: rows () do not fit labels (6,).",
        ]
        assert names_read(recorder) == {"network.pair", "penultimate"}

    def test_labels_that_do_not_fit_are_told_once(self) -> None:
        class Halved(Net):
            def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
                return super().training_step([part[:4] for part in batch], batch_idx)

        recorder = Recorder()
        with pytest.warns(UserWarning, match=r"of penultimate has no reading: rows \(4,\) do not fit labels \(6,\)") as told:
            fit(net(Halved), NeuralCollapseMonitor(CLASSES, every_n_steps=1), logger=recorder)
        assert sum("do not fit" in str(warning.message) for warning in told) == 1
        assert recorder.readings("neural_collapse") == {}

    def test_each_fit_warns_of_its_own(self) -> None:
        monitor = NeuralCollapseMonitor(CLASSES, "network.never", 1)
        for _ in range(2):
            with pytest.warns(UserWarning, match="never has no reading"):
                fit(zoo(), monitor)

    def test_layer_that_runs_in_evaluation_alone_is_not_read_in_training(self) -> None:
        """Not even where validation falls into a window."""

        class Evaluated(Net):
            def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
                self.network.never(self(batch[0]))

        labels, recorder = torch.tensor([0, 1, 0, 2, 1, 0]).repeat(4), Recorder()
        model = Evaluated(Zoo(), torch.randn(24, 2, 5, 5), labels)
        with pytest.warns(UserWarning, match="never has no reading: nothing passed through it"):
            fit(
                model,
                NeuralCollapseMonitor(CLASSES, "network.never", 4, 4),
                logger=recorder,
                val_check_interval=1,
                max_epochs=2,
            )
        assert recorder.steps("neural_collapse") == [4]
        assert names_read(recorder) == {"penultimate"}

    @pytest.mark.parametrize("name", [None, "network.2", "network.4"])
    def test_classifier(self, name: str | None) -> None:
        """The last that has an output a class, or that of a name."""
        model, recorder = net(), Recorder()
        model.network = nn.Sequential(
            nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, CLASSES), nn.Tanh(), nn.Linear(CLASSES, CLASSES)
        )
        before = "network.1" if name == "network.2" else "network.3"
        fit(model, NeuralCollapseMonitor(CLASSES, before, 1, classifier=name), logger=recorder)
        readings = read(recorder)
        of_features = {key for key in readings if key[2] == before}
        assert len(of_features) > 20
        assert all(
            readings[step, measure, "penultimate"] == readings[step, measure, before] for step, measure, _ in of_features
        )

    @pytest.mark.parametrize("scalars", ["auto", "all"])
    @pytest.mark.parametrize("count", [200, 201])
    def test_beyond_two_hundred_layers_only_summaries_unless_asked(self, scalars: str, count: int) -> None:
        model, recorder = net(), Recorder()
        model.network = nn.Sequential(*[nn.Linear(6, 6) for _ in range(count - 1)], nn.Linear(6, CLASSES))
        layers = [f"network.{place}" for place in range(count - 1)]
        measures = ["nc1_quotient"]
        fit(
            model, NeuralCollapseMonitor(CLASSES, layers, 4, measures=measures, scalars=scalars), logger=recorder, max_epochs=2
        )
        assert len(names_read(recorder)) == (count if scalars == "all" or count == 200 else 0)
        assert len({layer for _, _, layer in read(recorder)} & SUMMARIES.keys()) == 3


class Tagger(nn.Module):
    """A class a token: of ``(B, T, D)``, or turned, of ``(T, B, D)``."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.turned, self.body, self.head = turned, nn.Linear(6, 4), nn.Linear(4, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(tokens.transpose(0, 1) if self.turned else tokens).tanh())


class Tagging(Net):
    """Of labels (B, T), or (B,)."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        logits = self(batch[0])
        logits = logits.transpose(0, 1) if self.network.turned else logits
        labels = batch[1] if batch[1].dim() > 1 else batch[1][:, None].expand(logits.shape[:2])
        loss = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=self.ignored)
        self.losses.append(loss.item())
        return loss

    ignored = -100


@torch.no_grad()
def tagged_tokens(model: Tagging, ignored: int | None) -> Seen:
    tokens, labels = model.data.tensors
    features = model.network.body(tokens).tanh()
    predictions = model.network.head(features).argmax(-1).flatten().numpy()
    labels = (labels if labels.dim() > 1 else labels[:, None].expand(features.shape[:2])).flatten().numpy()
    kept = labels != ignored
    return Seen({"penultimate": features.flatten(0, 1).double().numpy()[kept]}, labels[kept], predictions[kept])


class TestTokens:
    @pytest.mark.parametrize("labels_of", ["tokens", "samples"])
    @pytest.mark.parametrize("turned", [False, True], ids=["batch first", "batch second"])
    @pytest.mark.parametrize("ignored", [None, -100, 2])
    @pytest.mark.parametrize("data", ["val", "loader"])
    def test_each_token_is_a_sample(self, data: str, ignored: int | None, turned: bool, labels_of: str) -> None:
        """Tokens of the ignored label have no part in NC4 either, be it a number of a class."""
        if labels_of == "samples" and ignored == -100:
            pytest.skip("nothing to ignore")
        labels = torch.randint(CLASSES, (24, 5)) if labels_of == "tokens" else torch.randint(CLASSES, (24,))
        if ignored == -100:
            labels[torch.rand(labels.shape) < 0.3] = ignored
        model = Tagging(Tagger(turned), torch.randn(24, 5, 6), labels)
        model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), lr=0.0)
        recorder, given = Recorder(), model.val_dataloader() if data == "loader" else data
        monitor = NeuralCollapseMonitor(CLASSES, None, 4, None, given, MEASURES, maps="positions", ignore_index=ignored)
        fit(model, monitor, logger=recorder, max_epochs=2)
        seen, weight = tagged_tokens(model, ignored), model.network.head.weight.detach().double().numpy()
        step = max(recorder.steps("neural_collapse"))
        classes = np.unique(seen.labels)
        got = {
            measure: value for (at, measure, layer), value in read(recorder).items() if (at, layer) == (step, "penultimate")
        }
        values = naive(seen.features["penultimate"], seen.labels)
        assert {name: got[name] for name in values} == pytest.approx(values, rel=1e-5, abs=1e-9)
        known = np.isin(seen.predictions, classes)
        of_known = Seen({"penultimate": seen.features["penultimate"][known]}, seen.labels[known], seen.predictions[known])
        means = np.full(weight.shape, np.inf)
        means[classes] = class_means(seen)
        assert got["nearest_center_mismatch"] == pytest.approx(mismatch(of_known, means), abs=1e-6)
        assert 0.1 < mismatch(of_known, means) < 0.9

    def test_tokens_of_one_label_are_averaged_by_default(self) -> None:
        """NC4 has no reading, as no prediction is of the mean of tokens."""
        model, recorder = Tagging(Tagger(turned=False), torch.randn(24, 5, 6), torch.arange(24) % CLASSES), Recorder()
        fit(model, NeuralCollapseMonitor(CLASSES, data="val"), logger=recorder, max_epochs=2)
        with torch.no_grad():
            features = model.network.body(model.data.tensors[0]).tanh().mean(1).double().numpy()
        values = naive(features, model.data.tensors[1].numpy())
        readings = read(recorder)
        assert readings[7, "nc1_pinv", "penultimate"] == pytest.approx(values["nc1_pinv"], rel=1e-5)
        assert of_penultimate(recorder, "self_duality")
        assert not of_penultimate(recorder, "nearest_center_mismatch")

    @pytest.mark.parametrize("maps", ["mean", "positions"])
    def test_positions_of_sequences_are_not_their_channels(self, maps: Any) -> None:
        labels = torch.arange(24) % CLASSES
        layers = [nn.Conv1d(3, 4, 2), nn.ReLU(inplace=True), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, CLASSES)]
        model, recorder = Net(nn.Sequential(*layers), torch.randn(24, 3, 8), labels), Recorder()
        fit(model, NeuralCollapseMonitor(CLASSES, ["network.0", "network.1"], data="val", maps=maps), logger=recorder)
        with torch.no_grad():
            outputs = model.network[0](model.data.tensors[0])
        for layer, features in {"network.0": outputs, "network.1": outputs.relu()}.items():
            rows = features.transpose(1, 2)
            rows, classes = (rows.mean(1), labels) if maps == "mean" else (rows.flatten(0, 1), labels.repeat_interleave(7))
            values = naive(rows.double().numpy(), classes.numpy())
            got = {measure: value for (_, measure, name), value in read(recorder).items() if name == layer}
            assert got == pytest.approx({measure: values[measure] for measure in got}, rel=1e-5)

    def test_projection_that_the_classifier_does_not_share_has_no_self_duality(self) -> None:
        model, recorder = Tagging(Tagger(turned=False), torch.randn(24, 5, 6), torch.arange(24) % CLASSES), Recorder()
        fit(model, NeuralCollapseMonitor(CLASSES, data="val", maps="projection", measures=MEASURES), logger=recorder)
        assert {measure for _, measure, _ in read(recorder)} == {
            *OF_FEATURES, "samples_per_class", "classifier_equinorm", "classifier_equiangularity"
        }  # fmt: skip


def tags_of(steps: Iterable[int], first: int | None) -> set[tuple[int, str]]:
    """Of the default measures of one layer and the penultimate; NC4 but for the report at step ``first``."""
    measures = [*OF_FEATURES, "samples_per_class", "classifier_equinorm", "classifier_equiangularity", "self_duality"]
    measures = [name for name in measures if name not in {"nc1_svds", "nc1_pinv_sample_mean", "nc1_fuzziness"}]
    measures += ["minority_collapse", "nearest_center_mismatch"]
    alone = {*OF_CLASSIFIER, "minority_collapse", "nearest_center_mismatch"}
    layers = {name: ["penultimate", *SUMMARIES] + ([] if name in alone else ["network.0"]) for name in measures}
    tags = {
        (step, f"neural_collapse/{measure}/{layer}") for step in steps for measure in measures for layer in layers[measure]
    }
    return {tag for tag in tags if not (tag[0] == first and "nearest_center" in tag[1])}


class TestSchedule:
    @pytest.mark.parametrize(
        ("every_n_steps", "length", "options", "steps"),
        [
            pytest.param(1, None, {}, range(12), id="every step"),
            pytest.param(4, None, {}, [4, 8], id="every fourth: the window of the first would begin before training"),
            pytest.param(4, 3, {}, [4, 8, 11], id="every fourth, and the last"),
            pytest.param(4, 1, {}, [0, 4, 8, 11], id="every fourth, a window of one"),
            pytest.param(4, 2, {"max_epochs": 2}, [4, 8, 12, 16, 20, 23], id="two epochs, a window in both"),
            pytest.param(100, None, {}, [11], id="longer than training"),
            pytest.param(100, 50, {}, [11], id="training shorter than a window"),
            pytest.param(100, 50, {"accumulate_grad_batches": 5}, [2], id="training shorter than a window, accumulation"),
            pytest.param(2, 2, {"accumulate_grad_batches": 2}, [2, 4], id="accumulation"),
            pytest.param(3, 2, {"accumulate_grad_batches": 2}, [3, 5], id="accumulation, and the last"),
            pytest.param(2, 1, {"accumulate_grad_batches": 5}, [0, 2], id="accumulation, uneven"),
            pytest.param(4, 2, {"max_steps": 6, "max_epochs": -1}, [4], id="max_steps"),
            pytest.param(4, 2, {"max_steps": 7, "max_epochs": -1}, [4, 6], id="max_steps, and the last"),
            pytest.param(4, 2, {"val_check_interval": 1}, [4, 8, 11], id="validation in a window"),
            pytest.param(4, 2, {"num_sanity_val_steps": 2}, [4, 8, 11], id="sanity check"),
            pytest.param(lambda step: step in {3, 7, 9}, 3, {}, [3, 7, 11], id="function, the third overlaps"),
            pytest.param(log_spaced(per_decade=3), 1, {"max_epochs": 2}, [0, 1, 2, 5, 10, 22, 23], id="log-spaced"),
        ],
    )
    def test_exact_steps_and_tags_in_training(
        self, every_n_steps: Any, length: int | None, options: dict[str, Any], steps: Sequence[int]
    ) -> None:
        recorder = Recorder()
        fit(net(Whole, 3), NeuralCollapseMonitor(CLASSES, "network.0", every_n_steps, length), logger=recorder, **options)
        assert recorder.readings("neural_collapse").keys() == tags_of(steps, next(iter(steps), None))
        assert recorder.readings("monitor").keys() == {
            (step, f"monitor/{cost}/neural_collapse") for step in steps for cost in ("seconds", "share_of_training")
        } - {(0, "monitor/share_of_training/neural_collapse")}

    @pytest.mark.parametrize(
        ("options", "steps"),
        [
            pytest.param({}, [11], id="an epoch"),
            pytest.param({"max_epochs": 3}, [11, 23, 35], id="epochs"),
            pytest.param({"max_epochs": 3, "check_val_every_n_epoch": 2}, [23], id="every second epoch"),
            pytest.param({"val_check_interval": 0.25}, [2, 5, 8, 11], id="several an epoch"),
            pytest.param({"val_check_interval": 5, "max_epochs": 2}, [4, 9, 16, 21], id="every fifth batch"),
            pytest.param({"accumulate_grad_batches": 2}, [5], id="accumulation"),
            pytest.param({"num_sanity_val_steps": 2}, [11], id="sanity check"),
            pytest.param({"limit_val_batches": 0}, [], id="no validation"),
        ],
    )
    def test_exact_steps_and_tags_in_validation(self, options: dict[str, Any], steps: Sequence[int]) -> None:
        recorder = Recorder()
        monitor = NeuralCollapseMonitor(CLASSES, "network.0", every_n_steps=1, data="val")
        fit(net(Whole, 3), monitor, logger=recorder, **options)
        assert recorder.readings("neural_collapse").keys() == tags_of(steps, next(iter(steps), None))

    @pytest.mark.parametrize(
        ("every_n_steps", "options", "steps"),
        [
            pytest.param(5, {}, [0, 5, 10, 11], id="every fifth"),
            pytest.param(11, {}, [0, 11], id="the last once"),
            pytest.param(5, {"max_epochs": 2}, [0, 5, 10, 15, 20, 23], id="two epochs"),
            pytest.param(2, {"accumulate_grad_batches": 3}, [0, 2, 3], id="accumulation"),
            pytest.param(lambda step: step == 7, {}, [7, 11], id="function"),
        ],
    )
    def test_exact_steps_and_tags_of_a_loader(self, every_n_steps: Any, options: dict[str, Any], steps: Sequence[int]) -> None:
        model, recorder = net(Whole, 3), Recorder()
        monitor = NeuralCollapseMonitor(CLASSES, "network.0", every_n_steps, window=3, data=model.val_dataloader())
        fit(model, monitor, logger=recorder, **options)
        assert recorder.readings("neural_collapse").keys() == tags_of(steps, None)

    @pytest.mark.parametrize("inference_mode", [True, False])
    def test_validation_alone(self, inference_mode: bool) -> None:
        recorder, model = Recorder(), net()
        monitor = NeuralCollapseMonitor(CLASSES, LAYERS, data="val", measures=MEASURES)
        options = {"accelerator": "cpu", "enable_progress_bar": False, "enable_checkpointing": False, "logger": recorder}
        trainer = pl.Trainer(callbacks=[monitor], inference_mode=inference_mode, **options)
        trainer.validate(model, verbose=False)
        with torch.no_grad():
            seen = together(watch(model.network, *batch) for batch in model.val_dataloader())
        assert read(recorder) == pytest.approx(expected([(0, seen, weight_of(model))]), rel=1e-6, abs=1e-12)
        trainer.fit_loop.max_epochs = 1
        trainer.fit(model)
        trainer.validate(model, verbose=False)
        assert recorder.steps("neural_collapse") == [0, 3, 4]

    def test_first_of_several_validation_loaders(self) -> None:
        class Two(Net):
            def val_dataloader(self) -> list[DataLoader]:
                return [super().val_dataloader(), DataLoader(TensorDataset(torch.randn(8, 6), torch.zeros(8).long()), 4)]

            def validation_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
                self.network(batch[0])

        one, two, models = Recorder(), Recorder(), [net(), None]
        models[1] = Two(copy.deepcopy(models[0].network), *models[0].data.tensors)
        for model, recorder in zip(models, (one, two), strict=True):
            fit(model, NeuralCollapseMonitor(CLASSES, data="val"), logger=recorder, max_epochs=2)
        assert read(one) == read(two)

    @pytest.mark.parametrize("options", [{"fast_dev_run": True}, {"logger": False}], ids=["fast_dev_run", "no logger"])
    @pytest.mark.parametrize("data", ["train", "val", "loader"])
    def test_readings_reach_callback_metrics_without_a_logger(self, data: str, options: dict[str, Any]) -> None:
        model = net(Whole)
        monitor = NeuralCollapseMonitor(CLASSES, every_n_steps=1, data=model.val_dataloader() if data == "loader" else data)
        trainer = fit(model, monitor, **options)
        assert 0 < trainer.callback_metrics["neural_collapse/nc1_pinv/penultimate"] < 1000

    @pytest.mark.parametrize("length", [8, 12, 13, 50])
    def test_training_shorter_than_a_window_reports_once(self, length: int) -> None:
        """At its last step, of all that it has seen, or of the window at its end."""
        recorder, witness = Recorder(), Witness()
        monitor = NeuralCollapseMonitor(CLASSES, LAYERS, 100, length, measures=MEASURES)
        fit(net(epochs_worth=3), witness, monitor, logger=recorder)
        report = window(witness, 11, min(length, 12))
        assert read(recorder) == pytest.approx(expected([report]), rel=1e-6, abs=1e-12)

    @pytest.mark.parametrize(
        ("limit", "steps"),
        [({}, [5, 10, 15, 20]), ({"max_steps": 14}, [5, 10, 13]), ({"limit_train_batches": 7}, [5, 10, 13])],
    )
    def test_data_whose_end_is_not_known_has_no_last_window_but_for_a_limit(
        self, limit: dict[str, int], steps: list[int]
    ) -> None:
        class Streamed(Whole):
            def train_dataloader(self) -> DataLoader:
                return DataLoader(Stream(self.data), batch_size=self.batch_size)

        recorder = Recorder()
        fit(net(Streamed, 3), NeuralCollapseMonitor(CLASSES, "network.0", 5, 2), logger=recorder, max_epochs=2, **limit)
        assert recorder.steps("neural_collapse") == steps

    def test_steps_go_on_after_a_resume(self, tmp_path: Path) -> None:
        """NC4 has no reading in the first report: the means of before are gone."""
        path = str(tmp_path / "twelve.ckpt")
        fit(net(Whole, 3), NeuralCollapseMonitor(CLASSES, "network.0", 5, 2)).save_checkpoint(path)
        recorder = Recorder()
        fit(net(Whole, 3), NeuralCollapseMonitor(CLASSES, "network.0", 5, 2), logger=recorder, max_epochs=2, ckpt_path=path)
        assert recorder.readings("neural_collapse").keys() == tags_of([15, 20, 23], 15)

    @pytest.mark.parametrize("data", ["train", "val"])
    def test_each_fit_of_a_monitor_starts_anew(self, data: Any) -> None:
        monitor, recorders = NeuralCollapseMonitor(CLASSES, "network.0", every_n_steps=5, window=2, data=data), []
        for _ in range(2):
            recorders.append(Recorder())
            torch.manual_seed(0)
            fit(net(Whole, 3), monitor, logger=recorders[-1], max_epochs=2)
        assert read(recorders[0]) == read(recorders[1])
        assert len(recorders[0].steps("neural_collapse")) > 1

    @pytest.mark.parametrize("by_hand", ["every batch", "every third batch"])
    def test_optimization_by_hand(self, by_hand: str) -> None:
        class ByHand(Whole):
            automatic_optimization = False

            def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
                self.manual_backward(super().training_step(batch, batch_idx))
                if by_hand == "every batch" or batch_idx % 3 == 2:
                    self.optimizers().step()
                    self.optimizers().zero_grad()

        recorder = Recorder()
        fit(net(ByHand, 3), NeuralCollapseMonitor(CLASSES, "network.0", 2, 2), logger=recorder)
        assert recorder.steps("neural_collapse") == ([2, 4, 6, 8, 10] if by_hand == "every batch" else [2, 5, 8, 11])


class Dicts(Net):
    """Batches are dicts."""

    def train_dataloader(self) -> DataLoader:
        inputs, labels = self.data.tensors
        return DataLoader([{"x": x, "y": y} for x, y in zip(inputs, labels, strict=True)], batch_size=self.batch_size)

    val_dataloader = train_dataloader

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.network(batch["x"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return super().training_step([batch["x"], batch["y"]], batch_idx)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self(batch)


class Named(Dicts):
    """Whose items are arguments, but for the labels."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.network(x)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self(batch["x"])


class Reversed(Net):
    """Labels come before inputs, and one too many."""

    def train_dataloader(self) -> DataLoader:
        inputs, labels = self.data.tensors
        return DataLoader(TensorDataset(labels + 1, inputs), batch_size=self.batch_size)

    val_dataloader = train_dataloader

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return super().training_step([batch[1], batch[0] - 1], batch_idx)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self(batch[1])


class Column(Net):
    """Labels are a column."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return super().training_step([batch[0], batch[1].squeeze(1)], batch_idx)


def like(model: Net, kind: type[Net], labels: Tensor | None = None) -> Net:
    inputs, classes = model.data.tensors
    return kind(copy.deepcopy(model.network), inputs, classes if labels is None else labels)


DATA = pytest.mark.parametrize("data", ["train", "val", "loader"])


def readings_of(model: Net, data: str = "train", **options: Any) -> Readings:
    recorder, given = Recorder(), model.val_dataloader() if data == "loader" else data
    arguments = {"layers": LAYERS, "every_n_steps": 4, "data": given} | options
    fit(model, NeuralCollapseMonitor(CLASSES, **arguments), logger=recorder, max_epochs=3)
    assert len(recorder.steps("neural_collapse")) > 1
    return read(recorder)


class TestBatches:
    @DATA
    def test_dicts(self, data: str) -> None:
        model = net()
        assert readings_of(like(model, Dicts), data, labels="y") == readings_of(model, data)
        assert readings_of(like(model, Named), data, labels="y") == readings_of(model, data)

    @DATA
    def test_column_of_labels(self, data: str) -> None:
        model = net()
        as_column = like(model, Column, model.data.tensors[1][:, None])
        assert readings_of(as_column, data) == readings_of(model, data)

    @pytest.mark.parametrize("data", ["train", "val"])
    def test_function_of_the_batch(self, data: str) -> None:
        model = net()
        assert readings_of(like(model, Reversed), data, labels=lambda batch: batch[0] - 1) == readings_of(model, data)

    @DATA
    @pytest.mark.parametrize("kind", ["integers", "floats", "booleans"])
    def test_one_hot(self, kind: str, data: str) -> None:
        """As integers, as ``one_hot`` makes them, too; an ``ignore_index`` has nothing to do."""

        class OneHot(Net):
            def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
                return super().training_step([batch[0], batch[1].long().argmax(1)], batch_idx)

        model = net()
        labels = {"integers": Tensor.long, "floats": Tensor.float, "booleans": Tensor.bool}[kind](
            one_hot(model.data.tensors[1])
        )
        got = readings_of(like(model, OneHot, labels), data, maps="positions", ignore_index=-100)
        assert got == pytest.approx(readings_of(model, data), rel=1e-9, abs=1e-12)

    def test_soft_labels(self) -> None:
        """Each class takes its share of a sample: as if a sample came four times, with a label of its own each time."""

        class Soft(Net):
            def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
                loss = cross_entropy(self(batch[0]), batch[1])
                self.losses.append(loss.item())
                return loss

        model = net()
        quarters = one_hot(model.data.tensors[1]).float() * 0.75 + one_hot(model.data.tensors[1].roll(1)).float() * 0.25
        soft, recorder = like(model, Soft, quarters), Recorder()
        fit(soft, NeuralCollapseMonitor(CLASSES, data="val", measures=[*OF_FEATURES, *OF_CLASSIFIER]), logger=recorder)
        with torch.no_grad():
            seen = watch(soft.network, *soft.data.tensors)
        repeated = np.repeat(seen.features["penultimate"], 4, axis=0)
        labels = model.data.tensors[1]
        of_repeated = torch.stack([labels, labels, labels, labels.roll(1)], 1).flatten().numpy()
        as_often = Seen({"penultimate": repeated}, of_repeated, seen.predictions)
        values = naive(repeated, of_repeated) | naive_of_classifier(as_often, weight_of(soft), [])
        values["samples_per_class"] /= 4
        got = {measure: value for (_, measure, layer), value in read(recorder).items() if layer == "penultimate"}
        assert got == pytest.approx(values, rel=1e-5)

    @pytest.mark.parametrize(
        ("sizes", "minority", "rows"),
        [
            pytest.param([12, 6, 6], None, [1, 2], id="half the samples"),
            pytest.param([10, 7, 7], None, [], id="more than half"),
            pytest.param([16, 7, 1], None, [1, 2], id="less than half"),
            pytest.param([14, 9, 1], None, [], id="one class"),
            pytest.param([16, 7, 1], [0, 2], [0, 2], id="given"),
            pytest.param([16, 7, 1], [0, 1, 2], [0, 1, 2], id="all given"),
            pytest.param([16, 7, 1], [1], [], id="one given"),
        ],
    )
    @DATA
    def test_minority(self, data: str, sizes: list[int], minority: list[int] | None, rows: list[int]) -> None:
        labels, recorder, weights = labelled(sizes), Recorder(), Witness()
        model = Net(net().network, inputs_of(labels), labels)
        given = model.val_dataloader() if data == "loader" else data
        monitor = NeuralCollapseMonitor(CLASSES, None, 4, None, given, minority=minority)
        fit(model, weights, monitor, logger=recorder, max_epochs=2)
        step = max(recorder.steps("neural_collapse"))
        weight = weights.weights[step - (data == "loader")]
        value = of_penultimate(recorder, "minority_collapse").get(step)
        assert value == (pytest.approx(cosines(weight[rows]).mean(), rel=1e-5) if rows else None)
        assert of_penultimate(recorder, "samples_per_class")[step] == min(sizes)

    def test_one_sample_a_class_has_no_spread_to_see(self, recwarn: pytest.WarningsRecorder) -> None:
        """Rather than a perfect collapse."""

        class Three(Net):
            batch_size = CLASSES

        labels, recorder = torch.arange(CLASSES).repeat(4), Recorder()
        model = Three(net().network, inputs_of(labels), labels)
        fit(model, NeuralCollapseMonitor(CLASSES, LAYERS, 1, measures=MEASURES), logger=recorder)
        readings = {key: value for key, value in read(recorder).items() if key[2] not in SUMMARIES}
        assert {measure for (_, measure, _), value in readings.items() if np.isnan(value)} == set(WITHIN)
        assert all(np.isnan(value) == (measure in WITHIN) for (_, measure, _), value in readings.items())
        told = [str(warning.message) for warning in recwarn if "neural_collapse" in str(warning.message)]
        reason = "no class has two samples at step 0, so there is no spread to see: use a longer window"
        assert told == [f"neural_collapse of {name} has no reading: {reason}." for name in (*LAYERS, "penultimate")]

    @DATA
    def test_class_that_is_not_seen_is_left_out(self, data: str) -> None:
        """Of four classes of the classifier, the data has three."""
        labels, recorder = labelled(), Recorder()
        network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, CLASSES + 1))
        model = Still(network, inputs_of(labels), labels)
        model.network[4].bias.data[CLASSES] = 0.3  # so that the fourth is predicted at times
        given = model.val_dataloader() if data == "loader" else data
        fit(model, NeuralCollapseMonitor(CLASSES + 1, None, 4, None, given, MEASURES), logger=recorder, max_epochs=3)
        step = max(recorder.steps("neural_collapse"))
        with torch.no_grad():
            seen = watch(network, *model.data.tensors)
        got = {
            measure: value for (at, measure, layer), value in read(recorder).items() if (at, layer) == (step, "penultimate")
        }
        values = naive(seen.features["penultimate"], seen.labels) | {"samples_per_class": 0}
        weight, known = weight_of(model), seen.predictions < CLASSES
        values |= {"self_duality": naive_of_classifier(seen, weight[:CLASSES], None)["self_duality"]}
        values |= {"classifier_equinorm": equinorm(weight)}
        assert 0 < known.mean() < 1
        of_known = Seen({"penultimate": seen.features["penultimate"][known]}, seen.labels[known], seen.predictions[known])
        values["nearest_center_mismatch"] = mismatch(of_known, class_means(seen))
        assert {name: got[name] for name in values} == pytest.approx(values, rel=1e-5)

    @DATA
    def test_only_one_class(self, data: str) -> None:
        """There are no distances between classes, and none is made up."""
        labels, recorder = torch.zeros(24).long(), Recorder()
        model = Net(net().network, torch.randn(24, 6), labels)
        given = model.val_dataloader() if data == "loader" else data
        fit(model, NeuralCollapseMonitor(CLASSES, None, 4, None, given, MEASURES), logger=recorder, max_epochs=3)
        readings = {measure: value for (_, measure, _), value in read(recorder).items()}
        numbers = {"total_cluster_variation", "cluster_variation_ratio", "samples_per_class", "nearest_center_mismatch"}
        numbers |= {"classifier_equinorm", "classifier_equiangularity"}
        assert {measure for measure, value in readings.items() if not np.isnan(value)} == numbers

    @pytest.mark.parametrize(
        ("poison", "poisoned"),
        [
            pytest.param(torch.nan, ["network.0", "penultimate"], id="NaN"),
            pytest.param(torch.inf, ["network.0"], id="infinity, which tanh stops"),
        ],
    )
    @DATA
    def test_nan_reads_nan_and_warns_once(
        self, data: str, poison: float, poisoned: list[str], recwarn: pytest.WarningsRecorder
    ) -> None:
        """And training goes on."""

        class Poisoned(Net):
            def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
                finite = batch[0].isfinite().all(1)
                loss = super().training_step([part[finite] for part in batch], batch_idx)
                with torch.no_grad():
                    self.network(batch[0])
                return loss

        model, recorder = like(net(), Poisoned), Recorder()
        model.data.tensors[0][7, 0] = poison
        given = model.val_dataloader() if data == "loader" else data
        fit(model, NeuralCollapseMonitor(CLASSES, "network.0", 4, 4, given, MEASURES), logger=recorder, max_epochs=3)
        steps = recorder.steps("neural_collapse")
        assert len(steps) > 1
        readings = {key: value for key, value in read(recorder).items() if key[2] not in SUMMARIES}
        hit = {*OF_FEATURES, "self_duality", "self_duality_zhu", "nearest_center_mismatch"}
        for (_, measure, layer), value in readings.items():
            assert np.isnan(value) == (measure in hit and layer in poisoned)
        assert {step for step, measure, _ in readings if measure == "nearest_center_mismatch"} >= set(steps[1:])
        told = [str(warning.message) for warning in recwarn if "neural_collapse" in str(warning.message)]
        assert told == [
            f"neural_collapse of {name} has no reading: a NaN or infinity passed through it before step {steps[0]}."
            for name in poisoned
        ]
        assert np.isfinite(model.losses).all()
        assert len(model.losses) == 12

    @DATA
    @pytest.mark.filterwarnings("ignore:neural_collapse of .* no class has two samples")
    def test_batch_of_one(self, data: str) -> None:
        class Single(Net):
            batch_size = 1

        model, recorder = net(Single), Recorder()
        given = model.val_dataloader() if data == "loader" else data
        fit(model, NeuralCollapseMonitor(CLASSES, LAYERS, 12, 12, given), logger=recorder, max_epochs=2)
        assert len(recorder.steps("neural_collapse")) > 1
        assert all(np.isfinite(value) for value in read(recorder).values())
        every = Recorder()
        fit(net(Single), NeuralCollapseMonitor(CLASSES, every_n_steps=1), logger=every)
        assert np.isnan(of_penultimate(every, "nc1_pinv")[0])
