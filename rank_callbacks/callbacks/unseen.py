"""Why hooks may have seen nothing."""

from __future__ import annotations

from torch import nn

from rank_callbacks.matrices.uncompiled import is_compiled

__all__ = ["why_unseen"]


def why_unseen(model: nn.Module) -> str:
    """What to add to "nothing passed through it": that part of the model is compiled; nothing where none is."""
    return ", for hooks do not see into what torch.compile compiles" if is_compiled(model) else ""
