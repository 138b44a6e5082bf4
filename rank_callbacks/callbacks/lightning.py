"""The base class of the monitors: a callback for both ``pytorch_lightning`` and ``lightning.pytorch``."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

__all__ = ["Callback"]

if TYPE_CHECKING:
    from pytorch_lightning import Callback
else:
    # Each package has a class of its own, and their command lines accept nothing but subclasses of it.
    _homes = ["pytorch_lightning"] + (["lightning.pytorch"] if find_spec("lightning") else [])
    Callback = type("Callback", tuple(import_module(home).Callback for home in _homes), {"__module__": __name__})
