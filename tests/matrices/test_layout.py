import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils import parametrize

from rank_callbacks.matrices import check_conv, matrix_views


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def view(module: nn.Module, name: str = "weight", conv: str = "filters") -> Tensor:
    """The one matrix that a parameter holds."""
    views = matrix_views(name, module, getattr(module, name).detach(), conv)
    assert views is not None
    assert list(views) == [name if conv == "filters" else f"{name}.{conv}"]
    return next(iter(views.values()))


def views_of(module: nn.Module) -> dict[str, Tensor]:
    every = [matrix_views(name, module, p.detach()) for name, p in module.named_parameters(recurse=False)]
    return {name: matrix for views in every for name, matrix in (views or {}).items()}


def spectrum(matrix: Tensor) -> np.ndarray:
    """All singular values of a matrix or of a block-diagonal one."""
    return np.sort(np.linalg.svd(matrix.detach().numpy(), compute_uv=False).ravel())[::-1]


def test_linear_is_the_tensor_itself() -> None:
    layer, inputs = nn.Linear(5, 3, bias=False), torch.randn(4, 5)
    torch.testing.assert_close(inputs @ view(layer).mT, layer(inputs))
    assert view(layer).data_ptr() == layer.weight.data_ptr()


def test_bilinear_is_a_form_for_each_output() -> None:
    layer, left, right = nn.Bilinear(4, 5, 3, bias=False), torch.randn(7, 4), torch.randn(7, 5)
    forms = view(layer)
    expected = torch.stack([((left @ form) * right).sum(-1) for form in forms], dim=-1)
    torch.testing.assert_close(layer(left, right), expected)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_embedding_has_a_row_for_each_entry(kind: type[nn.Module]) -> None:
    layer = kind(6, 3)
    torch.testing.assert_close(view(layer)[[4, 1]], layer(torch.tensor([[4], [1]])).reshape(2, 3))


def test_bare_parameter_of_two_dimensions_is_a_matrix() -> None:
    module = nn.Module()
    module.prompt = nn.Parameter(torch.randn(4, 3))
    torch.testing.assert_close(view(module, "prompt"), module.prompt.detach())


def test_complex_parameter_is_a_matrix() -> None:
    layer, inputs = nn.Linear(5, 3, bias=False, dtype=torch.complex128), torch.randn(4, 5, dtype=torch.complex128)
    torch.testing.assert_close(inputs @ view(layer).mT, layer(inputs))


CONVOLUTIONS = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
TRANSPOSED = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]
KERNEL = (3, 2, 3)
IMAGE = (6, 5, 4)


def conv_layer(kind: type[nn.Module], groups: int) -> tuple[nn.Module, int]:
    dims = CONVOLUTIONS.index(kind) + 1 if kind in CONVOLUTIONS else TRANSPOSED.index(kind) + 1
    return kind(4, 8, KERNEL[:dims], groups=groups, bias=False), dims


def patches(images: Tensor, dims: int, groups: int, flip: bool = False) -> Tensor:
    """What a kernel sees at every place, (N, groups, C_in / groups · k, places)."""
    for dim in range(dims):
        images = images.unfold(2 + dim, KERNEL[dim], 1)
    if flip:
        images = images.flip(list(range(-dims, 0)))
    places = images.flatten(2, 1 + dims).flatten(3)  # (N, C_in, places, k)
    return places.transpose(2, 3).reshape(len(images), groups, -1, places.shape[2])


def as_blocks(matrix: Tensor) -> Tensor:
    return matrix if matrix.dim() == 3 else matrix[None]


@pytest.mark.parametrize("groups", [1, 2, 4], ids=["dense", "grouped", "depthwise"])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_filters_times_patches_are_the_convolution(kind: type[nn.Module], groups: int) -> None:
    layer, dims = conv_layer(kind, groups)
    images = torch.randn(2, 4, *IMAGE[:dims])
    outputs = as_blocks(view(layer)) @ patches(images, dims, groups)
    torch.testing.assert_close(outputs.flatten(), layer(images).flatten())


@pytest.mark.parametrize("groups", [1, 2, 4], ids=["dense", "grouped", "depthwise"])
@pytest.mark.parametrize("kind", TRANSPOSED)
def test_filters_times_flipped_patches_are_the_transposed_convolution(kind: type[nn.Module], groups: int) -> None:
    layer, dims = conv_layer(kind, groups)
    images = torch.randn(2, 4, *IMAGE[:dims])
    border = [k - 1 for k in reversed(KERNEL[:dims]) for _ in range(2)]
    seen = patches(nn.functional.pad(images, border), dims, groups, flip=True)
    torch.testing.assert_close((as_blocks(view(layer)) @ seen).flatten(), layer(images).flatten())


