"""The folder of a ``CSVLogger``."""

from __future__ import annotations

import csv
from pathlib import Path

from rank_callbacks.compare.hyperparameters import read_yaml
from rank_callbacks.compare.log import Log, Series

__all__ = ["read_csv_folder"]


def read_csv_folder(folder: Path) -> Log:
    """What ``metrics.csv`` and ``hparams.yaml`` of a folder hold. Cells that are no numbers are left out, and noted.

    Args:
        folder: Of one run.
    """
    hyperparameters, remarks = read_yaml(folder / "hparams.yaml")
    path = folder / "metrics.csv"
    if not path.is_file():
        return Log({}, {}, hyperparameters, ["There is no metrics.csv: it ended before it logged anything."], remarks)
    scalars, of_table = _read_table(path)
    return Log(scalars, {}, hyperparameters, of_table, remarks)


def _read_table(path: Path) -> tuple[Series, list[str]]:
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = csv.reader(line.replace("\0", "") for line in file)
        head = next(rows, [])
        if "step" not in head:
            return {}, ["Its metrics.csv has no column 'step'."] if head else []
        scalars: Series = {name: {} for name in head if name != "step"}
        bad = sum([_add_row(scalars, head, row) for row in rows])
    return {name: series for name, series in scalars.items() if series}, _notes(bad)


def _add_row(scalars: Series, head: list[str], row: list[str]) -> bool:
    """Whether something in the row could not be read."""
    cells = dict(zip(head, row, strict=False))
    try:
        step = int(float(cells.pop("step", "")))
        for name, cell in cells.items():
            if cell:
                scalars[name][step] = float(cell)
    except (ValueError, OverflowError):
        return True
    return len(row) != len(head)


def _notes(bad: int) -> list[str]:
    return [f"Cut off: {bad} rows of its metrics.csv cannot be read whole."] if bad else []
