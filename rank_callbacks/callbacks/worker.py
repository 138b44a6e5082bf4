"""A thread that does one job at a time beside the training."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

from rank_callbacks.callbacks.processes import alone

__all__ = ["Worker"]

_Result = TypeVar("_Result")


class Worker(Generic[_Result]):
    """A thread with one core, which takes a job if it has none. It starts with the first, and ends with ``close``.

    A job has no autograd, and no other processes: what would be a collective operation is done alone.

    Example:
        >>> worker = Worker()
        >>> worker.start(lambda: torch.get_num_threads())
        >>> worker.result()
        1
        >>> worker.close()
    """

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._job: Future[_Result] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether it has a job that is not done."""
        return self._job is not None and not self._job.done()

    def start(self, job: Callable[[], _Result]) -> None:
        """Begin a job; the result of the one before must have been fetched."""
        if self._thread is None:
            self._thread = _one_thread()
        self._job = self._thread.submit(_apart, job)

    def result(self) -> _Result:
        """What the job returns, waited for; its exception is raised."""
        if self._job is None:
            raise RuntimeError("Expected a job to have been started, got none.")
        job, self._job = self._job, None
        return job.result()

    def close(self) -> None:
        """Wait for the job, forget it, and end the thread."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)
        self._thread = self._job = None


def _apart(job: Callable[[], _Result]) -> _Result:
    with alone(), torch.no_grad():
        return job()


def _one_thread() -> ThreadPoolExecutor:
    """A thread whose operations take one core. Its number becomes that of threads to come, so it is set back here."""
    before = torch.get_num_threads()
    executor = ThreadPoolExecutor(1, thread_name_prefix="rank_callbacks")
    executor.submit(torch.get_num_threads).result()  # a thread that has asked keeps its number
    executor.submit(torch.set_num_threads, 1).result()
    torch.set_num_threads(before)
    return executor
