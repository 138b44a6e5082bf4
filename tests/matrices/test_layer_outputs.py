from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp, vmap

from rank_callbacks.matrices.layer_outputs import layer_outputs
from tests.models import lstm, mlp
from tests.training import fit


class Branches(nn.Module):
    """A layer that runs twice, one that does not, and two that give no real numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.never, self.nested = nn.Linear(3, 3), nn.Linear(3, 3), Nested()
        self.words, self.indices = Words(), Indices()

    def forward(self, inputs: Tensor, scale: float = 1.0) -> Tensor:
        self.words(inputs), self.indices(inputs)
        return self.nested(self.twice(self.twice(inputs)) * scale)["rest"][0]


class Words(nn.Module):
    def forward(self, inputs: Tensor) -> str:
        return "words"


class Indices(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.argsort()


class Nested(nn.Module):
    def forward(self, inputs: Tensor) -> dict[str, Any]:
        return {"name": "nested", "rest": (inputs.sin(), inputs)}


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_outputs_are_those_at_the_time_of_the_call() -> None:
    """A ReLU that works in place does not change them."""
    model, inputs = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 2)), torch.randn(6, 4)
    outputs = layer_outputs(model, {"linear": model[0], "relu": model[1], "all": model})(inputs)
    linear = model[0](inputs)
    assert list(outputs) == ["linear", "relu", "all"]
    assert torch.equal(outputs["linear"], linear)
    assert torch.equal(outputs["relu"], linear.relu())
    assert torch.equal(outputs["all"], model(inputs))
    assert (outputs["linear"] < 0).any()


def test_last_run_counts_and_what_gives_no_tensor_is_left_out() -> None:
    model, inputs = Branches(), torch.randn(2, 3)
    outputs = layer_outputs(model, dict(reversed(list(model.named_children()))))(inputs, scale=2.0)
    assert list(outputs) == ["nested", "twice"]
    assert torch.equal(outputs["twice"], model.twice(model.twice(inputs)))
    assert torch.equal(outputs["nested"], (2 * outputs["twice"]).sin())


def test_hooks_are_there_only_while_it_runs() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
    during = []
    model[1].register_forward_pre_hook(lambda module, args: during.append(hooks(model)))
    outputs = layer_outputs(model, dict(model.named_children()))
    assert hooks(model) == 0
    outputs(torch.zeros(1, 4))
    assert during == [2]
    assert hooks(model) == 0


def test_hooks_are_removed_after_an_exception() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(4, 2))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        layer_outputs(model, dict(model.named_children()))(torch.zeros(1, 4))
    assert hooks(model) == 0


def test_goes_through_function_transforms() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 2)).double()
    inputs, tangents = torch.randn(1, 4).double(), torch.randn(3, 1, 4).double()
    outputs = layer_outputs(model, {"linear": model[0], "logits": model[2]})
    pushed = vmap(lambda tangent: jvp(outputs, (inputs,), (tangent,))[1])(tangents)
    jacobian = torch.autograd.functional.jacobian(model, inputs)[0, :, 0]
    torch.testing.assert_close(pushed["linear"][:, 0], tangents[:, 0] @ model[0].weight.mT)
    torch.testing.assert_close(pushed["logits"][:, 0], tangents[:, 0] @ jacobian.mT)
    _, pull = vjp(outputs, inputs)
    cotangents = {"linear": torch.zeros(2, 1, 5).double(), "logits": torch.eye(2).double()[:, None]}
    torch.testing.assert_close(vmap(pull)(cotangents)[0][:, 0], jacobian)


def test_runs_on_other_tensors_by_functional_call() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))
    outputs = layer_outputs(model, {"linear": model[0], "norm": model[1]})
    copies = {name: torch.zeros_like(tensor) for name, tensor in [*outputs.named_parameters(), *outputs.named_buffers()]}
    assert functional_call(outputs, copies, (torch.randn(3, 4),))["linear"].count_nonzero() == 0
    assert model[1].num_batches_tracked == 0
    assert outputs(torch.randn(3, 4))["linear"].count_nonzero() == 15


def test_gradients_reach_the_model() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
    layer_outputs(model, {"linear": model[0]})(torch.ones(1, 4))["linear"].sum().backward()
    assert torch.equal(model[0].weight.grad, torch.ones(5, 4))


def test_has_the_parameters_and_modes_of_the_model() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Dropout()).eval()
    outputs = layer_outputs(model, dict(model.named_children()))
    assert [id(p) for p in outputs.parameters()] == [id(p) for p in model.parameters()]
    assert not outputs.training
    assert not any(module.training for module in model)


@pytest.mark.parametrize("build", [mlp, lstm])
def test_lightning_module_with_its_trainer(build: Any) -> None:
    model = build()
    model.forward = lambda inputs: model.network(inputs)
    trainer = fit(model)
    model.eval()
    outputs = layer_outputs(model, {"head": list(model.network)[-1]})(model.data.tensors[0])
    assert torch.equal(outputs["head"], model.network(model.data.tensors[0]))
    assert model.trainer is trainer
