"""A look at a model on data of our own, after which nothing is as it was not before."""

from __future__ import annotations

import random
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer

from rank_callbacks.matrices.uncompiled import uncompiled

__all__ = ["check_loader", "outputs_of", "probe_batches", "undisturbed"]


@contextmanager
def undisturbed(model: LightningModule) -> Generator[None]:
    """The model in eval mode and as if not compiled; at the end modes and buffers are what they were.

    And so is the random state of torch, NumPy and Python.
    """
    modes = [(module, module.training) for module in model.modules()]
    owned = [(module._buffers, name) for module in model.modules() for name in module._buffers]
    buffers = [(owner, name, buffer, buffer.clone()) for owner, name in owned if (buffer := owner[name]) is not None]
    numpy_state, python_state = np.random.get_state(), random.getstate()  # ruff: ignore[numpy-legacy-random]
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), uncompiled():
            model.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for owner, name, buffer, before in buffers:
                owner[name] = buffer  # a forward may have put another tensor in its place
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
        np.random.set_state(numpy_state)  # ruff: ignore[numpy-legacy-random]
        random.setstate(python_state)


def check_loader(data: object) -> None:
    """Refuse data that a second look would find empty.

    Raises:
        ValueError: For an iterator, such as a generator.
    """
    if isinstance(data, Iterator):
        raise ValueError(f"Expected data to be a loader that can be gone through again, got a {type(data).__name__}.")


def probe_batches(trainer: Trainer, loader: Iterable[Any]) -> Iterator[Any]:
    """The batches of a loader, on the device and in the precision of the training. Every process goes through all of them."""
    return (trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch)) for batch in loader)


def outputs_of(model: LightningModule, batch: Any) -> Any:  # ruff: ignore[any-type]
    """What a model's ``forward`` makes of a batch: of its first item, or of the whole where it is not a tuple or list."""
    return model(batch[0]) if isinstance(batch, (tuple, list)) else model(batch)
