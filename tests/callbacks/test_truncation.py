"""Readings against a network truncated by hand, and training as it is without the monitor."""

from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from torch import Tensor, nn
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


def net(network: nn.Module | None = None) -> Net:
    torch.manual_seed(1)
    return Net(network)


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


def test_a_pattern_that_matches_nothing_fails_before_training() -> None:
    model = net()
    with pytest.raises(ValueError, match="Expected 'decoder' in layers to match a matrix"):
        fit(model, TruncationMonitor(layers="decoder"))
    assert not model.losses
