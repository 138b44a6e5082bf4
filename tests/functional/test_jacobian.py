import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rank_callbacks.functional import jacobian_products, numerical_rank
from rank_callbacks.functional.network import JacobianSpectrum, jacobian_rank, jacobian_singular_values
from rank_callbacks.matrices.layer_outputs import layer_outputs
from tests.models import Last
from tests.training import assert_identical

some = settings(max_examples=40, deadline=None, derandomize=True)
EXACT = 1e-11


class Attention(nn.Module):
    """A small vision transformer: patches, fused attention of PyTorch, mean over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 2, stride=2)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(self.patches(images).flatten(2).mT).mean(1))


def convolutions(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(inplace=True), nn.Conv2d(4, 6, 2, stride=2))


def batch_norm() -> nn.Module:
    norm = nn.BatchNorm2d(4)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "perceptron": (lambda: nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4), nn.ReLU()), (6,)),
    "wide perceptron": (lambda: nn.Sequential(nn.Linear(4, 9), nn.ReLU(inplace=True), nn.Linear(9, 7)), (4,)),
    "convolutions": (lambda: convolutions(nn.Identity()), (1, 6, 6)),
    "batch normalisation": (lambda: convolutions(batch_norm()), (1, 6, 6)),
    "group normalisation": (lambda: convolutions(nn.GroupNorm(2, 4)), (1, 6, 6)),
    "attention": (Attention, (1, 4, 4)),
    "recurrent": (lambda: Last(nn.LSTM(3, 5, batch_first=True)), (4, 3)),
}
networks = pytest.mark.parametrize(("build", "shape"), list(NETWORKS.values()), ids=list(NETWORKS))


def reference(model: nn.Module, sample: Tensor) -> np.ndarray:
    """Singular values by reverse mode, of a float64 model in eval mode."""
    jacobian = torch.autograd.functional.jacobian(model, sample[None], vectorize=False)
    return np.linalg.svd(jacobian.reshape(-1, sample.numel()).numpy(), compute_uv=False)


def of_rank(rows: int, columns: int, rank: int) -> Tensor:
    return torch.randn(rows, rank, dtype=torch.float64) @ torch.randn(rank, columns, dtype=torch.float64)


@networks
def test_agrees_with_reverse_mode_autograd(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    model, inputs = build().double().eval(), torch.randn(3, *shape, dtype=torch.float64)
    found = jacobian_singular_values(model, inputs)
    for values, sample in zip(found.singular_values, inputs, strict=True):
        np.testing.assert_allclose(values, reference(model, sample), atol=1e-12)
    assert found.shape[1] == math.prod(shape)
    assert found.singular_values.shape == (3, min(found.shape))
    assert torch.equal(found.largest, found.singular_values[:, 0])
    assert found.error.tolist() == [0] * 3
    assert found.captured.tolist() == [1] * 3


@networks
def test_a_module_in_training_is_measured_in_eval_mode_and_float64_and_left_alone(build: Any, shape: tuple[int, ...]) -> None:
    model, inputs = build(), torch.randn(2, *shape)
    next(model.modules()).train()
    list(model.modules())[-1].eval()

    def state() -> dict[str, Any]:
        return {
            "tensors": {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]},
            "objects": [id(tensor) for tensor in [*model.parameters(), *model.buffers()]],
            "modes": [module.training for module in model.modules()],
            "gradients": [parameter.grad for parameter in model.parameters()],
            "random": torch.get_rng_state(),
            "attention": torch.backends.mha.get_fastpath_enabled(),
        }

    before = state()
    found = jacobian_singular_values(model, inputs).singular_values
    jacobian_singular_values(model, inputs, probes=2)
    assert_identical(before, state())
    assert torch.backends.mha.get_fastpath_enabled()  # as at the start of the tests
    double = model.double().eval()
    for values, sample in zip(found, inputs.double(), strict=True):
        np.testing.assert_allclose(values, reference(double, sample), atol=1e-12)


def test_linear_network_has_the_product_of_its_weights() -> None:
    model = nn.Sequential(*(nn.Linear(*sizes).double() for sizes in ((7, 5), (5, 9), (9, 6))))
    product = model[2].weight @ model[1].weight @ model[0].weight
    found = jacobian_singular_values(model, torch.randn(4, 7).double()).singular_values
    torch.testing.assert_close(found, torch.linalg.svdvals(product.detach()).expand(4, -1), atol=1e-13, rtol=0)


@pytest.mark.parametrize("probes", [None, 3])
def test_constant_function_has_rank_0(probes: int | None) -> None:
    found = jacobian_singular_values(lambda inputs: torch.ones(2, 5).double(), torch.randn(2, 6).double(), probes)
    assert found.singular_values.count_nonzero() == 0
    assert found.rank().tolist() == [0, 0]
    assert found.largest.tolist() == [0, 0]
    assert found.captured.tolist() == [1, 1]


def test_rank_can_change_from_input_to_input() -> None:
    """Of a ReLU layer it is the number of units that are on."""
    relu = nn.ReLU()
    inputs = torch.tensor([[1.0, 2, 3], [1, -2, 3], [-1, -2, -3]])
    assert jacobian_rank(relu, inputs, EXACT).tolist() == [3, 2, 0]


def deep(widths: list[int], ranks: list[int], activation: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for columns, rows, rank in zip(widths, widths[1:], ranks, strict=False):
        linear = nn.Linear(columns, rows).double()
        linear.weight.data = of_rank(rows, columns, min(rank, rows, columns)) / math.sqrt(columns)
        layers += [linear, activation()]
    return nn.Sequential(*layers)


@some
@given(
    seed=st.integers(0, 999),
    widths=st.lists(st.integers(1, 9), min_size=3, max_size=6),
    ranks=st.lists(st.integers(1, 9), min_size=5, max_size=5),
    activation=st.sampled_from([nn.Identity, nn.ReLU, nn.LeakyReLU]),
)
def test_exact_rank_never_rises_with_depth(seed: int, widths: list[int], ranks: list[int], activation: Any) -> None:
    torch.manual_seed(seed)
    model = deep(widths, ranks, activation)
    outputs = layer_outputs(model, dict(model.named_children()))
    by_layer = torch.stack(list(jacobian_rank(outputs, torch.randn(2, widths[0]).double(), 1e-9).values()))
    assert (by_layer.diff(dim=0) <= 0).all()
    assert (by_layer[0] <= min(ranks[0], *widths[:2])).all()


def test_numerical_rank_may_rise_with_depth() -> None:
    """Of diag(1e-6, 1)·diag(1, 1e-6), a multiple of the identity."""
    first, second = (nn.Linear(2, 2, bias=False).double() for _ in range(2))
    first.weight.data, second.weight.data = torch.diag(torch.tensor([1, 1e-6])), torch.diag(torch.tensor([1e-6, 1]))
    outputs = layer_outputs(nn.Sequential(first, second), {"first": first, "second": second})
    found = jacobian_rank(outputs, torch.ones(1, 2), rtol=1e-3)
    assert [rank.item() for rank in found.values()] == [1, 2]


@pytest.mark.parametrize("rank", [0, 1, 4, 12])
def test_exact_rank_that_a_gram_matrix_would_not_see(rank: int) -> None:
    """Singular values down to 1e-10 of the largest."""
    values = torch.logspace(0, -10, 12).double()[:rank]
    left, right = (torch.linalg.qr(torch.randn(size, 12, dtype=torch.float64)).Q[:, :rank] for size in (30, 12))
    matrix = left * values @ right.mT
    assert jacobian_rank(lambda inputs: inputs @ matrix.mT, torch.ones(1, 12).double(), EXACT).tolist() == [rank]
    assert jacobian_rank(lambda inputs: inputs @ matrix, torch.ones(1, 30).double(), EXACT).tolist() == [rank]


@pytest.mark.parametrize("numbers", [1, 7, 40, 100, 10**6])
def test_memory_bound_changes_nothing(monkeypatch: pytest.MonkeyPatch, numbers: int) -> None:
    """Jacobians in one piece, several together, or a row at a time."""
    model, inputs = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 7)).double(), torch.randn(1, 4).double()
    outputs = layer_outputs(model, dict(model.named_children()))
    monkeypatch.setattr(jacobian_products, "_NUMBERS_AT_ONCE", numbers)
    for name, found in jacobian_singular_values(outputs, inputs).items():
        np.testing.assert_allclose(found.singular_values[0], reference(model[: int(name) + 1], inputs[0]), atol=1e-13)


@pytest.mark.parametrize("tangents", [1, 3])
def test_chunks_of_tangents_change_nothing(monkeypatch: pytest.MonkeyPatch, tangents: int) -> None:
    monkeypatch.setattr(jacobian_products, "_TANGENTS", tangents)
    for sizes in ((4, 9), (9, 4)):
        model = nn.Sequential(nn.Linear(*sizes), nn.Tanh()).double()
        inputs = torch.randn(1, sizes[0]).double()
        found = jacobian_singular_values(model, inputs).singular_values[0]
        np.testing.assert_allclose(found, reference(model, inputs[0]), atol=1e-13)


@networks
def test_probes_are_lower_bounds_within_their_error(build: Any, shape: tuple[int, ...]) -> None:
    model, inputs = build().double().eval(), torch.randn(2, *shape, dtype=torch.float64)
    truth = jacobian_singular_values(model, inputs)
    for probes in (1, 2, 3):
        found = jacobian_singular_values(model, inputs, probes)
        r = min(probes, *truth.shape)
        true = truth.singular_values[:, :r]
        assert found.singular_values.shape == (2, r)
        assert (found.singular_values <= true + 1e-12).all()
        assert (true.square() <= found.singular_values.square() + found.error[:, None].square() + 1e-12).all()
        assert (found.largest >= true[:, 0] - 1e-12).all()
        assert (found.largest <= 1.2 * true[:, 0] + 1e-12).all()
        for rtol in (0.5, 0.1, 1e-3):
            assert (found.rank(rtol) <= truth.rank(rtol)).all()


def test_enough_probes_find_all() -> None:
    matrix = of_rank(40, 30, 6)
    inputs = torch.ones(1, 30).double()
    found = jacobian_singular_values(lambda batch: batch @ matrix.mT, inputs, probes=8)
    np.testing.assert_allclose(found.singular_values[0, :6], np.linalg.svd(matrix, compute_uv=False)[:6], rtol=1e-12)
    assert found.error < 1e-12 * found.largest
    assert found.captured.item() == pytest.approx(1, abs=1e-12)
    assert found.rank(1e-6).item() == 6
    assert jacobian_rank(lambda batch: batch @ matrix.mT, inputs, 1e-6, probes=4).item() == 4  # all that it could
    all_of_it = jacobian_singular_values(lambda batch: batch @ matrix.mT, inputs, probes=30)
    assert all_of_it.singular_values.shape == (1, 30)
    assert all_of_it.error.item() == 0


def test_captured_energy_and_error_of_a_flat_spectrum() -> None:
    """10 of 100 directions that are all alike."""
    matrix = torch.linalg.qr(torch.randn(100, 100).double()).Q
    found = jacobian_singular_values(lambda batch: batch @ matrix, torch.ones(1, 100).double(), probes=10)
    assert found.captured.item() == pytest.approx(0.1, abs=0.01)
    missed = math.sqrt(90)
    assert missed < found.error.item() < 3 * missed
    torch.testing.assert_close(found.singular_values, torch.ones(1, 10).double())
    assert found.rank(0.5).item() == 10


def test_probes_repeat_and_each_sample_has_the_same() -> None:
    model = nn.Linear(20, 30)
    one = jacobian_singular_values(model, torch.randn(2, 20), probes=4)
    again = jacobian_singular_values(model, torch.randn(1, 20), probes=4)
    other = jacobian_singular_values(model, torch.randn(1, 20), probes=4, seed=1)
    torch.testing.assert_close(one.singular_values, again.singular_values.expand(2, -1), atol=1e-14, rtol=0)
    assert (again.singular_values - other.singular_values).abs().max() > 1e-3


def test_layers_with_fewer_numbers_than_the_input_and_more() -> None:
    model = nn.Sequential(nn.Linear(6, 2), nn.Linear(2, 9)).double()
    outputs = layer_outputs(model, {"narrow": model[0], "wide": model[1]})
    found = jacobian_singular_values(outputs, torch.zeros(1, 6))
    assert {name: spectrum.shape for name, spectrum in found.items()} == {"narrow": (2, 6), "wide": (9, 6)}
    assert [spectrum.rank(EXACT).item() for spectrum in found.values()] == [2, 2]
    np.testing.assert_allclose(found["wide"].singular_values[0], reference(model, torch.zeros(6).double()), atol=1e-13)


def test_other_functions_are_called_in_the_type_of_the_inputs() -> None:
    seen = []

    def function(inputs: Tensor) -> Tensor:
        seen.append(inputs.dtype)
        return inputs.sin()

    assert jacobian_singular_values(function, torch.zeros(1, 3)).singular_values.dtype == torch.float64
    assert set(seen) == {torch.float32}


def test_measures_under_inference_mode() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh())
    with torch.inference_mode():
        inputs = torch.zeros(1, 5)
        assert jacobian_rank(model, inputs).tolist() == [4]
        assert jacobian_rank(model, inputs, probes=2).tolist() == [2]
        assert torch.is_inference_mode_enabled()


@pytest.mark.parametrize("probes", [None, 2])
@pytest.mark.parametrize("rows", [2, 9])
def test_what_is_not_finite_is_nan(probes: int | None, rows: int) -> None:
    matrix = torch.randn(rows, 5).double()
    matrix[1, 2] = torch.nan
    found = jacobian_singular_values(lambda inputs: inputs @ matrix.mT, torch.ones(1, 5).double(), probes)
    assert found.singular_values.isnan().all()
    assert found.rank().isnan().all()


def test_rank_of_a_spectrum_is_its_numerical_rank() -> None:
    found = jacobian_singular_values(nn.Linear(9, 7), torch.zeros(2, 9))
    assert isinstance(found, JacobianSpectrum)
    for rtol in (0.0, 0.1, 0.5):
        assert torch.equal(found.rank(rtol), numerical_rank(found.singular_values, rtol))


@pytest.mark.parametrize("rtol", [-0.1, 1.0, math.nan])
def test_rtol_out_of_range(rtol: float) -> None:
    with pytest.raises(ValueError, match=f"from 0 and below 1.*got {rtol}"):
        jacobian_rank(nn.Linear(2, 2), torch.zeros(1, 2), rtol)
    with pytest.raises(ValueError, match=f"from 0 and below 1.*got {rtol}"):
        jacobian_singular_values(nn.Linear(2, 2), torch.zeros(1, 2)).rank(rtol)


def test_token_ids() -> None:
    with pytest.raises(ValueError, match=r"floating type, got torch.int64.*embeddings"):
        jacobian_rank(nn.Embedding(5, 3), torch.tensor([[1, 2]]))


@pytest.mark.parametrize("inputs", [torch.zeros(0, 3), torch.zeros(2, 0), torch.tensor(1.0)])
def test_no_inputs(inputs: Tensor) -> None:
    with pytest.raises(ValueError, match=r"shape \(n, ...\) with at least one number"):
        jacobian_rank(nn.Identity(), inputs)


@pytest.mark.parametrize("probes", [0, -1])
def test_too_few_probes(probes: int) -> None:
    with pytest.raises(ValueError, match=f"probes to be from 1.*got {probes}"):
        jacobian_rank(nn.Identity(), torch.zeros(1, 2), probes=probes)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (None, "got NoneType as output"),
        ((torch.zeros(1),), "got tuple as output"),
        ({"a": torch.zeros(1), "b": 3}, "got int as output 'b'"),
        (torch.zeros(1, 2, dtype=torch.int64), r"got torch.int64 of shape \(1, 2\)"),
        (torch.zeros(1, 0), r"of shape \(1, 0\)"),
        ({}, "a mapping without any"),
    ],
)
@pytest.mark.parametrize("probes", [None, 1])
def test_functions_that_give_no_tensors(output: Any, message: str, probes: int | None) -> None:
    with pytest.raises(ValueError, match=message):
        jacobian_rank(lambda inputs: output, torch.zeros(1, 2), probes=probes)
