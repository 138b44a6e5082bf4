"""Every reading against naive Jacobians, and the functions called by hand on the network as it was."""

import copy
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import wandb
from numpy.typing import NDArray
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.data import DataLoader, TensorDataset

from rank_callbacks import NetworkRankMonitor
from rank_callbacks.callbacks.lightning import step_axis
from rank_callbacks.functional.classification_dimension import classification_dimension
from rank_callbacks.functional.independence_deficit import DeficitTable, independence_deficit
from rank_callbacks.functional.jacobian import jacobian_singular_values
from rank_callbacks.functional.perturbed_pca import perturbed_pca_dimension
from tests.models import CLASSES, Classifier, mlp, two_layers
from tests.training import Recorder, fit

Readings = dict[tuple[int, str, str], float]
SUMMARIES = {"mean_over_layers": np.mean, "min_over_layers": np.min, "max_over_layers": np.max}
TOLERANCES = {"jacobian_rank": 1e-3, "jacobian_rank_1e-2": 1e-2, "jacobian_rank_0.3": 0.3}
OF_CLASSES = ["classification_dimension", "centered_classification_dimension", "independence_deficit"]
MEASURES = [*TOLERANCES, "feng_jacobian_rank", "perturbed_pca_dimension", *OF_CLASSES]
COPIES = 24
SIDE, PATCH = 18, 16


