"""A look at a model on data of our own, after which nothing is as it was not before."""

from __future__ import annotations

import random
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer

__all__ = ["outputs_of", "probe_batches", "undisturbed"]


@contextmanager
def undisturbed(model: LightningModule) -> Generator[None]:
    """The model in eval mode; at the end modes, buffers and the random state of torch, NumPy and Python are what they were."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    numpy_state, python_state = np.random.get_state(), random.getstate()  # ruff: ignore[numpy-legacy-random]
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            model.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)
        np.random.set_state(numpy_state)  # ruff: ignore[numpy-legacy-random]
        random.setstate(python_state)


def probe_batches(trainer: Trainer, loader: Iterable[Any]) -> Iterator[Any]:
    """The batches of a loader, on the device of the training. Every process goes through all of them."""
    return (trainer.strategy.batch_to_device(batch) for batch in loader)


def outputs_of(model: LightningModule, batch: Any) -> Any:  # ruff: ignore[any-type]
    """What a model's ``forward`` makes of a batch: of its first item, or of the whole where it is not a tuple or list."""
    return model(batch[0]) if isinstance(batch, (tuple, list)) else model(batch)
