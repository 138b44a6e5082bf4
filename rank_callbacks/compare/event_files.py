"""TensorBoard's event files, read as they are: every value, without a server."""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rank_callbacks.compare.hyperparameters import read_yaml
from rank_callbacks.compare.log import Log
from rank_callbacks.compare.run import Hyperparameters, Spectra

__all__ = ["read_event_files"]

# As rank_callbacks.writers.tensorboard writes it, which cannot be imported without torch.
_PLUGIN_NAME, _VERSION = "rank_callbacks", 1
_HEADER = struct.Struct("<QI")  # length of the record and the checksum of that, which we leave


def read_event_files(folder: Path) -> Log:
    """All that the event files of a folder hold. Where they overlap, as after a restart, the later file is right.

    Checksums are left unread: in Python they would take nine tenths of the time. Bytes that are no event end the file.

    Args:
        folder: Of one run; its ``hparams.yaml`` is read as well.
    """
    reader = _Reader()
    whole = [reader.read(path) for path in sorted(folder.glob("*tfevents*"))]
    saved, remarks = read_yaml(folder / "hparams.yaml")
    # A restart goes on in a file of its own, after one that was cut off.
    is_cut = whole[-1:] == [False]
    notes, cuts = (reader.cuts[-1:], reader.cuts[:-1]) if is_cut else ([], reader.cuts)
    settings = {**saved, **reader.hyperparameters}
    return Log(reader.scalars, reader.spectra, settings, notes, [*cuts, *reader.remarks, *remarks])


class _Reader:
    """Adds up what event files hold."""

    def __init__(self) -> None:
        self.scalars: dict[str, dict[int, float]] = {}
        self.spectra: dict[str, Spectra] = {}
        self.hyperparameters: Hyperparameters = {}
        self.cuts: list[str] = []
        self.remarks: list[str] = []
        self._contents: dict[str, tuple[str, bytes]] = {}  # only the first value of a tag has it

    def read(self, path: Path) -> bool:
        """Whether the file ends where a record does."""
        from google.protobuf.message import DecodeError
        from tensorboard.compat.proto.event_pb2 import Event

        self._contents.clear()
        try:
            for record in _records(path):
                event = Event.FromString(record)
                self._add(event.step, event.summary.value)
        except (EOFError, DecodeError):
            self.cuts.append(f"Cut off: {path.name} ends within a record.")
            return False
        return True

    def _add(self, step: int, values: Any) -> None:  # ruff: ignore[any-type] - a protocol buffer
        scalars = self.scalars
        for value in values:
            if value.WhichOneof("value") == "simple_value":
                tag = value.tag
                if tag in scalars:
                    scalars[tag][step] = value.simple_value
                else:
                    scalars[tag] = {step: value.simple_value}
            else:
                self._add_other(step, value)

    def _add_other(self, step: int, value: Any) -> None:  # ruff: ignore[any-type] - a protocol buffer
        if value.HasField("metadata"):
            self._contents[value.tag] = (value.metadata.plugin_data.plugin_name, value.metadata.plugin_data.content)
        plugin, content = self._contents.get(value.tag, ("", b""))
        add: dict[str, Callable[[int, Any, bytes], None]] = {
            "scalars": self._add_tensor,
            _PLUGIN_NAME: self._add_spectrum,
            "hparams": self._add_hyperparameters,
        }
        if plugin in add:
            add[plugin](step, value, content)

    def _add_tensor(self, step: int, value: Any, content: bytes) -> None:  # ruff: ignore[any-type]
        """A scalar as TensorFlow 2 writes it."""
        from tensorboard.util.tensor_util import make_ndarray

        self.scalars.setdefault(value.tag, {})[step] = float(make_ndarray(value.tensor).item())

    def _add_spectrum(self, step: int, value: Any, content: bytes) -> None:  # ruff: ignore[any-type]
        from tensorboard.util.tensor_util import make_ndarray

        shape = _shape(content)
        if shape is None:
            later = "Some of its spectra were written by another version of rank_callbacks and are left out."
            self.remarks += [] if later in self.remarks else [later]
            return
        of_tag = self.spectra.setdefault(value.tag, Spectra({}, shape)).by_step
        # An eighth of the memory of a list.
        of_tag[step] = array("f", make_ndarray(value.tensor).astype("float32").tobytes())  # type: ignore[index]

    def _add_hyperparameters(self, step: int, value: Any, content: bytes) -> None:  # ruff: ignore[any-type]
        from tensorboard.plugins.hparams import error, metadata

        if value.tag != metadata.SESSION_START_INFO_TAG:
            return
        try:
            session = metadata.parse_session_start_info_plugin_data(content)
        except error.HParamsError as failure:
            self.remarks.append(f"Its hyperparameters cannot be read: {failure}")
            return
        plain = {name: getattr(at, at.WhichOneof("kind") or "", "") for name, at in session.hparams.items()}
        self.hyperparameters = {**self.hyperparameters, **plain}


def _records(path: Path) -> Iterator[bytes]:
    """The records of a file.

    Raises:
        EOFError: If the file ends within one.
    """
    size = path.stat().st_size  # a damaged length may be beyond all memory
    with path.open("rb") as file:
        while header := file.read(_HEADER.size):
            if len(header) < _HEADER.size:
                raise EOFError
            (length, _) = _HEADER.unpack(header)
            record = file.read(min(length, size) + 4)
            if len(record) < length + 4:
                raise EOFError
            yield record[:length]


def _shape(content: bytes) -> tuple[int, ...] | None:
    """Of the matrix, as our plugin's content tells it; None for what is not of version 1 or cannot be read."""
    try:
        found = json.loads(content)
    except ValueError:
        return None
    known = isinstance(found, dict) and found.get("version") == _VERSION and isinstance(found.get("shape"), list)
    return tuple(found["shape"]) if known else None
