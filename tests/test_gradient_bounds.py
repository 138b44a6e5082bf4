import copy
import itertools
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from rank_callbacks import gradient_rank_bounds
from rank_callbacks.gradient_bounds import BoundTable, bounds_of_layers, outer_products_of_layers
from rank_callbacks.matrices import gradient_matrices
from rank_callbacks.matrices.activations import RowCapture
from tests.models import Last
from tests.training import assert_identical


def exact_rank(matrix: Tensor) -> int:
    """Of a float64 matrix, or of all the blocks of a block-diagonal one."""
    values = np.linalg.svd(matrix.numpy(), compute_uv=False)
    return int((values > max(1e-10 * values.max(), 1e-13)).sum())


def gradient_ranks(model: nn.Module, inputs: Any, loss: Callable[[Any], Tensor]) -> dict[str, int]:
    """Of a float64 copy that sees the same input and loss."""
    twin = copy.deepcopy(model).double()
    twin.zero_grad()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    loss(twin(inputs)).backward()
    return {name: exact_rank(gradient) for name, gradient in gradient_matrices(twin).items()}


def summary(table: BoundTable) -> dict[str, tuple[int | None, str]]:
    return {row.layer: (row.bound, row.reason) for row in table}


def perceptron(*widths: int, bias: bool = True, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    layers = [layer for pair in itertools.pairwise(widths) for layer in (nn.Linear(*pair, bias=bias), activation())]
    return nn.Sequential(*layers[:-1])


def test_perceptron() -> None:
    table = gradient_rank_bounds(perceptron(784, 256, 256, 10), torch.randn(32, 784))
    assert str(table).splitlines() == [
        "layer     shape      bound  bound by",
        "0.weight  256 x 784     32  batch of 32",
        "2.weight  256 x 256     32  batch of 32",
        "4.weight  10 x 256       9  10 classes under cross-entropy",
    ]


@pytest.mark.parametrize(
    ("bias", "downstream"), [(False, (16, "input of rank 16 from 1")), (True, (17, "input of rank 17 from 1"))]
)
def test_linear_auto_encoder_with_a_bottleneck(bias: bool, downstream: tuple[int, str]) -> None:
    """A bias adds a direction to what follows."""
    model = perceptron(128, 128, 16, 128, 128, bias=bias, activation=nn.Identity)
    assert list(summary(gradient_rank_bounds(model, torch.randn(256, 128), "mse")).values()) == [
        (16, "output gradient of rank 16 from 2"),
        (16, "its own shape"),
        (16, "its own shape"),
        (downstream[0], downstream[1].replace("from 1", "from 2")),
    ]


def test_bottleneck_is_named_only_where_it_explains_the_rank() -> None:
    """After an activation the rank is that of the batch again."""
    model = perceptron(64, 4, 64, 64, 3, activation=nn.Tanh)
    assert list(summary(gradient_rank_bounds(model, torch.randn(20, 64))).values()) == [
        (4, "its own shape"),
        (4, "its own shape"),
        (20, "batch of 20"),
        (2, "3 classes under cross-entropy"),
    ]


def test_input_of_low_rank() -> None:
    inputs = torch.randn(30, 5).double() @ torch.randn(5, 40).double()
    first = gradient_rank_bounds(perceptron(40, 40, 3), inputs)[0]
    assert (first.bound, first.reason, first.input_rank, first.delta_rank) == (5, "input of rank 5", 5, 30)


def test_rows_of_zeros_add_nothing() -> None:
    """Neither does what the loss sends back for them."""
    inputs = torch.randn(6, 20)
    inputs[:2] = 0
    first = gradient_rank_bounds(perceptron(20, 20, 7, activation=nn.Tanh), inputs, "mse")[0]
    assert (first.bound, first.input_rank, first.delta_rank) == (4, 4, 4)


@pytest.mark.parametrize("batch", [1, 2])
def test_convolutions(batch: int) -> None:
    layers = [nn.Conv2d(32, 256, 3, stride=4, padding=1), nn.ReLU(), nn.Conv2d(256, 64, 3), nn.Flatten(), nn.LazyLinear(10)]
    model, images = nn.Sequential(*layers), torch.randn(batch, 32, 28, 28)
    model(images)
    times = "" if batch == 1 else "batch of 2 x "
    assert list(summary(gradient_rank_bounds(model, images)).values()) == [
        (batch * 49, f"{times}stride 4: 49 positions"),
        (batch * 25, f"{times}25 positions"),
        (batch, f"batch of {batch}"),
    ]


def test_grouped_convolution_adds_up_its_blocks() -> None:
    model = nn.Sequential(nn.Conv1d(12, 12, 4, groups=3), nn.Flatten(), nn.Linear(24, 5))
    (row, _) = gradient_rank_bounds(model, torch.randn(1, 12, 5))
    assert (row.shape, row.bound, row.reason) == ((3, 4, 16), 6, "2 positions")


def encoder(width: int = 64, layers: int = 1, dropout: float = 0.0) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout, batch_first=True)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


