"""Where runs are: folders that a logger has written to, and projects on a server."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from rank_callbacks.compare.csv_file import read_csv_folder
from rank_callbacks.compare.event_files import read_event_files
from rank_callbacks.compare.log import Log
from rank_callbacks.compare.source import Source
from rank_callbacks.compare.wandb_file import read_wandb_folder
from rank_callbacks.compare.wandb_project import SCHEME, sources_of_project
from rank_callbacks.logged_names import natural_order

__all__ = ["sources_at"]

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


def sources_at(places: Sequence[str | os.PathLike[str]]) -> list[Source]:
    """Every run at or below some places, in the order of their names. Links to folders are not followed.

    A run is named by its folder below the place, or as on the server; where two have the same name, by the whole address.

    Args:
        places: Folders, and projects on a server as ``wandb://entity/project``.

    Raises:
        FileNotFoundError: If a folder does not exist.
        PermissionError: If the server does not know the user.
        ConnectionError: If the server does not answer.
        ValueError: If there is no run at or below one of them, or no such project.
        ImportError: If there is a project among them, and wandb is not installed.
    """
    found = [source for place in places for source in _sources_at(os.fspath(place))]
    found = list({os.path.realpath(source.address): source for source in found}.values())
    names = Counter(source.name for source in found)
    sources = [source if names[source.name] == 1 else source._replace(name=source.address) for source in found]
    return sorted(sources, key=lambda source: natural_order(source.name))


def _sources_at(place: str) -> list[Source]:
    if place.startswith(SCHEME):
        return sources_of_project(place)
    if not (root := Path(place)).is_dir():
        raise FileNotFoundError(f"Expected a folder with runs, got {place!r}, which does not exist or is no folder.")
    found = [_source(root, path, kinds) for path, kinds in _walk(root)]
    if not found:
        raise ValueError(f"Expected runs at or below {place!r}, found none. Looked for {_LOOKED_FOR}.")
    return found


def _source(root: Path, path: Path, kinds: tuple[str, ...]) -> Source:
    name = path.resolve().name if path == root else path.relative_to(root).as_posix()
    return Source(name, path.as_posix(), kinds[0], partial(_log, path, kinds))


def _log(path: Path, kinds: tuple[str, ...]) -> Log:
    """As the first kind has it."""
    log = _READERS[kinds[0]](path)
    others = [f"Its folder has a log of {kind} as well, taken for the same run and left unread." for kind in kinds[1:]]
    return log._replace(remarks=[*log.remarks, *others])


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
