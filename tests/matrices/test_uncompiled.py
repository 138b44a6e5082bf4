import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

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


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "copy of a copy": lambda model: copy.deepcopy(copy.deepcopy(model)),
    "file of a copy": lambda model: pickle.loads(pickle.dumps(copy.deepcopy(model))),
}


def hooked(hook: Callable[..., object]) -> nn.Module:
    model = network()
    model[0].register_forward_hook(unless_compiled(hook), with_kwargs=True)
    model[1].register_forward_hook(unless_compiled(hook))
    model[2].register_forward_pre_hook(unless_compiled(hook), with_kwargs=True)
    return model


@pytest.mark.parametrize("way", COPIES)
def test_hook_does_nothing_on_a_copy(way: str) -> None:
    seen: list[Any] = []
    model = hooked(lambda *args: seen.append(args))
    copied, inputs = COPIES[way](model), torch.ones(5, 3)
    outputs = copied(inputs)
    assert not seen
    assert torch.equal(model(inputs), outputs)
    assert len(seen) == 3


def test_copy_keeps_nothing_alive_that_the_hook_knows() -> None:
    known = nn.Linear(2, 2)
    alive, model = weakref.ref(known), hooked(known)
    copied = copy.deepcopy(model)
    del known, model
    gc.collect()
    assert alive() is None
    assert len(copied[0]._forward_hooks) == 1


def test_file_can_be_read_where_this_package_is_absent() -> None:
    """The hook in it is of the standard library."""
    assert b"rank_callbacks" not in pickle.dumps(hooked(print))


def test_copy_can_be_compiled_as_a_whole() -> None:
    torch._dynamo.reset()
    counters.clear()
    torch.compile(copy.deepcopy(hooked(print)), backend="eager", fullgraph=True)(torch.ones(5, 3))
    assert counters["stats"]["unique_graphs"] == 1