@pytest.mark.parametrize("batch", [1, 2])
def test_transformer(batch: int) -> None:
    model, tokens = nn.Sequential(nn.Embedding(100, 64), encoder(), nn.Linear(64, 100)), torch.arange(8 * batch).view(batch, 8)
    times = "" if batch == 1 else "batch of 2 x "
    queries = (8 * batch, f"{times}sequence of 8")
    attention = "1.layers.0.self_attn"
    assert summary(gradient_rank_bounds(model, tokens)) == {
        "0.weight": (8 * batch, f"{8 * batch} distinct tokens"),
        f"{attention}.in_proj_weight.q": queries,
        f"{attention}.in_proj_weight.k": (7 * batch, f"{times}sequence of 8, less one that softmax does not see"),
        f"{attention}.in_proj_weight.v": queries,
        f"{attention}.out_proj.weight": queries,
        "1.layers.0.linear1.weight": queries,
        "1.layers.0.linear2.weight": queries,
        "2.weight": queries,
    }


def test_shape_binds_a_transformer_on_many_tokens() -> None:
    """And a LayerNorm, which sends back rows that sum to zero, is not taken for a loss."""
    model = nn.Sequential(encoder(16), nn.Linear(16, 40))
    reasons = [row.reason for row in gradient_rank_bounds(model, torch.randn(16, 8, 16))]
    assert reasons[:4] == ["its own shape"] * 4
    assert reasons[5] == "output gradient of rank 15"
    assert not any("classes" in reason for reason in reasons)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
@pytest.mark.parametrize("batch", [1, 2])
def test_recurrent_layers(kind: type[nn.Module], batch: int) -> None:
    model = nn.Sequential(Last(kind(24, 32, num_layers=2, batch_first=True)), nn.Linear(32, 5))
    table = summary(gradient_rank_bounds(model, torch.randn(batch, 8, 24)))
    times = "" if batch == 1 else "batch of 2 x "
    inputs, states = (8 * batch, f"{times}sequence of 8"), (
        7 * batch, f"{times}sequence of 8, of which the first step meets no state",
    )  # fmt: skip
    assert {value for name, value in table.items() if "_ih" in name} == {inputs}
    assert {value for name, value in table.items() if "_hh" in name} == {states}
    assert len(table) == 4 * {nn.RNN: 1, nn.GRU: 3, nn.LSTM: 4}[kind] + 1


