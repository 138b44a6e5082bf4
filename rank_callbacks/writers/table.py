"""Rows under named columns, for loggers that can show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Table"]


class Table(NamedTuple):
    """Rows under named columns.

    Args:
        columns: Their names.
        rows: A text or number a column in each.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | float]]

    def markdown(self) -> str:
        """The table as Markdown, numbers with four digits.

        Example:
            >>> print(Table(["class", "error"], [["hamster", 0.03141592]]).markdown())
            | class | error |
            | --- | --- |
            | hamster | 0.03142 |
        """
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join(f"| {' | '.join(map(_shown, line))} |" for line in lines)


def _shown(cell: str | float) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell).replace("|", r"\|")
