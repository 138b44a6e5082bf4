"""Hooks that stay with the module that they are set on: what torch.compile traces, and copies, go on without them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

__all__ = ["is_compiled", "uncompiled", "unless_compiled"]


def unless_compiled(hook: Callable[..., object]) -> Callable[..., object]:
    """A hook that does nothing where ``torch.compile`` traces it, nor on a copy of the module, or one read from a file.

    Traced, it would be part of the compiled module from then on, whether it is removed or not: it would break the graph,
    whose parts round otherwise than the whole, and so change the training. On a copy it would never be removed.

    Args:
        hook: Of a module, as ``register_forward_hook`` takes it.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> handle = layer.register_forward_hook(unless_compiled(lambda *args: print("seen")))
        >>> _ = torch.compile(layer, backend="eager")(torch.ones(1, 2))
        >>> _ = layer(torch.ones(1, 2))
        seen
    """
    return _Hook(hook)


class _Hook:
    def __init__(self, hook: Callable[..., object]) -> None:
        self._hook = hook

    def __call__(self, *args: object, **kwargs: object) -> object:
        return None if torch.compiler.is_compiling() else self._hook(*args, **kwargs)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        """What ``copy.deepcopy`` and ``pickle`` make of it."""
        # Does nothing, whatever it is given, and is known wherever a file with the module may be read.
        return getattr, (nullcontext(), "__exit__")


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
