"""A look at a model on data of our own, after which nothing is as it was not before."""

from __future__ import annotations

import inspect
import random
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from rank_callbacks.matrices.uncompiled import uncompiled

__all__ = ["check_forward", "check_loader", "logits_of", "outputs_of", "probe_batches", "undisturbed"]


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


def check_forward(model: LightningModule) -> None:
    """Refuse a module that is trained by its ``training_step`` alone.

    Raises:
        ValueError: If it has no ``forward`` of its own.
    """
    if getattr(model.forward, "__qualname__", "") == "LightningModule.forward":
        raise ValueError(
            f"Expected {type(model).__name__} to define forward, by which data of our own goes through it, got none. Monitors "
            "with data='train' need none."
        )


def outputs_of(model: LightningModule, batch: Any) -> Any:  # ruff: ignore[any-type]
    """What a model's ``forward`` makes of a batch: of its first item, or of the whole where it is not a tuple or list.

    A mapping is given by name, as ``forward(**batch)``: those of its keys that ``forward`` has arguments for. Where that is
    no way to call it, as with ``forward(batch)``, it is given as it is.

    Raises:
        ValueError: If there is no ``forward``, or it cannot be called so.
    """
    check_forward(model)
    given = batch[0] if isinstance(batch, (tuple, list)) else batch
    signature = inspect.signature(model.forward)
    named = _named(signature, given) if isinstance(given, Mapping) else {}
    if named and _can_be_called(signature, named):
        return model(**named)
    if not _can_be_called(signature, {}, given):
        kind = type(given).__name__
        what = f"a {kind} with the keys {', '.join(map(repr, given))}" if isinstance(given, Mapping) else f"one {kind}"
        raise ValueError(
            f"Expected forward to take the inputs of a batch, got {what} for forward{signature}. Give batches whose first "
            "item is what forward takes, or a dict with the names of its arguments."
        )
    return model(given)


def _named(signature: inspect.Signature, batch: Mapping[Any, Any]) -> dict[str, Any]:
    """The items of a batch that a function has arguments for."""
    takes_all = any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values())
    return {key: item for key, item in batch.items() if takes_all or key in signature.parameters}


def _can_be_called(signature: inspect.Signature, named: Mapping[str, object], *others: object) -> bool:
    try:
        signature.bind(*others, **named)
    except TypeError:
        return False
    return True


def logits_of(outputs: Any) -> Any:  # ruff: ignore[any-type]
    """The ``logits`` among the outputs of a model, a key or an attribute; the outputs themselves where there are none."""
    if isinstance(outputs, Tensor):
        return outputs
    found = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    return outputs if found is None else found
