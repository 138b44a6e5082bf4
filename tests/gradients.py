"""Models whose gradients have small bounds, and what a gradient is just before the optimizer uses it."""

from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader

from rank_callbacks.callbacks.lightning import step_axis
from tests.models import CLASSES, Classifier
from tests.training import Recorder

BATCH = 10
LAYERS = ["network.0.weight", "network.2.weight", "network.4.weight"]
# Of the gradients of the three layers, for a single batch.
BOUNDS = {"network.0.weight": BATCH, "network.2.weight": BATCH, "network.4.weight": CLASSES - 1}


class Wide(Classifier):
    """Takes batches of ten in order."""

    shuffle = False
    batch_size = BATCH

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.data, batch_size=self.batch_size, shuffle=self.shuffle)


def three_layers() -> nn.Sequential:
    """So wide that the gradients of the first two are sums of few outer products."""
    return nn.Sequential(nn.Linear(40, 48), nn.Tanh(), nn.Linear(48, 36), nn.Tanh(), nn.Linear(36, CLASSES))


def wide(batches: int = 3, kind: type[Classifier] = Wide) -> Classifier:
    return kind(three_layers(), torch.randn(BATCH * batches, 40))


class Gradients(pl.Callback):
    """The gradient matrices that each optimizer is about to use, the first time in a batch, by step and name."""

    def __init__(self) -> None:
        self.at: dict[int, dict[str, NDArray[np.float64]]] = {}

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        mine = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for name, parameter in pl_module.named_parameters():
            if id(parameter) in mine and parameter.dim() > 1 and parameter.grad is not None:
                matrix = parameter.grad.to_dense().double().flatten(1).numpy().copy()
                self.at.setdefault(step_axis(trainer), {}).setdefault(name, matrix)


def readings(recorder: Recorder, measure: str, group: str = "gradient_rank") -> dict[tuple[int, str], float]:
    """By step and layer, without the summaries."""
    found = {}
    for (step, tag), value in recorder.readings(group).items():
        _, name, layer = tag.split("/")
        if name == measure and not layer.endswith("_over_layers"):
            found[step, layer] = value
    return found


def spectrum(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.linalg.svd(matrix, compute_uv=False)


def exact_rank(matrix: NDArray[np.float64], eps: float = np.finfo(np.float32).eps) -> int:
    """NumPy's own definition, of a matrix that was rounded to float32."""
    return int((spectrum(matrix) > max(matrix.shape) * eps * spectrum(matrix)[0]).sum())
