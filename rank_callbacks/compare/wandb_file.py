"""The folder of a run of Weights & Biases, read without its package."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rank_callbacks.compare.hyperparameters import flat
from rank_callbacks.compare.log import Log, Series
from rank_callbacks.compare.wandb_history import add_row

__all__ = ["read_wandb_folder"]

# Numbers of fields in wandb's protocol (wandb_internal.proto).
_HISTORY, _CONFIG, _RUN, _EXIT = 2, 5, 17, 18
_KEY, _NESTED_KEY, _VALUE_JSON = 1, 2, 16
_BLOCK, _CHUNK = 32768, struct.Struct("<IHB")


def read_wandb_folder(folder: Path) -> Log:
    """What the ``.wandb`` file of a run holds: history, settings and how it ended. Of spectra it has histograms only.

    Steps are the trainer's where a row has them, and those of Weights & Biases otherwise.

    Args:
        folder: Such as ``wandb/offline-run-20260101_120000-abcdefgh``.
    """
    scalars: Series = {}
    config: dict[str, Any] = {}
    exit_code: int | None = None
    notes = []
    try:
        for path in sorted(folder.glob("run-*.wandb")):
            for field, content in (pair for record in _records(path) for pair in _fields(record)):
                if field == _HISTORY:
                    add_row(scalars, _row(content))
                elif field in {_CONFIG, _RUN}:
                    _add_config(config, content if field == _CONFIG else dict(_fields(content)).get(4, b""))
                elif field == _EXIT:
                    exit_code = dict(_fields(content)).get(1, 0)
    except EOFError:
        notes.append("Cut off: its file ends within a record, or is damaged there.")
    return Log(scalars, {}, flat(config), [*notes, *_ending(exit_code)], finished=exit_code == 0)


def _ending(exit_code: int | None) -> list[str]:
    if exit_code is None:
        return ["It has not ended: still running, or killed."]
    return [f"Failed with exit code {exit_code}."] if exit_code else []


def _add_config(config: dict[str, Any], content: bytes) -> None:
    config.update({"/".join(names): value for names, value in _items(content, 1) if names[0].split("/")[0] != "_wandb"})


def _row(content: bytes) -> dict[str, Any]:
    """A row of history without its tables, pictures and histograms, whose sizes are no readings: they tell their ``_type``."""
    row = dict(_items(content, 1))
    media = {names[:-1] for names in row if names[-1] == "_type"}
    return {"/".join(names): value for names, value in row.items() if not any(names[: len(one)] == one for one in media)}


def _items(message: bytes, field: int) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Names, from the outermost, and values of a message's items: those of histories and of settings have the same form."""
    for number, item in _fields(message):
        if number == field:
            parts = list(_fields(item))
            names = [text.decode() for at, text in parts if at == _NESTED_KEY] or [
                text.decode() for at, text in parts if at == _KEY
            ]
            values = [text for at, text in parts if at == _VALUE_JSON]
            if values:
                yield tuple(names), json.loads(values[0])


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and contents of the fields of a protocol buffer's message."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(message, place)
            yield key >> 3, value
            continue
        length, place = _varint(message, place) if kind == 2 else ({1: 8, 5: 4}[kind], place)
        yield key >> 3, message[place : place + length]
        place += length


def _varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 127) << shift
        place += 1
        if byte < 128:
            return value, place
        shift += 7


def _records(path: Path) -> Iterator[bytes]:
    """The records of a file: a header of 7 bytes, then blocks of 32 KiB that hold chunks of records (LevelDB's log).

    Raises:
        EOFError: If the file ends within a record, or is damaged.
    """
    data, place, parts = path.read_bytes(), 7, b""
    while place + _CHUNK.size <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _CHUNK.size:
            place += left
            continue
        checksum, length, kind = _CHUNK.unpack_from(data, place)
        # The checksum is of the kind, a byte, and of the chunk.
        if zlib.crc32(data[place + 6 : place + 7 + length]) != checksum:
            raise EOFError
        parts += data[place + _CHUNK.size : place + _CHUNK.size + length]
        place += _CHUNK.size + length
        if kind in {1, 4}:  # whole, or the last chunk
            yield parts
            parts = b""
    if parts or place < len(data):
        raise EOFError
