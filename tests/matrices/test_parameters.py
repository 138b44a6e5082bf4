from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, parametrize, prune

from rank_callbacks.matrices import gradient_matrices, trainable_weights, weight_matrices
from rank_callbacks.matrices.parameters import computed_matrices

old_norms = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3))


def spectrum(matrix: Tensor) -> np.ndarray:
    return np.linalg.svd(matrix.detach().numpy(), compute_uv=False)


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, 8))
        self.pos_embed = nn.Parameter(torch.randn(1, 5, 8))
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.layer = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=16)
        self.head = nn.Linear(8, 10)


@pytest.mark.parametrize(
    "model",
    [
        perceptron(),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 2, 2), nn.Flatten(), nn.Linear(8, 2)),
        nn.ModuleDict({"embed": nn.Embedding(5, 4), "body": nn.ModuleList([nn.Linear(4, 4), nn.Bilinear(4, 4, 2)])}),
        nn.ParameterDict({"left": nn.Parameter(torch.ones(3, 2)), "right": nn.Parameter(torch.ones(2, 3))}),
        nn.ParameterList([torch.ones(3, 2), torch.ones(2, 5)]),
        nn.Linear(2, 3),
    ],
    ids=["perceptron", "convolutions", "containers", "parameter dict", "parameter list", "one layer"],
)
def test_names_are_those_of_named_parameters(model: nn.Module) -> None:
    expected = [name for name, p in model.named_parameters() if p.dim() > 1]
    assert list(weight_matrices(model)) == expected


def test_transformer_has_all_its_matrices() -> None:
    assert list(weight_matrices(Transformer())) == [
        "patch.weight",
        "layer.self_attn.in_proj_weight.q",
        "layer.self_attn.in_proj_weight.k",
        "layer.self_attn.in_proj_weight.v",
        "layer.self_attn.out_proj.weight",
        "layer.linear1.weight",
        "layer.linear2.weight",
        "head.weight",
    ]


def test_layers_and_conv_are_passed_on() -> None:
    assert list(weight_matrices(Transformer(), "patch", conv="slices")) == ["patch.weight.slices"]


@pytest.mark.parametrize("conv", ["filter", "circular", "circular_8xx8"])
def test_unknown_conv_is_refused(conv: str) -> None:
    with pytest.raises(ValueError, match=f"Expected conv to be .* got '{conv}'"):
        weight_matrices(perceptron(), conv=conv)


def test_compiled_model_has_plain_names() -> None:
    assert list(weight_matrices(torch.compile(perceptron()))) == ["0.weight", "3.weight"]


def test_compiled_submodule_has_plain_names() -> None:
    model = nn.ModuleDict({"net": torch.compile(perceptron()), "head": nn.Linear(3, 2)})
    assert list(weight_matrices(model)) == ["net.0.weight", "net.3.weight", "head.weight"]


def test_compiled_layer_inside_a_compiled_model_has_a_plain_name() -> None:
    model = torch.compile(nn.ModuleDict({"net": nn.Sequential(torch.compile(nn.Linear(3, 2)))}))
    assert list(weight_matrices(model)) == ["net.0.weight"]


def test_compiled_alias_of_a_submodule_appears_once() -> None:
    model = nn.ModuleDict({"net": perceptron()})
    model["compiled"] = torch.compile(model["net"])
    assert list(weight_matrices(model)) == ["net.0.weight", "net.3.weight"]


def test_checkpointed_submodule_has_plain_names() -> None:
    model = nn.ModuleDict({"net": checkpoint_wrapper(perceptron())})
    assert list(weight_matrices(model)) == ["net.0.weight", "net.3.weight"]


def test_tied_head_appears_once_under_its_first_name() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(5, 4), "body": nn.Linear(4, 4), "head": nn.Linear(4, 5, bias=False)})
    model["head"].weight = model["embed"].weight
    assert list(weight_matrices(model)) == ["embed.weight", "body.weight"]


def test_module_used_twice_appears_once() -> None:
    block = nn.Linear(4, 4)
    assert list(weight_matrices(nn.Sequential(block, nn.ReLU(), block))) == ["0.weight"]


