"""Passes that activation checkpointing makes twice: which of the two is at hand."""

from __future__ import annotations

import torch

__all__ = ["is_checkpointed", "is_in_backward", "is_recomputed"]


def is_in_backward() -> bool:
    """Whether autograd is going back through a graph and runs this on its way.

    Example:
        >>> weight = torch.ones(1, requires_grad=True)
        >>> handle = weight.register_hook(lambda gradient: print(is_in_backward()))
        >>> weight.sum().backward()
        True
        >>> is_in_backward()
        False
    """
    return torch._C._current_graph_task_id() != -1


def is_checkpointed() -> bool:
    """Whether activations are being checkpointed without reentrance: nothing but the backward pass may read what is saved."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return hooks is not None and hooks[0].__module__ == "torch.utils.checkpoint"


def is_recomputed() -> bool:
    """Whether this pass but brings back what a pass with gradients has computed before.

    Checkpointing with reentrance is another matter: there the pass with gradients is the second alone.
    """
    return is_in_backward() and is_checkpointed()
