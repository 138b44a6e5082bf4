"""Run as a script: train on a simulated GPU and on the CPU, watched, and save what was read into a folder."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rank_callbacks import (
    FeatureRankMonitor,
    GradientRankMonitor,
    NeuralCollapseMonitor,
    RankCollapseMonitor,
    RankObserver,
    TruncationMonitor,
    WeightRankMonitor,
)
from rank_callbacks.writers import Report
from tests.simulated_gpu import DEVICE, SimulatedGPU

CLASSES = 5
CHEAP = ["stable_rank", "numerical_rank", "participation_ratio", "relative_distance_to_rank_4"]
# All but NetworkRankMonitor, whose Jacobians need torch.func.
MONITORS: dict[str, Callable[[], Callback]] = {
    "weights": lambda: WeightRankMonitor(every_n_steps=4, change=True),
    "leading": lambda: WeightRankMonitor(CHEAP, every_n_steps=4, method="krylov"),
    "gradients": lambda: GradientRankMonitor(every_n_steps=4, update=True, moments=True, per_class=True),
    "features": lambda: FeatureRankMonitor(data="val", num_classes=CLASSES),
    "features_in_training": lambda: FeatureRankMonitor(data="train", every_n_steps=4),
    "neural_collapse": lambda: NeuralCollapseMonitor(CLASSES, every_n_steps=4),
    "rank_collapse": lambda: RankCollapseMonitor(CLASSES, every_n_steps=4),
    "truncation": TruncationMonitor,
    "auto": WeightRankMonitor,
}


class Elsewhere(CPUAccelerator):
    """What Lightning asks of an accelerator."""

    def setup_device(self, device: torch.device) -> None:
        pass


class Network(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        convolution = [nn.Conv2d(1, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.AdaptiveAvgPool2d(6), nn.Flatten()]
        dense = [nn.Linear(864, 160), nn.ReLU(), nn.Linear(160, 140), nn.ReLU(), nn.Linear(140, CLASSES)]
        self.net = nn.Sequential(*convolution, *dense)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)  # type: ignore[no-any-return]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def batches() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(100, 1, 12, 12, generator=generator)
    return DataLoader(TensorDataset(images, torch.arange(100) % CLASSES), batch_size=20)


class Witness(Callback):
    """Hears every report, and notes what the host has waited for before the last step."""

    def __init__(self, gpu: SimulatedGPU | None, steps: int) -> None:
        self.gpu, self.steps = gpu, steps
        self.rows: dict[tuple[int, str], float] = {}
        self.waits: dict[str, int] = {}

    def receive_report(self, trainer: Trainer, report: Report) -> None:
        self.rows.update({(report.step, str(tag)): value for tag, value in report.scalars.items()})

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.steps - 1 and self.gpu is not None:
            self.waits = dict(self.gpu.waits)


def trained(strategy: Any, callbacks: list[Callback], epochs: int = 2) -> tuple[dict[str, float], list[Tensor]]:
    """What was read last, and the parameters."""
    trainer = Trainer(
        max_epochs=epochs,
        callbacks=callbacks,
        strategy=strategy,
        accelerator="cpu" if strategy == "auto" else "auto",
        inference_mode=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    network = Network()
    trainer.fit(network, batches(), batches())
    readings = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return readings, [parameter.detach().cpu() for parameter in network.parameters()]


def in_background() -> dict[str, Any]:
    """Reports every 50 steps: told so on the CPU, of the monitor's own choice on the GPU."""
    epochs = 14
    told = [WeightRankMonitor(every_n_steps=50), GradientRankMonitor(every_n_steps=50)]
    chosen = [WeightRankMonitor(max_overhead=1.0), GradientRankMonitor(max_overhead=1.0)]
    here = Witness(None, 5 * epochs)
    _, parameters = trained("auto", [*told, here], epochs)
    with SimulatedGPU() as gpu:
        there = Witness(gpu, 5 * epochs)
        _, moved = trained(SingleDeviceStrategy(DEVICE, accelerator=Elsewhere()), [*chosen, there], epochs)
    with SimulatedGPU() as gpu:
        alone = Witness(gpu, 5 * epochs)
        trained(SingleDeviceStrategy(DEVICE, accelerator=Elsewhere()), [alone], epochs)
    threads = [thread.name for thread in threading.enumerate() if "rank_callbacks" in thread.name]
    waits = {name: count - alone.waits.get(name, 0) for name, count in there.waits.items()}
    is_alike = all(map(torch.equal, parameters, moved))
    return {"cpu": here.rows, "gpu": there.rows, "is_alike": is_alike, "waits": waits, "threads": threads}


class Ends(Callback):
    """Ends the training after step 50, of which a report is then under way."""

    def __init__(self, way: str) -> None:
        self.way = way

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 51 and self.way == "terminated":
            os.kill(os.getpid(), signal.SIGTERM)
        elif trainer.global_step == 51:
            raise RuntimeError(self.way)


def ended(way: str) -> dict[str, Any]:
    """What was read by a training that did not come to its end, and the threads that it left."""
    with SimulatedGPU() as gpu:
        witness, monitors = Witness(gpu, 0), [WeightRankMonitor(max_overhead=1.0), GradientRankMonitor(max_overhead=1.0)]
        try:
            trained(SingleDeviceStrategy(DEVICE, accelerator=Elsewhere()), [*monitors, witness, Ends(way)], 14)
            outcome = "nothing"
        except (RuntimeError, SystemExit) as error:
            outcome = type(error).__name__
    threads = [thread.name for thread in threading.enumerate() if "rank_callbacks" in thread.name]
    return {"rows": witness.rows, "threads": threads, "outcome": outcome}


def observed(device: torch.device | str) -> dict[str, float]:
    """What an observer reads in a loop without Lightning."""
    network = Network().to(device)
    optimizer = network.configure_optimizers()
    with RankObserver(network.net, optimizer, every_n_steps=3) as observer:
        for images, labels in batches():
            nn.functional.cross_entropy(network(images.to(device)), labels.to(device)).backward()
            optimizer.step()
            optimizer.zero_grad()
    return observer.readings


def mixed() -> str:
    """What comes of a tensor here and one there."""
    with SimulatedGPU():
        try:
            torch.ones(2, device=DEVICE) + torch.ones(2)
        except RuntimeError as error:
            return str(error)
    return "nothing"


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {"mixed": mixed()}
    for name, monitor in MONITORS.items():
        here, parameters = trained("auto", [monitor()])
        with SimulatedGPU() as gpu:
            there, moved = trained(SingleDeviceStrategy(DEVICE, accelerator=Elsewhere()), [monitor()])
        is_alike = all(map(torch.equal, parameters, moved))
        found[name] = {"cpu": here, "gpu": there, "is_alike": is_alike, "waits": dict(gpu.waits)}
    with SimulatedGPU():
        there = observed(DEVICE)
    found["observer"] = {"cpu": observed("cpu"), "gpu": there, "is_alike": True, "waits": {}}
    found["background"] = in_background()
    found |= {way: ended(way) for way in ("crashed", "terminated")}
    torch.save(found, folder / "gpu-0.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