def test_recurrent_layer_that_is_given_a_state_has_a_term_more() -> None:
    class WithState(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.RNN(6, 20)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.cell(inputs, torch.ones(1, inputs.shape[1], 20, dtype=inputs.dtype))[0]

    table = summary(gradient_rank_bounds(WithState(), torch.randn(5, 2, 6), "mse"))
    assert table["cell.weight_hh_l0"] == (10, "batch of 2 x sequence of 5")


def test_packed_sequences_count_their_tokens() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRU(30, 40)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.cell(pack_padded_sequence(inputs, torch.tensor([5, 3, 3])))[0].data

    table = summary(gradient_rank_bounds(Packed(), torch.randn(5, 3, 30), "mse"))
    assert table["cell.weight_ih_l0.new"] == (11, "11 rows of 3 samples")
    assert table["cell.weight_hh_l0.new"][0] == 8


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(50, 16), nn.Linear(16, 16), nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(self.embed(tokens)).tanh())


def test_tied_weights_add_up() -> None:
    table = summary(gradient_rank_bounds(Tied(), torch.tensor([[3, 1, 4]])))
    assert table == {
        "embed.weight": (6, "3 distinct tokens + sequence of 3"),
        "body.weight": (3, "sequence of 3"),
    }
    assert summary(gradient_rank_bounds(Tied(), torch.arange(20)[None]))["embed.weight"] == (16, "its own shape")


def test_layer_used_twice_counts_twice() -> None:
    layer = nn.Linear(30, 30)
    model = nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(30, 5))
    assert summary(gradient_rank_bounds(model, torch.randn(3, 30)))["0.weight"] == (6, "batch of 6")


class Partly(nn.Module):
    """Layers that do not all run, or whose output is not all used."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle, self.dropped = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, inputs: Tensor) -> Tensor:
        self.dropped(inputs)
        with torch.no_grad():
            inputs = self.used(inputs)
        return self.used(inputs)


def test_layer_that_does_not_run_says_so() -> None:
    table = summary(gradient_rank_bounds(Partly(), torch.randn(2, 6), "mse"))
    assert table["idle.weight"] == (None, "Linear did not run")


def test_passes_without_gradients_do_not_count() -> None:
    assert summary(gradient_rank_bounds(Partly(), torch.randn(2, 6), "mse"))["used.weight"] == (2, "batch of 2")


class Masked(nn.Linear):
    """Not every subclass of a layer has the gradient of a layer: here it is full."""

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.linear(inputs, self.weight * torch.ones_like(self.weight).tril(), self.bias)


class Transposed(nn.Module):
    """The decoder of a tied auto-encoder."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight


def tied_auto_encoder() -> nn.Module:
    layer = nn.Linear(9, 9)
    return nn.Sequential(layer, Transposed(layer.weight))


@pytest.mark.parametrize(
    ("model", "inputs", "kind"),
    [
        (nn.Sequential(nn.ConvTranspose2d(2, 3, 2), nn.Flatten()), torch.randn(4, 2, 2, 2), "ConvTranspose2d"),
        (Masked(9, 9), torch.randn(2, 9), "Masked"),
        (tied_auto_encoder(), torch.randn(2, 9), "Transposed"),
        (nn.LSTMCell(3, 4), torch.randn(2, 3), "LSTMCell"),
    ],
    ids=["transposed convolution", "masked layer", "weight used elsewhere", "recurrent cell"],
)
def test_where_no_bound_is_known_none_is_given(model: nn.Module, inputs: Tensor, kind: str) -> None:
    table = gradient_rank_bounds(model, inputs, "mse")
    assert {(row.bound, row.reason) for row in table} == {(None, f"no bound is known for {kind}")}
    assert str(table).endswith(f"    -  no bound is known for {kind}")


def test_frozen_layers_are_absent() -> None:
    model = perceptron(8, 8, 8, 3)
    model[2].requires_grad_(False)
    assert list(summary(gradient_rank_bounds(model, torch.randn(4, 8)))) == ["0.weight", "4.weight"]


@pytest.mark.parametrize(
    ("layers", "names"),
    [("0", ["0.weight"]), (["2", "4"], ["2.weight", "4.weight"]), (lambda name: "4" in name, ["4.weight"])],
)
def test_layers_are_selected(layers: Any, names: list[str]) -> None:
    assert list(summary(gradient_rank_bounds(perceptron(8, 8, 8, 3), torch.randn(4, 8), layers=layers))) == names


