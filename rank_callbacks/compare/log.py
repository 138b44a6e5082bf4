"""What one log holds, under the names that its logger wrote, and the runs that it makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from operator import attrgetter
from typing import NamedTuple, TypeAlias

from rank_callbacks.compare.run import Hyperparameters, Run, Spectra
from rank_callbacks.logged_names import prefix_and_tag
from rank_callbacks.rows import Row

__all__ = ["Log", "Series", "runs_of"]

Series: TypeAlias = "dict[str, dict[int, float]]"


class Log(NamedTuple):
    """What one log holds.

    Args:
        scalars: Value by step, by name.
        spectra: Of matrices, by name.
        hyperparameters: As they were logged.
        notes: What is wrong with it.
        remarks: What is odd about it and spoils nothing.
        finished: Whether it tells that the run ended as it should.
    """

    scalars: Series
    spectra: dict[str, Spectra]
    hyperparameters: Hyperparameters
    notes: Sequence[str]
    remarks: Sequence[str] = ()
    finished: bool = False


def runs_of(name: str, kind: str, log: Log) -> list[Run]:
    """The runs of a log: one, or one for each prefix under which loggers wrote readings of monitors to the same place.

    Args:
        name: Of the log.
        kind: What wrote it.
        log: What it holds.
    """
    prefixes = dict.fromkeys(prefix for prefix, tag in map(prefix_and_tag, chain(log.scalars, log.spectra)) if tag) or {
        "": None
    }
    if len(prefixes) == 1:
        return [_run(name, kind, log, *prefixes)]
    return [_run(f"{name} ({prefix.removesuffix('-')})" if prefix else name, kind, log, prefix) for prefix in prefixes]


def _run(name: str, kind: str, log: Log, prefix: str) -> Run:
    rows = sorted(_rows(name, log.scalars, prefix), key=attrgetter("step"))
    metrics = {
        text.removeprefix(prefix): sorted(series.items())
        for text, series in log.scalars.items()
        if text.startswith(prefix) and prefix_and_tag(text)[1] is None
    }
    spectra = {
        tag: found
        for text, found in log.spectra.items()
        for at, tag in [prefix_and_tag(text)]
        if tag is not None and at == prefix
    }
    return Run(name, kind, log.hyperparameters, rows, metrics, spectra, *log[3:])


def _rows(name: str, scalars: Series, prefix: str) -> Iterator[Row]:
    for text, series in scalars.items():
        at, tag = prefix_and_tag(text)
        if tag is not None and at == prefix:
            for step, value in series.items():
                yield Row(name, step, tag, value)
