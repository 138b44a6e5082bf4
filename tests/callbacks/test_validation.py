"""Monitors of validation where there is none."""

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from rank_callbacks import FeatureRankMonitor, NetworkRankMonitor, NeuralCollapseMonitor, TruncationMonitor
from tests.models import CLASSES, Training, two_layers
from tests.training import fit


class Alone(Training, pl.LightningModule):
    """Trained without validation."""

    val_dataloader = pl.LightningModule.val_dataloader

    def __init__(self) -> None:
        super().__init__(two_layers(), torch.randn(12, 6))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)


class Validated(Alone):
    val_dataloader = Training.val_dataloader


class Unvalidated(Validated):
    validation_step = pl.LightningModule.validation_step


MONITORS: dict[str, tuple[Callable[[], pl.Callback], str]] = {
    "FeatureRankMonitor": (FeatureRankMonitor, r", or choose data='train'\.$"),
    "NeuralCollapseMonitor": (lambda: NeuralCollapseMonitor(CLASSES, data="val"), r", or choose data='train'\.$"),
    "NetworkRankMonitor": (NetworkRankMonitor, r"above 0\.$"),
    "TruncationMonitor": (TruncationMonitor, r"above 0\.$"),
}


def told(model: pl.LightningModule, monitor: pl.Callback, **options: Any) -> list[str]:
    """The warnings of a monitor that will read nothing."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, monitor, **options)
    return [str(one.message) for one in caught if "will read nothing" in str(one.message)]


@pytest.mark.parametrize("name", MONITORS)
@pytest.mark.parametrize(
    ("model", "options"),
    [(Alone, {}), (Unvalidated, {}), (Validated, {"limit_val_batches": 0})],
    ids=["no data", "no validation_step", "no batches"],
)
def test_monitor_that_will_read_nothing_is_told_once(name: str, model: type[Alone], options: dict[str, Any]) -> None:
    monitor, end = MONITORS[name]
    (message,) = told(model(), monitor(), **options)
    assert message.startswith(f"{name} will read nothing, for this training has no validation. Give it validation data")
    assert re.search(end, message)


@pytest.mark.parametrize("name", MONITORS)
def test_monitor_that_has_validation_is_not(name: str) -> None:
    assert told(Validated(), MONITORS[name][0]()) == []


def test_loader_of_the_trainer_counts() -> None:
    model = Alone()
    trainer = pl.Trainer(
        callbacks=[FeatureRankMonitor()], max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*will read nothing")
        trainer.fit(model, model.train_dataloader(), DataLoader(model.data, batch_size=4))


@pytest.mark.parametrize("data", ["train", "loader"])
def test_other_data_needs_no_validation(data: str) -> None:
    model = Alone()
    assert told(model, FeatureRankMonitor(data=model.train_dataloader() if data == "loader" else data)) == []
