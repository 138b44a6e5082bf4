import math
from itertools import accumulate, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rank_callbacks.functional import (
    attention_gradient_bounds,
    convolution_gradient_bound,
    convolution_positions,
    embedding_gradient_bound,
    fully_connected_gradient_bounds,
    leaky_relu_threshold,
    loss_gradient_bound,
    recurrent_gradient_bounds,
)

seeds = st.integers(0, 10**6)
sizes = st.integers(1, 9)


def exact_rank(matrix: Tensor) -> int:
    """In float64 what should be zero is at 1e-16 or so, and what is not is far above: all numbers here are around 1."""
    values = np.linalg.svd(matrix.detach().numpy(), compute_uv=False)
    return int((values > max(1e-12 * values[0], 1e-15)).sum())


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


def random_of_rank(rows: int, columns: int, rank: int) -> Tensor:
    return random(rows, rank) @ random(rank, columns)


def mse(output: Tensor) -> Tensor:
    return nn.functional.mse_loss(output, torch.randn_like(output))


def cross_entropy(output: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, torch.randint(output.shape[1], (len(output),)))


LOSSES = {"mse": mse, "cross_entropy": cross_entropy}


def perceptron(widths: list[int], bias: bool = False, activation: type[nn.Module] = nn.Identity) -> nn.Sequential:
    """Layers with activations between them."""
    layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair, bias=bias), activation())]
    return nn.Sequential(*layers[:-1]).double()


def gradient_ranks(model: nn.Module, loss: Tensor) -> list[int]:
    loss.backward()
    return [exact_rank(module.weight.grad) for module in model.modules() if isinstance(module, nn.Linear)]


@pytest.mark.parametrize(
    ("widths", "input_rank", "ranks"),
    [
        pytest.param([128] * 5, 128, [128] * 4, id="figure 1, no bottleneck"),
        pytest.param([128, 128, 16, 128, 128], 128, [16] * 4, id="figure 1, bottleneck"),
        pytest.param([128] * 5, 16, [16] * 4, id="figure S1, input of 16 dimensions"),
    ],
)
def test_linear_auto_encoders_of_the_paper(widths: list[int], input_rank: int, ranks: list[int]) -> None:
    model, inputs = perceptron(widths), random_of_rank(256, 128, input_rank)
    assert gradient_ranks(model, nn.functional.mse_loss(model(inputs), inputs)) == ranks
    assert fully_connected_gradient_bounds(widths, 256, linear=True, bias=False, input_rank=input_rank) == ranks


def test_a_weight_does_not_bound_its_own_gradient() -> None:
    """The printed equation (1) has it among those that do: here that would be 2 for all three."""
    model = perceptron([32] * 4)
    model[2].weight.data = random_of_rank(32, 32, 2)
    assert gradient_ranks(model, mse(model(random(64, 32)))) == [2, 32, 2]
    assert fully_connected_gradient_bounds([32] * 4, 64, linear=True, bias=False, weight_ranks=[32, 2, 32]) == [2, 32, 2]


def test_biases_after_a_bottleneck_add_one_direction_between_them() -> None:
    """What they add is the same for every row, so downstream of 16 all is 17."""
    model = perceptron([64, 64, 16, 64, 64, 64], bias=True)
    ranks = gradient_ranks(model, mse(model(random(128, 64))))
    assert ranks == [16, 16, 16, 17, 17]
    assert fully_connected_gradient_bounds([64, 64, 16, 64, 64, 64], 128, linear=True, bias=True) == ranks


def test_activations_leave_the_rank_of_the_input_and_of_the_loss_at_the_ends_alone() -> None:
    model = perceptron([40, 30, 20, 10], activation=nn.Tanh)
    ranks = gradient_ranks(model, cross_entropy(model(random_of_rank(25, 40, 5))))
    assert fully_connected_gradient_bounds([40, 30, 20, 10], 25, input_rank=5, output_rank=9) == ranks == [5, 20, 9]