class FusedAttention(nn.Module):
    """Of one layer for queries, keys and values, as in GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(12, 36)

    def forward(self, inputs: Tensor) -> Tensor:
        queries, keys, values = self.qkv(inputs).chunk(3, -1)
        return (queries @ keys.mT / 4).softmax(-1) @ values


@pytest.mark.parametrize("pattern", ["*.q", "*.k", "*.v", ["*.q", "*.v"]], ids=str)
@pytest.mark.parametrize("model", [nn.Sequential(encoder(12)), FusedAttention()], ids=["torch's", "fused"])
def test_a_part_of_stacked_matrices_has_the_bound_that_it_has_among_all(model: nn.Module, pattern: Any) -> None:
    inputs = torch.randn(1, 5, 12)
    loss = torch.randn(5, 12).double().mul
    table = summary(gradient_rank_bounds(model, inputs, lambda output: loss(output).sum()))
    part = summary(gradient_rank_bounds(model, inputs, lambda output: loss(output).sum(), pattern))
    assert len(part) == len(pattern) if isinstance(pattern, list) else 1
    assert part == {name: table[name] for name in part}


@pytest.mark.parametrize("option", ["add_bias_kv", "add_zero_attn"])
def test_key_that_attention_adds_of_its_own_counts(option: str) -> None:
    """With one more to choose from, the keys of the sequence lose no rank to softmax."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True, **{option: True})

        def forward(self, inputs: Tensor) -> Tensor:
            return self.attention(inputs, inputs, inputs)[0]

    model, inputs, target = Attention(), torch.randn(1, 3, 16), torch.randn(1, 3, 16).double()
    ranks = gradient_ranks(model, inputs, lambda output: nn.functional.mse_loss(output, target))
    table = gradient_rank_bounds(model, inputs, "mse", "attention.in_proj_weight")
    assert ranks["attention.in_proj_weight.k"] == 3
    assert [ranks[row.layer] <= row.bound for row in table] == [True] * 3


def test_longest_call_counts_for_attention() -> None:
    class TwoLengths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(40, 2, batch_first=True)

        def forward(self, inputs: Tensor) -> Tensor:
            whole, part = (self.attention(x, x, x)[0] for x in (inputs[:, :8], inputs[:, 8:]))
            return torch.cat([whole, part], 1)

    model, inputs, target = TwoLengths(), torch.randn(1, 10, 40), torch.randn(1, 10, 40).double()
    ranks = gradient_ranks(model, inputs, lambda output: nn.functional.mse_loss(output, target))
    assert ranks["attention.in_proj_weight.q"] == 10
    for row in gradient_rank_bounds(model, inputs, "mse"):
        assert ranks[row.layer] <= row.bound


class Residual(nn.Sequential):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + super().forward(inputs)


ACTIVATIONS = (nn.Identity, nn.ReLU, nn.GELU)
NORMS = (nn.Identity, nn.BatchNorm1d, nn.LayerNorm)


@st.composite
def perceptrons(draw) -> tuple[nn.Module, Tensor]:
    widths = draw(st.lists(st.integers(1, 12), min_size=2, max_size=5))
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(widths):
        layers += [
            nn.Linear(n, m, bias=draw(st.booleans())),
            draw(st.sampled_from(NORMS))(m),
            draw(st.sampled_from(ACTIVATIONS))(),
        ]
        if draw(st.booleans()):
            shared = nn.Linear(m, m)
            layers += [Residual(shared, nn.Tanh()), nn.Dropout(0.2), shared]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 4)), torch.randn(draw(st.integers(2, 10)), widths[0])


