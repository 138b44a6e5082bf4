"""Features of chosen layers, caught batch by batch, and the rows that they are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rank_callbacks.matrices.parameters import plain_name
from rank_callbacks.matrices.selection import Layers, select

__all__ = ["MAPS", "PENULTIMATE", "FeatureCapture", "feature_layers", "feature_rows", "find_classifier"]

PENULTIMATE = "penultimate"
MAPS = ("mean", "positions", "projection")
# They keep squared distances to √(2/512), some 6 per cent.
_PROJECTED_FEATURES = 512


class FeatureCapture:
    """Hooks on layers, from construction until ``close``.

    Of a layer that runs several times in a batch the last run counts.

    Args:
        layers: Modules by name; their outputs are features.
        classifier: The module whose input is the penultimate features.
    """

    def __init__(self, layers: Mapping[str, nn.Module], classifier: nn.Linear) -> None:
        self.classifier = classifier
        self._features: dict[str, Tensor] = {}
        self._predictions: Tensor | None = None
        self._handles: list[RemovableHandle] = [
            module.register_forward_hook(partial(self._on_layer, name)) for name, module in layers.items()
        ]
        self._handles.append(classifier.register_forward_hook(self._on_classifier, with_kwargs=True))

    def close(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def take(self) -> tuple[dict[str, Tensor], Tensor | None]:
        """What the batch left: features by layer, and the classes that the classifier predicts."""
        taken = self._features, self._predictions
        self._features, self._predictions = {}, None
        return taken

    def _on_layer(self, name: str, module: nn.Module, args: object, output: Any) -> None:  # ruff: ignore[any-type]
        features = _first_tensor(output)
        if features is not None:
            self._features[name] = features.detach().clone()  # what follows may work in place

    def _on_classifier(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        self._features[PENULTIMATE] = (args[0] if args else kwargs["input"]).detach()
        self._predictions = output.detach().argmax(-1)


def _first_tensor(output: object) -> Tensor | None:
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        return next((item for item in output if isinstance(item, Tensor)), None)
    return output if isinstance(output, Tensor) else None


def find_classifier(model: nn.Module, num_classes: int, name: str | None = None) -> nn.Linear:
    """The linear layer that gives the logits: the one of this name, or the last one with an output a class.

    Raises:
        ValueError: If there is none, with the linear layers that there are.
    """
    linear = {plain_name(path): module for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    fitting = {path: module for path, module in linear.items() if module.out_features == num_classes}
    if name is None and fitting:
        return next(reversed(fitting.values()))
    if name in fitting:
        return fitting[name]
    what = "a linear layer" if name is None else f"classifier={name!r} to be a linear layer"
    sizes = ", ".join(f"{path} ({module.out_features})" for path, module in linear.items()) or "nothing"
    raise ValueError(
        f"Expected {what} with num_classes={num_classes} outputs, got none. Linear layers and their outputs: {sizes}. "
        "Name it by classifier='...'."
    )


def feature_layers(model: nn.Module, layers: Layers) -> dict[str, nn.Module]:
    """The modules that ``layers`` means, by name; none for None.

    Raises:
        ValueError: If a pattern matches none.
    """
    if layers is None:
        return {}
    modules = {plain_name(path): module for path, module in model.named_modules() if path}
    if callable(layers):
        return select(modules, layers)
    # A name means the module itself here, not what is inside.
    patterns = [layers] if isinstance(layers, str) else list(layers)
    inside = {name: module for name, module in modules.items() if name not in patterns}
    exact = {name: modules[name] for name in patterns if name in modules}
    globs = [pattern for pattern in patterns if pattern not in modules]
    return exact | (select(inside, globs) if globs else {})


def feature_rows(features: Tensor, samples: int, maps: str) -> Tensor:
    """Features as rows, of shape ``(samples, D)`` or ``(samples, positions, D)``.

    ==================  ==============================================  ============================================
    features            ``maps="mean"``, ``"projection"``               ``maps="positions"``
    ==================  ==============================================  ============================================
    ``(B, D)``          as they are                                     as they are
    ``(B, T, D)``       mean over tokens; or a random projection of     each token a row
                        all T·D numbers to 512
    ``(B, C, *sides)``  mean over positions; or a random projection of  each position a row of C features
                        all C·sides numbers to 512
    ==================  ==============================================  ============================================

    Maps are read channels first: ``(B, *sides, C)`` needs a module after which they are.

    The projection is a Gaussian matrix over √512, always the same: squared distances keep their expectation.

    Args:
        features: Of a batch; where the second dimension alone is as long as the batch, ``(T, B, D)``.
        samples: In the batch, B.
        maps: What to do with more than two dimensions.
    """
    if features.dim() > 2 and features.shape[0] != samples == features.shape[1]:
        features = features.transpose(0, 1)
    if features.dim() < 3:
        return features[:, None] if features.dim() == 1 else features
    if maps == "projection":
        flat = features.flatten(1)
        return flat @ _projection(flat.shape[1], flat.dtype, flat.device) if flat.shape[1] > _PROJECTED_FEATURES else flat
    rows = features if features.dim() == 3 else features.flatten(2).mT
    return rows if maps == "positions" else rows.mean(1)


@lru_cache(maxsize=4)
def _projection(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(width, _PROJECTED_FEATURES, generator=generator)
    return (matrix / math.sqrt(_PROJECTED_FEATURES)).to(device, dtype)
