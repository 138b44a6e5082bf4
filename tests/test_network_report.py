import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rank_callbacks.functional.network import classification_dimension, independence_deficit, jacobian_rank
from rank_callbacks.functional.network import perturbed_pca_dimension as pca_dimension
from rank_callbacks.matrices.layer_outputs import layer_outputs
from rank_callbacks.network_report import network_ranks
from tests.models import MODELS, Classifier
from tests.training import assert_identical, fit, outcome


def network() -> nn.Sequential:
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(), nn.Flatten(), nn.Linear(64, 3)]
    return nn.Sequential(*layers)


def data() -> tuple[Tensor, Tensor]:
    inputs = torch.randn(150, 1, 6, 6)
    return inputs, inputs.flatten(1)[:, :3].argmax(1)


def test_rows_are_what_the_functions_say() -> None:
    model, (inputs, labels) = network(), data()
    report = network_ranks(model, inputs, labels, samples=2)
    model.eval()
    outputs = layer_outputs(model, {name: module for name, module in model.named_children() if name != "3"})
    ranks, dimensions = jacobian_rank(outputs, inputs[:2]), pca_dimension(outputs, inputs[:2], copies=256)
    assert [row.layer for row in report.layers] == ["0", "1", "2", "4", "5"]  # dropout is no layer
    assert [row.numbers for row in report.layers] == [64, 64, 64, 64, 3]
    for row in report.layers:
        assert row.jacobian_rank == ranks[row.layer].mean()
        assert row.perturbed_pca_dimension == dimensions[row.layer].mean()
        assert not row.is_lower_bound
    features = model[:5](inputs).double().detach()
    weight, bias = model[5].weight.double(), model[5].bias.double()
    logits = (features @ weight.mT + bias).detach()
    assert report.classifier.dimension == classification_dimension(features, labels, weight, bias)
    assert report.classifier.features == 64
    assert report.classifier.accuracy == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert report.deficit == independence_deficit(logits, labels)


def test_report_in_words() -> None:
    model, (inputs, labels) = network(), data()
    lines = str(network_ranks(model, inputs, labels, probes=5, layers=["0", "5"])).splitlines()
    assert lines[0].split("  ") == ["layer", "numbers", "Jacobian rank", "PCA dimension"]
    assert lines[1].startswith("0           64          ≥ 5.0")
    assert lines[2].startswith("5            3            3.0            3.0")
    assert lines[3] == "Means over 4 inputs; rank counts singular values above 0.001·σ₁."
    assert "of 64 dimensions give 0.95 of the accuracy" in lines[5]
    assert lines[7].split() == ["class", "logit", "error", "accuracy"]
    assert len(lines) == 11
    assert len(str(network_ranks(model, inputs, layers="5")).splitlines()) == 3


def test_large_inputs_are_probed() -> None:
    model = nn.Sequential(nn.Linear(1025, 100), nn.Linear(100, 20))
    rows = network_ranks(model, torch.randn(2, 1025), copies=16).layers
    assert [(row.jacobian_rank, row.is_lower_bound) for row in rows] == [(64, True), (20, False)]
    rows = network_ranks(model, torch.randn(1, 1025), copies=16, probes=1025).layers
    assert [(row.jacobian_rank, row.is_lower_bound) for row in rows] == [(100, False), (20, False)]


@pytest.mark.parametrize("build", MODELS)
def test_nothing_about_a_trained_model_changes(build: Any) -> None:
    """Bit by bit: parameters, buffers, gradients, modes, optimizers and random state."""
    model: Classifier = build()
    model.forward = lambda inputs: model.network(inputs)
    trainer = fit(model)
    model.train()
    next(model.network.children()).eval()
    inputs, labels = model.data.tensors
    before = outcome(trainer, model)
    objects = [id(tensor) for tensor in [*model.parameters(), *model.buffers()]]
    report = network_ranks(model, inputs, labels, samples=1, copies=20)
    assert_identical(before, outcome(trainer, model))
    assert objects == [id(tensor) for tensor in [*model.parameters(), *model.buffers()]]
    assert not any(module._forward_hooks for module in model.modules())
    assert len(report.layers) >= 2
    assert model.trainer is trainer


def test_random_numbers_that_the_model_draws() -> None:
    class Noisy(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            with torch.no_grad():
                return inputs + torch.randn(inputs.shape[-1:]).to(inputs)

    model = nn.Sequential(Noisy(), nn.Linear(4, 3))
    states = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=True)  # ruff: ignore[numpy-legacy-random]
    with pytest.raises(RuntimeError, match="random"):
        network_ranks(model, torch.zeros(1, 4))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()


def test_modules_that_do_not_run_are_no_layers_of_the_default() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model.forward = lambda inputs: nn.Module.__getattr__(model, "0")(inputs)
    assert [row.layer for row in network_ranks(model, torch.randn(2, 4), copies=10).layers] == ["0"]
    with pytest.raises(ValueError, match=r"layers that run and give a tensor, got 1\. Choose from 0"):
        network_ranks(model, torch.randn(2, 4), layers=["0", "1"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": torch.zeros(0, 4)}, "at least one number"),
        ({"inputs": torch.zeros(2, 4, dtype=torch.long)}, "embeddings"),
        ({"samples": 0}, "samples to be from 1, got 0"),
        ({"layers": "encoder"}, "'encoder' in layers"),
        ({"probes": 0}, "probes to be from 1"),
        ({"rtol": 2.0}, "rtol to be from 0 and below 1"),
        ({"copies": 1}, "copies to be from 2"),
        ({"noise": -1.0}, "noise to be above 0"),
        ({"labels": torch.tensor([0, 5])}, "num_classes=6"),
        ({"labels": torch.tensor([0, 1]), "num_classes": 2}, "num_classes=2"),
        ({"labels": torch.tensor([0, 1]), "num_classes": 3, "classifier": "1"}, "classifier='1'"),
    ],
)
def test_misuse(arguments: dict[str, Any], message: str) -> None:
    good = {"model": nn.Sequential(nn.Linear(4, 3), nn.ReLU()), "inputs": torch.randn(2, 4)}
    with pytest.raises(ValueError, match=message):
        network_ranks(**(good | arguments))