class LowRankUpdate(nn.Module):
    """LoRA as a parametrisation, with its dropout."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.randn(2, columns))
        self.lora_B = nn.Parameter(torch.randn(rows, 2))
        self.dropout = nn.Dropout(0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.lora_B @ self.dropout(self.lora_A)


def with_low_rank_update(layer: nn.Linear) -> nn.Linear:
    return parametrize.register_parametrization(layer, "weight", LowRankUpdate(*layer.weight.shape))


def with_two_parametrisations(layer: nn.Linear) -> nn.Linear:
    return parametrizations.spectral_norm(parametrizations.weight_norm(layer))


def pruned(layer: nn.Linear) -> nn.Linear:
    return prune.l1_unstructured(layer, "weight", 0.4)


def pruned_twice(layer: nn.Linear) -> nn.Linear:
    return prune.random_structured(pruned(layer), "weight", 2, dim=0)


REPARAMETRISATIONS = [
    parametrizations.weight_norm,
    parametrizations.spectral_norm,
    parametrizations.orthogonal,
    pytest.param(nn.utils.weight_norm, id="old weight_norm", marks=old_norms),
    pytest.param(nn.utils.spectral_norm, id="old spectral_norm"),
    with_low_rank_update,
    with_two_parametrisations,
    pruned,
    pruned_twice,
]
reparametrised = pytest.mark.parametrize("reparametrise", REPARAMETRISATIONS)


def trained(reparametrise: Callable[[nn.Linear], nn.Linear]) -> nn.Sequential:
    """A layer whose parameters have moved away from where the computed weight is the initial one."""
    layer = reparametrise(nn.Linear(5, 4, bias=False))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(1.5).add_(0.1 * torch.randn_like(parameter))
    return nn.Sequential(layer, nn.Dropout(0.5))


@reparametrised
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_computed_weight_is_what_the_next_forward_in_eval_mode_multiplies_by(
    reparametrise: Callable[[nn.Linear], nn.Linear], mode: str
) -> None:
    model = trained(reparametrise).train(mode == "train")
    matrices = weight_matrices(model)
    assert list(matrices) == ["0.weight"]
    effective = model.eval()(torch.eye(5)).mT
    torch.testing.assert_close(matrices["0.weight"], effective)


@reparametrised
def test_computing_a_weight_leaves_no_trace(reparametrise: Callable[[nn.Linear], nn.Linear]) -> None:
    model = trained(reparametrise)
    for i, module in enumerate(model.modules()):
        module.training = i % 2 == 0
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    assert not weight_matrices(model)["0.weight"].requires_grad
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), generator)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)


def test_parametrised_tensor_of_a_failing_parametrisation_leaves_the_mode() -> None:
    class Failing(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            if not self.training:
                raise ArithmeticError
            return weight

    layer = parametrize.register_parametrization(nn.Linear(2, 2), "weight", Failing())
    with pytest.raises(ArithmeticError):
        weight_matrices(layer)
    assert all(module.training for module in layer.modules())


@pytest.mark.parametrize(
    "normalise",
    [parametrizations.weight_norm, pytest.param(nn.utils.weight_norm, marks=old_norms, id="old weight_norm")],
)
def test_normalised_recurrent_weight_has_its_gates(normalise: Callable[..., nn.LSTM]) -> None:
    layer = normalise(nn.LSTM(3, 4), "weight_hh_l0")
    plain = nn.LSTM(3, 4)
    assert weight_matrices(layer).keys() == weight_matrices(plain).keys()
    gate = weight_matrices(layer)["weight_hh_l0.cell"]
    torch.testing.assert_close(gate, layer.weight_hh_l0[8:12].detach())


def test_other_parameters_of_a_parametrised_module_are_measured_as_they_are() -> None:
    attention = parametrizations.spectral_norm(nn.MultiheadAttention(4, 1), "in_proj_weight")
    names = ["in_proj_weight.q", "in_proj_weight.k", "in_proj_weight.v", "out_proj.weight"]
    assert list(weight_matrices(attention)) == names


def peft_linear(inputs: int, out: int, rank: int, adapter: str = "default") -> nn.Module:
    """What peft makes of a linear layer."""
    layer = nn.Module()
    layer.base_layer = nn.Linear(inputs, out)
    layer.lora_dropout = nn.ModuleDict({adapter: nn.Dropout(0.1)})
    layer.lora_A = nn.ModuleDict({adapter: nn.Linear(inputs, rank, bias=False)})
    layer.lora_B = nn.ModuleDict({adapter: nn.Linear(rank, out, bias=False)})
    return layer


def loralib_linear(inputs: int, out: int, rank: int) -> nn.Linear:
    """What loralib makes of a linear layer."""
    layer = nn.Linear(inputs, out)
    layer.lora_A = nn.Parameter(torch.randn(rank, inputs))
    layer.lora_B = nn.Parameter(torch.randn(out, rank))
    return layer


def assert_same_spectrum(core: Tensor, product: Tensor) -> None:
    """The singular values of ``product``, of which those past the core's are zero."""
    expected = spectrum(product.double())
    np.testing.assert_allclose(spectrum(core), expected[: min(core.shape)], rtol=1e-12)
    np.testing.assert_allclose(expected[min(core.shape) :], 0, atol=1e-12)


