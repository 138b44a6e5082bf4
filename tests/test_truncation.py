import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from rank_callbacks.matrices import weight_matrices
from rank_callbacks.truncation import truncate


class Tied(nn.Module):
    """An embedding whose weight is also that of the output."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 6)
        self.output = nn.Linear(6, 12, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.output(self.embedding(tokens))


class Conv1D(nn.Module):
    """As Hugging Face's: the weight is the transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.c_attn = nn.Module()
        self.weight = nn.Parameter(torch.randn(6, 18))


MODELS = {
    "linear": lambda: nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)),
    "conv": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv1d(4, 6, 5)),
    "transposed conv": lambda: nn.ConvTranspose2d(4, 6, 3),
    "grouped conv": lambda: nn.Conv2d(6, 12, 3, groups=3),
    "grouped transposed conv": lambda: nn.ConvTranspose2d(6, 12, 3, groups=3),
    "embedding": lambda: nn.Embedding(12, 6),
    "tied": Tied,
    "attention": lambda: nn.MultiheadAttention(8, 2),
    "LSTM": lambda: nn.LSTM(6, 5, num_layers=2, proj_size=4),
    "GRU": lambda: nn.GRU(6, 5, bidirectional=True),
    "bilinear": lambda: nn.Bilinear(4, 5, 3),
    "Conv1D": Conv1D,
    "bfloat16": lambda: nn.Linear(8, 6).bfloat16(),
    "compiled": lambda: torch.compile(nn.Linear(8, 6)),
}
every_model = pytest.mark.parametrize("name", MODELS)


def model_of(name: str) -> nn.Module:
    model = MODELS[name]()
    return model if name == "bfloat16" else model.double()


def state(model: nn.Module) -> dict[str, bytes]:
    tensors = {name: tensor for name, tensor in model.state_dict().items() if tensor.dim()}
    return {name: tensor.detach().clone().view(torch.uint8).numpy().tobytes() for name, tensor in tensors.items()}


def block_diagonal(matrix: Tensor) -> np.ndarray:
    wide = matrix.double()
    return torch.block_diag(*(wide if wide.dim() == 3 else wide[None])).numpy()


def nearest(matrix: np.ndarray, rank: int) -> np.ndarray:
    left, values, right = np.linalg.svd(matrix)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


@every_model
def test_every_matrix_is_the_nearest_of_its_rank(name: str) -> None:
    model = model_of(name)
    before = {name: matrix.clone() for name, matrix in weight_matrices(model).items()}
    with truncate(model, rank=2) as table:
        after = {name: matrix.clone() for name, matrix in weight_matrices(model).items()}
    assert [row.layer for row in table] == list(before)
    for row in table:
        wanted = nearest(block_diagonal(before[row.layer]), 2)
        atol = 1e-2 if name == "bfloat16" else 1e-12
        np.testing.assert_allclose(block_diagonal(after[row.layer]), wanted, atol=atol, err_msg=row.layer)


@every_model
@pytest.mark.parametrize("rule", [{"rtol": 0.8}, {"energy": 0.7}, {"rank": 1}], ids=str)
def test_the_error_told_is_the_error_made(name: str, rule: dict[str, float]) -> None:
    model = model_of(name)
    before = {name: matrix.clone() for name, matrix in weight_matrices(model).items()}
    with truncate(model, **rule) as table:
        for row in table:
            now = weight_matrices(model)[row.layer].double()
            was = before[row.layer].double()
            made = torch.linalg.vector_norm(was - now) / torch.linalg.vector_norm(was)
            assert row.error == pytest.approx(made.item(), rel=2e-2 if name == "bfloat16" else 1e-9)
    assert 0 < max(row.error for row in table) < 1


@every_model
def test_weights_come_back_bit_for_bit(name: str) -> None:
    model = model_of(name)
    before, parameters = state(model), list(model.parameters())
    with truncate(model, rank=1):
        assert state(model) != before
    assert state(model) == before
    assert all(now is was for now, was in zip(model.parameters(), parameters, strict=True))


@every_model
def test_weights_come_back_after_an_exception(name: str) -> None:
    model = model_of(name)
    before = state(model)
    with pytest.raises(RuntimeError, match="out of memory"), truncate(model, rank=1):
        raise RuntimeError("out of memory")
    assert state(model) == before


def test_weights_come_back_after_a_step_in_the_block() -> None:
    model = model_of("linear")
    before = state(model)
    with truncate(model, rank=1):
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        model(torch.ones(2, 8, dtype=torch.float64)).sum().backward()
        optimizer.step()
    after = state(model)
    assert {name for name in before if before[name] != after[name]} == {"0.bias", "2.bias"}


def test_zeros_with_a_sign_and_nan_come_back() -> None:
    model = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        model.weight[0] = torch.tensor([-0.0, 0.0, float("nan")])
    before = state(model)
    with truncate(model, rank=1) as table:
        assert state(model) == before
    assert np.isnan(table[0].error)
    assert table[0].rank == 3
    assert state(model) == before


def test_a_failure_on_the_way_in_leaves_the_weights() -> None:
    model = model_of("linear")
    model[2].weight = nn.Parameter(torch.ones(1, 6).double().expand(3, 6))  # which torch refuses to write to
    before = state(model)
    with pytest.raises(RuntimeError, match="single memory location"), truncate(model, rank=0):
        pass
    assert state(model) == before