def test_leaky_relu_auto_encoder_with_a_bottleneck() -> None:
    """Figure 4: next to the bottleneck rank 2 for any slope below 1, elsewhere more."""
    widths = [128, 128, 128, 2, 128, 128, 128]
    model, inputs = perceptron(widths, activation=nn.LeakyReLU), random(256, 128)
    ranks = gradient_ranks(model, nn.functional.mse_loss(model(inputs), inputs))
    bounds = fully_connected_gradient_bounds(widths, 256)
    assert ranks[:4] == bounds[:4] == [128, 128, 2, 2]
    assert bounds[4:] == [128, 128]
    assert min(ranks[4:]) > 2


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    seed=seeds,
    widths=st.lists(sizes, min_size=2, max_size=6),
    batch=sizes,
    input_rank=sizes,
    activation=st.sampled_from([nn.Identity, nn.ReLU, nn.Tanh]),
    bias=st.booleans(),
    loss=st.sampled_from(sorted(LOSSES)),
    factors=st.none() | st.integers(1, 3),
)
def test_perceptrons_stay_within_their_bounds(seed, widths, batch, input_rank, activation, bias, loss, factors) -> None:
    torch.manual_seed(seed)
    model = perceptron(widths, bias, activation)
    weights = [module.weight for module in model if isinstance(module, nn.Linear)]
    weight_ranks = None
    if factors and activation is nn.Identity:
        weight_ranks = [min(factors + place % 2, *weight.shape) for place, weight in enumerate(weights)]
        for weight, rank in zip(weights, weight_ranks, strict=True):
            weight.data = random_of_rank(*weight.shape, rank) / weight.shape[1]  # no saturated softmax
    ranks = gradient_ranks(model, LOSSES[loss](model(random_of_rank(batch, widths[0], input_rank))))
    bounds = fully_connected_gradient_bounds(
        widths,
        batch,
        linear=activation is nn.Identity,
        bias=bias,
        weight_ranks=weight_ranks,
        input_rank=input_rank,
        output_rank=loss_gradient_bound(loss, batch, widths[-1]),
    )
    assert all(rank <= bound for rank, bound in zip(ranks, bounds, strict=True))
    if activation is nn.Identity:
        assert ranks == bounds


@pytest.mark.parametrize("rows", [3, 20])
@pytest.mark.parametrize("outputs", [1, 2, 7])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_that_a_loss_sends_has_the_rank_of_the_bound(loss: str, outputs: int, rows: int) -> None:
    output = random(rows, outputs).requires_grad_()
    LOSSES[loss](output).backward()
    assert exact_rank(output.grad) == loss_gradient_bound(loss, rows, outputs)


@pytest.mark.parametrize(
    "options",
    [{"label_smoothing": 0.1}, {"weight": torch.arange(1.0, 6.0).double()}, {"ignore_index": 2}],
    ids=["label smoothing", "class weights", "ignored class"],
)
def test_gradient_of_any_cross_entropy_loses_a_rank(options) -> None:
    output = random(20, 5).requires_grad_()
    nn.functional.cross_entropy(output, torch.randint(5, (20,)), **options).backward()
    assert exact_rank(output.grad) == loss_gradient_bound("cross_entropy", 20, 5) == 4


def linear_elman(inputs: list[Tensor], weight: Tensor, recurrent: Tensor, bias: Tensor, state: Tensor) -> list[Tensor]:
    """H_t = X_t U^T + H_{t-1} V^T + b, for every step."""
    steps = accumulate(inputs, lambda h, x: x @ weight.T + h @ recurrent.T + bias, initial=state)
    return list(steps)[1:]


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 16])
def test_linear_elman_auto_encoder_of_figure_2(steps: int) -> None:
    """Through a bottleneck of width 2 come 2 directions a step: 2T for U and 2(T - 1) for V of every layer but the narrow."""
    widths = [128, 128, 2, 128, 128]
    cells = [
        (nn.Parameter(random(h, n) / n**0.5), nn.init.orthogonal_(nn.Parameter(random(h, h)))) for n, h in pairwise(widths)
    ]
    inputs = [random(64, 128) for _ in range(steps)]
    sequence = inputs
    for weight, recurrent in cells:
        sequence = linear_elman(sequence, weight, recurrent, zeros(len(recurrent)), zeros(64, len(recurrent)))
    nn.functional.mse_loss(torch.stack(sequence), torch.stack(inputs)).backward()
    ranks = [(exact_rank(weight.grad), exact_rank(recurrent.grad)) for weight, recurrent in cells]
    limits = [{"output_rank": 2}, {}, {"input_rank": 2}, {"input_rank": 2}]
    assert ranks == [
        recurrent_gradient_bounds(n, h, 64, steps, linear=True, bias=False, **limit)
        for (n, h), limit in zip(pairwise(widths), limits, strict=True)
    ]
    assert ranks[0] == ranks[3] == (2 * steps, 2 * (steps - 1))
    assert (ranks[1][0], ranks[2]) == (2, (2, 2 * (steps - 1)))


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    seed=seeds,
    sizes=st.tuples(sizes, sizes, sizes),
    batch=st.integers(1, 6),
    steps=st.integers(1, 5),
    input_rank=st.none() | st.integers(1, 3),
    output_rank=st.none() | st.integers(1, 3),
    bias=st.booleans(),
    carried_state=st.booleans(),
)
def test_linear_cells_stay_within_their_bounds(
    seed, sizes, batch, steps, input_rank, output_rank, bias, carried_state
) -> None:
    torch.manual_seed(seed)
    n, h, m = sizes
    into = random_of_rank(n, n, input_rank or n)
    out_of = random_of_rank(h, m, output_rank) if output_rank else random(h, h)
    weight, recurrent = random(h, n).requires_grad_(), nn.init.orthogonal_(random(h, h)).requires_grad_()
    state = random(batch, h) * carried_state
    states = linear_elman([random(batch, n) @ into for _ in range(steps)], weight, recurrent, random(h) * bias, state)
    mse(torch.stack([state @ out_of for state in states])).backward()
    options = {"input_rank": input_rank, "output_rank": output_rank, "carried_state": carried_state}
    bounds = recurrent_gradient_bounds(n, h, batch, steps, linear=True, bias=bias, **options)
    assert exact_rank(weight.grad) <= bounds[0]
    assert exact_rank(recurrent.grad) <= bounds[1]


