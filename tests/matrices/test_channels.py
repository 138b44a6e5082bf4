"""Sequences whose channels are known: each module is checked against the axis that it was built with."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rank_callbacks.matrices.channels import ChannelsLast
from rank_callbacks.matrices.features import FeatureCapture, first_tensor

B, C, L = 2, 6, 9
SEQUENCE, TOKENS = torch.randn(B, C, L), torch.randn(B, L, C)


def found(model: nn.Module, *inputs: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of what the modules of a model give out, channels last, by the order in which they first ran."""
    channels_last, shapes = ChannelsLast(model), {}

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        name = next(name for name, one in model.named_modules() if one is module)
        shapes[name] = tuple(channels_last(module, first_tensor(output)).shape)

    handles = [module.register_forward_hook(keep) for module in model.modules()]
    for one in inputs:
        model(one)
    channels_last.close()
    for handle in handles:
        handle.remove()
    assert not any(module._forward_hooks for module in model.modules())
    return shapes


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv1d(C, C, 1),
        nn.ConvTranspose1d(C, C, 1),
        nn.BatchNorm1d(C),
        nn.InstanceNorm1d(C),
        nn.GroupNorm(2, C),
        nn.SyncBatchNorm(C).eval(),
        nn.MaxPool1d(1),
        nn.AvgPool1d(1),
        nn.LPPool1d(2, 1),
        nn.AdaptiveMaxPool1d(L),
        nn.AdaptiveAvgPool1d(L),
        nn.Upsample(L),
    ],
    ids=lambda module: type(module).__name__,
)
def test_channels_before_positions(module: nn.Module) -> None:
    assert found(module, SEQUENCE) == {"": (B, L, C)}
    assert torch.equal(ChannelsLast(module)(module, SEQUENCE), SEQUENCE.transpose(1, 2))


def test_patches_of_images() -> None:
    assert found(nn.Unfold(2), torch.randn(B, 3, 4, 4)) == {"": (B, 9, 12)}


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(C, C),
        nn.LayerNorm(C),
        nn.GRU(C, C, batch_first=True),
        nn.TransformerEncoderLayer(C, 2, 8, batch_first=True),
        nn.ReLU(),
    ],
    ids=lambda module: type(module).__name__,
)
def test_channels_last(module: nn.Module) -> None:
    assert found(module, TOKENS)[""] == (B, L, C)


@pytest.mark.parametrize("shape", [(B,), (B, C), (B, C, L, L)], ids=str)
def test_other_dimensions_stay(shape: tuple[int, ...]) -> None:
    features, layer = torch.randn(shape), nn.Conv1d(C, C, 1)
    assert ChannelsLast(layer)(layer, features) is features


class Block(nn.Module):
    """As the blocks of one-dimensional residual networks."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(channels, channels, 3, padding=1), nn.BatchNorm1d(channels)

    def forward(self, sequence: Tensor) -> Tensor:
        return functional.relu(sequence + self.norm(self.conv(sequence)))


class Turned(nn.Module):
    """As the blocks of ConvNeXt: a perceptron of the channels inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(channels, channels, 3, padding=1), nn.LayerNorm(channels)
        self.wide, self.narrow = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)

    def forward(self, sequence: Tensor) -> Tensor:
        tokens = self.narrow(functional.gelu(self.wide(self.norm(self.conv(sequence).transpose(1, 2)))))
        return sequence + tokens.transpose(1, 2)


class Together(nn.Module):
    """As the blocks of DenseNet: channels beside those before."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, 4, 1)

    def forward(self, sequence: Tensor) -> Tensor:
        return torch.cat([sequence, self.conv(sequence)], 1)


class Turn(nn.Module):
    def forward(self, sequence: Tensor) -> Tensor:
        return sequence.transpose(1, 2)


@pytest.mark.parametrize(
    ("block", "channels"), [(Block, C), (Turned, C), (Together, C + 4)], ids=["residual", "turned inside", "dense"]
)
def test_blocks(block: Callable[[int], nn.Module], channels: int) -> None:
    assert found(block(C), SEQUENCE)[""] == (B, L, channels)


def test_activations_have_the_channels_of_what_came_before() -> None:
    """A front of convolutions, and tokens behind it."""
    front = [nn.Conv1d(C, 8, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Dropout(), Block(8), nn.ConstantPad1d(1, 0.0)]
    back = [Turn(), nn.ReLU(), nn.Linear(8, 5), nn.GELU(), nn.Flatten()]
    shapes = found(nn.Sequential(*front, *back), SEQUENCE)
    sizes = {"0": (7, 8), "1": (7, 8), "2": (3, 8), "3": (3, 8), "4": (3, 8), "5": (5, 8)}
    sizes |= {"6": (5, 8), "7": (5, 8), "8": (5, 5), "9": (5, 5)}
    assert {name: shapes[name][1:] for name in sizes} == sizes


class States(nn.Module):
    def forward(self, output: tuple[Tensor, Tensor]) -> Tensor:
        return output[0]


def test_what_comes_after_a_recurrent_layer() -> None:
    model = nn.Sequential(nn.Conv1d(C, 8, 3), Turn(), nn.GRU(8, 5, batch_first=True), States())
    assert found(model, SEQUENCE)["3"] == (B, 7, 5)


def test_as_many_positions_as_channels() -> None:
    """Then they are as they were in the layer before."""
    first = nn.Sequential(nn.Conv1d(C, C, 1), nn.Tanh(), Turn(), nn.Linear(C, C), nn.Tanh())
    channels_last, outputs = ChannelsLast(first), torch.randn(B, C, C)
    turned = []
    for module in first:
        outputs = module(outputs)
        turned.append(not torch.equal(channels_last(module, outputs), outputs))
    assert turned == [True, True, True, False, False]


def test_modules_of_unknown_kind_stay_as_they_were_found() -> None:
    """The head of one batch says nothing of the first module in the next."""
    model = nn.Sequential(nn.Identity(), nn.Conv1d(C, C, 1), Turn(), nn.Linear(C, C))
    assert found(model, SEQUENCE, SEQUENCE)["0"] == (B, C, L)


def test_model_without_channels_before_positions_has_no_hook() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(2), nn.Linear(4, 4), nn.LayerNorm(4), nn.GRU(4, 4))
    ChannelsLast(model)
    assert not any(module._forward_hooks for module in model.modules())


def test_features_of_a_capture() -> None:
    model = nn.Sequential(nn.Conv1d(C, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3))
    capture = FeatureCapture(model, {"0": model[0], "1": model[1]}, model[4])
    model(SEQUENCE)
    features, _ = capture.take()
    capture.close()
    assert torch.equal(features["0"], model[0](SEQUENCE).mT)
    assert torch.equal(features["1"], model[0](SEQUENCE).mT.relu())
    assert not any(module._forward_hooks for module in model.modules())