def test_filters_of_a_transposed_convolution_have_the_rank_of_their_outputs() -> None:
    layer = nn.ConvTranspose2d(6, 5, 3)
    kernel = torch.einsum("or,rckl->cokl", torch.randn(5, 2), torch.randn(2, 6, 3, 3))
    rank = np.linalg.matrix_rank(matrix_views("weight", layer, kernel)["weight"].numpy())
    assert rank == 2  # the rows, one for each output channel, mix two of them


@pytest.mark.parametrize(("groups", "shape"), [(1, (8, 36)), (2, (2, 4, 18)), (4, (4, 2, 9))])
def test_filters_have_a_block_for_each_group(groups: int, shape: tuple[int, ...]) -> None:
    assert view(nn.Conv2d(4, 8, 3, groups=groups)).shape == shape


def test_filters_of_a_dense_convolution_are_a_view() -> None:
    layer = nn.Conv2d(4, 8, 3)
    assert view(layer).data_ptr() == layer.weight.data_ptr()


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_slices_are_the_kernel_at_each_place(groups: int) -> None:
    layer = nn.Conv2d(4, 8, (3, 2), groups=groups)
    slices = view(layer, conv="slices").unflatten(0, (3, 2, groups))
    rows = layer.weight.detach().chunk(groups)
    for i, j, group in np.ndindex(3, 2, groups):
        torch.testing.assert_close(slices[i, j, group], rows[group][:, :, i, j])


@pytest.mark.parametrize("groups", [1, 2])
def test_slices_of_a_transposed_convolution_have_output_rows(groups: int) -> None:
    layer = nn.ConvTranspose2d(4, 6, (3, 2), groups=groups)
    slices = view(layer, conv="slices").unflatten(0, (3, 2, groups))
    inputs = layer.weight.detach().chunk(groups)
    for i, j, group in np.ndindex(3, 2, groups):
        torch.testing.assert_close(slices[i, j, group], inputs[group][:, :, i, j].mT)


def test_pointwise_convolution_has_one_slice() -> None:
    layer, images = nn.Conv2d(4, 8, 1, bias=False), torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(torch.einsum("oc,nchw->nohw", view(layer, conv="slices"), images), layer(images))


