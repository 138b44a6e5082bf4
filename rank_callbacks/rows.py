"""Readings as logs hold them: the long table from which every figure and report is made."""

from __future__ import annotations

from typing import NamedTuple

from rank_callbacks.tags import Tag

__all__ = ["Row"]


class Row(NamedTuple):
    """One reading of one run.

    Args:
        run: Name of the run.
        step: Batches after which the optimizer had stepped.
        tag: What was measured, how and where.
        value: The reading.
    """

    run: str
    step: int
    tag: Tag
    value: float
