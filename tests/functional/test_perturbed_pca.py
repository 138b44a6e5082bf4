from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rank_callbacks.functional.network import jacobian_rank, perturbed_pca_dimension
from rank_callbacks.matrices.layer_outputs import layer_outputs

EPS = float(np.finfo(np.float32).eps)


def clouds(function: Any, sample: Tensor, noise: float, copies: int, seed: int = 0) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(sample.shape, generator=generator, dtype=sample.dtype) for _ in range(copies)]
    return function(sample + noise * torch.stack(drawn)).detach().reshape(copies, -1).numpy()


def naive(features: np.ndarray, tolerance: float = 1.0) -> int:
    """The authors' code: centred, covariance on the side of the copies, its singular values."""
    copies, width = features.shape
    centred = features - features.mean(0)
    values = np.linalg.svd(centred @ centred.T / copies, compute_uv=False)
    return int((values >= tolerance * values.max() * min(copies, width) * EPS).sum())


def decaying(inputs: int, outputs: int) -> nn.Module:
    linear = nn.Linear(inputs, outputs).double()
    linear.weight.data *= torch.logspace(0, -4, inputs).double()
    return nn.Sequential(linear, nn.Tanh())


@pytest.mark.parametrize("copies", [20, 60, 200])
@pytest.mark.parametrize("outputs", [5, 60, 300])
@pytest.mark.parametrize("tolerance", [1.0, 30.0])
def test_agrees_with_a_naive_version(copies: int, outputs: int, tolerance: float) -> None:
    model, inputs = decaying(40, outputs), torch.randn(2, 40).double()
    found = perturbed_pca_dimension(model, inputs, 1e-2, copies, tolerance)
    assert found.dtype == torch.float64
    assert found.tolist() == [naive(clouds(model, sample, 1e-2, copies), tolerance) for sample in inputs]


@pytest.mark.parametrize("outputs", [8, 400])
def test_float32_features_far_from_zero(outputs: int) -> None:
    """Their mean is a thousand standard deviations off: squares of it would hide them."""
    model = nn.Linear(6, outputs)
    model.bias.data += 1.0
    shape = torch.randn(1, 6)
    assert perturbed_pca_dimension(model, shape, copies=100).tolist() == [6]


@pytest.mark.parametrize("rank", [1, 3, 7])
@pytest.mark.parametrize("outputs", [9, 120])
def test_linear_function_has_the_rank_of_its_matrix(rank: int, outputs: int) -> None:
    left, right = (torch.linalg.qr(torch.randn(size, rank, dtype=torch.float64)).Q for size in (outputs, 8))
    function = lambda inputs: inputs @ (left @ right.mT).mT  # ruff: ignore[lambda-assignment]
    inputs = torch.randn(3, 8).double()
    assert perturbed_pca_dimension(function, inputs, copies=64).tolist() == [rank] * 3
    assert jacobian_rank(function, inputs, 1e-9).tolist() == [rank] * 3


@pytest.mark.parametrize("outputs", [3, 50])
def test_constant_features_have_no_dimension(outputs: int) -> None:
    assert perturbed_pca_dimension(lambda inputs: torch.full((len(inputs), outputs), 0.1), torch.zeros(1, 4), copies=20) == 0


@pytest.mark.parametrize("outputs", [3, 50])
def test_features_that_are_not_finite(outputs: int) -> None:
    found = perturbed_pca_dimension(lambda inputs: inputs.new_full((len(inputs), outputs), torch.nan), torch.zeros(1, 4))
    assert found.isnan().all()


def test_no_more_dimensions_than_copies_less_one() -> None:
    assert perturbed_pca_dimension(nn.Identity(), torch.zeros(1, 30), copies=10).tolist() == [9]


@pytest.mark.parametrize("batch_size", [1, 7, 50, 1000])
def test_batches_change_nothing(batch_size: int) -> None:
    sizes, seen = [], []

    def function(inputs: Tensor) -> Tensor:
        sizes.append(len(inputs))
        seen.append(inputs)
        return inputs

    perturbed_pca_dimension(function, torch.zeros(1, 5), copies=50, batch_size=batch_size)
    assert sum(sizes) == 50
    assert max(sizes) == min(batch_size, 50)
    torch.testing.assert_close(torch.cat(seen).numpy(), clouds(nn.Identity(), torch.zeros(5), 1e-3, 50))


def test_layers_of_a_model_that_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Dropout(), nn.Flatten())
    outputs = layer_outputs(model, dict(model.named_children()))
    before, inputs = {name: tensor.clone() for name, tensor in model.state_dict().items()}, torch.randn(2, 1, 5, 5)
    state = torch.get_rng_state()
    found = perturbed_pca_dimension(outputs, inputs, copies=40)
    assert list(found) == ["0", "1", "2", "3", "4"]
    assert all(dimensions.shape == (2,) for dimensions in found.values())
    assert found["0"].tolist() == [naive(clouds(model[0], sample, 1e-3, 40)) for sample in inputs]
    assert torch.equal(found["2"], found["4"])  # dropout is off
    assert (found["2"] < found["0"]).all()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert torch.equal(state, torch.get_rng_state())


class Counter(nn.Module):
    """Counts its runs in eval mode as well."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("runs", torch.zeros(1).double())

    def forward(self, inputs: Tensor) -> Tensor:
        self.runs.add_(1)
        return inputs


def test_buffers_that_a_module_writes_in_eval_mode() -> None:
    model = Counter()
    perturbed_pca_dimension(model, torch.zeros(1, 3).double(), copies=10)
    assert model.runs == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise": 0.0}, "noise to be above 0, got 0"),
        ({"noise": float("nan")}, "noise to be above 0, got nan"),
        ({"tolerance": -1.0}, "tolerance to be above 0"),
        ({"copies": 1}, "copies to be from 2, got 1"),
        ({"batch_size": 0}, "batch_size to be from 1, got 0"),
        ({"inputs": torch.zeros(1, 2, dtype=torch.int64)}, "embeddings"),
        ({"inputs": torch.zeros(0, 2)}, "at least one number"),
        ({"function": lambda inputs: inputs.sum()}, r"shape \(128, ...\), a row an input, got shape \(\)"),
        ({"function": lambda inputs: inputs.T}, r"got shape \(2, 128\)"),
        ({"function": lambda inputs: None}, "got NoneType"),
    ],
)
def test_misuse(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        perturbed_pca_dimension(**({"function": nn.Identity(), "inputs": torch.zeros(1, 2)} | arguments))