def dense_map(layer: nn.Module, size: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    """The matrix of a linear layer on images, a column for each pixel and channel."""
    pixels = layer.in_channels * math.prod(size)
    return layer(torch.eye(pixels, dtype=dtype).reshape(pixels, -1, *size)).flatten(1).mT


def periodic(kind: Callable[..., nn.Module], *args: object, **options: object) -> nn.Module:
    return kind(*args, padding="same", padding_mode="circular", bias=False, **options)


@pytest.mark.parametrize(
    ("layer", "conv"),
    [
        pytest.param(periodic(nn.Conv1d, 3, 4, 3), "circular_7", id="1d"),
        pytest.param(periodic(nn.Conv1d, 4, 2, 3, groups=2), "circular_6", id="1d-grouped"),
        pytest.param(periodic(nn.Conv2d, 2, 3, 3), "circular_5x5", id="2d"),
        pytest.param(periodic(nn.Conv2d, 4, 6, 3, groups=2), "circular_5x5", id="2d-grouped"),
        pytest.param(periodic(nn.Conv2d, 3, 3, 3, groups=3), "circular_4x4", id="2d-depthwise"),
        pytest.param(periodic(nn.Conv2d, 3, 2, (3, 5)), "circular_4x6", id="2d-rectangular"),
        pytest.param(periodic(nn.Conv2d, 3, 2, 1), "circular_2x3", id="2d-pointwise"),
        pytest.param(periodic(nn.Conv2d, 2, 3, 3, dilation=2), "circular_6x6", id="2d-dilated-even"),
        pytest.param(periodic(nn.Conv2d, 2, 3, 3, dilation=(1, 2)), "circular_5x4", id="2d-dilated-one-way"),
        pytest.param(periodic(nn.Conv3d, 2, 3, (2, 1, 3)), "circular_3x2x4", id="3d"),
    ],
)
def test_frequencies_have_the_singular_values_of_the_map_on_periodic_images(layer: nn.Module, conv: str) -> None:
    layer = layer.double()
    size = tuple(int(side) for side in conv.removeprefix("circular_").split("x"))
    expected = spectrum(dense_map(layer, size))
    np.testing.assert_allclose(spectrum(view(layer, conv=conv)), expected, atol=1e-12)


def test_frequencies_of_a_transposed_convolution_are_those_of_its_adjoint() -> None:
    forward, transposed = periodic(nn.Conv2d, 4, 6, 3, groups=2), nn.ConvTranspose2d(6, 4, 3, groups=2)
    transposed.weight = forward.weight
    expected = spectrum(dense_map(forward, (5, 4)))
    np.testing.assert_allclose(spectrum(view(transposed, conv="circular_5x4")), expected, atol=1e-12)
    assert view(transposed, conv="circular_5x4").shape == (5 * 4 * 2, 2, 3)


def test_frequencies_of_a_complex_kernel_keep_its_imaginary_part() -> None:
    layer = periodic(nn.Conv2d, 2, 3, 3, dtype=torch.complex128)
    expected = spectrum(dense_map(layer, (4, 4), torch.complex128))
    np.testing.assert_allclose(spectrum(view(layer, conv="circular_4x4")), expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_frequencies_of_narrow_types_are_taken_in_float32(dtype: torch.dtype) -> None:
    layer = nn.Conv2d(2, 3, 3).to(dtype)
    blocks = view(layer, conv="circular_4x4")
    assert blocks.dtype == torch.complex64
    expected = spectrum(view(layer.double(), conv="circular_4x4"))
    np.testing.assert_allclose(spectrum(blocks), expected, rtol=1e-5)


def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return (queries @ keys.mT / math.sqrt(queries.shape[-1])).softmax(-1) @ values


def test_packed_projection_of_attention_is_queries_keys_and_values() -> None:
    layer, inputs = nn.MultiheadAttention(6, num_heads=1, bias=False), torch.randn(5, 6)
    views = views_of(layer)
    assert list(views) == ["in_proj_weight.q", "in_proj_weight.k", "in_proj_weight.v"]
    q, k, v = (inputs @ part.mT for part in views.values())
    expected = attention(q, k, v) @ layer.out_proj.weight.mT
    torch.testing.assert_close(layer(inputs, inputs, inputs)[0], expected)


def test_separate_projections_of_attention_are_whole() -> None:
    layer = nn.MultiheadAttention(6, num_heads=1, bias=False, kdim=4, vdim=3)
    queries, keys, values = torch.randn(5, 6), torch.randn(7, 4), torch.randn(7, 3)
    views = views_of(layer)
    assert list(views) == ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    q, k, v = (part @ views[f"{name}_proj_weight"].mT for name, part in zip("qkv", (queries, keys, values), strict=True))
    expected = attention(q, k, v) @ layer.out_proj.weight.mT
    torch.testing.assert_close(layer(queries, keys, values)[0], expected)


def test_separate_projections_of_three_times_the_width_are_whole() -> None:
    layer = nn.MultiheadAttention(6, num_heads=1, kdim=2, vdim=2)
    assert list(views_of(layer)) == ["q_proj_weight", "k_proj_weight", "v_proj_weight"]


@pytest.mark.parametrize("name", ["qkv", "c_attn", "Wqkv", "to_qkv"])
@pytest.mark.parametrize("prefix", ["", "blocks.0.attn."], ids=["bare", "nested"])
def test_fused_projection_is_split_by_its_name(name: str, prefix: str) -> None:
    layer, inputs = nn.Linear(4, 12, bias=False), torch.randn(5, 4)
    path = f"{prefix}{name}.weight"
    views = matrix_views(path, layer, layer.weight)
    assert list(views) == [f"{path}.{part}" for part in "qkv"]
    for outputs, part in zip(layer(inputs).chunk(3, dim=-1), views.values(), strict=True):
        torch.testing.assert_close(inputs @ part.mT, outputs)


@pytest.mark.parametrize(
    ("path", "out"),
    [
        pytest.param("attn.qkv.weight", 8, id="grouped-query attention"),
        pytest.param("attn.Wqkv.weight", 24, id="wider heads"),
        pytest.param("attn.query_key_value.weight", 12, id="heads interleaved"),
        pytest.param("attn.my_qkv.weight", 12, id="another name"),
        pytest.param("qkv.proj.weight", 12, id="inside a module of the name"),
        pytest.param("attn.qkv.lora_B", 12, id="another parameter of the module"),
        pytest.param("mlp.c_fc.weight", 12, id="three times as wide by chance"),
    ],
)
def test_other_projections_are_whole(path: str, out: int) -> None:
    weight = torch.randn(out, 4)
    views = matrix_views(path, nn.Linear(4, out), weight)
    assert list(views) == [path]
    torch.testing.assert_close(views[path], weight)


class Conv1D(nn.Module):
    """Hugging Face's: a linear layer that stores the transpose."""

    def __init__(self, out: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, out))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_conv1d_of_hugging_face_is_transposed() -> None:
    layer, inputs = Conv1D(3, 5), torch.randn(2, 5)
    torch.testing.assert_close(linear(inputs, view(layer)), layer(inputs))


@pytest.mark.parametrize("parametrised", [False, True])
def test_fused_conv1d_of_gpt2_is_split_in_its_columns(parametrised: bool) -> None:
    layer, inputs = Conv1D(12, 4), torch.randn(2, 4)
    if parametrised:
        parametrize.register_parametrization(layer, "weight", Doubled())
    views = matrix_views("h.0.attn.c_attn.weight", layer, layer.weight)
    assert [name[-2:] for name in views] == [".q", ".k", ".v"]
    for outputs, part in zip(layer(inputs).split(4, dim=-1), views.values(), strict=True):
        torch.testing.assert_close(linear(inputs, part), outputs)


# Recurrent layers. A step takes part(kind, gate, x), the product of x and the gate's matrix, and the state (h, c).

Part = Callable[[str, str, Tensor], Tensor]
State = tuple[Tensor, Tensor]


def lstm_step(part: Part, x: Tensor, state: State) -> State:
    h, c = state
    i, f, g, o = (part("ih", gate, x) + part("hh", gate, h) for gate in (".input", ".forget", ".cell", ".output"))
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_step(part: Part, x: Tensor, state: State) -> State:
    h, c = state
    reset, update = ((part("ih", gate, x) + part("hh", gate, h)).sigmoid() for gate in (".reset", ".update"))
    new = (part("ih", ".new", x) + reset * part("hh", ".new", h)).tanh()
    return (1 - update) * new + update * h, c


def rnn_step(part: Part, x: Tensor, state: State) -> State:
    h, c = state
    return (part("ih", "", x) + part("hh", "", h)).tanh(), c


STEPS = {nn.LSTM: lstm_step, nn.GRU: gru_step, nn.RNN: rnn_step}
CELLS = {nn.LSTMCell: lstm_step, nn.GRUCell: gru_step, nn.RNNCell: rnn_step}
HIDDEN = 4


def outputs_by_hand(kind: type[nn.Module], views: dict[str, Tensor], inputs: Tensor, suffix: str) -> Tensor:
    project = views.get(f"weight_hr{suffix}", torch.eye(HIDDEN))
    state = torch.zeros(len(project)), torch.zeros(HIDDEN)
    outputs = []
    for x in inputs:
        h, c = STEPS[kind](lambda i, gate, x: views[f"weight_{i}{suffix}{gate}"] @ x, x, state)
        state = project @ h, c
        outputs.append(state[0])
    return torch.stack(outputs)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.LSTM, {}),
        (nn.LSTM, {"num_layers": 2}),
        (nn.LSTM, {"bidirectional": True}),
        (nn.LSTM, {"proj_size": 2}),
        (nn.LSTM, {"proj_size": 2, "num_layers": 2, "bidirectional": True}),
        (nn.GRU, {}),
        (nn.GRU, {"num_layers": 2, "bidirectional": True}),
        (nn.RNN, {}),
        (nn.RNN, {"num_layers": 2, "bidirectional": True}),
    ],
    ids=lambda value: "-".join(value) or "plain" if isinstance(value, dict) else value.__name__,
)
def test_gates_run_the_recurrent_layer_by_hand(kind: type[nn.Module], options: dict[str, int]) -> None:
    layer, inputs = kind(3, HIDDEN, bias=False, **options), torch.randn(5, 3)
    views, by_hand = views_of(layer), inputs
    for i in range(layer.num_layers):
        directions = [outputs_by_hand(kind, views, by_hand, f"_l{i}")]
        if layer.bidirectional:
            directions.append(outputs_by_hand(kind, views, by_hand.flip(0), f"_l{i}_reverse").flip(0))
        by_hand = torch.cat(directions, dim=-1)
    torch.testing.assert_close(layer(inputs)[0], by_hand)