@pytest.mark.parametrize(
    ("options", "rank"), [({"bias": False}, 1), ({"bias": True}, 2), ({"bias": False, "carried_state": True}, 6)], ids=str
)
def test_states_of_a_linear_cell_have_directions_of_their_own(options: dict[str, bool], rank: int) -> None:
    """Inputs of rank 1 leave a state of rank 2 with a bias, and of any rank where it began with any."""
    weight, recurrent = random(6, 4), random(6, 6).requires_grad_()
    bias, first = random(6) * options["bias"], random(5, 6) * options.get("carried_state", 0)
    mse(linear_elman([random_of_rank(5, 4, 1) for _ in range(2)], weight, recurrent, bias, first)[-1]).backward()
    assert exact_rank(recurrent.grad) == rank
    assert recurrent_gradient_bounds(4, 6, 5, 2, input_rank=1, linear=True, **options)[1] == rank


def test_behind_an_activation_the_recurrence_does_not_keep_the_rank_that_arrives() -> None:
    """Figure 2 is of linear cells: with a tanh two directions a step become those of the batch."""
    cell, bottleneck = nn.RNN(40, 30, bias=False).double(), random_of_rank(30, 30, 2)
    mse(cell(random(2, 20, 40))[0] @ bottleneck).backward()
    ranks = exact_rank(cell.weight_ih_l0.grad), exact_rank(cell.weight_hh_l0.grad)
    assert recurrent_gradient_bounds(40, 30, 20, 2, output_rank=2) == ranks == (30, 20)


GATES = {nn.RNN: 1, nn.GRU: 3, nn.LSTM: 4}


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    seed=seeds,
    kind=st.sampled_from(list(GATES)),
    widths=st.tuples(sizes, sizes),
    batch=st.integers(1, 4),
    steps=st.integers(1, 5),
    layers=st.integers(1, 2),
    bidirectional=st.booleans(),
    carried_state=st.booleans(),
)
def test_recurrent_layers_reach_their_bounds(seed, kind, widths, batch, steps, layers, bidirectional, carried_state) -> None:
    torch.manual_seed(seed)
    n, h = widths
    model = kind(n, h, layers, bidirectional=bidirectional).double()
    state = random(layers * (1 + bidirectional), batch, h)
    states = (state, torch.randn_like(state)) if kind is nn.LSTM else state
    output, _ = model(random(steps, batch, n), states if carried_state else None)
    mse(output).backward()
    for layer in range(layers):
        inputs = h * (1 + bidirectional) if layer else n
        bounds = recurrent_gradient_bounds(inputs, h, batch, steps, carried_state=carried_state)
        for name, bound in zip(("ih", "hh"), bounds, strict=True):
            for gradient in getattr(model, f"weight_{name}_l{layer}").grad.chunk(GATES[kind]):
                assert exact_rank(gradient) <= bound
                if kind is nn.RNN and layer == layers - 1:
                    assert exact_rank(gradient) == bound


@st.composite
def convolutions(draw, padded: bool = True) -> tuple[nn.Module, tuple[int, ...]]:
    """A layer and the size of an image on which it has at least one position."""
    dims, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    sides = st.tuples(*[st.integers(1, 3)] * dims)
    kernel, stride, dilation = draw(sides), draw(sides), draw(sides)
    padding = draw(st.tuples(*[st.integers(0, 2)] * dims)) if padded else (0,) * dims
    channels = [groups * draw(st.integers(1, 4)) for _ in range(2)]
    least = [max(1, d * (k - 1) + 1 - 2 * p) for d, k, p in zip(dilation, kernel, padding, strict=True)]
    size = tuple(side + draw(st.integers(0, 4 - dims)) for side in least)
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](*channels, kernel, stride, padding, dilation, groups).double()
    return layer, size


