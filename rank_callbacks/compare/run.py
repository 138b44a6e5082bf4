"""One run, as its logs tell it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from rank_callbacks.rows import Row
from rank_callbacks.tags import Tag

__all__ = ["Hyperparameters", "Run", "Spectra"]

Hyperparameters: TypeAlias = "Mapping[str, float | str | bool]"


class Spectra(NamedTuple):
    """The spectra of one matrix.

    Args:
        by_step: Singular values, descending, by step.
        shape: Of the matrix; empty if the log does not tell.
    """

    by_step: Mapping[int, Sequence[float]]
    shape: tuple[int, ...]


class Run(NamedTuple):
    """One run.

    Args:
        name: Its folder below the one that was asked for; unique among the runs that are compared.
        kind: What wrote it: ``tensorboard``, ``csv`` or ``wandb``.
        hyperparameters: What it logged of its settings.
        rows: The readings of the monitors, with ``name`` as their run, by step.
        metrics: All other numbers that it logged, such as an accuracy: step and value, by name.
        spectra: By tag ``<group>/spectrum/<layer>``.
        notes: What is wrong with it, in words: empty, cut off, still running. One that has any enters no mean.
        remarks: What is odd about it and spoils nothing: NaN readings, another log in its folder.
        finished: Whether its log tells that it ended as it should; False where the log does not tell.
    """

    name: str
    kind: str
    hyperparameters: Hyperparameters
    rows: Sequence[Row]
    metrics: Mapping[str, Sequence[tuple[int, float]]]
    spectra: Mapping[Tag, Spectra]
    notes: Sequence[str] = ()
    remarks: Sequence[str] = ()
    finished: bool = False