@pytest.mark.parametrize("kind", CELLS)
def test_gates_run_the_recurrent_cell_by_hand(kind: type[nn.Module]) -> None:
    cell, x, state = kind(3, HIDDEN, bias=False), torch.randn(3), (torch.randn(HIDDEN), torch.randn(HIDDEN))
    views = views_of(cell)
    after, _ = CELLS[kind](lambda i, gate, x: views[f"weight_{i}{gate}"] @ x, x, state)
    outputs = cell(x, state if kind is nn.LSTMCell else state[0])
    torch.testing.assert_close(outputs[0] if kind is nn.LSTMCell else outputs, after)


@pytest.mark.parametrize("gate", range(4))
def test_zero_rows_of_an_lstm_are_one_zero_gate(gate: int) -> None:
    layer = nn.LSTM(3, HIDDEN)
    with torch.no_grad():
        layer.weight_hh_l0[gate * HIDDEN : (gate + 1) * HIDDEN] = 0
    zero = [name for name, matrix in views_of(layer).items() if not matrix.any()]
    assert zero == ["weight_hh_l0." + ("input", "forget", "cell", "output")[gate]]


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm1d(4),
        nn.BatchNorm2d(4),
        nn.InstanceNorm2d(4, affine=True),
        nn.GroupNorm(2, 4),
        nn.LayerNorm(4),
        nn.LayerNorm((4, 5)),
        nn.LayerNorm((3, 4, 5)),
        nn.RMSNorm((4, 5)),
        nn.PReLU(4),
    ],
    ids=repr,
)
def test_scales_and_shifts_are_left_out(module: nn.Module) -> None:
    parameters = dict(module.named_parameters())
    assert parameters
    assert all(matrix_views(name, module, p) == {} for name, p in parameters.items())