class Net(Classifier):
    """Batches of four in order, three a training epoch; validated on other samples."""

    shuffle = False

    def __init__(self, network: nn.Module, inputs: Tensor) -> None:
        super().__init__(network, inputs)
        self.unseen = TensorDataset(torch.randn(len(inputs) + 2, *inputs.shape[1:]), torch.arange(len(inputs) + 2) % CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    def val_dataloader(self) -> Any:
        return DataLoader(self.unseen, batch_size=4)


def images() -> Net:
    """Labelled as the network has them before it is trained, whose logits are large: the Lasso of the deficit needs both."""
    convolutions = [nn.Conv2d(1, 2, 5, stride=4), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten()]
    network = nn.Sequential(*convolutions, nn.Linear(32, 5), nn.Tanh(), nn.Linear(5, CLASSES))
    network[4].weight.data.mul_(torch.logspace(0, -2.5, 5)[:, None])
    network[-1].weight.data.mul_(torch.logspace(1.5, 3, 5))
    model = Net(network, torch.randn(12, 1, SIDE, SIDE))
    unseen = torch.randn(22, 1, SIDE, SIDE)
    with torch.no_grad():
        logits = copy.deepcopy(network).eval()(unseen)
        network[-1].bias.copy_(-logits.mean(0))
    model.unseen = TensorDataset(unseen, (logits - logits.mean(0)).argmax(1))
    model.configure_optimizers = lambda: torch.optim.Adam(model.parameters(), lr=0.001)
    return model


def vectors() -> Net:
    model = Net(two_layers(), torch.randn(12, 6))
    model.network[-1].weight.data.mul_(30)
    return model


class Seen(NamedTuple):
    """A network in eval mode, its first inputs, and what goes into its classifier in validation."""

    step: int
    network: nn.Sequential
    inputs: Tensor
    features: Tensor
    labels: Tensor


class Witness(pl.Callback):
    """Copies of the network at the end of each validation."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        precision = trainer.precision_plugin
        with torch.inference_mode(False), torch.no_grad(), precision.forward_context():
            network = copy.deepcopy(pl_module.network).eval()
            batches = [precision.convert_input(batch) for batch in pl_module.val_dataloader()]
            features = torch.cat([network[:-1](inputs) for inputs, _ in batches])
        labels = torch.cat([labels for _, labels in batches])
        self.seen.append(Seen(step_axis(trainer), network, batches[0][0], features, labels))


def spectrum(network: nn.Module, sample: Tensor, function: Any = lambda inputs: inputs) -> NDArray[np.float64]:
    """Singular values of the Jacobian by one sample, row by row."""
    jacobian = torch.autograd.functional.jacobian(lambda x: network(function(x[None])).flatten(), sample)
    return np.linalg.svd(jacobian.flatten(1).numpy(), compute_uv=False)


def by_patch(network: nn.Module, image: Tensor) -> float:
    """Rank by the 16 x 16 patch in the midst of zeros, of JᵀJ at the tolerance of float32."""
    edge = (SIDE - PATCH) // 2
    inside = slice(edge, edge + PATCH)
    values = spectrum(network, image[:, inside, inside], lambda patch: pad(patch, 4 * [edge]))
    return float((values**2 > values[0] ** 2 * PATCH**2 * np.finfo(np.float32).eps).sum())


def of_probe(seen: Seen, count: int) -> dict[tuple[str, str], float]:
    inputs = seen.inputs[:count].double()
    values: dict[tuple[str, str], float] = {}
    for place in range(len(seen.network)):
        layer, until = f"network.{place}", copy.deepcopy(seen.network[: place + 1])
        shaken = perturbed_pca_dimension(until.float(), inputs.float(), copies=COPIES)
        if seen.inputs.dtype == torch.float64:
            shaken = perturbed_pca_dimension(until.double(), inputs, copies=COPIES)
        spectra = [spectrum(until.double(), sample) for sample in inputs]
        values["perturbed_pca_dimension", layer] = shaken.mean().item()
        values["feng_jacobian_rank", layer] = float(np.mean([by_patch(until, image) for image in inputs]))
        for name, rtol in TOLERANCES.items():
            values[name, layer] = float(np.mean([(one > rtol * one[0]).sum() for one in spectra]))
    for measure in {measure for measure, _ in values}:
        of_layers = [value for (name, _), value in values.items() if name == measure]
        values |= {(measure, name): float(summary(of_layers)) for name, summary in SUMMARIES.items()}
    return values


def table_of(seen: Seen) -> DeficitTable:
    head = seen.network[-1]
    return independence_deficit(seen.features.double() @ head.weight.double().mT + head.bias.double(), seen.labels)


def of_classes(seen: Seen) -> dict[tuple[str, str], float]:
    head, table = seen.network[-1], table_of(seen)
    arguments = (seen.features, seen.labels, head.weight, head.bias)
    values = {
        ("classification_dimension", "penultimate"): classification_dimension(*arguments).item(),
        ("centered_classification_dimension", "penultimate"): classification_dimension(*arguments, centered=True).item(),
    }
    for name, column in (("independence_deficit", "relative_error"), ("predicted_logit_accuracy", "accuracy_predicted")):
        of_each = [getattr(row, column) for row in table]
        values |= {(name, f"class_{label}"): value for label, value in enumerate(of_each)}
        values[name, "mean_over_classes"] = float(np.mean(of_each))
    return values


def expected(reports: Iterable[Seen], count: int) -> Readings:
    return {
        (seen.step, *name): value for seen in reports for name, value in (of_probe(seen, count) | of_classes(seen)).items()
    }


def read(recorder: Recorder, group: str = "network_rank") -> Readings:
    """By step, measure and layer."""
    return {(step, *tag.split("/", 2)[1:]): value for (step, tag), value in recorder.readings(group).items()}


def measures_of(recorder: Recorder) -> set[str]:
    return {measure for _, measure, _ in read(recorder)}


def ranks(monitor: NetworkRankMonitor, model: Net, **options: Any) -> dict[str, float]:
    """One report's ``jacobian_rank`` by layer."""
    recorder = Recorder()
    fit(model, monitor, logger=recorder, **options)
    return {layer: value for (_, measure, layer), value in read(recorder).items() if measure == "jacobian_rank"}


class TestValues:
    @pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "bf16-true"])
    def test_readings_are_those_of_the_trained_network(self, precision: str) -> None:
        recorder, witness = Recorder(), Witness()
        monitor = NetworkRankMonitor(MEASURES, inputs=3, copies=COPIES, num_classes=CLASSES)
        fit(images(), monitor, witness, logger=recorder, max_epochs=2, precision=precision)
        assert [seen.step for seen in witness.seen] == [2, 5]
        readings = read(recorder)
        assert readings == pytest.approx(expected(witness.seen, 3), rel=1e-12)
        assert monitor.deficit == table_of(witness.seen[-1])

    def test_they_say_something(self) -> None:
        """Without which nothing is said of tolerances, of the paper's projection and of the Lasso above."""
        recorder = Recorder()
        fit(images(), NetworkRankMonitor(MEASURES, num_classes=CLASSES, copies=COPIES), logger=recorder, max_epochs=2)
        last = {key[1:]: value for key, value in read(recorder).items() if key[0] == 5}
        assert len({last[name, "mean_over_layers"] for name in MEASURES[:5]}) == 5
        assert last["classification_dimension", "penultimate"] != last["centered_classification_dimension", "penultimate"] > 0
        assert 0 < last["independence_deficit", "class_2"] < 1
        assert 0 < last["predicted_logit_accuracy", "class_2"] < 1

    @pytest.mark.parametrize(("arguments", "measures"), [
        pytest.param({}, {"jacobian_rank", "perturbed_pca_dimension"}, id="of any network"),
        pytest.param(
            {"num_classes": CLASSES},
            {"jacobian_rank", "perturbed_pca_dimension", "classification_dimension", "independence_deficit",
             "predicted_logit_accuracy"},
            id="of a classifier",
        ),
        pytest.param({"measures": ["jacobian_rank_0"]}, {"jacobian_rank_0"}, id="one"),
        pytest.param({"measures": OF_CLASSES[:1], "num_classes": CLASSES}, {OF_CLASSES[0]}, id="one of classes"),
    ])  # fmt: skip
    def test_measures(self, arguments: dict[str, Any], measures: set[str]) -> None:
        recorder, monitor = Recorder(), NetworkRankMonitor(copies=8, **arguments)
        fit(vectors(), monitor, logger=recorder)
        assert measures_of(recorder) == measures
        assert (monitor.deficit is not None) == ("independence_deficit" in measures)

    def test_costs_are_told(self) -> None:
        recorder = Recorder()
        fit(vectors(), NetworkRankMonitor(group="mine"), logger=recorder)
        assert {tag for _, tag in recorder.readings("monitor")} == {"monitor/seconds/mine", "monitor/share_of_training/mine"}
        assert {layer for _, _, layer in read(recorder, "mine")} > {"network.0", "network.2"}
        assert read(recorder) == {}

    def test_last_reading_is_in_the_metrics_of_callbacks(self) -> None:
        recorder = Recorder()
        trainer = fit(vectors(), NetworkRankMonitor(num_classes=CLASSES), logger=recorder)
        logged = {tag: value for (_, tag), value in recorder.readings("network_rank").items()}
        metrics = {tag: value.item() for tag, value in trainer.callback_metrics.items() if tag.startswith("network_rank")}
        assert metrics == pytest.approx(logged, rel=1e-6, nan_ok=True)

    @pytest.mark.parametrize(("scalars", "shown"), [("auto", False), ("all", True)])
    def test_many_layers_and_classes(self, scalars: Any, shown: bool) -> None:
        """Of more than two hundred the summaries alone are logged; of the classifier's features there is one place."""
        network = nn.Sequential(*(nn.Linear(2, 2) for _ in range(201)), nn.Linear(2, 201))
        model, recorder = Net(network, torch.randn(12, 2)), Recorder()
        monitor = NetworkRankMonitor(["jacobian_rank", *OF_CLASSES[::2]], num_classes=201, scalars=scalars)
        fit(model, monitor, logger=recorder)
        places = {layer for _, _, layer in read(recorder)}
        assert {"network.0", "class_0", "class_200"} & places == ({"network.0", "class_0", "class_200"} if shown else set())
        assert places >= {*SUMMARIES, "penultimate", "mean_over_classes"}

    def test_class_without_samples_reads_nan(self) -> None:
        model, recorder = vectors(), Recorder()
        model.unseen = TensorDataset(model.unseen.tensors[0], torch.arange(14) % 2)
        fit(model, monitor := NetworkRankMonitor(["independence_deficit"], num_classes=CLASSES), logger=recorder)
        values = {key[1:]: value for key, value in read(recorder).items()}
        assert math.isnan(values["independence_deficit", "class_2"])
        assert math.isfinite(values["independence_deficit", "class_0"])
        assert monitor.deficit is not None
        assert [row.samples for row in monitor.deficit] == [7, 7, 0]

    def test_constant_network_has_rank_0_and_a_broken_one_none(self) -> None:
        for weight, rank in ((0.0, 0.0), (torch.nan, torch.nan)):
            model, recorder = vectors(), Recorder()
            model.configure_optimizers = lambda model=model: torch.optim.SGD(model.parameters(), lr=0.0)
            model.network[0].weight.data.fill_(weight)
            monitor = NetworkRankMonitor(
                ["jacobian_rank", "perturbed_pca_dimension", "classification_dimension"], probes=2, num_classes=CLASSES
            )
            fit(model, monitor, logger=recorder)
            got = {key[1:]: value for key, value in read(recorder).items() if key[2] in {"network.0", "network.2"}}
            measures = ["jacobian_rank", "perturbed_pca_dimension", "jacobian_error"]
            places = [(measure, layer) for measure in measures for layer in ("network.0", "network.2")]
            assert got == pytest.approx(dict.fromkeys(places, rank), nan_ok=True)
            dimension = recorder.readings("network_rank")[2, "network_rank/classification_dimension/penultimate"]
            assert math.isnan(dimension) == math.isnan(rank)