@st.composite
def convnets(draw) -> tuple[nn.Module, Tensor]:
    dims, channels = draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 4]))
    convolution, norm = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d))[dims - 1]
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 2))):
        groups = draw(st.sampled_from([1, channels]))
        options = {"stride": draw(st.integers(1, 3)), "padding": draw(st.integers(0, 2)), "groups": groups}
        wider = channels * draw(st.sampled_from([1, 2]))
        layers += [convolution(channels, wider, draw(st.integers(1, 3)), **options), norm(wider), nn.ReLU()]
        channels = wider
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool2d)[dims - 1](1)
    images = torch.randn(draw(st.integers(2, 3)), layers[0].in_channels, *[draw(st.integers(9, 12))] * dims)
    return nn.Sequential(*layers, pool, nn.Flatten(), nn.Linear(channels, 4)), images


@st.composite
def recurrent_networks(draw) -> tuple[nn.Module, Tensor]:
    kind, layers = draw(st.sampled_from([nn.RNN, nn.GRU, nn.LSTM])), draw(st.integers(1, 2))
    options = {"bidirectional": draw(st.booleans()), "dropout": 0.3 * (layers - 1)}
    if kind is nn.LSTM and draw(st.booleans()):
        options["proj_size"] = 3
    n, h = draw(st.integers(1, 6)), draw(st.integers(4, 8))
    recurrent = kind(n, h, layers, batch_first=True, **options)
    head = nn.Linear(options.get("proj_size", h) * (1 + options["bidirectional"]), 4)
    sequences = torch.randn(draw(st.integers(1, 3)), draw(st.integers(1, 5)), n)
    return nn.Sequential(nn.Linear(n, n), Last(recurrent), head), sequences


@st.composite
def transformers(draw) -> tuple[nn.Module, Tensor]:
    heads = draw(st.integers(1, 3))
    width = heads * draw(st.integers(1, 4))
    options = {"dropout": draw(st.sampled_from([0, 0.2])), "norm_first": draw(st.booleans())}
    layers = [
        nn.TransformerEncoderLayer(width, heads, 2 * width, batch_first=True, **options)
        for _ in range(draw(st.integers(1, 2)))
    ]
    embed, head = nn.Embedding(9, width, padding_idx=draw(st.none() | st.integers(0, 8))), nn.Linear(width, 9)
    if draw(st.booleans()):
        head.weight = embed.weight
    return nn.Sequential(embed, *layers, head), torch.randint(9, (draw(st.integers(1, 3)), draw(st.integers(1, 5))))


@pytest.mark.parametrize("models", [perceptrons, convnets, recurrent_networks, transformers])
def test_no_gradient_exceeds_its_bound(models: Callable[[], Any]) -> None:
    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 999), data=st.data(), mse=st.booleans())
    def check(seed: int, data: Any, mse: bool) -> None:
        torch.manual_seed(seed)
        model, inputs = data.draw(models())
        target = torch.randn_like(copy.deepcopy(model)(inputs)).double()
        labels = target.reshape(-1, target.shape[-1]).argmax(1)

        def loss(output: Tensor) -> Tensor:
            if mse:
                return nn.functional.mse_loss(output, target)
            return nn.functional.cross_entropy(output.reshape(-1, output.shape[-1]), labels)

        torch.manual_seed(seed)  # the same dropout
        table = gradient_rank_bounds(model, inputs, loss)
        torch.manual_seed(seed)
        ranks = gradient_ranks(model, inputs, loss)
        assert set(ranks) == {row.layer for row in table}
        for row in table:
            assert ranks[row.layer] <= row.bound, (row, ranks[row.layer])

    check()


@pytest.mark.parametrize("batch", [3, 20])
def test_bounds_of_a_perceptron_are_reached(batch: int) -> None:
    model, inputs, target = (
        perceptron(12, 30, 8, 30, 6, activation=nn.Tanh),
        torch.randn(batch, 12),
        torch.randn(batch, 6).double(),
    )
    ranks = gradient_ranks(model, inputs, lambda output: nn.functional.mse_loss(output, target))
    assert {row.layer: row.bound for row in gradient_rank_bounds(model, inputs, "mse")} == ranks


