"""What an optimizer's group says of a parameter: its weight decay, what that means, and its learning rate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch.optim import Optimizer

__all__ = ["Decay", "decay_of"]

# Their step is a function of the gradient of loss plus (weight_decay/2)·‖W‖², so their critical points are that sum's.
_PENALIZING = ("SGD", "ASGD", "Adam", "Adamax", "NAdam", "RAdam", "Adagrad", "Adadelta", "RMSprop")


class Decay(NamedTuple):
    """How an optimizer shrinks a parameter.

    Args:
        weight_decay: Of the parameter's group.
        is_penalty: Whether it is λ of a penalty (λ/2)‖W‖² on the loss. In AdamW and other decoupled optimizers it is not: the
            weights at rest are not a critical point of any such sum.
        learning_rate: Of the group.
        is_sgd: Whether the optimizer is plain SGD.
    """

    weight_decay: float
    is_penalty: bool
    learning_rate: float
    is_sgd: bool


def decay_of(parameter: torch.nn.Parameter, optimizers: Iterable[Optimizer]) -> Decay | None:
    """The decay of a parameter as it is now; None if no optimizer has it.

    A group without ``weight_decay`` has 0.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if any(member is parameter for member in group["params"]):
                return _decay(optimizer, group)
    return None


def _decay(optimizer: Optimizer, group: dict[str, object]) -> Decay:
    kinds = {getattr(torch.optim, name) for name in _PENALIZING} & set(type(optimizer).__mro__)
    # AdamW is an Adam, with this flag in its groups.
    decoupled = bool(group.get("decoupled_weight_decay")) or isinstance(optimizer, torch.optim.AdamW)
    return Decay(
        weight_decay=float(group.get("weight_decay", 0.0)),  # type: ignore[arg-type]
        is_penalty=bool(kinds) and not decoupled,
        learning_rate=float(group.get("lr", 0.0)),  # type: ignore[arg-type]
        is_sgd=isinstance(optimizer, torch.optim.SGD),
    )
