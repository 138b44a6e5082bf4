"""Three classifiers of the MNIST images, each a chain of a few layers, small enough to train on one core in a minute."""

from __future__ import annotations

from collections import OrderedDict

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, relu, scaled_dot_product_attention

CLASSES = 10
PIXELS = 28
# Of the pixels of MNIST.
MEAN, DEVIATION = 0.1307, 0.3081
HIDDEN_LAYERS = 8
MLP_WIDTH = 256
# Channels of the residual blocks, and their strides.
RESNET_BLOCKS = ((16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1))
VIT_BLOCKS = 6
VIT_WIDTH = 64
HEADS = 4
PATCH = 7


class ImageClassifier(LightningModule):
    """AdamW with one cycle of the learning rate, on the cross-entropy.

    Args:
        net: Flat images in, logits out.
        epochs: Length of the cycle.
        steps_an_epoch: Likewise.
    """

    def __init__(self, net: nn.Module, epochs: int, steps_an_epoch: int) -> None:
        super().__init__()
        self.net = net
        self.steps = epochs * steps_an_epoch

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return cross_entropy(self.net(images), labels)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.log("accuracy", (self.net(images).argmax(-1) == labels).float().mean())

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        adam = torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.05)
        cycle = torch.optim.lr_scheduler.OneCycleLR(adam, max_lr=2e-3, total_steps=max(self.steps, 2))
        return {"optimizer": adam, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


def perceptron() -> nn.Sequential:
    """784-256x8-10 with ReLU."""
    widths = [PIXELS**2] + [MLP_WIDTH] * HIDDEN_LAYERS
    layers = OrderedDict[str, nn.Module]()
    for place in range(HIDDEN_LAYERS):
        layers[f"hidden{place + 1}"] = nn.Sequential(nn.Linear(widths[place], MLP_WIDTH), nn.ReLU())
    layers["head"] = nn.Linear(MLP_WIDTH, CLASSES)
    return nn.Sequential(layers)


def residual_network() -> nn.Sequential:
    """A stem of stride 2 and six residual blocks with batch normalisation, from 16 x 14 x 14 to 64 x 4 x 4 numbers."""
    width = RESNET_BLOCKS[0][0]
    layers = OrderedDict[str, nn.Module](image=Image(), stem=nn.Sequential(normed_convolution(1, width, stride=2), nn.ReLU()))
    for place, (channels, stride) in enumerate(RESNET_BLOCKS, start=1):
        layers[f"block{place}"] = ResidualBlock(width, channels, stride)
        width = channels
    layers["mean"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    layers["head"] = nn.Linear(width, CLASSES)
    return nn.Sequential(layers)


def vision_transformer() -> nn.Sequential:
    """16 patches of 7 x 7 pixels and six blocks of width 64; the head reads the mean of the patches."""
    layers = OrderedDict[str, nn.Module](image=Image(), patches=Patches())
    for place in range(VIT_BLOCKS):
        layers[f"block{place + 1}"] = AttentionBlock()
    layers["mean"] = MeanOfPatches()
    layers["head"] = nn.Linear(VIT_WIDTH, CLASSES)
    return nn.Sequential(layers)


class Image(nn.Module):
    """Flat pixels as a normalised image; with a background of exact zeros, ReLUs without bias would stand on their kinks."""

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels.unflatten(1, (1, PIXELS, PIXELS)) - MEAN) / DEVIATION


def normed_convolution(channels_in: int, channels: int, stride: int = 1, kernel: int = 3) -> nn.Module:
    convolution = nn.Conv2d(channels_in, channels, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels))


class ResidualBlock(nn.Module):
    """Two convolutions around a shortcut, which is a 1 x 1 convolution where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.first = normed_convolution(channels_in, channels, stride)
        self.second = normed_convolution(channels, channels)
        same = stride == 1 and channels_in == channels
        self.shortcut = nn.Identity() if same else normed_convolution(channels_in, channels, stride, kernel=1)

    def forward(self, images: Tensor) -> Tensor:
        return relu(self.second(relu(self.first(images))) + self.shortcut(images))


class Patches(nn.Module):
    """Patches of an image as vectors, each with its position."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv2d(1, VIT_WIDTH, PATCH, PATCH)
        self.positions = nn.Parameter(0.02 * torch.randn((PIXELS // PATCH) ** 2, VIT_WIDTH))

    def forward(self, images: Tensor) -> Tensor:
        return self.project(images).flatten(2).transpose(1, 2) + self.positions


class AttentionBlock(nn.Module):
    """Attention of every patch to every other and a perceptron, each added to what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(VIT_WIDTH), nn.LayerNorm(VIT_WIDTH)
        self.qkv = nn.Linear(VIT_WIDTH, 3 * VIT_WIDTH)
        self.out = nn.Linear(VIT_WIDTH, VIT_WIDTH)
        self.up = nn.Linear(VIT_WIDTH, 4 * VIT_WIDTH)
        self.down = nn.Linear(4 * VIT_WIDTH, VIT_WIDTH)

    def forward(self, patches: Tensor) -> Tensor:
        queries, keys, values = self.qkv(self.norm1(patches)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(queries, keys, values)
        patches = patches + self.out(attended.transpose(1, 2).flatten(-2))
        return patches + self.down(gelu(self.up(self.norm2(patches))))


class MeanOfPatches(nn.Module):
    """Layer normalisation, then the mean over patches."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(VIT_WIDTH)

    def forward(self, patches: Tensor) -> Tensor:
        return self.norm(patches).mean(1)
