"""A model that is copied, saved and used as a copy in the midst of what a monitor looks at."""

import copy
import gc
import io
import warnings

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tests.configurations import MONITORS, OPTIMIZERS, Watched
from tests.models import CLASSES
from tests.training import Recorder, fit


class Copying(Watched):
    """Trains a copy of its network for a step wherever it passes, and saves the network."""

    is_copied = False

    def __init__(self) -> None:
        super().__init__(OPTIMIZERS["SGD"], samples=32)
        self.copied: list[int] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.copy()
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.copy()

    def on_validation_epoch_end(self) -> None:
        self.copy()

    def copy(self) -> None:
        if not self.is_copied:
            return
        torch.save(self.network, io.BytesIO())
        copied = copy.deepcopy(self.network)
        with torch.random.fork_rng(), torch.inference_mode(False), torch.enable_grad():
            cross_entropy(copied(torch.randn(4, 6)), torch.randint(CLASSES, (4,))).backward()
        self.copied.append(sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in copied.modules()))


def trained(name: str, is_copied: bool) -> tuple[Copying, dict[tuple[int, str], float]]:
    pl.seed_everything(0, verbose=False)
    model, recorder = Copying(), Recorder()
    model.is_copied = is_copied
    fit(model, MONITORS[name](), logger=recorder, max_epochs=2)
    groups = {tag.split("/")[0] for _, tag, _ in recorder.rows} - {"monitor"}
    return model, recorder.readings(*groups)


@pytest.mark.parametrize("name", MONITORS)
def test_readings_are_those_without_copies(name: str) -> None:
    model, readings = trained(name, is_copied=True)
    assert any(model.copied) == (name not in {"weight_rank", "truncation"})  # some fall where hooks are set
    assert readings == trained(name, is_copied=False)[1] != {}


class Keeping(nn.Sequential):
    """Keeps what its first layer gave out."""

    def forward(self, inputs: Tensor) -> Tensor:
        self.kept = self[0](inputs)
        return self[1](self.kept)


@pytest.mark.parametrize("name", ["gradient_rank", "rank_collapse"])
def test_outputs_that_a_module_keeps_are_saved_without_a_warning(name: str) -> None:
    model = Copying()
    model.network = Keeping(nn.Linear(6, 5), nn.Linear(5, CLASSES))
    model.copy = lambda: torch.save(model.network, io.BytesIO())  # type: ignore[method-assign]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*hook")
        fit(model, MONITORS[name](), limit_val_batches=0)


@pytest.mark.parametrize("name", ["gradient_rank", "feature_rank_in_training", "neural_collapse", "rank_collapse"])
def test_training_of_a_copy_keeps_nothing_alive(name: str) -> None:
    copies: list[nn.Module] = []

    class Collecting(Watched):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            copies.append(copy.deepcopy(self.network))
            return loss

    fit(Collecting(OPTIMIZERS["SGD"], samples=16), MONITORS[name](), max_steps=4)
    copied = next(one for one in copies if any(module._forward_hooks for module in one.modules()))
    held = []
    for _ in range(2):
        for _ in range(20):
            cross_entropy(copied(torch.randn(4, 6)), torch.randint(CLASSES, (4,))).backward()
        gc.collect()
        held.append(sum(type(one) is Tensor for one in gc.get_objects()))
    assert held[0] == held[1]
