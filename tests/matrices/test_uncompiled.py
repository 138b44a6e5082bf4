from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from rank_callbacks.matrices.uncompiled import is_compiled, unless_compiled


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(inputs)


def wrapped(model: Outer) -> None:
    model.inner = torch.compile(model.inner, backend="eager")


WAYS: dict[str, Callable[[Outer], object]] = {
    "wrapped": wrapped,
    "part in place": lambda model: model.inner[0].compile(backend="eager"),
    "whole in place": lambda model: model.compile(backend="eager"),
}


@pytest.mark.parametrize("way", WAYS)
def test_part_that_is_compiled_is_found(way: str) -> None:
    model = Outer()
    assert not is_compiled(model)
    WAYS[way](model)
    assert is_compiled(model)


def test_hook_is_not_traced_and_runs_where_nothing_is_compiled() -> None:
    """Not before the first compilation and not after it, whose graph stays whole."""
    torch._dynamo.reset()
    counters.clear()
    model, seen = Outer(), []
    compiled = torch.compile(model, backend="eager")
    for _ in range(3):
        handle = model.inner[0].register_forward_hook(unless_compiled(lambda *args: seen.append(args[2].shape)))
        compiled(torch.ones(5, 3))
        assert not seen
        handle.remove()
        compiled(torch.ones(5, 3))
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == 2  # with a hook and without
    model.inner[0].register_forward_hook(unless_compiled(lambda *args: seen.append(args[2].shape)))
    model(torch.ones(5, 3))
    assert seen == [(5, 4)]


def test_hook_gives_what_it_returns() -> None:
    layer = nn.Linear(3, 4)
    layer.register_forward_pre_hook(unless_compiled(lambda module, args: (args[0] * 0,)))
    assert torch.equal(layer(torch.ones(1, 3))[0], layer.bias)