class TestLayers:
    @pytest.mark.parametrize(
        ("layers", "names"),
        [
            pytest.param(None, {"network.0", "network.1", "network.2"}, id="along the depth"),
            pytest.param("network.[02]", {"network.0", "network.2"}, id="glob"),
            pytest.param(["network"], {"network"}, id="name"),
            pytest.param(lambda name: name.endswith("1"), {"network.1"}, id="function"),
        ],
    )
    def test_selection(self, layers: Any, names: set[str]) -> None:
        assert ranks(NetworkRankMonitor(["jacobian_rank"], layers), vectors()).keys() == names | SUMMARIES.keys()

    def test_layer_that_does_not_run_has_no_reading(self) -> None:
        model = vectors()
        model.spare = nn.Linear(2, 2)
        assert ranks(NetworkRankMonitor(["jacobian_rank"]), model).keys() == {
            *(f"network.{place}" for place in range(3)),
            *SUMMARIES,
        }


class TestInputs:
    def test_tensor(self) -> None:
        """Whose ranks differ from those of validation data, of which three of the five units are dead."""
        model = vectors()
        model.network[0].bias.data.copy_(torch.tensor([50.0, 50.0, -50.0, -50.0, -50.0]))
        model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), lr=0.0)
        inputs = torch.stack([torch.zeros(6), torch.linalg.pinv(model.network[0].weight) @ (-model.network[0].bias + 1)])
        got = ranks(NetworkRankMonitor(["jacobian_rank"], inputs=inputs.detach()), model)
        assert (got["network.0"], got["network.1"], got["network.2"]) == (5.0, 3.5, 2.5)
        assert ranks(NetworkRankMonitor(["jacobian_rank"]), model)["network.1"] == 2

    @pytest.mark.parametrize(("inputs", "number"), [(1, 1), (4, 4), (100, 4)])
    def test_as_many_of_the_first_validation_batch(self, inputs: int, number: int) -> None:
        recorder, witness = Recorder(), Witness()
        fit(images(), NetworkRankMonitor(["jacobian_rank_0.3"], inputs=inputs), witness, logger=recorder)
        wanted = {key: value for key, value in expected(witness.seen, number).items() if key[1] == "jacobian_rank_0.3"}
        assert read(recorder) == pytest.approx(wanted, rel=1e-12)

    def test_are_those_of_the_sanity_check(self) -> None:
        """So every report is of the same inputs, of a shuffled loader as well."""
        seen, taken = [], []

        class Shuffled(Net):
            def val_dataloader(self) -> DataLoader:
                return DataLoader(self.unseen, batch_size=4, shuffle=True)

            def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
                super().validation_step(batch, batch_idx)
                seen.append(batch[0])
                taken.append(monitor._probe_inputs)

        monitor = NetworkRankMonitor(["jacobian_rank"], inputs=2)
        fit(Shuffled(two_layers(), torch.randn(12, 6)), monitor, max_epochs=2, num_sanity_val_steps=1)
        assert len(taken) == 9
        assert not torch.equal(seen[0], seen[1])
        assert all(torch.equal(inputs, seen[0][:2]) for inputs in taken)

    def test_batch_that_is_a_tensor(self) -> None:
        class Bare(Net):
            def val_dataloader(self) -> DataLoader:
                return DataLoader(self.unseen.tensors[0], batch_size=4)

            def validation_step(self, batch: Tensor, batch_idx: int) -> None:
                self(batch)

        assert ranks(NetworkRankMonitor(["jacobian_rank"]), Bare(two_layers(), torch.randn(12, 6)))["network.0"] == 5

    def test_given_ones_need_no_such_batch(self) -> None:
        """Nor labels, without a measure of classes."""

        class Keyed(Net):
            def val_dataloader(self) -> DataLoader:
                return DataLoader([{"x": one} for one in self.unseen.tensors[0]], batch_size=4)

            def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
                self(batch["x"])

        model = Keyed(two_layers(), torch.randn(12, 6))
        assert ranks(NetworkRankMonitor(["jacobian_rank"], inputs=torch.randn(2, 6)), model)["network.0"] == 5

    def test_measures_of_classes_need_none(self) -> None:
        """Token ids have no Jacobian, but classes."""
        recorder = Recorder()
        model = Net(nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(8, CLASSES)), torch.randn(12, 6))
        model.data = model.unseen = TensorDataset(torch.randint(5, (12, 2)), torch.arange(12) % CLASSES)
        fit(model, NetworkRankMonitor(OF_CLASSES, num_classes=CLASSES), logger=recorder)
        assert measures_of(recorder) == {*OF_CLASSES, "predicted_logit_accuracy"}


