"""Real, quiet training runs, and what can be seen of them: the rows of a logger, the weights, the random state."""

import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.loggers.logger import Logger

QUIET = {
    "accelerator": "cpu",
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
    "log_every_n_steps": 1,
    "logger": False,
    "max_epochs": 1,
}


class Recorder(Logger):
    """Keeps every (step, tag, value) that it is asked to log, in order."""

    name = "recorder"
    version = 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, str, float]] = []

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows += [(step, tag, value) for tag, value in metrics.items()]

    def readings(self, *groups: str) -> dict[tuple[int, str], float]:
        """By step and tag, of one group of tags or several; no step has a tag twice."""
        rows = {(step, tag): value for step, tag, value in self.rows if tag.split("/")[0] in groups}
        assert len(rows) == sum(tag.split("/")[0] in groups for _, tag, _ in self.rows)
        return rows

    def steps(self, group: str) -> list[int]:
        return list(dict.fromkeys(step for step, _ in self.readings(group)))


class Weights(pl.Callback):
    """The matrices of a model before each optimizer step and after the last, by step and name."""

    def __init__(self) -> None:
        self.at: dict[int, dict[str, NDArray[np.float64]]] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        step = trainer.global_step // len(trainer.optimizers)
        matrices = {name: p.detach().double().numpy().copy() for name, p in pl_module.named_parameters() if p.dim() > 1}
        self.at[step] = matrices


def fit(model: pl.LightningModule, *callbacks: pl.Callback, ckpt_path: str | None = None, **options: Any) -> pl.Trainer:
    trainer = pl.Trainer(callbacks=list(callbacks), **(QUIET | options))
    trainer.fit(model, ckpt_path=ckpt_path)
    return trainer


def outcome(trainer: pl.Trainer, model: pl.LightningModule) -> dict[str, Any]:
    """All that a monitor must not change: weights, buffers, gradients, optimizer and random state, losses."""
    return {
        "model": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "gradients": [parameter.grad for parameter in model.parameters()],
        "training": [module.training for module in model.modules()],
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "losses": model.losses,
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(legacy=True),  # ruff: ignore[numpy-legacy-random]
        "python": random.getstate(),
    }


def assert_identical(one: Any, other: Any) -> None:
    """Bit by bit, through dictionaries and sequences."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        one, other = list(one.values()), list(other.values())
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, np.ndarray):
        assert np.array_equal(one, other)
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_identical(left, right)
    else:
        assert one == other
