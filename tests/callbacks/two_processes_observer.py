"""Trains in loops of one's own, two processes and one: ``python -m tests.callbacks.two_processes_observer FOLDER``."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing, nn
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel

from rank_callbacks import RankObserver

STEPS = 60


def train(processes: int, process: int, given: dict[str, Any] | None) -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3)).double()
    inputs, targets = torch.randn(STEPS, 8, 6).double(), torch.randn(STEPS, 8, 3).double()
    wrapped = DistributedDataParallel(model) if processes > 1 else model
    optimizer = torch.optim.Adam(wrapped.parameters(), lr=0.05)
    rows: dict[tuple[int, str], float] = {}

    def log(step: int, values: dict[str, float]) -> None:
        rows.update({(step, tag): value for tag, value in values.items() if not tag.startswith("monitor/s")})

    with nullcontext() if given is None else RankObserver(wrapped, optimizer, log, **given):
        for batch, target in zip(inputs, targets, strict=True):
            mine = slice(process, None, processes)
            mse_loss(wrapped(batch[mine]), target[mine]).backward()
            optimizer.step()
            optimizer.zero_grad()
    return {"rows": rows, "weights": [parameter.detach() for parameter in model.parameters()]}


def work(process: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=process, world_size=2)
    runs = {"watched": {"every_n_steps": 3}, "auto": {"max_overhead": 1.0}, "unwatched": None}
    torch.save({name: train(2, process, given) for name, given in runs.items()}, folder / f"two-{process}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.save({"watched": train(1, 0, {"every_n_steps": 3})}, folder / "one-0.pt")
    multiprocessing.spawn(work, (folder,), nprocs=2)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
