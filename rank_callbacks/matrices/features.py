"""Features of chosen layers, caught batch by batch, and the rows that they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rank_callbacks.matrices.channels import ChannelsLast
from rank_callbacks.matrices.parameters import plain_name
from rank_callbacks.matrices.recomputation import is_in_backward
from rank_callbacks.matrices.selection import Layers, select
from rank_callbacks.matrices.uncompiled import unless_compiled

__all__ = [
    "PENULTIMATE",
    "FeatureCapture",
    "OutputHooks",
    "classifiers",
    "depth_layers",
    "feature_layers",
    "feature_rows",
    "find_classifier",
    "first_tensor",
]

PENULTIMATE = "penultimate"
# They keep squared distances to √(2/512), some 6 per cent.
_PROJECTED_FEATURES = 512
_SEQUENCES = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_IDENTITIES = (nn.Identity, nn.modules.dropout._DropoutNd)


class OutputHooks:
    """Hooks that hand on what layers give out, from construction until ``close``.

    What a backward pass computes once more, as with activation checkpointing, is not handed on.

    Args:
        layers: Modules by name.
        receive: Called with a layer's name and its output, each time that it runs.
    """

    def __init__(self, layers: Mapping[str, nn.Module], receive: Callable[[str, Any], None]) -> None:
        self._receive = receive
        self._handles: list[RemovableHandle] = [
            module.register_forward_hook(unless_compiled(partial(self._on_output, name))) for name, module in layers.items()
        ]

    def close(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _on_output(self, name: str, module: nn.Module, args: object, output: Any) -> None:  # ruff: ignore[any-type]
        if not is_in_backward():
            self._receive(name, output)


class FeatureCapture:
    """Hooks on layers and on the classifier, from construction until ``close``.

    Of a layer that runs several times in a batch the last run counts. Sequences have their channels last: see
    ``ChannelsLast``.

    Args:
        model: What they are in.
        layers: Modules by name; their outputs are features.
        classifier: The module whose input is the penultimate features.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module], classifier: nn.Linear) -> None:
        self.classifier = classifier
        self._layers = layers
        self._channels_last = ChannelsLast(model)
        self._features: dict[str, Tensor] = {}
        self._predictions: Tensor | None = None
        self._hooks = OutputHooks(layers, self._on_layer)
        hook = unless_compiled(self._on_classifier)
        self._classifier_hook = classifier.register_forward_hook(hook, with_kwargs=True)

    def close(self) -> None:
        """Remove every hook."""
        self._channels_last.close()
        self._hooks.close()
        self._classifier_hook.remove()

    def take(self) -> tuple[dict[str, Tensor], Tensor | None]:
        """What the batch left: features by layer, and the classes that the classifier predicts."""
        taken = self._features, self._predictions
        self._features, self._predictions = {}, None
        return taken

    def _on_layer(self, name: str, output: object) -> None:
        features = first_tensor(output)
        if features is not None:
            features = self._channels_last(self._layers[name], features)
            self._features[name] = features.detach().clone()  # what follows may work in place

    def _on_classifier(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        if is_in_backward():
            return
        self._features[PENULTIMATE] = (args[0] if args else kwargs["input"]).detach()
        self._predictions = output.detach().argmax(-1)


def first_tensor(output: object) -> Tensor | None:
    """A tensor, or the first of those in a tuple, list or mapping, at whatever depth; None without any."""
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        return next((found for item in output if (found := first_tensor(item)) is not None), None)
    return output if isinstance(output, Tensor) else None


def classifiers(model: nn.Module, num_classes: int) -> dict[str, nn.Linear]:
    """The linear layers with an output a class, by name: those that may be taken for the classifier, the likeliest last.

    A layer that is not trained, such as that of a teacher, comes before those that are.
    """
    fitting = {name: layer for name, layer in _linear_layers(model).items() if layer.out_features == num_classes}
    return dict(sorted(fitting.items(), key=lambda one: any(weight.requires_grad for weight in one[1].parameters())))


def _linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    return {plain_name(path): module for path, module in model.named_modules() if isinstance(module, nn.Linear)}


def find_classifier(model: nn.Module, num_classes: int, name: str | None = None) -> nn.Linear:
    """The linear layer that gives the logits: the one of this name, or the last one with an output a class that is trained.

    Raises:
        ValueError: If there is none, with the linear layers that there are.
    """
    fitting = classifiers(model, num_classes)
    if name is None and fitting:
        return next(reversed(fitting.values()))
    if name in fitting:
        return fitting[name]
    what = "a linear layer" if name is None else f"classifier={name!r} to be a linear layer"
    sizes = {path: layer.out_features for path, layer in _linear_layers(model).items()}
    raise ValueError(
        f"Expected {what} with num_classes={num_classes} outputs, got none. Linear layers and their outputs: "
        f"{', '.join(f'{path} ({size})' for path, size in sizes.items()) or 'nothing'}. {_way_out(num_classes, sizes)}"
    )


def _way_out(num_classes: int, sizes: Mapping[str, int]) -> str:
    """What to do where the linear layers of these sizes are not the classifier that was asked for."""
    fitting = [path for path, size in sizes.items() if size == num_classes]
    if fitting:
        return f"Choose classifier= from {', '.join(fitting)}."
    if num_classes == 2 and 1 in sizes.values():
        return "A single logit has one row of weights, where a classifier of two classes has a row for each: give it two."
    return "Check num_classes=; what is no nn.Linear is not read."


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


def depth_layers(model: nn.Module, layers: Layers = None) -> dict[str, nn.Module]:
    """The modules that ``layers`` means, by name; for None those along the depth.

    Along the depth of a model stand the members of its lists and sequences, and what is beside these.

    They are the blocks of a residual network or a transformer with its stem and head, and the layers of a perceptron. A
    module that is neither a list nor a sequence and is no member of one counts by its parts. Dropout and identities are left
    out: in eval mode their features are those before them.

    Raises:
        ValueError: If a pattern matches none.

    Example:
        >>> list(depth_layers(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Transformer(8), nn.ReLU()), nn.Dropout())))
        ['0', '1.0', '1.1']
    """
    if layers is not None:
        return feature_layers(model, layers)
    return {plain_name(path): module for path, module in _along(model, "") if not isinstance(module, _IDENTITIES)}


def _along(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    is_sequence = isinstance(module, _SEQUENCES)
    for name, child in module.named_children():
        is_member = is_sequence and not isinstance(child, _SEQUENCES)
        if is_member or next(child.children(), None) is None:
            yield path + name, child
        else:
            yield from _along(child, f"{path}{name}.")


def feature_rows(features: Tensor, samples: int, maps: str) -> Tensor:
    """Features as rows, of shape ``(samples, D)`` or ``(samples, positions, D)``.

    ==================  ==============================================  ==================  ============================
    features            ``maps="mean"``, ``"projection"``               ``maps="flat"``     ``maps="positions"``
    ==================  ==============================================  ==================  ============================
    ``(B, D)``          as they are                                     as they are         as they are
    ``(B, T, D)``       mean over tokens; or a random projection of     all T·D numbers     each token a row
                        all T·D numbers to 512
    ``(B, C, *sides)``  mean over positions; or a random projection of  all C·sides         each position a row of C
                        all C·sides numbers to 512                      numbers             features
    ==================  ==============================================  ==================  ============================

    Maps are read channels first: ``(B, *sides, C)`` needs a module after which they are. Sequences are read channels last: see
    ``ChannelsLast`` for ``(B, C, L)``.

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
    if maps == "flat":
        return features.flatten(1)
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
