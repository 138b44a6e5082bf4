"""Trains in two processes and one: ``python -m tests.callbacks.two_processes_collapse FOLDER`` saves what each one saw."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rank_callbacks import RankCollapseMonitor
from tests.callbacks.test_rank_collapse import K, Trained, convnet, made, mlp
from tests.training import Recorder, fit, outcome


class Save(pl.Callback):
    """Writes what a process is left with when its training ends."""

    def __init__(self, path: Any) -> None:
        self.path = path

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        metrics = {tag: value.item() for tag, value in trainer.callback_metrics.items() if tag.startswith("rank_collapse/")}
        rows = [row for logger in trainer.loggers for row in logger.rows if row[1].startswith("rank_collapse/")]
        seen = {"outcome": outcome(trainer, pl_module), "metrics": metrics, "rows": rows}
        torch.save(seen, f"{self.path}-{trainer.global_rank}.pt")


def plain_convnet(batches: int, **attributes: Any) -> Trained:
    """Without the statistics of a batch, which are a process's own."""
    model = convnet(batches, **attributes)
    model.network[1] = nn.Identity()
    return model


class Spare(nn.Module):
    """A layer that only the first process uses."""

    def __init__(self) -> None:
        super().__init__()
        self.spare, self.body = nn.Linear(8, 8), nn.Linear(8, K)

    def forward(self, inputs: Tensor) -> Tensor:
        is_first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
        return self.body(self.spare(inputs) if is_first else inputs)


def probe() -> DataLoader:
    torch.manual_seed(3)
    return DataLoader(TensorDataset(torch.randn(10, 8), torch.arange(10) % K), batch_size=4)


def spare() -> Trained:
    return made(Spare(), torch.randn(24, 8))


def run(path: Any, model: Callable[[], Trained], *callbacks: pl.Callback, processes: int = 2, **options: Any) -> None:
    pl.seed_everything(0, verbose=False)
    strategy = options.pop("strategy", "ddp_fork") if processes > 1 else "auto"
    everything = {"devices": processes, "strategy": strategy, "precision": "64-true", "max_epochs": 2} | options
    fit(model(), *callbacks, Save(path), logger=Recorder(), **everything)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    # Four steps of batches of six in each of two processes, which one process takes in batches of twelve.
    for name, model in (("mlp", mlp), ("conv", plain_convnet)):
        for kind, every_n_steps, window, accumulate in (("1", 1, 1, 1), ("2", 2, 2, 2), ("last", 20, 3, 1)):
            arguments = {"every_n_steps": every_n_steps, "window": window}
            options = {"accumulate_grad_batches": accumulate}
            path = folder / f"{name}-{kind}"
            run(f"{path}-two", partial(model, 8), RankCollapseMonitor(K, **arguments), **options)
            whole = partial(model, 8, batch_size=12)
            run(f"{path}-one", whole, RankCollapseMonitor(K, **arguments), processes=1, **options)
    run(folder / "norm-two", partial(convnet, 8), RankCollapseMonitor(K, every_n_steps=2), precision="32-true")
    run(folder / "norm-unwatched", partial(convnet, 8), precision="32-true")
    of_probe = partial(RankCollapseMonitor, K, every_n_steps=2, data=probe())
    run(folder / "probe-two", partial(mlp, 8), of_probe())
    run(folder / "probe-one", partial(mlp, 8, batch_size=12), of_probe(), processes=1)
    strategy = "ddp_fork_find_unused_parameters_true"
    run(folder / "spare-two", spare, RankCollapseMonitor(K, every_n_steps=1), strategy=strategy)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