@pytest.mark.parametrize(("inputs", "out", "rank"), [(7, 5, 2), (5, 7, 3), (6, 6, 1), (3, 4, 8)])
def test_pair_of_adapter_layers_is_their_product(inputs: int, out: int, rank: int) -> None:
    model = nn.ModuleDict({"q_proj": peft_linear(inputs, out, rank)})
    up, down = model["q_proj"].lora_B["default"].weight, model["q_proj"].lora_A["default"].weight
    matrices = weight_matrices(model)
    assert list(matrices) == ["q_proj.base_layer.weight", "q_proj.lora_BA.default.weight"]
    assert_same_spectrum(matrices["q_proj.lora_BA.default.weight"], up.double() @ down.double())


def test_pair_of_adapter_parameters_is_their_product() -> None:
    model = nn.ModuleDict({"q_proj": loralib_linear(7, 5, 2)})
    matrices = weight_matrices(model)
    assert list(matrices) == ["q_proj.weight", "q_proj.lora_BA"]
    product = model["q_proj"].lora_B.double() @ model["q_proj"].lora_A.double()
    assert_same_spectrum(matrices["q_proj.lora_BA"], product)


def test_adapters_of_an_embedding_are_their_product() -> None:
    layer = nn.Embedding(9, 4)
    layer.lora_embedding_A = nn.ParameterDict({"default": nn.Parameter(torch.randn(2, 9))})
    layer.lora_embedding_B = nn.ParameterDict({"default": nn.Parameter(torch.randn(4, 2))})
    matrices = weight_matrices(layer)
    assert list(matrices) == ["weight", "lora_embedding_BA.default"]
    product = layer.lora_embedding_B["default"].double() @ layer.lora_embedding_A["default"].double()
    assert_same_spectrum(matrices["lora_embedding_BA.default"], product)


def test_every_adapter_pairs_with_its_own() -> None:
    model = nn.ModuleDict({"q": peft_linear(4, 4, 2, "first"), "v": peft_linear(4, 4, 2, "second")})
    model["q"].lora_A["second"] = nn.Linear(4, 3, bias=False)
    model["q"].lora_B["second"] = nn.Linear(3, 4, bias=False)
    products = {name: core for name, core in weight_matrices(model).items() if "lora" in name}
    assert {name: len(core) for name, core in products.items()} == {
        "q.lora_BA.first.weight": 2,
        "q.lora_BA.second.weight": 3,
        "v.lora_BA.second.weight": 2,
    }


def peft_convolution(rank: int) -> nn.Module:
    layer = nn.Module()
    layer.base_layer = nn.Conv2d(3, 5, 3)
    layer.lora_A = nn.ModuleDict({"default": nn.Conv2d(3, rank, 3, bias=False)})
    layer.lora_B = nn.ModuleDict({"default": nn.Conv2d(rank, 5, 1, bias=False)})
    return layer


