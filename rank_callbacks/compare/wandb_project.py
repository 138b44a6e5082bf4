"""A project on the server of Weights & Biases, read through its package."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

from rank_callbacks.compare.hyperparameters import flat
from rank_callbacks.compare.log import Log, Series
from rank_callbacks.compare.source import Source
from rank_callbacks.compare.wandb_history import add_row

__all__ = ["SCHEME", "sources_of_project"]

SCHEME = "wandb:"  # a Path has lost one slash of two
_NOT_ENDED = {"running", "pending"}


def sources_of_project(address: str) -> list[Source]:
    """Every run of a project, in the order in which they began. Their histories are asked for when each is read.

    Needs a key: ``wandb login``, or ``WANDB_API_KEY``. A server of one's own is ``WANDB_BASE_URL``.

    Args:
        address: ``wandb://entity/project``.

    Raises:
        ValueError: If the address has another form, or there is no such project, or no run in it.
        PermissionError: If the server does not know the user.
        ConnectionError: If the server does not answer.
        ImportError: If wandb is not installed.
    """
    path = _path(address)
    with _told(address):
        runs = list(_api(address).runs(path))
    if not runs:
        raise ValueError(f"Expected runs in {address}, found none.")
    return [Source(run.name or run.id, f"{address}/{run.id}", "wandb", partial(_log, run)) for run in runs]


def _path(address: str) -> str:
    path = address.removeprefix(SCHEME).strip("/")
    if path.count("/") != 1 or not all(path.split("/")):
        raise ValueError(f"Expected a project of Weights & Biases as wandb://entity/project, got {address!r}.")
    return path


def _api(address: str) -> Any:  # ruff: ignore[any-type] - wandb may not be installed
    try:
        import wandb
    except ImportError as missing:
        raise ImportError(f"Reading {address} needs wandb: pip install 'rank-callbacks[wandb]'.") from missing
    try:
        return wandb.Api()
    except wandb.errors.Error as failure:
        raise PermissionError(
            f"Expected to be logged in to Weights & Biases for {address}: {failure} Run `wandb login`, or set WANDB_API_KEY, "
            f"and WANDB_BASE_URL for a server of your own."
        ) from failure


@contextmanager
def _told(address: str) -> Generator[None]:
    """What the server refuses, in words with the address."""
    try:
        yield
    except (OSError, ImportError):
        raise
    except ValueError as failure:  # as wandb tells of a project that is not there
        raise ValueError(f"Expected a project of Weights & Biases, got {address!r}: {failure}.") from failure
    except Exception as failure:  # its errors have no class in common, and move between versions
        raise ConnectionError(f"{address} cannot be read: {' '.join(str(failure).split())}") from failure


def _log(run: Any) -> Log:  # ruff: ignore[any-type]
    """What the server has of a run. Of spectra it has histograms only."""
    scalars: Series = {}
    with _told("its history"):
        for row in run.scan_history() if run.lastHistoryStep >= 0 else ():
            add_row(scalars, row)
        return Log(scalars, {}, flat(run.config), _ending(run.state), finished=run.state == "finished")


def _ending(state: str) -> list[str]:
    if state in _NOT_ENDED:
        return [f"It has not ended: {state}."]
    return [] if state == "finished" else [f"Has not finished: its state is {state!r}."]