class TestProbes:
    def test_are_those_of_the_function(self) -> None:
        recorder, witness = Recorder(), Witness()
        fit(images(), NetworkRankMonitor(["jacobian_rank"], probes=6, inputs=2), witness, logger=recorder)
        self.check(read(recorder), witness.seen[0], 6)

    def test_of_inputs_of_more_than_1024_numbers(self) -> None:
        """None of smaller ones."""
        for width, probes in ((1024, None), (1025, 128)):
            model, recorder, witness = (
                Net(nn.Sequential(nn.Linear(width, CLASSES)), torch.randn(12, width)),
                Recorder(),
                Witness(),
            )
            model.network.insert(0, nn.Linear(width, 132))
            model.network[1] = nn.Linear(132, CLASSES)
            fit(model, NetworkRankMonitor(["jacobian_rank"], inputs=1), witness, logger=recorder)
            self.check(read(recorder), witness.seen[0]._replace(inputs=witness.seen[0].inputs[:1]), probes)

    def check(self, readings: Readings, seen: Seen, probes: int | None) -> None:
        wanted = {}
        for place in range(len(seen.network)):
            found = jacobian_singular_values(seen.network[: place + 1], seen.inputs[:2], probes)
            values = {"jacobian_rank": found.rank(1e-3), "jacobian_error": found.error / found.singular_values[:, 0]}
            wanted |= {(2, name, f"network.{place}"): one.mean().item() for name, one in values.items()}
        wanted = {key: value for key, value in wanted.items() if probes or key[1] != "jacobian_error"}
        assert {key: readings[key] for key in wanted} == pytest.approx(wanted, rel=1e-6, abs=1e-12)
        assert {measure for _, measure, _ in readings} == {measure for _, measure, _ in wanted}
        if probes:
            assert max(value for key, value in wanted.items() if key[1] == "jacobian_error") > 1e-3


