"""One place that a run wrote to."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from rank_callbacks.compare.log import Log

__all__ = ["Source"]


class Source(NamedTuple):
    """One place that a run wrote to.

    Args:
        name: Of the run.
        address: Of the place, unlike that of any other; a name where two runs have the same.
        kind: What wrote it.
        log: Reads what is there.
    """

    name: str
    address: str
    kind: str
    log: Callable[[], Log]

    def read(self) -> Log:
        """What the log holds; one that cannot be read is empty, and its notes tell why."""
        try:
            return self.log()
        except OSError as failure:
            return Log({}, {}, {}, [f"Cannot be read: {failure.strerror or failure}."])
