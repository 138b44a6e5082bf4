"""Finish reports beside two processes: ``python -m tests.callbacks.two_processes_background FOLDER``."""

import sys
import threading
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, multiprocessing

from rank_callbacks.callbacks.background import Background
from rank_callbacks.callbacks.processes import process_count
from tests.callbacks.test_background import fails, finish, take


def told(copies: Mapping[str, Tensor], processes: list[int]) -> Any:
    processes.append(process_count())
    return finish(copies)


def observed(process: int) -> dict[str, Any]:
    background, release, processes = Background(), threading.Event(), list[int]()
    background.start(take, partial(finish, release=release))
    seen: dict[str, Any] = {"unfinished": background.collect()}
    background.drops()
    release.set()
    seen |= {"report": background.collect(is_waited_for=True), "dropped": background.dropped}
    background.start(take, fails)
    seen["failed"] = background.collect(is_waited_for=True)
    background.start(take, partial(told, processes=processes))
    seen["rescued"] = background.rescue()
    seen["alone"] = processes[0] if processes else None
    seen["threads"] = sum("rank_callbacks" in thread.name for thread in threading.enumerate())
    background.close()
    return seen


def work(process: int, folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=process, world_size=2)
    torch.save(observed(process), folder / f"background-{process}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    multiprocessing.spawn(work, (Path(sys.argv[1]),), nprocs=2)
