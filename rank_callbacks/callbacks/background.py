"""Reports of what lies on a GPU that are finished on the host, while the training goes on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from rank_callbacks.callbacks.processes import of_first_process, process_index
from rank_callbacks.callbacks.worker import Worker
from rank_callbacks.matrices.sharded import is_sharded
from rank_callbacks.tags import Tag
from rank_callbacks.writers import Report

__all__ = ["Background"]

# Bytes: of larger models the copies would crowd the host.
_MOST_COPIED = 2**30

_Taken = TypeVar("_Taken")
Copy: TypeAlias = "Callable[[Tensor], Tensor]"


class Background:
    """One report at a time, which a thread of the first process finishes from copies in the host's memory.

    The copies are put into the GPU's queue like any other work of the training, which waits for nothing. A report that
    comes due while another is under way is dropped and counted. What is finished is collected where all processes come by
    at the same step, with its own step.
    """

    def __init__(self) -> None:
        self._worker: Worker[Report] = Worker()
        self._is_under_way = False
        self.dropped = 0

    def takes(self, tensors: Iterable[Tensor]) -> bool:
        """Whether these lie on a GPU, whole, and are few enough to be copied."""
        each = list(tensors)
        is_elsewhere = all(tensor.device.type != "cpu" and not is_sharded(tensor) for tensor in each)
        return bool(each) and is_elsewhere and sum(tensor.nbytes for tensor in each) <= _MOST_COPIED

    def drops(self) -> bool:
        """Whether a report that is due now is dropped, since another is under way; it is counted."""
        self.dropped += self._is_under_way
        return self._is_under_way

    def start(self, take: Callable[[Copy], _Taken], finish: Callable[[_Taken], Report]) -> None:
        """Begin a report, while none is under way.

        Args:
            take: Takes what the report is of by the function that it is given, which copies a tensor as it is now.
            finish: Makes a report of that, in another thread: it must not touch what this one uses meanwhile.
        """
        self._is_under_way = True
        if process_index() == 0:
            copies = _HostCopies()
            self._worker.start(partial(_finished, take(copies), copies.events(), finish))

    def collect(self, is_waited_for: bool = False) -> Report | None:
        """The report under way, once, if it is finished. A collective operation if one is under way.

        Args:
            is_waited_for: Whether to wait until it is.
        """
        if not self._is_under_way or not (is_waited_for or of_first_process(not self._worker.is_busy)):
            return None
        return of_first_process(self.rescue())

    def rescue(self) -> Report | None:
        """The report under way, on the process that has it: after an exception, of which the others may not know."""
        is_mine = self._is_under_way and process_index() == 0
        self._is_under_way = False
        try:
            return self._worker.result() if is_mine else None
        except Exception as error:  # training is not to end for it, and the other processes wait for an answer
            warnings.warn(f"A report has no readings: {type(error).__name__}: {error}", stacklevel=2)
            return None

    def cost(self, monitor: str) -> dict[Tag, float]:
        """How many reports were dropped so far, once one was."""
        return {Tag("monitor", "dropped_reports", monitor): float(self.dropped)} if self.dropped else {}

    def close(self) -> None:
        """End the thread; what was under way is lost."""
        self._worker.close()
        self._is_under_way = False
        self.dropped = 0


def _finished(taken: _Taken, copied: Iterable[torch.cuda.Event], finish: Callable[[_Taken], Report]) -> Report:
    for event in copied:
        event.synchronize()
    return finish(taken)


class _HostCopies:
    """Copies a tensor into the host's memory: from CUDA without waiting for it, which is not known to be safe elsewhere."""

    def __init__(self) -> None:
        self._devices: set[torch.device] = set()

    def __call__(self, tensor: Tensor) -> Tensor:
        if tensor.is_cuda:
            self._devices.add(tensor.device)
        return tensor.detach().to("cpu", non_blocking=tensor.is_cuda)

    def events(self) -> list[torch.cuda.Event]:
        """After which the copies made so far are there."""
        streams = [torch.cuda.current_stream(device) for device in self._devices]
        return [stream.record_event(torch.cuda.Event(blocking=True)) for stream in streams]  # on which no core spins
