"""The values behind the tab: what a view needs, from TensorBoard's data provider, and no more."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rank_callbacks.figures.thinning import thinned
from rank_callbacks.garbage import uncollected
from rank_callbacks.rows import Row
from rank_callbacks.tags import Tag
from rank_callbacks.tensorboard_plugin.listing import Hyperparameters, Listing, Place, read_listing

__all__ = ["MOST_READINGS", "Logs", "Spectra"]

# A chart of more points than that is slow to send and to draw, and no clearer.
MOST_READINGS = 60_000
FEWEST_STEPS = 20
# All of a time series: TensorBoard's own samples_per_plugin has bounded it before. A smaller number would make
# TensorBoard choose steps at random, which we want evenly spread and alike in all layers.
EVERYTHING = 100_000


class Spectra(NamedTuple):
    """The spectra of one matrix.

    Args:
        by_run: Singular values by run, then by step.
        shape: Of the matrix, as the first run has it.
    """

    by_run: dict[str, dict[int, list[float]]]
    shape: tuple[int, ...]


class Logs:
    """A log directory as TensorBoard's data provider has it at one request.

    Args:
        provider: Of either kind.
        context: Of the request.
        experiment: Its identity, empty for a log directory.
        listing: Names of what is there; read if None.
    """

    def __init__(self, provider: Any, context: Any, experiment: str, listing: Listing | None = None) -> None:  # ruff: ignore[any-type]
        self._provider = provider
        self._where = {"ctx": context, "experiment_id": experiment}
        self.listing = listing or read_listing(provider, context, experiment)

    @uncollected()
    def rows(
        self, runs: Collection[str], wanted: Callable[[Tag], bool], most: int = MOST_READINGS, last: bool = False
    ) -> list[Row]:
        """The readings of some runs, by run, tag and step.

        Args:
            runs: Their names, in the order of the rows.
            wanted: Which tags.
            most: Readings that are too many: steps are then thinned evenly, alike in all tags of a run; the first and the last
                stay, and 20 at least. Of a tag that was not read at a step which stays, the last reading since the one before
                stays: layers are read in turn.
            last: Whether only the last reading of each tag is needed.
        """
        # TensorBoard's own order changes from start to start.
        scalars = {run: sorted(self.listing.scalars.get(run, {}).items()) for run in runs}
        chosen = {run: {tag: at for tag, at in of_run if wanted(tag)} for run, of_run in scalars.items()}
        tags = sum(map(len, chosen.values()))
        steps = max(FEWEST_STEPS, most // max(tags, 1))
        data = self._scalars([at for places in chosen.values() for at in places.values()], 1 if last else EVERYTHING)
        rows = []
        for run, places in chosen.items():
            series = {tag: data.get(at.run, {}).get(at.tag, []) for tag, at in places.items()}
            kept = thinned(sorted({datum.step for of_tag in series.values() for datum in of_tag}), steps)
            rows += [Row(run, d.step, tag, d.value) for tag, of_tag in series.items() for d in _last_by(of_tag, kept)]
        return rows

    def others(self, runs: Iterable[str], name: str) -> dict[str, dict[int, float]]:
        """A scalar that no monitor wrote, an accuracy for example: by run that has it, then by step."""
        places = {run: self.listing.others[run][name] for run in runs if name in self.listing.others.get(run, {})}
        data = self._scalars(list(places.values()), EVERYTHING)
        return {run: {d.step: d.value for d in data.get(at.run, {}).get(at.tag, [])} for run, at in places.items()}

    def spectra(self, runs: Iterable[str], group: str, layer: str, measure: str = "spectrum") -> Spectra:
        """The singular values of one layer's matrix, by run that has them and by step."""
        tag = Tag(group, measure, layer)
        found = {run: self.listing.spectra[run][tag] for run in runs if tag in self.listing.spectra.get(run, {})}
        data = self._tensors([entry.place for entry in found.values()], "rank_callbacks")
        values = {
            run: {datum.step: datum.numpy.tolist() for datum in data.get(entry.place.run, {}).get(entry.place.tag, [])}
            for run, entry in found.items()
        }
        shape = next(iter(found.values())).shape if found else ()
        return Spectra({run: by_step for run, by_step in values.items() if by_step}, shape)

    def table(self, run: str, tag: Tag) -> list[dict[str, str]]:
        """The rows of a table that a monitor wrote, by the heading of the column; none without such a table."""
        place = self.listing.tables.get(run, {}).get(tag)
        if place is None:
            return []
        data = self._tensors([place], "text").get(place.run, {}).get(place.tag, [])
        return _markdown_rows(data[-1].numpy.ravel()[0].decode()) if data else []

    def hyperparameters(self, runs: Iterable[str]) -> dict[str, Hyperparameters]:
        """What the runs logged of their hyperparameters."""
        return {run: self.listing.hyperparameters.get(run, {}) for run in runs}

    def orders(self, runs: Iterable[str], group: str) -> dict[str, int]:
        """The place of each layer among those of its report, where a spectrum tells it."""
        return {
            tag.layer: entry.order
            for run in runs
            for tag, entry in self.listing.spectra.get(run, {}).items()
            if tag.group == group
        }

    def _scalars(self, places: list[Place], downsample: int) -> Mapping[str, Mapping[str, list[Any]]]:
        return self._read(self._provider.read_scalars, places, "scalars", downsample)

    def _tensors(self, places: list[Place], plugin: str) -> Mapping[str, Mapping[str, list[Any]]]:
        return self._read(self._provider.read_tensors, places, plugin, EVERYTHING)

    def _read(self, read: Any, places: list[Place], plugin: str, downsample: int) -> Mapping[str, Mapping[str, list[Any]]]:  # ruff: ignore[any-type]
        from tensorboard.data.provider import RunTagFilter

        if not places:  # an empty filter means everything
            return {}
        only = RunTagFilter(runs={place.run for place in places}, tags={place.tag for place in places})
        return read(plugin_name=plugin, downsample=downsample, run_tag_filter=only, **self._where)


def _last_by(data: Iterable[Any], steps: Sequence[int]) -> Iterator[Any]:
    """Of the data of one tag, in order, the last up to each of some steps and after the one before."""
    by_place = {bisect_left(steps, datum.step): datum for datum in data}
    return iter(by_place.values())


def _markdown_rows(text: str) -> list[dict[str, str]]:
    """The rows of a table as ``Table.markdown`` writes it."""
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("|")]
    return [dict(zip(lines[0], cells, strict=False)) for cells in lines[2:]] if lines else []
