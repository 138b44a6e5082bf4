"""Runs of any logger, read into one form."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from rank_callbacks.compare.choice import chosen
from rank_callbacks.compare.log import runs_of
from rank_callbacks.compare.long_table import long_table
from rank_callbacks.compare.notes import noted
from rank_callbacks.compare.run import Run
from rank_callbacks.compare.source import Source
from rank_callbacks.compare.sources import sources_at
from rank_callbacks.garbage import uncollected

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Paths", "load", "read_runs"]

Paths: TypeAlias = "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]"


@uncollected()
def load(
    paths: Paths, where: Mapping[str, object] | None = None, progress: bool = False, any_length: bool = False
) -> DataFrame:
    """Every run at or below some folders as one long table, whatever wrote them.

    Each reading of a monitor is a row with ``run``, ``step``, ``group``, ``measure``, ``layer`` and ``value``; each other
    number, such as an accuracy, is one with its name as ``measure`` and with empty ``group`` and ``layer``. Every
    hyperparameter that a run logged is a column ``hyperparameter.<name>``, NaN where another run has not logged it. What is
    wrong with a run, or odd, stands in ``frame.attrs["notes"]``, sentences by run; a run without any number is there alone.

    Args:
        paths: A folder or several, or a project on the server of Weights & Biases as ``wandb://entity/project``.
        where: Only runs with these hyperparameters.
        progress: Show a bar.
        any_length: Take a run that ends before others for finished, as early stopping leaves it.

    Raises:
        FileNotFoundError: If a path does not exist.
        PermissionError: If the server does not know the user.
        ConnectionError: If the server does not answer.
        ValueError: If there is no such project, no run at or below a path, or none with these hyperparameters.
        ImportError: If pandas is not installed, or a project is asked for and wandb is not.
    """
    return long_table(read_runs(paths, where, progress, any_length))


@uncollected()
def read_runs(
    paths: Paths, where: Mapping[str, object] | None = None, progress: bool = False, any_length: bool = False
) -> list[Run]:
    """Every run at or below some folders, in the order of their names, with what is wrong with them.

    Args:
        paths: A folder or several, or a project on the server of Weights & Biases as ``wandb://entity/project``.
        where: Only runs with these hyperparameters.
        progress: Show a bar.
        any_length: Take a run that ends before others for finished, as early stopping leaves it.

    Raises:
        FileNotFoundError: If a path does not exist.
        PermissionError: If the server does not know the user.
        ConnectionError: If the server does not answer.
        ValueError: If there is no such project, no run at or below a path, or none with these hyperparameters.
        ImportError: If a project is asked for and wandb is not installed.
    """
    sources = sources_at(_as_places(paths))
    runs = []
    for source in _bar(sources) if progress else sources:
        runs += runs_of(source.name, source.kind, source.read())
    return noted(chosen(runs, where or {}), any_length)


def _as_places(paths: Paths) -> list[str | os.PathLike[str]]:
    several = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not several:
        raise ValueError("Expected a folder with runs, got none.")
    return several


def _bar(sources: Sequence[Source]) -> Sequence[Source]:
    try:
        from tqdm import tqdm
    except ImportError as missing:
        raise ImportError("A progress bar needs tqdm: pip install 'rank-callbacks[compare]'.") from missing
    bar: Sequence[Source] = tqdm(sources, desc="reading", unit="run")
    return bar