def captured(model: nn.Module, passes: Callable[[], None]) -> tuple[BoundTable, dict[str, tuple[Tensor, Tensor]]]:
    capture = RowCapture(model, torch.Generator())
    passes()
    capture.close()
    return bounds_of_layers(model, capture.layers), outer_products_of_layers(model, capture.layers)


def check_factors(model: nn.Module, factors: dict[str, tuple[Tensor, Tensor]]) -> None:
    for name, gradient in gradient_matrices(model).items():
        inputs, deltas = factors[name]
        torch.testing.assert_close(deltas.mT @ inputs, gradient)


def test_outer_products_of_accumulated_passes_add_up_to_the_gradient() -> None:
    model = perceptron(20, 30, 20).double()

    def passes() -> None:
        for batch in (2, 3):
            model(torch.randn(batch, 20).double()).square().sum().backward()

    table, factors = captured(model, passes)
    assert [(row.bound, row.reason) for row in table] == [(5, "batch of 5")] * 2
    check_factors(model, factors)


def test_two_losses_back_through_one_pass_are_both_captured() -> None:
    """Each on one output: the rows of the first alone would have rank 1."""
    model = perceptron(20, 30, 20).double()

    def passes() -> None:
        output = model(torch.randn(4, 20).double())
        output[:, 0].square().sum().backward(retain_graph=True)
        output[:, 1].square().sum().backward()

    table, factors = captured(model, passes)
    assert [row.bound for row in table] == [4, 2]
    check_factors(model, factors)


def test_outer_products_of_fused_projections() -> None:
    model = FusedAttention().double()
    _, factors = captured(model, lambda: model(torch.randn(2, 5, 12).double()).square().sum().backward())
    assert list(factors) == ["qkv.weight.q", "qkv.weight.k", "qkv.weight.v"]
    check_factors(model, factors)


def test_layer_behind_a_dead_relu_has_rank_zero() -> None:
    model = perceptron(8, 6, 3)
    model[0].bias.data.fill_(-100)
    assert [row.bound for row in gradient_rank_bounds(model, torch.randn(4, 8))] == [0, 0]


def test_rows_beyond_what_is_kept_are_sampled() -> None:
    """Of 80,000 rows of 64 a few show full rank; that of a bottleneck cannot be told from them and is not given."""
    model = perceptron(64, 64, 3)
    free = gradient_rank_bounds(model, torch.randn(80_000, 64))
    low = gradient_rank_bounds(model, torch.randn(80_000, 2).double() @ torch.randn(2, 64).double())
    assert (free[0].bound, free[0].reason, free[0].input_rank) == (64, "its own shape", 64)
    assert (low[0].bound, low[0].reason, low[0].input_rank) == (64, "its own shape", None)


def test_capture_leaves_no_hook() -> None:
    model = perceptron(4, 4, 3)
    capture = RowCapture(model, torch.Generator())
    output = model(torch.randn(2, 4))
    capture.close()
    assert not any(module._forward_hooks for module in model.modules())
    output.sum().backward()
    assert not capture.layers["0"].deltas


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5)

    def forward(self, left: Tensor, right: Tensor, scale: Any = 1) -> Tensor:
        return self.layer(left + right) * scale


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@pytest.mark.parametrize(
    "inputs",
    [
        (torch.randn(3, 6), torch.randn(3, 6)),
        Pair(torch.randn(3, 6), torch.randn(3, 6)),
        {"left": torch.randn(3, 6), "right": torch.randn(3, 6), "scale": 2.0},
        {"right": torch.randn(3, 6), "left": torch.randn(3, 6).double()},
    ],
    ids=["tuple", "named tuple", "dict", "dict of mixed types"],
)
def test_inputs_of_several_tensors(inputs: Any) -> None:
    assert summary(gradient_rank_bounds(Keywords(), inputs)) == {"layer.weight": (3, "batch of 3")}


