"""Readings against a network truncated by hand, and training as it is without the monitor."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.data import DataLoader, TensorDataset

from rank_callbacks import FeatureRankMonitor
from rank_callbacks.callbacks.truncation import TruncationMonitor
from tests.models import CLASSES, Classifier, two_layers
from tests.training import Recorder, assert_identical, fit, outcome


class Net(Classifier):
    """Trained on three batches an epoch, validated on other samples in batches of five, the last one smaller."""

    def __init__(self, network: nn.Module | None = None) -> None:
        super().__init__(network or two_layers(), torch.randn(12, 6))
        self.unseen = TensorDataset(torch.randn(23, 6), torch.randint(CLASSES, (23,)))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    def val_dataloader(self) -> Any:
        return DataLoader(self.unseen, batch_size=5)


def net(network: nn.Module | None = None, kind: type[Net] = Net) -> Net:
    torch.manual_seed(1)
    return kind(network)


def truncated_by_hand(weight: Tensor, rtol: float) -> tuple[np.ndarray, int]:
    left, values, right = np.linalg.svd(weight.detach().double().numpy(), full_matrices=False)
    rank = int((values > rtol * values[0]).sum())
    return (left[:, :rank] * values[:rank]) @ right[:rank], min(weight.numel(), rank * sum(weight.shape))


def accuracy(model: Net, first: np.ndarray, second: np.ndarray, samples: int) -> float:
    inputs, labels = (tensor[:samples].numpy() for tensor in model.unseen.tensors)
    hidden = np.maximum(inputs @ first.T + model.network[0].bias.detach().numpy(), 0)
    logits = hidden @ second.T + model.network[2].bias.detach().numpy()
    return float((logits.argmax(1) == labels).mean())


@pytest.mark.parametrize(("options", "samples"), [({}, 23), ({"limit_val_batches": 2}, 10)], ids=["whole", "limited"])
def test_readings_are_those_of_the_network_truncated_by_hand(options: dict[str, Any], samples: int) -> None:
    model, recorder = net(), Recorder()
    fit(model, TruncationMonitor([0.9, 0.5]), logger=recorder, **options)
    weights = [model.network[place].weight for place in (0, 2)]
    wanted = {"truncation/accuracy/network": accuracy(model, *(weight.detach().numpy() for weight in weights), samples)}
    for rtol in (0.9, 0.5):
        (first, one), (second, other) = (truncated_by_hand(weight, rtol) for weight in weights)
        wanted[f"truncation/accuracy_at_rtol_{rtol}/network"] = accuracy(model, first, second, samples)
        wanted[f"truncation/parameters_at_rtol_{rtol}/network"] = (one + other) / 45
    readings = recorder.readings("truncation")
    assert {tag for _, tag in readings} == set(wanted)
    assert {tag: value for (_, tag), value in readings.items()} == pytest.approx(wanted)
    assert len(set(wanted.values())) > 2


def test_training_is_as_without() -> None:
    outcomes = []
    for monitors in ([], [TruncationMonitor([0.5])]):
        torch.manual_seed(2)
        model = net(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, CLASSES)))
        outcomes.append(outcome(fit(model, *monitors, max_epochs=3), model))
    assert_identical(*outcomes)


def test_epochs_of_reports() -> None:
    recorder = Recorder()
    fit(net(), TruncationMonitor([0.5], every_n_epochs=2), logger=recorder, max_epochs=4)
    assert recorder.steps("truncation") == [2, 8, 11]


@pytest.mark.parametrize("options", [{"max_steps": 9, "max_epochs": -1}, {"max_epochs": 10}], ids=["steps", "stopped"])
def test_last_epoch_is_reported_however_the_fit_ends(options: dict[str, int]) -> None:
    recorder = Recorder()
    stop = (
        [EarlyStopping("loss", patience=1, mode="max", check_on_train_epoch_end=False)] if options["max_epochs"] == 10 else []
    )
    trainer = fit(net(), *stop, TruncationMonitor([0.5], every_n_epochs=7), logger=recorder, **options)
    assert trainer.current_epoch > 1
    assert recorder.steps("truncation") == [2, trainer.global_step - 1]


def test_validation_outside_a_fit() -> None:
    recorder = Recorder()
    pl.Trainer(callbacks=[TruncationMonitor([0.5])], logger=recorder, accelerator="cpu").validate(net(), verbose=False)
    assert len(recorder.readings("truncation")) == 3


def test_weights_come_back_after_a_bad_label() -> None:
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.unseen = TensorDataset(torch.randn(23, 6), torch.zeros(23, 4))
    trainer = pl.Trainer(callbacks=[TruncationMonitor([0.5])], logger=False, accelerator="cpu")
    with pytest.raises(ValueError, match=r"Expected forward to give logits .* labels of shape \(5, 4\), got \(5, 3\)"):
        trainer.validate(model, verbose=False)
    assert_identical({name: tensor.clone() for name, tensor in model.state_dict().items()}, before)


def test_other_monitors_read_the_same() -> None:
    readings = []
    for monitors in ([], [TruncationMonitor([0.5])]):
        recorder = Recorder()
        fit(net(), FeatureRankMonitor(data="val"), *monitors, logger=recorder, max_epochs=2)
        readings.append(recorder.readings("feature_rank"))
    assert readings[0]
    assert_identical(*readings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtols": []}, "Expected at least one tolerance in rtols, got none"),
        ({"rtols": [-1]}, "Expected rtol to be a number from 0, got -1"),
        ({"every_n_epochs": 0}, "Expected every_n_epochs to be a whole number from 1, got 0"),
    ],
)
def test_misuse(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TruncationMonitor(**options)


class Batches(Net):
    """Validated on batches of another kind, which its ``forward`` takes."""

    made: Callable[[Tensor, Tensor], Any] = staticmethod(lambda inputs, labels: [inputs, labels])

    def val_dataloader(self) -> Any:
        inputs, labels = self.unseen.tensors
        return DataLoader([self.made(inputs[i : i + 5], labels[i : i + 5]) for i in range(0, 23, 5)], batch_size=None)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.network(self.unseen.tensors[0])


class Named(Batches):
    """As networks of Hugging Face."""

    made = staticmethod(lambda inputs, labels: {"inputs": inputs, "labels": labels})

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> Any:  # type: ignore[override]
        return {"loss": None, "logits": self.network(inputs)}


class Columns(Batches):
    made = staticmethod(lambda inputs, labels: [inputs, labels[:, None]])


@pytest.mark.parametrize(("kind", "labels"), [(Named, "labels"), (Columns, None)])
def test_batches_of_other_kinds_read_the_same(kind: type[Net], labels: str | None) -> None:
    readings = []
    for model, place in ((net(), None), (net(kind=kind), labels)):
        recorder = Recorder()
        torch.manual_seed(2)
        fit(model, TruncationMonitor([0.5], labels=place), logger=recorder)
        readings.append(recorder.readings("truncation"))
    assert readings[0] == readings[1]


class Two(Net):
    def forward(self, inputs: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return self.network(inputs) * mask


class Broken(Net):
    """Runs four times, the first of them in the sanity check, where there is one."""

    runs = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.runs += 1
        if self.runs > 4:
            raise RuntimeError("too often")
        return self.network(inputs)


REFUSED: dict[str, tuple[Callable[[], Net], str]] = {
    "logits that do not fit": (
        lambda: of_made(lambda x, y: [x, y[:, None].repeat(1, 4)]),
        r"logits of shape .* \(5, 4\), got",
    ),
    "no labels": (lambda: of_made(lambda x, y: x), "Expected a tensor of labels as the second item"),
    "inputs that forward does not take": (
        lambda: net(kind=Two),
        "Expected forward to take the inputs of a batch, got one Tensor",
    ),
}


def of_made(made: Callable[[Tensor, Tensor], Any]) -> Net:
    model = net(kind=Batches)
    model.made = made
    return model


@pytest.mark.parametrize("name", REFUSED)
def test_batches_are_refused_by_the_sanity_check(name: str) -> None:
    make, message = REFUSED[name]
    model = make()
    with pytest.raises(ValueError, match=message):
        fit(model, TruncationMonitor([0.5]))
    assert model.losses == []


@pytest.mark.parametrize("name", [*REFUSED, "forward that fails"])
def test_what_fails_later_ends_no_training(name: str) -> None:
    make, message = REFUSED.get(name, (lambda: net(kind=Broken), "RuntimeError: too often"))
    model, recorder = make(), Recorder()
    sanity = 0 if name in REFUSED else 1
    with pytest.warns(UserWarning, match=f"truncation reads NaN, for the network could not be evaluated. .*{message}") as told:
        fit(model, TruncationMonitor([0.5]), logger=recorder, max_epochs=2, num_sanity_val_steps=sanity)
    assert sum("truncation" in str(one.message) for one in told) == 1
    assert len(model.losses) == 6
    values = recorder.readings("truncation")
    assert {tag for (_, tag), value in values.items() if np.isnan(value)} == {
        "truncation/accuracy/network",
        "truncation/accuracy_at_rtol_0.5/network",
    }
    assert recorder.steps("truncation") == [2, 5]


def test_sanity_check_leaves_the_training_as_it_is() -> None:
    outcomes = []
    for monitors in ([], [TruncationMonitor([0.5])]):
        torch.manual_seed(2)
        model = net(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, CLASSES)))
        outcomes.append(outcome(fit(model, *monitors, num_sanity_val_steps=2), model))
    assert_identical(*outcomes)


def test_module_without_forward_is_refused() -> None:
    model = Classifier(two_layers(), torch.randn(12, 6))
    with pytest.raises(ValueError, match="Expected Classifier to define forward"):
        fit(model, TruncationMonitor([0.5]), num_sanity_val_steps=0)
    assert model.losses == []


def test_weight_that_cannot_be_written_is_refused_before_training() -> None:
    model = net(nn.Sequential(spectral_norm(nn.Linear(6, 5)), nn.Linear(5, CLASSES)))
    with pytest.raises(ValueError, match=r"but network\.0\.weight is computed from other parameters"):
        fit(model, TruncationMonitor([0.5]), num_sanity_val_steps=0)
    assert model.losses == []
    fit(model, TruncationMonitor([0.5], layers="network.1.weight"))


def test_a_pattern_that_matches_nothing_fails_before_training() -> None:
    model = net()
    with pytest.raises(ValueError, match="Expected 'decoder' in layers to match a matrix"):
        fit(model, TruncationMonitor(layers="decoder"))
    assert not model.losses
