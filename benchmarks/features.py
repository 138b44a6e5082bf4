"""What FeatureRankMonitor adds to a validation epoch, beside the usual ways.

Run ``python -m benchmarks.features``. Runs of ``trainer.validate`` with a monitor take turns with runs without: the share is
the median of what a run adds over the median of a run. The others look at the same layers, positions of feature maps as
samples: ``all moments`` adds up the float64 second moments of every row, ``all rows`` keeps every row for one ``svdvals`` at
the end, as users write them; ``delve`` is that package's tracker. CPU time on one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.models import mlp, resnet18, transformer
from benchmarks.timing import print_row, silence
from rank_callbacks import FeatureRankMonitor
from rank_callbacks.matrices.features import OutputHooks, depth_layers, feature_rows

LARGEST_SHARE = 0.05


class Epoch(NamedTuple):
    """A model, the inputs of a batch, and how many batches an epoch has."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    batches: int
    turns: int


EPOCHS = {
    "ResNet-18, 1,024 images": Epoch(resnet18, lambda: torch.randn(64, 3, 32, 32), batches=16, turns=3),
    "MLP 784-1024x4-10, 10,240 images": Epoch(mlp, lambda: torch.randn(128, 784), batches=80, turns=5),
    "transformer, 64 x 256 tokens": Epoch(transformer, lambda: torch.randint(0, 103, (8, 256)), batches=8, turns=3),
}
TINY = {"MLP 784-16x4-10, 32 images": Epoch(partial(mlp, 16), lambda: torch.randn(8, 784), batches=4, turns=1)}


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(prog="python -m benchmarks.features", description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--quick", action="store_true", help="one turn of a small model")
    chosen = options.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print_row("Share of a validation epoch", ["monitor", "epoch, s", "adds, ms", "share"], 26)
    for name, epoch in (TINY if chosen.quick else EPOCHS).items():
        for title, build in watchers().items():
            plain, added = cost_of_an_epoch(epoch, build)
            share = added / plain
            is_barred = title == "FeatureRankMonitor" and name.startswith("ResNet")
            verdict = (" ok" if share <= LARGEST_SHARE else " MISSED") if is_barred else ""
            print_row(name, [title, f"{plain:.2f}", f"{1e3 * added:.0f}", f"{share:.1%}{verdict}"], 26)
    print(f"\nBar: at most {LARGEST_SHARE:.0%} for FeatureRankMonitor on ResNet-18.")


def watchers() -> dict[str, Callable[[], Callback]]:
    """What looks at the features, by title."""
    ways: dict[str, Callable[[], Callback]] = {
        "FeatureRankMonitor": FeatureRankMonitor,
        "FeatureRankMonitor, mean": partial(FeatureRankMonitor, maps="mean"),
        "all moments": AllMoments,
        "all rows": AllRows,
    }
    return ways | ({"delve": Delve} if Delve.is_installed() else {})


def cost_of_an_epoch(epoch: Epoch, build: Callable[[], Callback]) -> tuple[float, float]:
    """CPU seconds of a validation epoch, and what a callback adds: medians over turns."""
    model = Classifier(epoch.build())
    loader = DataLoader(Batches(epoch.inputs(), epoch.batches), batch_size=None)
    seconds_of(model, loader, build())  # warms up
    turns = [(seconds_of(model, loader), seconds_of(model, loader, build())) for _ in range(epoch.turns)]
    return statistics.median(plain for plain, _ in turns), statistics.median(watched - plain for plain, watched in turns)


def seconds_of(model: LightningModule, loader: DataLoader[Tensor], *callbacks: Callback) -> float:
    """CPU seconds of one validation epoch."""
    with silence():
        trainer = Trainer(
            callbacks=list(callbacks),
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        began = time.thread_time()
        trainer.validate(model, loader, verbose=False)
        return time.thread_time() - began


class AllRows(Callback):
    """Keeps what every layer gave, and decomposes it at the end."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rows: dict[str, list[Tensor]] = {}
        self.hooks = OutputHooks(depth_layers(pl_module), self.add)

    def add(self, name: str, output: Tensor) -> None:
        rows = feature_rows(output, len(output), "positions").flatten(0, -2)
        self.rows.setdefault(name, []).append(rows.clone())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.hooks.close()
        for rows in self.rows.values():
            torch.linalg.svdvals(torch.cat(rows))


class AllMoments(AllRows):
    """Adds up second moments of what every layer gave, and decomposes them at the end."""

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        self.moments: dict[str, Tensor] = {}

    def add(self, name: str, output: Tensor) -> None:
        rows = feature_rows(output, len(output), "positions").flatten(0, -2).double()
        self.moments[name] = self.moments.get(name, 0) + rows.mT @ rows

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.hooks.close()
        for moments in self.moments.values():
            torch.linalg.eigvalsh(moments)


class Delve(Callback):
    """The tracker of the package delve, on all its convolutions and linear layers."""

    @staticmethod
    def is_installed() -> bool:
        """Whether the package is here."""
        try:
            import delve  # ruff: ignore[unused-import]
        except ImportError:
            return False
        return True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        import tempfile

        from delve import SaturationTracker

        self.folder = tempfile.TemporaryDirectory()
        self.tracker = SaturationTracker(self.folder.name, save_to="csv", modules=pl_module, device="cpu")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.tracker.add_saturations()
        self.tracker.close()
        self.folder.cleanup()


class Classifier(LightningModule):
    """Any model, validated."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.model(batch)


class Batches(IterableDataset[Tensor]):
    """The same batch several times."""

    def __init__(self, batch: Tensor, number: int) -> None:
        self.batch = batch
        self.number = number

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(self.number):
            yield self.batch


if __name__ == "__main__":
    main()
