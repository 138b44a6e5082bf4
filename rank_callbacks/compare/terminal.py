"""The table of a comparison in the terminal, and what is wrong with its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TextIO

from rank_callbacks.compare.cells import cell_text
from rank_callbacks.compare.final import Cell
from rank_callbacks.compare.seeds import Spread

__all__ = ["print_table"]

# Into a file or a pipe: as wide as it needs to be.
_WIDTH_OF_A_FILE = 240


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell | Spread]],
    problems: Mapping[str, Sequence[str]],
    file: TextIO,
    about: str = "",
) -> None:
    """Print one row a run, then a line for each thing that is wrong with one. Markup in names is text.

    Args:
        columns: Their headings.
        rows: Cells; None for what a run has not logged.
        problems: Sentences by name of the run.
        file: Where to.
        about: A line under the table.

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
        table.add_row(*[Text(_printable(cell_text(cell, heading))) for cell, heading in zip(row, columns, strict=True)])
    console.print(table)
    if about:
        console.print(Text(about), soft_wrap=True)
    for name, sentences in problems.items():
        for sentence in sentences:
            console.print(Text(f"{_printable(name)}: {_printable(sentence)}"), soft_wrap=True)


def _printable(text: str) -> str:
    """Without what would move the cursor or colour the terminal."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)
