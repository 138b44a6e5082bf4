"""A trained module as a plain function of its inputs, whose evaluation leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

__all__ = ["check_inputs", "evaluated", "unnamed"]

_T = TypeVar("_T")


@contextmanager
def evaluated(
    function: Callable[[Tensor], Any],
    dtype: torch.dtype,
) -> Generator[Callable[[Tensor], dict[str | None, Tensor]]]:
    """A function that gives its outputs by name, that of a lone tensor being None.

    A module runs in eval mode on copies of its parameters and buffers, so that its own tensors see nothing of it, and is
    back in its modes at the end. Any other function is called as it is.

    Args:
        function: Takes inputs, gives a tensor or a mapping of tensors.
        dtype: Floating type of a module's copies; complex ones and integers keep theirs.
    """
    if not isinstance(function, nn.Module):
        yield lambda inputs: _by_name(function(inputs))
        return
    copies = {
        name: tensor.detach().to(dtype if tensor.is_floating_point() else tensor.dtype, copy=True)
        for name, tensor in [*function.named_parameters(), *function.named_buffers()]
    }
    modes = [(module, module.training) for module in function.modules()]
    try:
        function.eval()
        yield lambda inputs: _by_name(torch.func.functional_call(function, copies, (inputs,)))
    finally:
        for module, training in modes:
            module.training = training


def unnamed(values: Mapping[str | None, _T]) -> _T | dict[str, _T]:
    """Values by the names of outputs, or that of the lone output."""
    return values[None] if None in values else cast("dict[str, _T]", dict(values))


def check_inputs(inputs: Tensor) -> None:
    """Refuse what nothing can be added to.

    Raises:
        ValueError: If there are no inputs, or they are integers.
    """
    if not inputs.is_floating_point():
        raise ValueError(
            f"Expected inputs of floating type, got {inputs.dtype}. Token ids have no neighbours and no derivative: give "
            "their embeddings as inputs, and the function that follows the embedding."
        )
    if inputs.dim() == 0 or inputs.numel() == 0:
        raise ValueError(f"Expected inputs of shape (n, ...) with at least one number, got shape {tuple(inputs.shape)}.")


def _by_name(output: object) -> dict[str | None, Tensor]:
    named: dict[str | None, Any] = dict(output) if isinstance(output, Mapping) else {None: output}
    for name, value in named.items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.numel() == 0:
            what = "output" if name is None else f"output {name!r}"
            got = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"Expected function to give a tensor of real numbers or a mapping of them, got {got} as {what}. Wrap it in a "
                "function that picks one, or catch the outputs of layers by rank_callbacks.matrices.layer_outputs."
            )
    if not named:
        raise ValueError("Expected function to give a tensor or a mapping of them, got a mapping without any.")
    return named
