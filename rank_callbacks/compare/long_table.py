"""All numbers of all runs as one table."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from functools import lru_cache
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rank_callbacks.compare.run import Run
from rank_callbacks.logged_names import natural_order
from rank_callbacks.rows import Row
from rank_callbacks.tags import Tag

if TYPE_CHECKING:
    from pandas import Categorical, DataFrame

__all__ = ["SUFFIXES", "long_table", "write_long_table"]

SUFFIXES = (".csv", ".parquet")


def long_table(runs: Sequence[Run]) -> DataFrame:
    """One row a number, as ``load`` describes it. Names are categories: millions of rows fit into little memory.

    Args:
        runs: In the order of the rows.

    Raises:
        ImportError: If pandas is not installed.
    """
    try:
        import pandas
    except ImportError as missing:
        raise ImportError("The long table needs pandas: pip install 'rank-callbacks[compare]'.") from missing
    of_run = [[*run.rows, *_metrics(run)] for run in runs]
    counts = np.array([len(rows) for rows in of_run], dtype=np.int64)
    rows = list(chain.from_iterable(of_run))
    tags = {tag: place for place, tag in enumerate(dict.fromkeys(row.tag for row in rows))}
    places = np.fromiter((tags[row.tag] for row in rows), np.int32, len(rows))
    columns: dict[str, Any] = {
        "run": _repeated([run.name for run in runs], counts),
        "step": np.fromiter((row.step for row in rows), np.int64, len(rows)),
        **{part: _taken([getattr(tag, part) for tag in tags], places) for part in Tag._fields},
        "value": np.fromiter((row.value for row in rows), np.float64, len(rows)),
    }
    settings = {_column(name): _setting(runs, name, counts) for name in _names(runs)}
    frame = pandas.DataFrame(columns | settings)
    frame.attrs["notes"] = {run.name: [*run.notes, *run.remarks] for run in runs if run.notes or run.remarks}
    return frame


def _names(runs: Sequence[Run]) -> list[str]:
    return sorted({name for run in runs for name in run.hyperparameters}, key=natural_order)


def _column(name: str) -> str:
    return f"hyperparameter.{name}"


def _metrics(run: Run) -> Iterable[Row]:
    for name, series in run.metrics.items():
        tag = Tag("", name, "")
        yield from (Row(run.name, step, tag, value) for step, value in series)


def _setting(runs: Sequence[Run], name: str, counts: NDArray[np.int64]) -> Categorical | NDArray[Any]:
    """A column of numbers if all are, and else of categories."""
    values = [run.hyperparameters.get(name) for run in runs]
    if all(isinstance(value, bool) for value in values):
        return np.repeat(np.array(values, dtype=np.bool_), counts)
    if not any(isinstance(value, str | bool) for value in values):
        return np.repeat(np.array([np.nan if value is None else value for value in values], dtype=np.float64), counts)
    return _repeated([None if value is None else str(value) for value in values], counts)


def _repeated(values: Sequence[str | None], counts: NDArray[np.int64]) -> Categorical:
    return _taken(values, np.repeat(np.arange(len(values)), counts))


def _taken(values: Sequence[str | None], places: NDArray[Any]) -> Categorical:
    """``values[place]`` for each place, None as missing."""
    from pandas import Categorical, Index

    codes = {value: code for code, value in enumerate(dict.fromkeys(value for value in values if value is not None))}
    of_value = np.array([-1 if value is None else codes[value] for value in values], dtype=np.int32)
    return Categorical.from_codes(of_value[places], categories=Index(list(codes), dtype="str"))


def write_long_table(runs: Sequence[Run], path: Path) -> None:
    """The long table in a file, by its suffix ``.csv`` or ``.parquet``.

    Args:
        runs: In the order of the rows.
        path: Of the file; its folder must be there.

    Raises:
        ValueError: If the suffix is another.
        ImportError: If the table is to be in Parquet, and pandas or pyarrow is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"Expected a file with one of the suffixes {list(SUFFIXES)}, got {path.name!r}.")
    if path.suffix == ".csv":
        _write_csv(runs, path)
        return
    try:
        long_table(runs).to_parquet(path, index=False)
    except ImportError as missing:
        raise ImportError("A table in Parquet needs pandas and pyarrow: pip install 'rank-callbacks[parquet]'.") from missing


def _write_csv(runs: Sequence[Run], path: Path) -> None:
    """Run by run, without pandas; what is the same in many rows is quoted once."""
    names = _names(runs)
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(_line(["run", "step", *Tag._fields, "value", *map(_column, names)]) + "\n")
        for run in runs:
            name, settings = _line([run.name]), _line(["", *(run.hyperparameters.get(name) for name in names)])
            end = settings.removeprefix('""') + "\n"
            rows = chain(run.rows, _metrics(run))
            file.writelines(f"{name},{step},{_tag_cells(tag)},{float(value)!r}{end}" for _, step, tag, value in rows)


@lru_cache(maxsize=100_000)
def _tag_cells(tag: Tag) -> str:
    return _line(tag)


def _line(cells: Iterable[object]) -> str:
    """Cells with commas between them, quoted where they need it."""
    line = StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()