class TestSchedule:
    @pytest.mark.parametrize(
        ("every_n_epochs", "options", "steps"),
        [
            pytest.param(1, {"max_epochs": 3}, [2, 5, 8], id="every"),
            pytest.param(2, {"max_epochs": 4}, [2, 8, 11], id="every other and the last"),
            pytest.param(9, {"max_epochs": 3}, [2, 8], id="the first and the last"),
            pytest.param(lambda epoch: epoch == 1, {"max_epochs": 4}, [5, 11], id="a function and the last"),
            pytest.param(2, {"max_epochs": 6, "check_val_every_n_epoch": 3}, [8, 17], id="validation every third"),
            pytest.param(2, {"max_epochs": 2, "val_check_interval": 1}, [0, 1, 2, 3, 4, 5], id="validation every step"),
            pytest.param(2, {"max_epochs": -1, "max_steps": 10}, [2, 8], id="a last that nobody knows"),
            pytest.param(1, {"max_epochs": 1, "num_sanity_val_steps": 0}, [2], id="no sanity check"),
            pytest.param(1, {"max_epochs": 1, "limit_val_batches": 0}, [], id="no validation"),
        ],
    )
    def test_steps(self, every_n_epochs: Any, options: dict[str, Any], steps: Sequence[int]) -> None:
        recorder = Recorder()
        monitor = NetworkRankMonitor(num_classes=CLASSES, every_n_epochs=every_n_epochs, copies=4)
        fit(vectors(), monitor, logger=recorder, **options)
        assert recorder.steps("network_rank") == list(steps)

    def test_validation_alone(self) -> None:
        for model, epochs in ((vectors(), 0), (vectors(), 2)):
            monitor, recorder = NetworkRankMonitor(num_classes=CLASSES, every_n_epochs=5), Recorder()
            trainer = fit(model, monitor, logger=recorder, max_epochs=epochs) if epochs else None
            recorder.rows.clear()
            options = {"logger": recorder, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
            (trainer or pl.Trainer(callbacks=[monitor], **options)).validate(model, verbose=False)
            assert len(recorder.steps("network_rank")) == 1
            assert measures_of(recorder) > {"jacobian_rank", "independence_deficit"}

    def test_first_of_several_loaders(self) -> None:
        class Two(Net):
            def val_dataloader(self) -> list[DataLoader]:
                return [DataLoader(self.unseen, batch_size=4), DataLoader(self.data, batch_size=4)]

            def validation_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
                super().validation_step(batch, batch_idx)

        rows = []
        for kind in (Net, Two):
            torch.manual_seed(0)
            recorder = Recorder()
            monitor = NetworkRankMonitor(num_classes=CLASSES)
            fit(kind(two_layers(), torch.randn(12, 6)), monitor, logger=recorder, max_epochs=2)
            rows.append(recorder.readings("network_rank"))
            assert monitor.deficit is not None
            assert sum(row.samples for row in monitor.deficit) == 14
        assert rows[0] == pytest.approx(rows[1], rel=0, abs=0, nan_ok=True)

    def test_monitor_looks_anew_in_another_fit(self) -> None:
        """At inputs of another width."""
        monitor = NetworkRankMonitor(["jacobian_rank"])
        assert ranks(monitor, vectors())["network.0"] == 5
        narrow = Net(nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, CLASSES)), torch.randn(12, 2))
        assert ranks(monitor, narrow)["network.0"] == 2


