"""The processes that train together, as torch.distributed knows them: how many, which this is, and sums over all."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator
from typing import TypeVar

import torch
from torch import Tensor, distributed

__all__ = ["alone", "of_first_process", "process_count", "process_index", "summed_over_processes"]

_Value = TypeVar("_Value")
_thread = threading.local()


def process_count() -> int:
    """How many processes train together: 1 where ``torch.distributed`` is not initialised, and ``alone``."""
    if getattr(_thread, "is_alone", False):
        return 1
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def process_index() -> int:
    """Which of them this is, from 0."""
    return distributed.get_rank() if process_count() > 1 else 0


@contextlib.contextmanager
def alone() -> Generator[None]:
    """Within it this thread takes part in no collective operation: what it does, others do not do with it."""
    _thread.is_alone = True
    try:
        yield
    finally:
        _thread.is_alone = False


def summed_over_processes(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, on its own device; the tensor itself where there is but one.

    A collective operation: every process must call it with a tensor of the same shape and type.
    """
    if process_count() == 1:  # Not to be copied either: some accelerators have no float64.
        return tensor
    total = tensor.to(meeting_device(tensor.device), copy=True)
    distributed.all_reduce(total)
    return total.to(tensor.device)


def of_first_process(value: _Value) -> _Value:
    """The first process's value, on every process. A collective operation."""
    if process_count() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def meeting_device(device: torch.device) -> torch.device:
    """Where processes can exchange what lies on ``device``: there, but NCCL knows GPUs alone."""
    is_out_of_reach = device.type == "cpu" and distributed.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if is_out_of_reach else device
