"""CPU times of calls that take turns, the lines of a table, and silence between them."""

from __future__ import annotations

import contextlib
import io
import logging
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import NamedTuple

import torch

__all__ = ["Call", "Timing", "in_turn", "print_row", "silence"]

Call = Callable[[], object]

# Seconds: a shorter call is repeated, since the first one after another candidate finds the caches cold.
SHORTEST_TIMING = 5e-3


class Timing(NamedTuple):
    """Milliseconds that a call takes: median and interquartile range over the rounds."""

    median: float
    spread: float

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.spread / self.median:.0%})"


def in_turn(calls: Mapping[str, Call], rounds: int) -> dict[str, Timing]:
    """Time every call once in every round, after a warm-up that finds out how often to repeat it."""
    repeats = {name: enough_repeats(call) for name, call in calls.items()}
    times = [[cpu_time(call, repeats[name]) for name, call in calls.items()] for _ in range(rounds)]
    low, median, high = (1e3 * torch.tensor(times).quantile(torch.tensor([0.25, 0.5, 0.75]), dim=0)).tolist()
    return {name: Timing(median[i], high[i] - low[i]) for i, name in enumerate(calls)}


def enough_repeats(call: Call) -> int:
    repeats = 1
    while repeats * cpu_time(call, repeats) < SHORTEST_TIMING:
        repeats *= 2
    return repeats


def cpu_time(call: Call, repeats: int) -> float:
    """Seconds that this thread spends in one call."""
    start = time.thread_time()
    for _ in range(repeats):
        call()
    return (time.thread_time() - start) / repeats


def print_row(name: str, cells: Iterable[object], width: int = 17) -> None:
    print(name.ljust(28) + "".join(str(cell).rjust(width) for cell in cells), flush=True)


@contextlib.contextmanager
def silence() -> Generator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable()
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