def test_packed_sequence_is_one_input() -> None:
    inputs = pack_padded_sequence(torch.randn(5, 3, 6), torch.tensor([5, 3, 3]))
    table = summary(gradient_rank_bounds(nn.RNN(6, 20), inputs, lambda output: output[0].data.square().sum()))
    assert table["weight_hh_l0"][0] == 8


def test_nested_inputs_are_cast_to_float64() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 5)

        def forward(self, parts: list[Tensor], table: dict[str, Tensor]) -> Tensor:
            return self.layer(sum(parts) + table["more"])

    inputs = ([torch.randn(3, 6), torch.randn(3, 6)], {"more": torch.randn(3, 6)})
    assert gradient_rank_bounds(Sum(), inputs)[0].bound == 3


class Pixels(nn.Module):
    """Logits a pixel, of shape (N, classes, height, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(20, 7)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images).movedim(-1, 1)


def test_cross_entropy_of_four_dimensions_has_its_classes_second() -> None:
    assert summary(gradient_rank_bounds(Pixels(), torch.randn(2, 4, 4, 20))) == {
        "layer.weight": (6, "7 classes under cross-entropy")
    }
    assert summary(gradient_rank_bounds(Pixels(), torch.randn(2, 4, 4, 20), "mse")) == {"layer.weight": (7, "its own shape")}


def test_cross_entropy_of_three_dimensions_has_its_classes_last() -> None:
    assert summary(gradient_rank_bounds(nn.Linear(20, 7), torch.randn(2, 9, 20))) == {
        "weight": (6, "7 classes under cross-entropy")
    }


def test_first_of_several_outputs_is_what_the_loss_sees() -> None:
    class Two(Partly):
        def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
            return self.used(inputs), self.idle(inputs)

    table = summary(gradient_rank_bounds(Two(), torch.randn(2, 6), layers=["used", "idle"]))
    assert table == {"used.weight": (2, "batch of 2"), "idle.weight": (2, "batch of 2")}


def test_loss_of_ones_own() -> None:
    """One output in the loss: rank 1."""
    table = summary(gradient_rank_bounds(perceptron(8, 8, 3), torch.randn(5, 8), lambda output: output[:, 0].sum()))
    assert table["2.weight"] == (1, "output gradient of rank 1")


def test_float16_model_is_measured_in_float64() -> None:
    assert gradient_rank_bounds(perceptron(8, 8, 3, activation=nn.Tanh).half(), torch.randn(5, 8).half())[0].bound == 5


def everything(model: nn.Module) -> dict[str, Any]:
    return {
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "types": [parameter.dtype for parameter in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "training": [module.training for module in model.modules()],
        "hooks": [len(module._forward_hooks) + len(module._backward_hooks) for module in model.modules()],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),  # ruff: ignore[numpy-legacy-random]
        "python": random.getstate(),
    }


@pytest.mark.parametrize("loss", ["cross_entropy", "mse", lambda output: output.square().sum()], ids=["ce", "mse", "own"])
def test_model_gradients_and_random_state_stay_as_they_are(loss: Any) -> None:
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(36, 3)]
    model, images = nn.Sequential(*layers), torch.randn(6, 2, 5, 5)
    model(images).sum().backward()
    model[3].eval()
    model[5].register_forward_hook(lambda *_: None)
    before, gradients, pixels = everything(model), [p.grad for p in model.parameters()], images.clone()
    gradient_rank_bounds(model, images, loss)
    assert_identical(everything(model), before)
    assert all(p.grad is gradient for p, gradient in zip(model.parameters(), gradients, strict=True))
    assert torch.equal(images, pixels)


def test_hooks_go_when_the_model_fails() -> None:
    model = perceptron(8, 8, 3)
    with pytest.raises(ValueError, match="it refuses"):
        gradient_rank_bounds(model, torch.randn(4, 7))
    assert not any(module._forward_hooks for module in model.modules())


def test_gradients_of_the_model_do_not_add_to_the_bound() -> None:
    """Nor does being called where gradients are off."""
    model = perceptron(8, 8, 3)
    model(torch.randn(8, 8)).sum().backward()
    with torch.no_grad():
        assert gradient_rank_bounds(model, torch.randn(2, 8))[0].bound == 2


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            torch.randn(4, 7),
            r"that the model takes, but it refuses: mat1 and mat2 shapes cannot be multiplied \(4x7 and 8x8\)",
        ),
        ((torch.randn(4, 8), torch.randn(4, 8)), "it refuses: .*takes 2 positional arguments but 3 were given"),
        ({"pixels": torch.randn(4, 8)}, "it refuses: .*unexpected keyword argument 'pixels'"),
        (torch.zeros(4, 8, dtype=torch.int64), "it refuses: "),
        (None, "it refuses: "),
    ],
    ids=["width", "one too many", "keyword", "integers", "none"],
)
def test_input_that_the_model_refuses_is_refused_in_its_words(inputs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gradient_rank_bounds(perceptron(8, 8, 3), inputs)


def test_computed_weights_have_a_row_without_a_bound() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.utils.parametrizations.weight_norm(nn.Linear(5, 4)), nn.Linear(4, 3))
    rows = gradient_rank_bounds(model, torch.randn(2, 6))
    assert [(row.layer, row.shape, row.bound) for row in rows] == [
        ("0.weight", (5, 6), 2),
        ("2.weight", (3, 4), 2),
        ("1.weight", (4, 5), None),
    ]
    assert rows[-1].reason.startswith("computed from other parameters, as by weight_norm")
    assert [row.layer for row in gradient_rank_bounds(model, torch.randn(2, 6), layers="2")] == ["2.weight"]


@pytest.mark.parametrize("loss", ["nll", "CE", None, 3], ids=str)
def test_unknown_loss_is_refused(loss: Any) -> None:
    with pytest.raises(ValueError, match=f"Expected loss to be one of cross_entropy, mse or a function .*, got {loss!r}"):
        gradient_rank_bounds(perceptron(8, 8, 3), torch.randn(4, 8), loss)


@pytest.mark.parametrize(
    "loss",
    [lambda output: output, lambda output: 1.0, lambda output: output.detach().sum(), lambda output: None],
    ids=["matrix", "number", "detached", "none"],
)
def test_loss_that_is_no_scalar_of_the_parameters_is_refused(loss: Any) -> None:
    with pytest.raises(ValueError, match="Expected loss to give a scalar that depends on the model's trainable parameters"):
        gradient_rank_bounds(perceptron(8, 8, 3), torch.randn(4, 8), loss)


def test_frozen_model_is_refused() -> None:
    with pytest.raises(ValueError, match="depends on the model's trainable parameters"):
        gradient_rank_bounds(perceptron(8, 8, 3).requires_grad_(False), torch.randn(4, 8))


def test_output_that_is_no_tensor_is_refused() -> None:
    class Named(Partly):
        def forward(self, inputs: Tensor) -> dict[str, Tensor]:
            return {"logits": self.used(inputs)}

    with pytest.raises(
        ValueError, match="Expected a tensor from the model for loss='cross_entropy', got dict: give a function"
    ):
        gradient_rank_bounds(Named(), torch.randn(2, 6))
    assert gradient_rank_bounds(Named(), torch.randn(2, 6), lambda output: output["logits"].sum(), "used")[0].bound == 1


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("decoder", r"Expected 'decoder' in layers to match a matrix.*Choose from 0\.weight, 2\.weight"),
        ([], "Expected at least one pattern in layers"),
        (lambda name: False, "Expected layers to accept the name of a matrix"),
    ],
    ids=["pattern", "no pattern", "function"],
)
def test_layers_that_match_nothing_are_refused(layers: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gradient_rank_bounds(perceptron(8, 8, 3), torch.randn(4, 8), layers=layers)
