"""The models that the benchmarks measure, from plain ``torch.nn``, as they come out of their initialisation."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["gpt2_small", "gpt2_small_shapes", "mlp", "resnet18", "resnet50", "transformer"]


def mlp(width: int = 1024, classes: int = 10) -> nn.Module:
    """Four hidden layers on the pixels of a 28 x 28 image: 784-1024x4-10, 4.0 million parameters."""
    widths = [784, width, width, width, width]
    hidden = [nn.Sequential(nn.Linear(fan_in, fan_out), nn.ReLU()) for fan_in, fan_out in pairwise(widths)]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, classes))


def resnet18(width: int = 64, classes: int = 10) -> nn.Module:
    """ResNet-18 with the 3 x 3 stem that suits images of 32 x 32 pixels: 11.2 million parameters."""
    stages, fan_in = [], width
    for fan_out, stride in [(width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)]:
        stages += [ResidualBlock(fan_in, fan_out, stride), ResidualBlock(fan_out, fan_out)]
        fan_in = fan_out
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(fan_in, classes)]
    return nn.Sequential(_normed_convolution(3, width), nn.ReLU(), *stages, *head)


def resnet50(width: int = 64, classes: int = 1000) -> nn.Module:
    """ResNet-50 for images of 224 x 224 pixels: 25.6 million parameters."""
    blocks, fan_in = [], width
    for stage, depth in enumerate((3, 4, 6, 3)):
        inner = width * 2**stage
        for place in range(depth):
            blocks.append(BottleneckBlock(fan_in, inner, stride=2 if stage and place == 0 else 1))
            fan_in = 4 * inner
    stem = [_normed_convolution(3, width, stride=2, kernel=7), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(fan_in, classes))


def transformer(width: int = 384, depth: int = 6, heads: int = 6, vocabulary: int = 103, context: int = 256) -> nn.Module:
    """A character-level language model, token numbers in and logits out: 10.8 million parameters."""
    return LanguageModel(width, depth, heads, vocabulary, context)


def gpt2_small(width: int = 768, depth: int = 12, heads: int = 12, vocabulary: int = 50257, context: int = 1024) -> nn.Module:
    """A language model of the sizes of GPT-2 small, its head the embedding of the tokens: 124 million parameters."""
    model = LanguageModel(width, depth, heads, vocabulary, context)
    for weight in (parameter for parameter in model.parameters() if parameter.dim() > 1):
        nn.init.normal_(weight, std=0.02)
    model.head.weight = model.tokens.weight
    return model


def gpt2_small_shapes(
    width: int = 768, depth: int = 12, vocabulary: int = 50257, context: int = 1024
) -> list[tuple[int, int]]:
    """Shapes of the 50 weight matrices of GPT-2 small, 124 million parameters; the head is the embedding of the tokens."""
    block = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
    return [(vocabulary, width), (context, width), *(block * depth)]


class ResidualBlock(nn.Module):
    """Two convolutions around a shortcut, which is a 1 x 1 convolution where the shape changes."""

    def __init__(self, fan_in: int, fan_out: int, stride: int = 1) -> None:
        super().__init__()
        self.first = _normed_convolution(fan_in, fan_out, stride)
        self.second = _normed_convolution(fan_out, fan_out)
        same = stride == 1 and fan_in == fan_out
        self.shortcut = nn.Identity() if same else _normed_convolution(fan_in, fan_out, stride, kernel=1)

    def forward(self, images: Tensor) -> Tensor:
        """Images to images, of 1/stride the height and width."""
        return functional.relu(self.second(functional.relu(self.first(images))) + self.shortcut(images))


class BottleneckBlock(nn.Module):
    """A 3 x 3 convolution between two of 1 x 1, the last to four times the channels, around a shortcut."""

    def __init__(self, fan_in: int, inner: int, stride: int) -> None:
        super().__init__()
        self.first = _normed_convolution(fan_in, inner, kernel=1)
        self.second = _normed_convolution(inner, inner, stride)
        self.third = _normed_convolution(inner, 4 * inner, kernel=1)
        same = stride == 1 and fan_in == 4 * inner
        self.shortcut = nn.Identity() if same else _normed_convolution(fan_in, 4 * inner, stride, kernel=1)

    def forward(self, images: Tensor) -> Tensor:
        """Images to images, of 1/stride the height and width."""
        inner = functional.relu(self.second(functional.relu(self.first(images))))
        return functional.relu(self.third(inner) + self.shortcut(images))


class LanguageModel(nn.Module):
    """Embeddings, attention blocks and a head of its own."""

    def __init__(self, width: int, depth: int, heads: int, vocabulary: int, context: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*[AttentionBlock(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token numbers ``(batch, length)`` to logits ``(batch, length, vocabulary)``."""
        positions = torch.arange(tokens.shape[-1], device=tokens.device)
        logits: Tensor = self.head(self.norm(self.blocks(self.tokens(tokens) + self.positions(positions))))
        return logits


class AttentionBlock(nn.Module):
    """Causal attention with queries, keys and values in one matrix, then a network of four times the width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.network_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.network = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, states: Tensor) -> Tensor:
        """States ``(batch, length, width)`` to states of the same shape."""
        states = states + self.projection(self._attended(self.attention_norm(states)))
        updated: Tensor = states + self.network(self.network_norm(states))
        return updated

    def _attended(self, states: Tensor) -> Tensor:
        queries, keys, values = self.qkv(states).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return attended.transpose(1, 2).flatten(-2)


def _normed_convolution(fan_in: int, fan_out: int, stride: int = 1, kernel: int = 3) -> nn.Module:
    convolution = nn.Conv2d(fan_in, fan_out, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(fan_out))