def test_adapters_of_a_convolution_are_the_filters_of_their_composition() -> None:
    layer = peft_convolution(rank=2).double()
    core = weight_matrices(layer)["lora_BA.default.weight"]
    composed = torch.einsum("or,rckl->ockl", layer.lora_B["default"].weight[:, :, 0, 0], layer.lora_A["default"].weight)
    images = torch.randn(1, 3, 6, 6).double()
    expected = layer.lora_B["default"](layer.lora_A["default"](images))
    torch.testing.assert_close(nn.functional.conv2d(images, composed), expected)
    assert_same_spectrum(core, composed.flatten(1))


@pytest.mark.parametrize("conv", ["slices", "circular_4x4"])
def test_blocks_of_convolution_adapters_stay_apart(conv: str) -> None:
    names = list(weight_matrices(peft_convolution(rank=9), conv=conv))  # as many as there are slices
    assert names == [f"{part}.weight.{conv}" for part in ("base_layer", "lora_A.default", "lora_B.default")]


def test_adapters_that_do_not_multiply_stay_apart() -> None:
    layer = nn.Linear(4, 12)
    layer.lora_A = nn.Parameter(torch.randn(6, 4))  # of q, k and v, one on the other, as in loralib's MergedLinear
    layer.lora_B = nn.Parameter(torch.randn(12, 2))
    assert list(weight_matrices(layer)) == ["weight", "lora_A", "lora_B"]


