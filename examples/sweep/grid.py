"""The grid of weight decays and seeds that a command line asks for."""

from __future__ import annotations

import argparse
from pathlib import Path

from examples.sweep.train import Setting

__all__ = ["grid_options"]


def grid_options(description: str | None, folder: Path) -> argparse.Namespace:
    """Its two sides, the epochs of each run and where the runs go, as the command line gives them.

    Args:
        description: Of the program.
        folder: Where the runs go otherwise.
    """
    arguments = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--weight_decay", type=float, nargs="+", default=[0.0, 1e-4, 1e-3, 1e-2])
    arguments.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    arguments.add_argument("--epochs", type=int, default=Setting.epochs)
    arguments.add_argument("--folder", type=Path, default=folder)
    return arguments.parse_args()
