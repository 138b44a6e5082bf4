"""Hooks beside torch.compile: what it traces goes on without them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

__all__ = ["is_compiled", "uncompiled", "unless_compiled"]


def unless_compiled(hook: Callable[..., object]) -> Callable[..., object]:
    """A hook that does nothing where ``torch.compile`` traces it.

    Traced, it would be part of the compiled module from then on, whether it is removed or not: it would break the graph,
    whose parts round otherwise than the whole, and so change the training.

    Args:
        hook: Of a module, as ``register_forward_hook`` takes it.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> handle = layer.register_forward_hook(unless_compiled(lambda *args: print("seen")))
        >>> _ = torch.compile(layer, backend="eager")(torch.ones(1, 2))
        >>> _ = layer(torch.ones(1, 2))
        seen
    """

    def call(*args: object, **kwargs: object) -> object:
        return None if torch.compiler.is_compiling() else hook(*args, **kwargs)

    return call


def is_compiled(model: nn.Module) -> bool:
    """Whether ``torch.compile`` or ``Module.compile`` was asked to compile a model or a module in it.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> model[1].compile()
        >>> is_compiled(model), is_compiled(model[0])
        (True, False)
    """
    # Lightning takes torch.compile(LightningModule) apart, and notes it so.
    asked = getattr(model, "_compiler_ctx", None) is not None
    return asked or any("_orig_mod" in one._modules or one._compiled_call_impl is not None for one in model.modules())


def uncompiled() -> AbstractContextManager[object]:
    """In which compiled modules run as they are written, hooks and all, and nothing is compiled; from torch 2.6 on.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> handle = layer.register_forward_hook(unless_compiled(lambda *args: print("seen")))
        >>> with uncompiled():
        ...     _ = torch.compile(layer, backend="eager")(torch.ones(1, 2))
        seen
    """
    set_stance = getattr(torch.compiler, "set_stance", None)
    return set_stance("force_eager") if set_stance else nullcontext()
