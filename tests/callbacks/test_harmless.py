from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger

from rank_callbacks import WeightRankMonitor
from tests.models import MODELS, Classifier, two_optimizers
from tests.training import assert_identical, fit, outcome


def trained(model: Callable[[], Classifier], path: Path, *callbacks: pl.Callback, **options: Any) -> dict[str, Any]:
    pl.seed_everything(0, verbose=False)
    module = model()
    trainer = fit(module, *callbacks, logger=TensorBoardLogger(path), max_epochs=2, **options)
    measured = any(tag.startswith("weight_change_rank") for tag in trainer.callback_metrics)
    return {"measured": measured, **outcome(trainer, module)}


def check(model: Callable[[], Classifier], path: Path, monitor: WeightRankMonitor, **options: Any) -> dict[str, Any]:
    without = trained(model, path, **options)
    watched = trained(model, path, monitor, **options)
    assert (without.pop("measured"), watched.pop("measured")) == (False, True)
    assert len(without["losses"]) >= 6
    assert_identical(watched, without)
    return watched


@pytest.mark.parametrize("model", [*MODELS, two_optimizers], ids=lambda model: model.__name__)
def test_training_is_bit_identical(model: Callable[[], Classifier], tmp_path: Path) -> None:
    check(model, tmp_path, WeightRankMonitor(every_n_steps=1, change=True))


@pytest.mark.parametrize(
    "options", [{"precision": "bf16-mixed"}, {"precision": "bf16-true"}, {"accumulate_grad_batches": 2}], ids=str
)
def test_training_is_bit_identical_with(options: dict[str, Any], tmp_path: Path) -> None:
    check(MODELS[0], tmp_path, WeightRankMonitor(every_n_steps=1, change=True), **options)


@pytest.mark.parametrize("conv", ["slices", "circular_6x6"])
def test_training_is_bit_identical_however_a_convolution_is_viewed(conv: str, tmp_path: Path) -> None:
    check(MODELS[1], tmp_path, WeightRankMonitor(every_n_steps=1, change=True, conv=conv))


def test_power_iteration_goes_on_as_without_the_monitor(tmp_path: Path) -> None:
    """The buffers u and v of spectral normalisation are part of what is compared."""
    watched = check(MODELS[4], tmp_path, WeightRankMonitor(every_n_steps=1, change=True))
    buffers = [name for name in watched["model"] if name.endswith(("._u", "._v"))]
    assert len(buffers) == 4
    pl.seed_everything(0, verbose=False)
    fresh = MODELS[4]().state_dict()
    assert not any(torch.equal(watched["model"][name], fresh[name]) for name in buffers)