@pytest.mark.parametrize("name", ["bias_k", "bias_v", "in_proj_bias"])
def test_biases_of_attention_are_left_out(name: str) -> None:
    layer = nn.MultiheadAttention(4, 1, add_bias_kv=True)
    assert matrix_views(name, layer, getattr(layer, name)) == {}


def test_bias_of_two_dimensions_is_left_out() -> None:
    assert matrix_views("head.bias", nn.Module(), torch.ones(3, 4)) == {}


def test_module_whose_name_begins_with_bias_is_measured() -> None:
    assert list(matrix_views("bias_net.weight", nn.Linear(4, 3), torch.ones(3, 4))) == ["bias_net.weight"]


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool])
def test_integers_are_left_out(dtype: torch.dtype) -> None:
    assert matrix_views("weight", nn.Linear(4, 3), torch.ones(3, 4).to(dtype)) == {}


@pytest.mark.parametrize("shape", [(1, 5, 4), (1, 1, 4), (2, 3, 4, 5), (1, 4), (4, 1)])
def test_vectors_and_tensors_of_an_unknown_module_are_not_known(shape: tuple[int, ...]) -> None:
    assert matrix_views("pos_embed", nn.Module(), torch.ones(shape)) is None


def test_stack_of_matrices_of_an_unknown_module_is_block_diagonal() -> None:
    experts = torch.randn(3, 4, 5)
    assert matrix_views("experts", nn.Module(), experts)["experts"] is experts


@pytest.mark.parametrize("subclass", [nn.Linear, type("Mine", (nn.Linear,), {})])
def test_linear_of_one_output_is_a_matrix(subclass: type[nn.Linear]) -> None:
    assert matrix_views("weight", subclass(4, 1), torch.ones(1, 4))["weight"].shape == (1, 4)


@pytest.mark.parametrize("conv", ["filters", "slices", "circular_1", "circular_32x32", "circular_8x10x12"])
def test_known_conventions_are_accepted(conv: str) -> None:
    check_conv(conv)


@pytest.mark.parametrize(
    "conv", ["", "filter", "Slices", "circular", "circular_", "circular_0x3", "circular_3x", "circular_2x2x2x2", "circular_-3"]
)
def test_unknown_conventions_are_refused(conv: str) -> None:
    with pytest.raises(ValueError, match=f"such as 'circular_32x32', got '{conv}'"):
        check_conv(conv)
    with pytest.raises(ValueError, match=f"such as 'circular_32x32', got '{conv}'"):
        matrix_views("weight", nn.Conv2d(1, 1, 3), torch.ones(1, 1, 3, 3), conv)


@pytest.mark.parametrize(
    ("kind", "conv", "kernel"),
    [
        (nn.Conv1d, "circular_8x8", r"\(3,\)"),
        (nn.Conv2d, "circular_8", r"\(3, 3\)"),
        (nn.Conv3d, "circular_8x8", r"\(3, 3, 3\)"),
        (nn.Conv2d, "circular_8x2", r"\(3, 3\)"),
    ],
)
def test_sizes_that_do_not_fit_the_kernel_are_refused(kind: type[nn.Module], conv: str, kernel: str) -> None:
    layer = kind(2, 3, 3)
    with pytest.raises(ValueError, match=f"Expected conv='{conv}' to name a size of .* stem.weight, {kernel}"):
        matrix_views("stem.weight", layer, layer.weight, conv)


def test_size_of_the_kernel_is_accepted() -> None:
    assert view(nn.Conv2d(2, 3, 3), conv="circular_3x3").shape == (9, 3, 2)
