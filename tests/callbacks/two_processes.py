"""Trains in two processes and one, and saves what each process saw: ``python -m tests.callbacks.two_processes FOLDER``."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from rank_callbacks import WeightRankMonitor
from rank_callbacks.callbacks.sharing import shared_singular_values
from rank_callbacks.functional import singular_values_of_each
from tests.models import Classifier, convnet, mlp
from tests.training import Recorder, fit, outcome

# Of sizes such that the dearest goes to the first process, the others to the second.
SHAPES = {"small": (2, 3), "large": (40, 50), "middle": (20, 30)}
# More bytes than any address space has, once it is widened to float64.
IMPOSSIBLE = (10, 10**16)


class Save(pl.Callback):
    """Writes what a process is left with when its training ends."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        metrics = {tag: value.item() for tag, value in trainer.callback_metrics.items() if "_rank/" in tag}
        rows = [row for logger in trainer.loggers for row in logger.rows if "_rank/" in row[1]]
        seen = {"outcome": outcome(trainer, pl_module), "metrics": metrics, "rows": rows}
        torch.save(seen, f"{self.path}-{trainer.global_rank}.pt")


class Share(pl.Callback):
    """Lets both processes measure matrices whose entries tell whose they are, and one that cannot be measured."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.measured: list[str] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        matrices = {name: torch.full(shape, 1.0 + trainer.global_rank) for name, shape in SHAPES.items()}
        values = shared_singular_values(matrices, self.spectra)
        impossible = {"impossible": torch.zeros(1, 1).expand(IMPOSSIBLE), "possible": torch.eye(3)}
        failed = shared_singular_values(impossible)
        seen = {"measured": self.measured, "values": values, "failed": failed, "nothing": shared_singular_values({})}
        torch.save(seen, f"{self.path}-{trainer.global_rank}.pt")

    def spectra(self, matrices: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.measured += matrices
        return singular_values_of_each(matrices)


def in_order() -> Classifier:
    model = mlp()
    model.shuffle = False
    return model


def run(path: Path, model: Callable[[], Classifier], *callbacks: pl.Callback, processes: int = 2, **options: Any) -> None:
    pl.seed_everything(0, verbose=False)
    strategy = "ddp_fork" if processes > 1 else "auto"
    fit(model(), *callbacks, Save(path), logger=Recorder(), devices=processes, strategy=strategy, max_epochs=2, **options)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    # The averaged gradient of two processes that see the same batches is that of one.
    run(folder / "two", in_order, WeightRankMonitor(every_n_steps=2, change=True), use_distributed_sampler=False)
    run(folder / "one", in_order, WeightRankMonitor(every_n_steps=2, change=True), processes=1)
    run(folder / "watched", convnet, WeightRankMonitor(every_n_steps=1, change=True))
    run(folder / "unwatched", convnet)
    run(folder / "sharing", mlp, Share(folder / "share"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