class Tokens(Net):
    """Sequences of four tokens, a label each, of which -100 is none."""

    @classmethod
    def made(cls) -> "Tokens":
        model = cls(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, CLASSES)), torch.randn(12, 4, 6))
        model.network[-1].weight.data.mul_(30)
        labels = torch.arange(48).reshape(12, 4) % CLASSES
        labels[:, 0] = -100
        model.data = model.unseen = TensorDataset(model.data.tensors[0], labels)
        return model

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]).flatten(0, 1), batch[1].flatten(), ignore_index=-100)


class TestLabels:
    def test_of_tokens(self) -> None:
        recorder, witness = Recorder(), Witness()
        fit(Tokens.made(), NetworkRankMonitor(OF_CLASSES, num_classes=CLASSES, ignore_index=-100), witness, logger=recorder)
        (seen,) = witness.seen
        labelled = seen.labels != -100
        seen = seen._replace(features=seen.features[labelled], labels=seen.labels[labelled])
        assert len(seen.labels) == 36
        wanted = {(2, *name): value for name, value in of_classes(seen).items()}
        assert read(recorder) == pytest.approx(wanted, rel=1e-9)

    def test_of_one_hot_rows_and_of_a_key(self) -> None:
        rows = []
        for collate, labels in (
            (lambda x, y: [x, y], None),
            (lambda x, y: [x, nn.functional.one_hot(y, CLASSES)], None),
            (lambda x, y: [x, {"y": y}], lambda batch: batch[1]["y"]),
        ):

            class Collated(Net):
                make = staticmethod(collate)

                def val_dataloader(self) -> DataLoader:
                    parts = zip(*(tensor.split(4) for tensor in self.unseen.tensors), strict=True)
                    return DataLoader([self.make(*part) for part in parts], batch_size=None)

            torch.manual_seed(0)
            recorder = Recorder()
            monitor = NetworkRankMonitor(OF_CLASSES, num_classes=CLASSES, labels=labels)
            fit(Collated(two_layers(), torch.randn(12, 6)), monitor, logger=recorder)
            rows.append(recorder.readings("network_rank"))
        assert rows[0] == rows[1] == rows[2] != {}

    @pytest.mark.parametrize("none", ["of another shape", "ignored"])
    def test_that_fit_no_row_are_told_once(self, none: str) -> None:
        """Other measures are read."""
        model, recorder = Tokens.made(), Recorder()
        inputs, labels = model.data.tensors
        model.unseen = TensorDataset(inputs, labels[:, :2] if none == "of another shape" else torch.full_like(labels, -100))
        monitor = NetworkRankMonitor(["jacobian_rank", *OF_CLASSES], num_classes=CLASSES, ignore_index=-100)
        with pytest.warns(UserWarning, match="network_rank has no reading") as told:
            fit(model, monitor, logger=recorder, max_epochs=2)
        shapes = r": rows (4, 4) do not fit labels (4, 2)" if none == "of another shape" else ""
        messages = [str(one.message) for one in told if "no reading" in str(one.message)]
        assert messages == [f"network_rank has no reading: no labelled row went into the classifier{shapes}."]
        assert recorder.steps("network_rank") == [2, 5]
        assert measures_of(recorder) == {"jacobian_rank"}

    def test_classifier_by_name(self) -> None:
        model, recorder = vectors(), Recorder()
        model.spare = nn.Linear(4, CLASSES)
        with pytest.warns(UserWarning, match="no labelled row went into the classifier"):
            fit(model, NetworkRankMonitor(OF_CLASSES[:1], num_classes=CLASSES), logger=recorder)
        assert read(recorder) == {}
        fit(model, NetworkRankMonitor(OF_CLASSES[:1], num_classes=CLASSES, classifier="network.2"), logger=recorder)
        assert measures_of(recorder) == {"classification_dimension"}

    def test_classifier_without_bias(self) -> None:
        model, recorder = mlp(), Recorder()
        model.network[2] = nn.Linear(5, CLASSES, bias=False)
        fit(model, NetworkRankMonitor(OF_CLASSES, num_classes=CLASSES), logger=recorder)
        assert measures_of(recorder) == {*OF_CLASSES, "predicted_logit_accuracy"}


