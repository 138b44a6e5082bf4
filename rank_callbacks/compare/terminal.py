"""The table of a comparison in the terminal, and what is wrong with its runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TextIO

from rank_callbacks.compare.final import Cell
from rank_callbacks.compare.seeds import Spread

__all__ = ["print_table"]

# Into a file or a pipe: as wide as it needs to be.
_WIDTH_OF_A_FILE = 240


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[Cell | Spread]], problems: Mapping[str, Sequence[str]], file: TextIO
) -> None:
    """Print one row a run, then a line for each thing that is wrong with one. Markup in names is text.

    Args:
        columns: Their headings.
        rows: Cells; None for what a run has not logged.
        problems: Sentences by name of the run.
        file: Where to.

    Raises:
        ImportError: If rich is not installed.
    """
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError as missing:
        raise ImportError("A table in the terminal needs rich: pip install 'rank-callbacks[compare]'.") from missing
    console = Console(file=file, width=None if file.isatty() else _WIDTH_OF_A_FILE, highlight=False)
    table = Table()
    for place, heading in enumerate(columns):
        table.add_column(Text(_printable(heading)), justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*[Text(_text(cell, heading)) for cell, heading in zip(row, columns, strict=True)])
    console.print(table)
    for name, sentences in problems.items():
        for sentence in sentences:
            console.print(Text(f"{_printable(name)}: {_printable(sentence)}"), soft_wrap=True)


def _text(cell: Cell | Spread, heading: str) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, str | bool):
        return _printable(str(cell))
    if isinstance(cell, tuple):
        mean, spread, count = cell
        within = "" if math.isnan(spread) else f" ± {_number(spread, heading)}"
        return f"{_number(mean, heading)}{within} ({count})"
    return _number(cell, heading)


def _number(value: float, heading: str) -> str:
    if math.isnan(value):
        return "NaN"
    return f"{value:.2%}" if heading == "share of time" else f"{value:.4g}"


def _printable(text: str) -> str:
    """Without what would move the cursor or colour the terminal."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)
