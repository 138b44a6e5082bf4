"""A model as a function to the outputs of chosen layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from rank_callbacks.matrices.features import OutputHooks, first_tensor
from rank_callbacks.matrices.uncompiled import uncompiled

__all__ = ["layer_outputs"]


def layer_outputs(model: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """A module that runs ``model`` and gives the outputs of some of the modules in it, by name.

    Its parameters are the model's own: it runs in the modes and the type that the model is in, keeps gradients, and goes
    through ``torch.func`` (``functional_call``, ``jvp``, ``vjp``, ``vmap``). Hooks are on the layers only while it runs.

    Args:
        model: Any module; what the result is called with is passed on to it.
        layers: Modules inside it by the names that the outputs shall have.

    Returns:
        A module that gives a dictionary in the order of ``layers``. Of a tuple or mapping that a layer gives, the first tensor
        is taken; of a layer that runs several times, the last run counts; a layer that does not run or gives no real numbers
        is left out. Tensors are copies: a following module that works in place does not change them.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Linear(3, 2))
        >>> outputs = layer_outputs(model, {"hidden": model[0], "logits": model[2]})
        >>> {name: tuple(output.shape) for name, output in outputs(torch.zeros(5, 4)).items()}
        {'hidden': (5, 3), 'logits': (5, 2)}
    """
    return _LayerOutputs(model, layers)


class _LayerOutputs(nn.Module):
    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.model = model
        self._layers = dict(layers)  # a plain one registers nothing: the parameters are the model's
        self.training = model.training

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:  # ruff: ignore[any-type]
        caught: dict[str, Tensor] = {}

        def keep(name: str, output: object) -> None:
            tensor = first_tensor(output)
            if tensor is not None and tensor.is_floating_point() and tensor.numel():
                caught[name] = tensor.clone()

        hooks = OutputHooks(self._layers, keep)
        try:
            with uncompiled():
                self.model(*args, **kwargs)
        finally:
            hooks.close()
        return {name: caught[name] for name in self._layers if name in caught}
