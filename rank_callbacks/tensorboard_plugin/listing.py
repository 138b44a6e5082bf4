"""What the runs of a log directory hold of ours: every reading's name, without its values."""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple, TypeAlias

from rank_callbacks.logged_names import natural_order, prefix_and_tag
from rank_callbacks.tags import Tag

__all__ = ["PLUGIN_NAME", "Listing", "Place", "SpectrumPlace", "natural_order", "read_listing"]

# As rank_callbacks.writers.tensorboard writes it, which cannot be imported without torch.
PLUGIN_NAME = "rank_callbacks"
VERSION = 1

Hyperparameters: TypeAlias = "dict[str, float | str]"


class Place(NamedTuple):
    """Where TensorBoard keeps a time series.

    Args:
        run: Its own name of the run.
        tag: The tag as it was written, with a logger's prefix if there is one.
    """

    run: str
    tag: str


class SpectrumPlace(NamedTuple):
    """Where TensorBoard keeps the spectra of one matrix, and what was written beside them.

    Args:
        place: Of the time series.
        shape: Of the matrix.
        order: The layer's place among the layers of its report.
    """

    place: Place
    shape: tuple[int, ...]
    order: int


class Listing(NamedTuple):
    """The names of all that the runs hold: by run as the tab shows it, then by tag.

    Args:
        scalars: Readings of the monitors.
        others: Scalars that are not ours, accuracies among them, by their name without a logger's prefix.
        spectra: Singular values.
        tables: Texts of the monitors.
        hyperparameters: What the runs logged of them: name to value.
        notes: Sentences about what could not be used.
    """

    scalars: dict[str, dict[Tag, Place]]
    others: dict[str, dict[str, Place]]
    spectra: dict[str, dict[Tag, SpectrumPlace]]
    tables: dict[str, dict[Tag, Place]]
    hyperparameters: dict[str, Hyperparameters]
    notes: list[str]

    @property
    def runs(self) -> list[str]:
        """Runs with anything of ours, in the order of their names, numbers in them by value."""
        return sorted(self.scalars.keys() | self.spectra.keys(), key=natural_order)


def read_listing(provider: Any, context: Any, experiment: str) -> Listing:  # ruff: ignore[any-type] - TensorBoard has no types
    """Ask a data provider of TensorBoard for the names of everything that the tab can show.

    Args:
        provider: Of either kind: TensorBoard's own server of data or its slower one.
        context: Of the request.
        experiment: Its identity, empty for a log directory.
    """
    where = {"experiment_id": experiment}
    scalars = provider.list_scalars(context, plugin_name="scalars", **where)
    spectra = provider.list_tensors(context, plugin_name=PLUGIN_NAME, **where)
    texts = provider.list_tensors(context, plugin_name="text", **where)
    sessions = provider.list_tensors(context, plugin_name="hparams", **where)
    listing = Listing({}, {}, {}, {}, {}, [])
    _add_scalars(listing, scalars)
    _add_spectra(listing, spectra)
    _add_tables(listing, texts)
    _add_hyperparameters(listing, sessions)
    return listing


def _add_scalars(listing: Listing, series: dict[str, dict[str, Any]]) -> None:
    prefixes = {run: _prefixes(tags) for run, tags in series.items()}
    for run, tags in series.items():
        for text in tags:
            prefix, tag = prefix_and_tag(text)
            if tag is not None:
                listing.scalars.setdefault(_shown(run, prefix), {})[tag] = Place(run, text)
                continue
            for known in prefixes[run] or {""}:
                if text.startswith(known):
                    listing.others.setdefault(_shown(run, known), {})[text.removeprefix(known)] = Place(run, text)


def _add_spectra(listing: Listing, series: dict[str, dict[str, Any]]) -> None:
    later: set[str] = set()
    for run, tags in series.items():
        for text, entry in tags.items():
            prefix, tag = prefix_and_tag(text)
            content = _content(entry.plugin_content)
            if tag is None or content is None or content.get("version") != VERSION:
                later.add(run)
                continue
            spectrum = SpectrumPlace(Place(run, text), tuple(content["shape"]), content["place"])
            listing.spectra.setdefault(_shown(run, prefix), {})[tag] = spectrum
    if later:
        runs = ", ".join(sorted(later, key=natural_order))
        listing.notes.append(f"Some spectra of {runs} were written by another version of rank_callbacks and are left out.")


def _add_tables(listing: Listing, series: dict[str, dict[str, Any]]) -> None:
    for run, tags in series.items():
        for text in tags:
            prefix, tag = prefix_and_tag(text)
            if tag is not None:
                listing.tables.setdefault(_shown(run, prefix), {})[tag] = Place(run, text)


def _add_hyperparameters(listing: Listing, series: dict[str, dict[str, Any]]) -> None:
    from tensorboard.plugins.hparams import error, metadata

    for run, tags in series.items():
        entry = tags.get(metadata.SESSION_START_INFO_TAG)
        if entry is None:
            continue
        try:
            session = metadata.parse_session_start_info_plugin_data(entry.plugin_content)
        except error.HParamsError as failure:
            listing.notes.append(f"The hyperparameters of {run} cannot be read: {failure}")
            continue
        values = {name: _plain(value) for name, value in session.hparams.items()}
        for shown in _names_of(listing, run):
            listing.hyperparameters[shown] = values


def _names_of(listing: Listing, run: str) -> list[str]:
    """The names under which the tab shows a run."""
    return [shown for shown, tags in listing.scalars.items() if any(place.run == run for place in tags.values())]


def _plain(value: Any) -> float | str:  # ruff: ignore[any-type] - a protocol buffer
    """A protocol buffer's value; a number that is not finite as text, since JSON has none."""
    kind = value.WhichOneof("kind")
    number = getattr(value, kind) if kind else ""
    return number if isinstance(number, float) and math.isfinite(number) else str(number)


def _content(written: bytes) -> dict[str, Any] | None:
    """What was written beside a spectrum; None for what is not of version 1 or cannot be read."""
    try:
        content = json.loads(written)
    except ValueError:
        return None
    complete = isinstance(content, dict) and isinstance(content.get("shape"), list) and isinstance(content.get("place"), int)
    return content if complete else None


def _prefixes(tags: dict[str, Any]) -> set[str]:
    """The prefixes of the loggers that wrote our tags."""
    return {prefix for prefix, tag in map(prefix_and_tag, tags) if tag is not None}


def _shown(run: str, prefix: str) -> str:
    """The name under which the tab shows a run: two loggers may write to one directory, each with its prefix."""
    return f"{run} ({prefix.removesuffix('-')})" if prefix else run