def test_adapter_without_its_partner_stays() -> None:
    layer = nn.Linear(4, 4)
    layer.lora_A = nn.Parameter(torch.randn(2, 4))
    assert list(weight_matrices(layer)) == ["weight", "lora_A"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
@pytest.mark.parametrize("rank", [2, 8])
def test_adapter_that_is_not_finite_gives_nan_of_the_same_shape(part: str, value: float, rank: int) -> None:
    layer = loralib_linear(5, 4, rank)
    shape = weight_matrices(layer)["lora_BA"].shape
    with torch.no_grad():
        getattr(layer, part)[-1, -1] = value
    core = weight_matrices(layer)["lora_BA"]
    assert core.isnan().all()
    assert core.shape == shape


def test_complex_adapters_keep_their_imaginary_part() -> None:
    layer = nn.Linear(5, 4)
    layer.lora_A = nn.Parameter(torch.randn(2, 5, dtype=torch.complex64))
    layer.lora_B = nn.Parameter(torch.randn(4, 2, dtype=torch.complex64))
    expected = spectrum(layer.lora_B @ layer.lora_A)[:2]
    np.testing.assert_allclose(spectrum(weight_matrices(layer)["lora_BA"]), expected, rtol=1e-6)


def test_adapters_of_half_precision_are_multiplied_in_float64() -> None:
    layer = loralib_linear(7, 5, 2).bfloat16()
    product = layer.lora_B.double() @ layer.lora_A.double()
    assert_same_spectrum(weight_matrices(layer)["lora_BA"], product)


def test_frozen_parameters_are_measured() -> None:
    assert list(weight_matrices(perceptron().requires_grad_(False))) == ["0.weight", "3.weight"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
def test_matrices_are_views_of_any_type_without_gradient(dtype: torch.dtype) -> None:
    layer = nn.Linear(3, 2, dtype=dtype)
    matrix = weight_matrices(layer)["weight"]
    assert matrix.dtype == dtype
    assert matrix.data_ptr() == layer.weight.data_ptr()
    assert not matrix.requires_grad


def test_parts_are_views_without_gradient() -> None:
    model = nn.ModuleList([nn.MultiheadAttention(4, 1), nn.LSTM(3, 4), nn.Conv2d(2, 3, 3)])
    for name, matrix in weight_matrices(model).items():
        whole = model.get_parameter(name.rpartition(".")[0] if name.endswith(tuple("qkv") + GATES) else name)
        assert matrix.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
        assert not matrix.requires_grad


GATES = ("input", "forget", "cell", "output")


def test_integer_parameters_and_buffers_are_left_out() -> None:
    model = perceptron()
    model.register_parameter("codes", nn.Parameter(torch.zeros(3, 3, dtype=torch.int8), requires_grad=False))
    model.register_buffer("table", torch.zeros(3, 3))
    assert list(weight_matrices(model)) == ["0.weight", "3.weight"]


def test_position_embedding_is_left_out_and_says_so_when_named() -> None:
    reason = r"pos_embed is left out: \(1, 5, 8\) of Transformer is not known to be a matrix\."
    with pytest.raises(ValueError, match=f"Expected 'pos_embed' in layers to match a matrix, .*{reason}"):
        weight_matrices(Transformer(), "pos_embed")


@pytest.mark.parametrize("model", [nn.ReLU(), nn.Sequential(nn.BatchNorm1d(3)), nn.PReLU(2)], ids=repr)
def test_model_without_matrices_is_refused(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="Expected a model with at least one weight matrix, got none"):
        weight_matrices(model)


def test_model_with_only_unknown_tensors_says_which() -> None:
    model = nn.Module()
    model.pos_embed = nn.Parameter(torch.ones(1, 3, 2))
    with pytest.raises(ValueError, match=r"got none\. pos_embed is left out: \(1, 3, 2\) of Module"):
        weight_matrices(model)


def test_refusal_says_that_matrices_are_frozen_or_computed() -> None:
    computed = parametrizations.spectral_norm(nn.Linear(2, 3))
    model = nn.Sequential(computed, nn.Linear(3, 3), nn.Linear(3, 3)).requires_grad_(False)
    frozen = r"1\.weight and 2\.weight are left out: frozen\."
    reason = r"0\.weight is left out: computed from other parameters, as by weight_norm, .* a gradient of its own\."
    with pytest.raises(ValueError, match=rf"got none\. {reason} {frozen}$"):
        trainable_weights(model)
    model[1].requires_grad_(True)
    with pytest.raises(ValueError, match=rf"Expected '0' in layers .* Choose from 1\.weight\. {reason}"):
        trainable_weights(model, "0")


@old_norms
def test_computed_matrices_are_those_of_no_parameter() -> None:
    new, old = parametrizations.weight_norm(nn.Linear(2, 3)), nn.utils.weight_norm(nn.Linear(4, 5))
    model = nn.Sequential(new, nn.Linear(3, 4), old)
    assert list(computed_matrices(model)) == ["0.weight", "2.weight"]
    assert list(computed_matrices(model, "2")) == ["2.weight"]
    assert [weight.path for weight in trainable_weights(model)] == ["1.weight"]


def test_of_one_optimizer_nothing_need_be_selected() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
    model(torch.ones(1, 2)).sum().backward()
    first, second = (torch.optim.SGD(layer.parameters()) for layer in model)
    assert list(gradient_matrices(model, "1", optimizer=second)) == ["1.weight"]
    assert gradient_matrices(model, "1", optimizer=first) == {}
    model[1].requires_grad_(False)
    assert gradient_matrices(model, "1", optimizer=second) == {}
    model.requires_grad_(False)
    assert gradient_matrices(model, optimizer=first) == {}
    with pytest.raises(ValueError, match=r"0\.weight and 1\.weight are left out: frozen"):
        gradient_matrices(model)


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("lazy", [nn.LazyLinear(3), nn.LazyConv2d(3, 3)], ids=lambda layer: type(layer).__name__)
def test_lazy_layer_is_refused(lazy: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"^1\.weight has no shape yet: run one batch"):
        weight_matrices(nn.Sequential(nn.Linear(2, 2), lazy))


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_lazy_layer_is_measured_after_its_first_batch() -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    model(torch.ones(1, 2))
    assert weight_matrices(model)["0.weight"].shape == (3, 2)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_parameter_that_is_sharded_over_one_process_is_plain() -> None:
    tensor = pytest.importorskip("torch.distributed.tensor", reason="torch has DTensor in public since 2.5")
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    model = perceptron()
    model[3].weight = nn.Parameter(tensor.distribute_tensor(model[3].weight.data, mesh, [tensor.Shard(0)]))
    assert type(weight_matrices(model)["3.weight"]) is torch.Tensor