def test_tied_weights_are_truncated_once_for_both() -> None:
    model = model_of("tied")
    with truncate(model, rank=2) as table:
        assert [row.layer for row in table] == ["embedding.weight"]
        assert model.output.weight is model.embedding.weight
        assert torch.linalg.matrix_rank(model.output.weight) == 2
    assert table.parameters == 72
    assert table.factored == 36


def test_parameters_that_share_memory_come_back() -> None:
    model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
    model[1].weight.data = model[0].weight.data
    before = state(model)
    with truncate(model, rank=1):
        assert torch.linalg.matrix_rank(model[1].weight) == 1
    assert state(model) == before


def test_the_report_counts() -> None:
    model = nn.Sequential(nn.Linear(20, 10), nn.Linear(10, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.diag_embed(torch.arange(10.0, 0, -1))[:, torch.arange(20) % 10] / 2**0.5)
        model[1].weight.copy_(torch.eye(3, 10))
    with truncate(model, rtol=0.75) as table:
        pass
    assert str(table).splitlines() == [
        "layer     shape    rank   error  parameters  factored",
        "0.weight  10 x 20     3  0.6030         200        90",
        "1.weight  3 x 10      3  0.0000          30        30",
        "total                                   230       120",
    ]


def test_only_the_chosen_layers_and_parts_change() -> None:
    model = model_of("attention")
    before = copy.deepcopy(model)
    with truncate(model, rank=1, layers="*.k") as table:
        parts = model.in_proj_weight.chunk(3)
        assert [int(torch.linalg.matrix_rank(part)) for part in parts] == [8, 1, 8]
        assert torch.equal(parts[0], before.in_proj_weight[:8])
        assert torch.equal(model.out_proj.weight, before.out_proj.weight)
    assert [row.layer for row in table] == ["in_proj_weight.k"]


def test_slices_of_a_kernel() -> None:
    model = model_of("transposed conv")
    with truncate(model, rank=9, conv="slices") as table:
        assert weight_matrices(model, conv="slices")["weight.slices"].shape == (9, 6, 4)
        ranks = torch.linalg.matrix_rank(weight_matrices(model, conv="slices")["weight.slices"])
    assert ranks.sum() == 9
    assert table[0].rank == 9


def test_outputs_are_those_of_the_truncated_network() -> None:
    model = model_of("linear")
    inputs = torch.randn(5, 8, dtype=torch.float64)
    first, second = (nearest(model[place].weight.detach().numpy(), 1) for place in (0, 2))
    hidden = np.maximum(inputs.numpy() @ first.T + model[0].bias.detach().numpy(), 0)
    wanted = hidden @ second.T + model[2].bias.detach().numpy()
    with truncate(model, rank=1):
        np.testing.assert_allclose(model(inputs).detach().numpy(), wanted)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_in_every_mode_of_autograd(mode: type) -> None:
    model = model_of("conv")
    before = state(model)
    with mode(), truncate(model, rank=1):
        assert torch.linalg.matrix_rank(model[0].weight.flatten(1)) == 1
    assert state(model) == before
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_autograd_refuses_to_cross_the_border() -> None:
    model = model_of("linear")
    with truncate(model, rank=1):
        loss = model(torch.ones(2, 8, dtype=torch.float64)).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_random_state_and_modes_stay() -> None:
    model = model_of("conv").train()
    random = torch.get_rng_state()
    with truncate(model, rank=1):
        assert model.training
    assert torch.equal(torch.get_rng_state(), random)


def test_adapters_are_left() -> None:
    model = nn.ModuleDict({"lora_A": nn.Linear(8, 2, bias=False), "lora_B": nn.Linear(2, 8, bias=False)})
    with pytest.raises(ValueError, match="got adapters alone"), truncate(model, rank=1):
        pass
    model["base_layer"] = nn.Linear(8, 8)
    with truncate(model, rank=1) as table:
        assert torch.linalg.matrix_rank(model["lora_B"].weight) == 2
    assert [row.layer for row in table] == ["base_layer.weight"]


COMPUTED = {
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(4, 4)),
    "old spectral_norm": lambda: nn.utils.spectral_norm(nn.Linear(4, 4)),
    "pruned": lambda: prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_a_computed_weight_is_refused_by_name(name: str) -> None:
    model = nn.Sequential(COMPUTED[name](), nn.Linear(4, 4))
    before = state(model)
    with pytest.raises(ValueError, match=r"but 0\.weight is computed from other.*layers: 1\.weight"), truncate(model, rank=1):
        pass
    assert state(model) == before
    with truncate(model, rank=1, layers="1") as table:
        pass
    assert [row.layer for row in table] == ["1.weight"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of rtol, energy and rank, got none"),
        ({"rtol": 0.1, "energy": 0.9}, "got rtol=0.1 and energy=0.9"),
        ({"rank": -1}, "Expected rank to be a whole number from 0"),
        ({"rank": 1, "layers": "decoder"}, "Expected 'decoder' in layers to match a matrix"),
        ({"rank": 1, "conv": "circular_8x8"}, "Expected conv to be 'filters' or 'slices', whose matrices"),
        ({"rank": 1, "conv": "rows"}, "Expected conv to be 'filters'"),
    ],
)
def test_misuse(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message), truncate(model_of("linear"), **options):
        pass
