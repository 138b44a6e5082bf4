"""The gradient of a weight is the sum of the outer products of all rows that passed, whatever the layer."""

import gc
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rank_callbacks.matrices import trainable_weights
from rank_callbacks.matrices.passes import Pass, PassHooks, no_passes
from tests.functional.test_patch_moments import CONVOLUTIONS, convolution, patches

B, T, N = 4, 5, 6


class Conv1D(nn.Module):
    """Hugging Face's: a linear layer that stores the transpose."""

    def __init__(self, out: int, inputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, out)), nn.Parameter(torch.zeros(out))

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return rows.view(*x.size()[:-1], -1)


class Watch:
    """Adds up the outer products of every pass, by parameter, and keeps how they came."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.sums, self.passes = model, {}, []
        self.hooks = PassHooks(model, trainable_weights(model), self.add)

    def add(self, one: Pass) -> None:
        inputs, deltas = torch.atleast_2d(one.inputs), torch.atleast_2d(one.deltas)
        if isinstance(one.module, nn.modules.conv._ConvNd):
            inputs, deltas = patches(inputs, one.module), deltas.flatten(2).mT
        else:
            assert one.inputs.shape[:-1] == one.deltas.shape[:-1]
        outer = deltas.flatten(0, -2).mT @ inputs.flatten(0, -2)
        parameter = one.weight.parameter
        if isinstance(one.module, Conv1D):
            outer = outer.mT
        outer = outer.to(parameter.dtype)
        total = self.sums.setdefault(one.weight.path, torch.zeros_like(parameter))
        rows = slice(one.first_row, one.first_row + len(outer))
        total[rows] += outer.reshape(total[rows].shape)
        self.passes.append((one.weight.path, tuple(one.inputs.shape), tuple(one.deltas.shape), one.batch_dim, one.first_row))

    def check(self, rtol: float = 1e-9) -> None:
        """Against autograd, and that every weight was seen."""
        self.hooks.close()
        weights = {weight.path: weight.parameter for weight in trainable_weights(self.model)}
        assert self.sums.keys() == weights.keys()
        for path, total in self.sums.items():
            assert weights[path].grad.abs().max() > 0
            scale = float(weights[path].grad.abs().max())
            torch.testing.assert_close(total, weights[path].grad, rtol=rtol, atol=rtol * scale)


def watched(model: nn.Module, run: Callable[[nn.Module], Tensor], rtol: float = 1e-9) -> Watch:
    model.double()
    watch = Watch(model)
    outputs = run(model)
    (outputs * torch.randn_like(outputs)).sum().backward()
    watch.check(rtol)
    assert_no_hooks(model)
    return watch


def assert_no_hooks(model: nn.Module) -> None:
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(N,), (B, N), (B, T, N), (2, B, T, N), (1, N), (0, N)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_linear(shape: tuple[int, ...], bias: bool) -> None:
    layers = nn.Sequential(nn.Linear(N, 3, bias=bias), nn.Tanh(), nn.Linear(3, 2))
    if 0 in shape:
        watch = Watch(layers.double())
        layers(randn(*shape)).sum().backward()
        assert not any(total.any() for total in watch.sums.values())
    else:
        watch = watched(layers, lambda model: model(randn(*shape)))
    assert {inputs for _, inputs, *_ in watch.passes} == {shape, (*shape[:-1], 3)}


def test_linear_of_rows_that_are_not_contiguous() -> None:
    watched(nn.Linear(N, 3), lambda model: model(randn(T, N, B).permute(2, 0, 1)))


def test_linear_with_its_input_by_name() -> None:
    watched(nn.Linear(N, 3), lambda model: model(input=randn(B, N)))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name: str) -> None:
    module, images = convolution(name)
    watched(module, lambda model: model(images))


@pytest.mark.parametrize("shape", [(B, N), (B, T, N)], ids=str)
def test_transposed_linear_of_hugging_face(shape: tuple[int, ...]) -> None:
    watched(nn.Sequential(Conv1D(3, N), nn.Tanh(), Conv1D(2, 3)), lambda model: model(randn(*shape)))


class Attention(nn.Module):
    """Self- or cross-attention, on raw inputs or on those of a layer before."""

    def __init__(self, form: str, after_a_layer: bool, **options: Any) -> None:
        super().__init__()
        self.form = form
        self.before = nn.Linear(N, N) if after_a_layer else nn.Identity()
        self.attention = nn.MultiheadAttention(N, 2, **options)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query = self.before(query)
        if self.form == "self":
            key = value = query
        elif self.form == "cross":
            value = key = self.before(key) if key.shape[-1] == N else key
        return self.attention(query, key, value, need_weights=self.form == "three")[0]


ATTENTION = {
    "self": ("self", N, N),
    "cross": ("cross", N, N),
    "three": ("three", N, N),
    "kdim": ("three", 3, N),
    "vdim": ("three", N, 7),
    "kdim and vdim": ("three", 3, 7),
    "cross, kdim and vdim": ("cross", 3, 3),
}


@pytest.mark.parametrize("after_a_layer", [True, False], ids=["after a layer", "raw"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("batch_first", [True, False], ids=["batch first", "batch second"])
@pytest.mark.parametrize("form", ATTENTION)
def test_attention(form: str, batch_first: bool, bias: bool, after_a_layer: bool) -> None:
    kind, kdim, vdim = ATTENTION[form]
    model = Attention(kind, after_a_layer, batch_first=batch_first, bias=bias, kdim=kdim, vdim=vdim)
    query_length, key_length = (T, T) if kind == "self" else (T, 3)
    query, key, value = randn(B, query_length, N), randn(B, key_length, kdim), randn(B, key_length, vdim)
    given = [x if batch_first else x.transpose(0, 1) for x in (query, key, value)]
    watch = watched(model, lambda model: model(*given))
    of_attention = [one for one in watch.passes if one[0].startswith("attention")]
    assert {batch_dim for *_, batch_dim, _ in of_attention} == {1}
    assert {shape[:2] for _, shape, *_ in of_attention} <= {(T, B), (3, B)}


@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}, {"dropout": 0.5}], ids=str)
@pytest.mark.parametrize("form", ["self", "three"])
def test_attention_with_options(form: str, options: dict[str, Any]) -> None:
    watch = Watch(Attention(form, after_a_layer=True, **options).double())
    watch.model(*(randn(T, B, N) for _ in range(3))).square().sum().backward()
    watch.hooks.close()
    weights = {weight.path: weight.parameter for weight in trainable_weights(watch.model)}
    for path in ("attention.in_proj_weight", "attention.out_proj.weight", "before.weight"):
        torch.testing.assert_close(watch.sums[path], weights[path].grad)


def test_attention_on_one_sequence() -> None:
    watch = watched(Attention("self", after_a_layer=True), lambda model: model(*(randn(T, N),) * 3))
    assert {(shape, batch_dim) for name, shape, _, batch_dim, _ in watch.passes if "attention" in name} == {((T, 1, N), 1)}


def test_attention_with_inputs_by_name() -> None:
    attention = nn.MultiheadAttention(N, 2, batch_first=True)
    watched(attention, lambda model: model(value=randn(B, 3, N), key=randn(B, 3, N), query=randn(B, T, N))[0])


def test_attention_with_masks() -> None:
    padding, future = torch.zeros(B, T).bool(), torch.ones(T, T).triu(1).bool()
    padding[:, -1] = True
    attention = nn.MultiheadAttention(N, 2, batch_first=True)
    watched(attention, lambda model: model(*(randn(B, T, N),) * 3, key_padding_mask=padding, attn_mask=future)[0])


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_transformer_encoder(batch_first: bool, norm_first: bool, training: bool) -> None:
    layer = nn.TransformerEncoderLayer(N, 2, 8, dropout=0.2, batch_first=batch_first, norm_first=norm_first)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(training)
    watched(encoder, lambda model: model(randn(B, T, N)))


def test_transformer_decoder() -> None:
    decoder = nn.TransformerDecoderLayer(N, 2, 8, batch_first=True)
    watched(decoder, lambda model: model(randn(B, T, N), randn(B, 3, N)))


class Steps(nn.Module):
    """A cell that reads a sequence."""

    def __init__(self, kind: type[nn.Module], **options: Any) -> None:
        super().__init__()
        self.cell, self.head = kind(N, 3, **options), nn.Linear(3, 2)

    def forward(self, sequence: Tensor) -> Tensor:
        state = None
        for item in sequence.unbind(-2):
            state = self.cell(item, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize("shape", [(B, T, N), (T, N)], ids=["batch", "one"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_recurrent_cells(kind: type[nn.Module], bias: bool, shape: tuple[int, ...]) -> None:
    watch = watched(Steps(kind, bias=bias), lambda model: model(randn(*shape)))
    assert len([one for one in watch.passes if one[0] == "cell.weight_ih"]) == T
    assert {shape for name, shape, *_ in watch.passes if name == "cell.weight_ih"} == {(1, B if len(shape) == 3 else 1, N)}


RECURRENT = {
    "one layer": {},
    "layers": {"num_layers": 2},
    "both directions": {"num_layers": 2, "bidirectional": True},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
}


@pytest.mark.parametrize("used", ["outputs", "state", "both"])
@pytest.mark.parametrize("options", RECURRENT)
@pytest.mark.parametrize(
    "kind", [nn.LSTM, nn.GRU, nn.RNN, partial(nn.LSTM, proj_size=2)], ids=["LSTM", "GRU", "RNN", "projected"]
)
def test_recurrent_layers(kind: type[nn.Module], options: str, used: str) -> None:
    def run(model: nn.Module) -> Tensor:
        outputs, states = model(randn(B, T, N))
        states = states[0] + states[1].sum() if isinstance(states, tuple) else states
        return {"outputs": outputs, "state": states, "both": outputs.sum() + states}[used]

    watched(kind(N, 3, **RECURRENT[options]), run)


def test_recurrent_layer_with_a_first_state_and_on_one_sequence() -> None:
    state = (randn(1, B, 3).requires_grad_(), randn(1, B, 3))
    watched(nn.LSTM(N, 3), lambda model: model(randn(T, B, N), state)[0])
    watched(nn.LSTM(N, 3), lambda model: model(hx=state, input=randn(T, B, N))[0])
    watched(nn.GRU(N, 3), lambda model: model(randn(T, N))[0])


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.attention = nn.Linear(N, N), nn.MultiheadAttention(N, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        for _ in range(2):
            inputs = self.layer(inputs).tanh()
            inputs = inputs + self.attention(inputs, inputs, inputs)[0]
        return inputs


def test_layer_called_twice_in_a_forward() -> None:
    watch = watched(Twice(), lambda model: model(randn(T, B, N)))
    assert [name for name, *_ in watch.passes].count("layer.weight") == 2
    assert [name for name, *_ in watch.passes].count("attention.in_proj_weight") == 2


def test_several_forwards_before_a_backward() -> None:
    watched(nn.Linear(N, 3), lambda model: model(randn(B, N)) + model(randn(1, N)))


def test_tied_weights_are_one_parameter_of_two_modules() -> None:
    layers = nn.Sequential(nn.Linear(N, N), nn.Tanh(), nn.Linear(N, N))
    layers[2].weight = layers[0].weight
    watch = watched(layers, lambda model: model(randn(B, N)))
    assert [name for name, *_ in watch.passes] == ["0.weight", "0.weight"]


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(N, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.attention(inputs, inputs, inputs)[0]


class Recomputed(nn.Module):
    def __init__(self, use_reentrant: bool, inside: nn.Module) -> None:
        super().__init__()
        self.use_reentrant, self.inside = use_reentrant, inside
        self.layers = nn.Sequential(nn.Linear(N, N), nn.Tanh(), nn.Linear(N, N))

    def body(self, inputs: Tensor) -> Tensor:
        return self.inside(self.layers(inputs))

    def forward(self, inputs: Tensor) -> Tensor:
        return checkpoint(self.body, inputs.requires_grad_(), use_reentrant=self.use_reentrant)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed_layers_are_seen_once(use_reentrant: bool) -> None:
    watch = watched(Recomputed(use_reentrant, nn.Identity()), lambda model: model(randn(T, B, N)))
    assert len(watch.passes) == 2


@pytest.mark.parametrize("inside", ["attention", "cell"])
def test_attention_and_cells_that_are_checkpointed(inside: str) -> None:
    """Torch lets what was saved be read but once: without reentrance they are left alone, and have no pass."""
    make = {"attention": lambda: SelfAttention(), "cell": lambda: Steps(nn.LSTMCell)}[inside]
    watch = watched(Recomputed(True, make()), lambda model: model(randn(T, B, N)))
    assert {name.partition(".")[0] for name, *_ in watch.passes} == {"layers", "inside"}
    model = Recomputed(False, make()).double()
    watch = Watch(model)
    model(randn(T, B, N)).square().sum().backward()
    watch.hooks.close()
    assert watch.sums.keys() == {"layers.0.weight", "layers.2.weight"} | (
        {"inside.head.weight"} if inside == "cell" else set()
    )
    for name, total in watch.sums.items():
        torch.testing.assert_close(total, model.get_parameter(name).grad)


@pytest.mark.parametrize("kind", ["linear", "conv", "attention", "cell"])
def test_autocast(kind: str) -> None:
    model, inputs = {
        "linear": (nn.Sequential(nn.Linear(N, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(B, T, N)),
        "conv": (nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 2)), torch.randn(B, 2, 5, 5)),
        "attention": (Attention("self", after_a_layer=True, batch_first=True), (torch.randn(B, T, N),) * 3),
        "cell": (Steps(nn.GRUCell), torch.randn(B, T, N)),
    }[kind]
    watch = Watch(model)
    watch.add = lambda one, add=watch.add: add(one._replace(inputs=one.inputs.float(), deltas=one.deltas.float()))
    watch.hooks._reduce = watch.add
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    outputs.float().square().sum().backward()
    watch.check(rtol=3e-2)


def test_output_that_is_changed_in_place() -> None:
    layers = nn.Sequential(nn.Linear(N, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.ReLU(inplace=True))
    watched(layers, lambda model: model(randn(B, N)))
    convs = nn.Sequential(*convolution("padding")[:1], nn.ReLU(inplace=True))
    watched(convs, lambda model: model(convolution("padding")[1]))


def test_gradients_that_autograd_is_asked_for() -> None:
    """As the probe does."""
    model = nn.Sequential(nn.Linear(N, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    watch = Watch(model)
    gradients = torch.autograd.grad(model(randn(B, N)).square().sum(), [model[0].weight, model[2].weight])
    watch.hooks.close()
    for total, gradient in zip((watch.sums["0.weight"], watch.sums["2.weight"]), gradients, strict=True):
        torch.testing.assert_close(total, gradient)


def test_passes_without_gradients_are_not_seen() -> None:
    model = nn.ModuleList([nn.Linear(N, N), nn.MultiheadAttention(N, 2), Steps(nn.LSTMCell)]).double()
    watch = Watch(model)
    inputs = randn(T, B, N)
    with torch.no_grad():
        model[0](inputs), model[1](inputs, inputs, inputs), model[2](inputs)
    model[0](inputs), model[1](inputs, inputs, inputs), model[2](inputs)  # and never a backward
    assert watch.passes == []
    watch.hooks.close()


def test_frozen_layer_is_not_seen_though_a_gradient_passes() -> None:
    model = nn.Sequential(nn.Linear(N, N), nn.Linear(N, N)).double()
    model[1].requires_grad_(False)
    watch = watched(model, lambda model: model(randn(B, N)))
    assert [name for name, *_ in watch.passes] == ["0.weight"]


def test_output_without_a_gradient_leaves_no_pass() -> None:
    model = nn.ModuleList([nn.Linear(N, N), nn.Linear(N, N)]).double()
    watch = Watch(model)
    inputs = randn(B, N)
    (model[0](inputs).sum() + model[1](inputs).detach().sum()).backward()
    assert [name for name, *_ in watch.passes] == ["0.weight"]


def test_hooks_that_wait_for_a_gradient_are_removed_as_well() -> None:
    model = nn.ModuleList([nn.Linear(N, N), nn.MultiheadAttention(N, 2), Steps(nn.LSTMCell)]).double()
    watch = Watch(model)
    inputs = model[0](randn(T, B, N))
    outputs = model[1](inputs, inputs, inputs)[0].sum() + model[2](inputs).sum()
    watch.hooks.close()
    outputs.backward()
    assert watch.passes == []


def kinds_of_layers() -> Iterator[tuple[str, nn.Module, Callable[[nn.Module, Tensor], Tensor]]]:
    yield "linear", nn.Linear(N, N), lambda model, x: model(x)
    yield "attention", nn.MultiheadAttention(N, 2), lambda model, x: model(x, x, x)[0]
    yield "cell", Steps(nn.LSTMCell), lambda model, x: model(x)
    yield "convolution", nn.Conv1d(T, 2, 3), lambda model, x: model(x)
    yield "LSTM", nn.LSTM(N, 3, 2), lambda model, x: model(x)[0]
    yield "GRU", nn.GRU(N, 3, bidirectional=True), lambda model, x: model(x)[1]


def name_of(value: object) -> str:
    return value if isinstance(value, str) else ""


@pytest.mark.parametrize("backward", [True, False])
@pytest.mark.parametrize(("name", "model", "run"), list(kinds_of_layers()), ids=name_of)
def test_nothing_is_kept_after_the_hooks_are_closed(name: str, model: nn.Module, run: Any, backward: bool) -> None:
    before = nn.Linear(N, N)
    hooks = PassHooks(model, trainable_weights(model), lambda one: None)
    inputs = before(torch.randn(B, T, N))
    outputs = run(model, inputs)
    kept = [weakref.ref(inputs), weakref.ref(inputs.untyped_storage()), weakref.ref(outputs)]
    if backward:
        outputs.sum().backward()
    del inputs, outputs
    hooks.close()
    del hooks
    gc.collect()
    assert [one() for one in kept] == [None] * len(kept)


@pytest.fixture
def no_garbage_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_garbage_collector")
@pytest.mark.parametrize(("name", "model", "run"), list(kinds_of_layers()), ids=name_of)
def test_no_activation_outlives_its_backward_while_hooks_are_open(name: str, model: nn.Module, run: Any) -> None:
    """Nor is one kept in a cycle: Python looks for those when it pleases."""
    both = nn.ModuleList([nn.Linear(N, N), model])
    hooks = PassHooks(both, trainable_weights(both), lambda one: None)
    kept = []
    for _ in range(3):
        inputs = torch.randn(B, T, N)
        hidden = both[0](inputs)
        kept += [weakref.ref(inputs.untyped_storage()), weakref.ref(hidden.untyped_storage())]
        run(model, hidden).sum().backward()
        del inputs, hidden
    assert [one() for one in kept] == [None] * 6
    hooks.close()


class Doubled(nn.Linear):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(2 * inputs)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Linear(2, 3), None),
        (nn.Conv1d(2, 3, 1), None),
        (nn.MultiheadAttention(2, 1), None),
        (nn.GRUCell(2, 3), None),
        (Conv1D(3, 2), None),
        (nn.Conv2d(4, 4, 2, groups=2), "a convolution in groups, or with borders that are not zeros"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "borders that are not zeros"),
        (nn.ConvTranspose1d(2, 3, 2), "what passes through a ConvTranspose1d cannot be seen"),
        (nn.LSTM(2, 3, 2), None),
        (nn.GRU(2, 3, dropout=0.0), None),
        (nn.LSTM(2, 3, 2, dropout=0.1), "it has dropout between its layers"),
        (nn.Embedding(4, 3), "what passes through a Embedding cannot be seen"),
        (nn.Bilinear(2, 3, 4), "what passes through a Bilinear cannot be seen"),
        (Doubled(2, 3), "what passes through a Doubled cannot be seen"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_which_layers_can_be_seen(module: nn.Module, reason: str | None) -> None:
    told = {no_passes(weight) for weight in trainable_weights(module)}
    assert told == {None} if reason is None else all(reason in one for one in told)


def test_layers_that_cannot_be_seen_get_no_hook() -> None:
    model = nn.ModuleList([nn.LSTM(2, 3, 2, dropout=0.1), nn.Conv2d(4, 4, 2, groups=2), Doubled(2, 3), nn.Embedding(4, 3)])
    hooks = PassHooks(model, trainable_weights(model), lambda one: None)
    assert_no_hooks(model)
    hooks.close()


def test_only_the_given_weights_are_watched() -> None:
    model = nn.Sequential(nn.Linear(N, N), nn.Linear(N, N))
    hooks = PassHooks(model, trainable_weights(model, "1"), lambda one: None)
    assert not model[0]._forward_hooks
    assert model[1]._forward_hooks
    hooks.close()
    assert_no_hooks(model)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("form", ["self", "cross", "three"])
def test_rows_of_attention_lie_by_token_then_by_sample(form: str, batch_first: bool) -> None:
    """A sample's rows are its own: where others are zero, so are theirs."""
    model = Attention(form, False, batch_first=batch_first, bias=False).double()
    given = [randn(B, T, N) for _ in range(3)]
    for tensor in given:
        tensor[:2] = 0
    seen: list[Pass] = []
    hooks = PassHooks(model, trainable_weights(model), seen.append)
    model(*(tensor if batch_first else tensor.transpose(0, 1) for tensor in given)).square().sum().backward()
    hooks.close()
    assert len(seen) == {"self": 2, "cross": 3, "three": 4}[form]
    for one in seen:
        assert one.inputs.abs().sum((0, 2)).gt(0).tolist() == [False, False, True, True]
