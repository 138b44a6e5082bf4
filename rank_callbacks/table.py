"""Rows of text as a table in columns."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["aligned"]


def aligned(rows: Sequence[Sequence[str]], left: int) -> str:
    """The rows as lines, the first ``left`` columns aligned to the left and the others to the right.

    Example:
        >>> print(aligned([("layer", "rank"), ("encoder", "3")], left=1))
        layer    rank
        encoder     3
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    align = ["<" if place < left else ">" for place in range(len(widths))]
    cells = [[f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in cells)