def grouped_rank(layer: nn.Module) -> int:
    return sum(exact_rank(block) for block in layer.weight.grad.flatten(1).chunk(layer.groups))


def bound_of(layer: nn.Module, size: tuple[int, ...], batch: int) -> int:
    positions = convolution_positions(size, layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    channels = layer.in_channels, layer.out_channels
    return convolution_gradient_bound(*channels, layer.kernel_size, positions, batch, groups=layer.groups)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(seed=seeds, case=convolutions(), batch=st.integers(1, 3))
def test_convolutions_stay_within_their_bounds(seed, case, batch) -> None:
    torch.manual_seed(seed)
    layer, size = case
    output = layer(random(batch, layer.in_channels, *size))
    assert convolution_positions(size, layer.kernel_size, layer.stride, layer.padding, layer.dilation) == output[0, 0].numel()
    mse(output).backward()
    assert grouped_rank(layer) <= bound_of(layer, size, batch)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=seeds, case=convolutions(padded=False), batch=st.integers(1, 3))
def test_convolutions_without_padding_reach_their_bounds(seed, case, batch) -> None:
    torch.manual_seed(seed)
    layer, size = case
    mse(layer(random(batch, layer.in_channels, *size))).backward()
    assert grouped_rank(layer) == bound_of(layer, size, batch)


def test_convolution_after_a_linear_bottleneck_in_the_channels() -> None:
    """Equation (12): B times the positions, where one position adds B."""
    layer, batch, positions = nn.Conv1d(12, 16, 4, stride=4, bias=False).double(), 8, 3
    bottleneck = random_of_rank(16, 16, 2)
    outputs = layer(random(batch, 12, 12)).movedim(1, -1) @ bottleneck
    # One position at a time, as the positions share the bottleneck's two directions.
    ranks = []
    for place in range(positions):
        layer.zero_grad()
        mse(outputs[:, place]).backward(retain_graph=True)
        ranks.append(exact_rank(layer.weight.grad.flatten(1)))
    assert ranks == [2, 2, 2]
    assert convolution_gradient_bound(12, 16, (4,), positions, batch=1, rank_of_a_position=2) == 6


@pytest.mark.parametrize(
    ("change", "positions"),
    [
        ({}, 64),
        ({"size": (16, 16)}, 256),
        ({"stride": (2, 2)}, 16),
        ({"kernel_size": (5, 5)}, 36),
        ({"dilation": (2, 2)}, 36),
        ({"padding": (0, 0)}, 36),
        ({"stride": (2, 1)}, 32),
        ({"size": (2, 2), "kernel_size": (7, 7)}, 0),  # no place, and not (−2)²
    ],
    ids=str,
)
def test_positions_of_a_kernel(change: dict[str, tuple[int, int]], positions: int) -> None:
    plain = {"size": (8, 8), "kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    assert convolution_positions(**plain | change) == positions


def attention_ranks(layer: nn.MultiheadAttention) -> dict[str, int]:
    parts = dict(zip("qkv", layer.in_proj_weight.grad.chunk(3), strict=True))
    return {name: exact_rank(gradient) for name, gradient in (parts | {"out": layer.out_proj.weight.grad}).items()}


def causal_mask(queries: int, keys: int) -> Tensor:
    return torch.ones(queries, keys).tril() == 0


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    seed=seeds,
    heads=st.integers(1, 3),
    width_of_a_head=st.integers(1, 5),
    batch=st.integers(1, 3),
    queries=st.integers(1, 7),
    keys=st.none() | st.integers(1, 7),
    causal=st.booleans(),
)
def test_attention_reaches_its_bounds(seed, heads, width_of_a_head, batch, queries, keys, causal) -> None:
    """Without ``keys`` this is self-attention. Across, a causal mask hides some keys from all, and ranks may stay below."""
    torch.manual_seed(seed)
    width = heads * width_of_a_head
    layer = nn.MultiheadAttention(width, heads, batch_first=True).double()
    asking = random(batch, queries, width)
    asked = random(batch, keys, width) if keys else asking
    mask = causal_mask(queries, asked.shape[1]) if causal else None
    mse(layer(asking, asked, asked, attn_mask=mask, need_weights=False)[0]).backward()
    ranks = attention_ranks(layer)
    bounds = attention_gradient_bounds(width, batch, queries, asked.shape[1], heads=heads, causal=causal)
    assert all(ranks[name] <= bounds[name] for name in bounds)
    if not keys:
        assert ranks == bounds
    elif not causal:
        assert {name: ranks[name] for name in "qkv"} == {name: bounds[name] for name in "qkv"}


