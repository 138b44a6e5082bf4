"""Layers whose activations are checkpointed: the second of their passes is not seen, unless it is the one with gradients."""

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rank_callbacks.matrices import trainable_weights
from rank_callbacks.matrices.activations import RowCapture
from rank_callbacks.matrices.features import FeatureCapture, OutputHooks
from rank_callbacks.matrices.passes import PassHooks

B = 5
WAYS = pytest.mark.parametrize("way", [None, False, True], ids=["plain", "checkpointed", "with reentrance"])
BODIES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Linear(6, 6), nn.Tanh()),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 2, 3, padding=1), nn.Flatten(), nn.Tanh()),
    "recurrent": lambda: nn.Sequential(Recurrent(), nn.Tanh()),
}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(2, 2, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.cell(inputs.unflatten(1, (3, 2)))[0].flatten(1)


class Checkpointed(nn.Module):
    """Computes its body a second time in the backward pass, with reentrance or not; None for once."""

    def __init__(self, body: nn.Module, way: bool | None) -> None:
        super().__init__()
        self.body, self.head, self.way = body, nn.Linear(6, 3), way

    def forward(self, inputs: Tensor) -> Tensor:
        if self.way is None:
            return self.head(self.body(inputs))
        return self.head(checkpoint(self.body, inputs, use_reentrant=self.way, preserve_rng_state=False))


def train(model: nn.Module) -> None:
    """One pass, there and back."""
    model(torch.randn(B, 6, requires_grad=True)).square().sum().backward()


@WAYS
def test_outputs_are_handed_on_once(way: bool | None) -> None:
    model, seen = Checkpointed(BODIES["linear"](), way), []
    hooks = OutputHooks({"body": model.body, "first": model.body[0]}, lambda name, output: seen.append((name, output.shape)))
    train(model)
    hooks.close()
    assert seen == [("first", (B, 6)), ("body", (B, 6))]


@WAYS
def test_classifier_that_is_checkpointed(way: bool | None) -> None:
    """What it was given, not what a backward pass gives it again, though it be other."""
    model = Checkpointed(nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 6)), way)
    capture, given = FeatureCapture(model, {}, model.body[1]), []
    model.body[1].register_forward_pre_hook(lambda module, args: given.append(args[0].detach().clone()))
    train(model)
    features, _ = capture.take()
    capture.close()
    assert len(given) == 1 + (way is not None)
    assert torch.equal(features["penultimate"], given[0])


@WAYS
@pytest.mark.parametrize("kind", BODIES)
def test_rows_are_counted_once(kind: str, way: bool | None) -> None:
    model = Checkpointed(BODIES[kind](), way)
    capture = RowCapture(model, torch.Generator())
    train(model)
    capture.close()
    rows = {"linear": B, "convolution": 3 * B, "recurrent": 3 * B}[kind]
    assert {layer.samples for layer in capture.layers.values()} == {B}
    assert {name.split(".")[0]: layer.rows for name, layer in capture.layers.items()} == {"body": rows, "head": B}


@WAYS
@pytest.mark.parametrize("kind", BODIES)
def test_passes_are_seen_once_and_nothing_stays(kind: str, way: bool | None) -> None:
    model, seen, alive = Checkpointed(BODIES[kind](), None), [], []
    hooks = PassHooks(model, trainable_weights(model), lambda one: seen.append(one.weight.path))
    train(model)
    once, model.way = sorted(seen), way
    for _ in range(2):
        seen.clear()
        train(model)
        assert sorted(seen) == once
        gc.collect()
        alive.append(sum(type(one) is Tensor for one in gc.get_objects()))
    hooks.close()
    assert alive[0] == alive[1]