class TestTable:
    """Of the deficit, as loggers show it."""

    def test_in_tensorboard_and_not_in_csv(self, tmp_path: Path) -> None:
        loggers = [TensorBoardLogger(tmp_path, name="board", version=""), CSVLogger(tmp_path, name="csv", version="")]
        monitor = NetworkRankMonitor(num_classes=CLASSES, copies=8)
        fit(images(), monitor, logger=loggers, max_epochs=2)
        board = EventAccumulator(str(tmp_path / "board")).Reload()
        tag = "network_rank/deficit/table"
        texts = {event.step: make_ndarray(event.tensor_proto).item().decode() for event in board.Tensors(tag)}
        assert list(board.PluginTagToContent("text")) == [tag]
        assert list(texts) == [2, 5]
        assert texts[2] != texts[5]
        header, _, *rows = texts[5].splitlines()
        assert (
            header == "| class | samples | deciders | weights | relative error | accuracy | accuracy of the predicted logit |"
        )
        assert monitor.deficit is not None
        for text, row in zip(rows, monitor.deficit, strict=True):
            label, samples, deciders, weights, *numbers = (cell.strip() for cell in text.strip("|").split("|"))
            assert (int(label), int(samples)) == (row.label, row.samples)
            assert tuple(map(int, deciders.split(", "))) == row.deciders if deciders else row.deciders == ()
            assert (
                tuple(map(float, weights.split(", "))) == pytest.approx(row.weights, rel=5e-3) if weights else not row.weights
            )
            assert list(map(float, numbers)) == pytest.approx(row[4:], rel=1e-3)
        assert any(row.deciders for row in monitor.deficit)
        columns = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()[0].split(",")
        assert "network_rank/independence_deficit/class_0" in columns
        assert tag not in columns

    def test_in_weights_and_biases(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where a class of no samples is among the others."""
        for name in ("DATA_DIR", "CACHE_DIR", "CONFIG_DIR"):
            monkeypatch.setenv(f"WANDB_{name}", str(tmp_path))
        monkeypatch.setenv("WANDB_SILENT", "true")
        monkeypatch.setenv("WANDB_MODE", "dryrun")
        model, logger = images(), WandbLogger(offline=True, save_dir=tmp_path)
        inputs, labels = model.unseen.tensors
        model.unseen = TensorDataset(inputs[labels > 0], labels[labels > 0])
        fit(model, monitor := NetworkRankMonitor(num_classes=CLASSES, copies=8), logger=logger)
        logger.experiment.finish()
        wandb.teardown()
        (file,) = tmp_path.glob("wandb/offline-run-*/files/media/table/network_rank/deficit/*.json")
        rows = json.loads(file.read_text())["data"]
        assert monitor.deficit is not None
        wanted = [[row.label, row.samples, *row[4:]] for row in monitor.deficit]
        assert wanted[0][:2] == [0, 0]
        assert str([[label, samples, *numbers] for label, samples, _, _, *numbers in rows]) == str(wanted)
        assert [row[2] for row in rows] == [", ".join(map(str, row.deciders)) for row in monitor.deficit]