def test_gradient_of_the_scores_has_rows_that_sum_to_zero() -> None:
    """What costs the keys a rank: one score a row can be left out."""
    scores = random(6, 6).requires_grad_()
    mse(scores.softmax(-1) @ random(6, 8)).backward()
    torch.testing.assert_close(scores.grad.sum(-1), zeros(6), atol=1e-15, rtol=0)
    assert exact_rank(scores.grad) == 5


def test_attention_to_a_single_key_has_nothing_to_choose() -> None:
    bounds = attention_gradient_bounds(8, batch=4, queries=6, keys=1)
    assert (bounds["q"], bounds["k"], bounds["v"]) == (0, 0, 4)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=seeds,
    tokens=st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=1, max_size=4),
    dim=sizes,
    padding_idx=st.none() | st.integers(0, 5),
)
def test_embedding_reaches_its_bound(seed, tokens, dim, padding_idx) -> None:
    torch.manual_seed(seed)
    layer = nn.Embedding(6, dim, padding_idx).double()
    mse(layer(torch.tensor(tokens))).backward()
    assert exact_rank(layer.weight.grad) == embedding_gradient_bound(torch.tensor(tokens), dim, padding_idx)


def naive_threshold(z: np.ndarray, slope: float) -> float:
    """Equation (9), counting the negative and the positive entries of each column and row."""
    of_columns = [math.sqrt((column <= 0).sum() * slope**2 + (column > 0).sum()) for column in z.T]
    of_rows = [math.sqrt((row <= 0).sum() * slope**2 + (row > 0).sum()) for row in z]
    return np.finfo(z.dtype).eps * min(max(of_columns), max(of_rows)) * np.linalg.norm(z, 2)


slopes = st.floats(0, 1, width=32)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=seeds, rows=sizes, columns=sizes, slope=slopes, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_leaky_relu_threshold_is_that_of_equation_9(seed, rows, columns, slope, dtype) -> None:
    torch.manual_seed(seed)
    z = torch.randn(rows, columns, dtype=dtype)
    threshold = leaky_relu_threshold(z, slope)
    assert threshold.dtype == dtype
    assert threshold.item() == pytest.approx(naive_threshold(z.numpy(), slope), rel=1e-5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=seeds, rows=sizes, columns=sizes, low=slopes, high=slopes)
def test_leaky_relu_threshold_is_not_below_that_of_floating_point_and_grows_with_the_slope(
    seed, rows, columns, low, high
) -> None:
    torch.manual_seed(seed)
    z, (low, high) = random(rows, columns), sorted((low, high))
    largest = torch.linalg.matrix_norm(nn.functional.leaky_relu(z, low), 2)
    eps = torch.finfo(torch.float64).eps
    assert leaky_relu_threshold(z, low) >= eps * largest * (1 - 1e-12)
    assert leaky_relu_threshold(z, low) <= leaky_relu_threshold(z, high)


@pytest.mark.parametrize("loss", ["nll", "", "MSE"])
def test_unknown_loss_is_refused(loss: str) -> None:
    with pytest.raises(ValueError, match=f"Expected loss to be 'cross_entropy' or 'mse', got '{loss}'"):
        loss_gradient_bound(loss, 3, 4)


@pytest.mark.parametrize(
    ("widths", "weight_ranks"),
    [([5], None), ([], None), ([5, 4, 3], [3]), ([5, 4], []), ([5, 4], [4, 4])],
    ids=["one width", "none", "too few ranks", "no rank", "too many ranks"],
)
def test_widths_and_ranks_that_do_not_fit_are_refused(widths: list[int], weight_ranks: list[int] | None) -> None:
    with pytest.raises(ValueError, match=r"Expected two or more widths and a rank for each weight, got \["):
        fully_connected_gradient_bounds(widths, 8, weight_ranks=weight_ranks)


@pytest.mark.parametrize("slope", [-0.1, 1.1, math.nan])
def test_slope_outside_of_0_to_1_is_refused(slope: float) -> None:
    with pytest.raises(ValueError, match=f"Expected negative_slope to be in \\[0, 1\\], got {slope}"):
        leaky_relu_threshold(random(3, 3), slope)
