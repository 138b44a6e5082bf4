"""Where runs are: folders that a logger has written to."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rank_callbacks.compare.csv_file import read_csv_folder
from rank_callbacks.compare.event_files import read_event_files
from rank_callbacks.compare.log import Log
from rank_callbacks.compare.wandb_file import read_wandb_folder
from rank_callbacks.logged_names import natural_order

__all__ = ["Source", "sources_below"]

_READERS: dict[str, Callable[[Path], Log]] = {
    "tensorboard": read_event_files,
    "csv": read_csv_folder,
    "wandb": read_wandb_folder,
}
_WANDB_FOLDER = re.compile(r"(offline-)?run-\d{8}_\d{6}-\w+")
_LOOKED_FOR = (
    "TensorBoard's event files (*tfevents*), folders of CSVLogger (metrics.csv, hparams.yaml) "
    "and of Weights & Biases (wandb/offline-run-*/run-*.wandb)"
)


class Source(NamedTuple):
    """One folder that a run wrote to.

    Args:
        name: Of the run.
        path: The folder.
        kinds: Whose logs are in it; the first is read.
    """

    name: str
    path: Path
    kinds: tuple[str, ...]

    def read(self) -> Log:
        """What the log holds; one that cannot be read is empty, and its notes tell why."""
        try:
            log = _READERS[self.kinds[0]](self.path)
        except OSError as failure:
            return Log({}, {}, {}, [f"Cannot be read: {failure.strerror}."])
        others = [
            f"Its folder has a log of {kind} as well, taken for the same run and left unread." for kind in self.kinds[1:]
        ]
        return log._replace(notes=[*log.notes, *others])


def sources_below(paths: Sequence[Path]) -> list[Source]:
    """Every folder with a log at or below ``paths``, in the order of their names. Links to folders are not followed.

    A run is named by its folder below the path; where two have the same name, by the whole of it.

    Args:
        paths: Folders.

    Raises:
        FileNotFoundError: If a path does not exist.
        ValueError: If there is no run below one of them.
    """
    found = [(root, path, kinds) for root in dict.fromkeys(paths) for path, kinds in _logs_below(root)]
    found = list({path.resolve(): (root, path, kinds) for root, path, kinds in found}.values())
    names = Counter(_name(root, path) for root, path, _ in found)
    sources = [
        Source(_name(root, path) if names[_name(root, path)] == 1 else path.as_posix(), path, kinds)
        for root, path, kinds in found
    ]
    return sorted(sources, key=lambda source: natural_order(source.name))


def _name(root: Path, path: Path) -> str:
    return path.resolve().name if path == root else path.relative_to(root).as_posix()


def _logs_below(root: Path) -> list[tuple[Path, tuple[str, ...]]]:
    if root.parts[:1] == ("wandb:",):
        raise ValueError(
            f"Expected a folder with runs, got {str(root)!r}: projects on W&B's server are not read, offline runs are."
        )
    if not root.is_dir():
        raise FileNotFoundError(f"Expected a folder with runs, got {str(root)!r}, which does not exist or is no folder.")
    found = list(_walk(root))
    if not found:
        raise ValueError(f"Expected runs at or below {str(root)!r}, found none. Looked for {_LOOKED_FOR}.")
    return found


def _walk(root: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    for folder, folders, files in os.walk(root):
        kinds = _kinds(Path(folder).name, files)
        if kinds:
            yield Path(folder), kinds
        if "wandb" in kinds:
            folders.clear()  # its media, and links to other loggers' files


def _kinds(folder: str, files: list[str]) -> tuple[str, ...]:
    """Whose logs a folder holds, the fullest first."""
    has = {
        "tensorboard": any("tfevents" in file for file in files),
        "csv": "metrics.csv" in files,
        "wandb": any(re.fullmatch(r"run-.*\.wandb", file) for file in files) or bool(_WANDB_FOLDER.fullmatch(folder)),
    }
    kinds = tuple(kind for kind, is_there in has.items() if is_there)
    # A run that CSVLogger has only the settings of ended before it logged anything.
    return kinds or (("csv",) if "hparams.yaml" in files else ())
