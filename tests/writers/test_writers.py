import csv
import json
import math
import struct
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import wandb
from lightning.pytorch.loggers import TensorBoardLogger as OtherTensorBoardLogger
from numpy.typing import NDArray
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR
from tensorboard.util.tensor_util import make_ndarray
from torch import nn

from rank_callbacks import WeightRankMonitor
from rank_callbacks.tags import Tag
from rank_callbacks.writers import Report, Table, write_report
from tests.models import mlp
from tests.training import Recorder, Weights, fit

OURS = ("weight_rank", "weight_change_rank", "monitor")
STEPS = [0, 2, 4]
MATRICES = ["network.0.weight", "network.2.weight", "spare.weight"]


class Poison(pl.Callback):
    """Writes a NaN into a layer that no batch goes through, after the second report."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            pl_module.spare.weight.data[0, 0] = torch.nan


class Run(NamedTuple):
    """One fit with every kind of logger: what was asked to be logged, and where it was written."""

    readings: dict[tuple[int, str], float]
    weights: dict[int, dict[str, NDArray[np.float64]]]
    path: Path

    def spectrum(self, step: int, name: str) -> NDArray[np.float64]:
        matrix = self.weights[step][name]
        return np.linalg.svd(matrix, compute_uv=False) if np.isfinite(matrix).all() else np.full(min(matrix.shape), np.nan)


@contextmanager
def offline(path: Path) -> Generator[None]:
    """Weights & Biases writes below a folder, and sends nothing."""
    with pytest.MonkeyPatch.context() as environment:
        for name in ("DATA_DIR", "CACHE_DIR", "CONFIG_DIR"):
            environment.setenv(f"WANDB_{name}", str(path))
        environment.setenv("WANDB_SILENT", "true")
        environment.setenv("WANDB_MODE", "dryrun")
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    path = tmp_path_factory.mktemp("run")
    with offline(path):
        recorder, weights, model = Recorder(), Weights(), mlp(batches=4)
        model.spare = nn.Linear(4, 4)
        wandb_logger = WandbLogger(offline=True, save_dir=path)
        loggers = [
            TensorBoardLogger(path, name="plain", version=""),
            OtherTensorBoardLogger(path, name="prefixed", version="", prefix="mine"),
            CSVLogger(path, name="csv", version=""),
            wandb_logger,
            recorder,
        ]
        fit(model, Poison(), WeightRankMonitor(every_n_steps=2, change=True), weights, logger=loggers)
        wandb_logger.experiment.finish()
        wandb.teardown()  # until its process ends, the file may not be whole
        yield Run(recorder.readings(*OURS), weights.at, path)


def events(path: Path) -> list[Event]:
    """As they are in the file: TensorBoard's other readers split an event into one for each value."""
    (file,) = path.glob("events.out.tfevents.*")
    return [Event.FromString(event) for event in RawEventFileLoader(str(file)).Load()]


def accumulated(path: Path) -> EventAccumulator:
    return EventAccumulator(str(path), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def is_ours(tag: str) -> bool:
    return tag.split("/")[0].removeprefix("mine-") in OURS


@pytest.mark.parametrize(("folder", "prefix"), [("plain", ""), ("prefixed", "mine-")])
def test_tensorboard_scalars(run: Run, folder: str, prefix: str) -> None:
    file = accumulated(run.path / folder)
    tags = [tag for tag in file.Tags()["scalars"] if is_ours(tag)]
    points = [((event.step, tag), event.value) for tag in tags for event in file.Scalars(tag)]
    assert len(points) == len(run.readings)
    expected = {(step, f"{prefix}{tag}"): float(np.float32(value)) for (step, tag), value in run.readings.items()}
    assert dict(points) == pytest.approx(expected, rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize(("folder", "prefix"), [("plain", ""), ("prefixed", "mine-")])
def test_tensorboard_spectra(run: Run, folder: str, prefix: str) -> None:
    file = accumulated(run.path / folder)
    spectra = {
        (event.step, tag.removeprefix(f"{prefix}weight_rank/spectrum/")): make_ndarray(event.tensor_proto)
        for tag in file.Tags()["tensors"]
        if tag.startswith(f"{prefix}weight_rank/spectrum/")
        for event in file.Tensors(tag)
    }
    assert set(spectra) == {(step, name) for step in STEPS for name in MATRICES}
    for (step, name), values in spectra.items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, run.spectrum(step, name), rtol=1e-6)
    assert np.isnan(spectra[4, "spare.weight"]).all()


def test_tensorboard_spectra_belong_to_our_plugin_and_reach_it(run: Run) -> None:
    file = accumulated(run.path / "plain")
    expected = {f"{group}/spectrum/{name}" for group in ("weight_rank", "weight_change_rank") for name in MATRICES}
    assert set(file.PluginTagToContent("rank_callbacks")) == expected
    assert {file.SummaryMetadata(tag).data_class for tag in expected} == {DATA_CLASS_TENSOR}


def test_tensorboard_has_one_event_a_report(run: Run) -> None:
    ours = [event for event in events(run.path / "plain") if any(is_ours(value.tag) for value in event.summary.value)]
    assert [event.step for event in ours] == STEPS
    for event in ours:
        tags = Counter(value.tag for value in event.summary.value)
        spectra = {f"{group}/spectrum/{name}" for group in ("weight_rank", "weight_change_rank") for name in MATRICES}
        assert tags == Counter({tag for step, tag in run.readings if step == event.step} | spectra)


def test_tensorboard_has_every_spectrum_of_many_layers(tmp_path: Path) -> None:
    model = mlp(batches=1)
    model.many = nn.ModuleList(nn.Linear(2, 2) for _ in range(201))
    fit(model, WeightRankMonitor(layers="many"), logger=TensorBoardLogger(tmp_path, name="", version=""))
    tags = accumulated(tmp_path).Tags()
    assert {tag for tag in tags["tensors"] if is_ours(tag)} == {f"weight_rank/spectrum/many.{n}.weight" for n in range(201)}
    assert sum(tag.startswith("weight_rank/") for tag in tags["scalars"]) == 9


def test_csv_is_exact(run: Run) -> None:
    with (run.path / "csv" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    cells = {(int(row["step"]), tag): float(cell) for row in rows for tag, cell in row.items() if cell and is_ours(tag)}
    assert cells == pytest.approx(run.readings, rel=0, abs=0, nan_ok=True)


def wandb_records(path: Path) -> list[Any]:
    """The records of a run file: a header of 7 bytes, then blocks of 32 KiB that hold chunks of records (LevelDB's log)."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts, records = path.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in {1, 4}:  # whole, or the last chunk
            records.append(Record.FromString(parts))
            parts = b""
    return records


def wandb_row(history: Any) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for item in history.item:
        key, *inside = item.nested_key or [item.key]
        if inside:
            row.setdefault(key, {})[inside[0]] = json.loads(item.value_json)
        else:
            row[key] = json.loads(item.value_json)
    return row


def history(path: Path) -> list[dict[str, Any]]:
    (file,) = path.glob("wandb/offline-run-*/run-*.wandb")
    return [wandb_row(record.history) for record in wandb_records(file) if record.WhichOneof("record_type") == "history"]


@pytest.fixture(scope="module")
def wandb_rows(run: Run) -> list[dict[str, Any]]:
    """The rows of the run's history that hold our readings."""
    return [row for row in history(run.path) if any(is_ours(key) for key in row)]


def test_wandb_has_one_row_a_report_at_the_trainers_step(wandb_rows: list[dict[str, Any]]) -> None:
    assert [row["trainer/global_step"] for row in wandb_rows] == STEPS


def test_wandb_scalars_are_exact(run: Run, wandb_rows: list[dict[str, Any]]) -> None:
    scalars = {
        (row["trainer/global_step"], tag): float(value)
        for row in wandb_rows
        for tag, value in row.items()
        if is_ours(tag) and not isinstance(value, dict)
    }
    assert scalars == pytest.approx(run.readings, rel=0, abs=0, nan_ok=True)


def test_wandb_histograms_hold_every_finite_spectrum(run: Run, wandb_rows: list[dict[str, Any]]) -> None:
    for row in wandb_rows:
        step = row["trainer/global_step"]
        histograms = {tag: value for tag, value in row.items() if tag.startswith("weight_rank/spectrum/")}
        finite = [name for name in MATRICES if not math.isnan(run.spectrum(step, name)[0])]
        assert set(histograms) == {f"weight_rank/spectrum/{name}" for name in finite}
        for name in finite:
            histogram, spectrum = histograms[f"weight_rank/spectrum/{name}"], run.spectrum(step, name)
            assert histogram["_type"] == "histogram"
            assert sum(histogram["values"]) == len(spectrum)
            assert (histogram["bins"][0], histogram["bins"][-1]) == pytest.approx((spectrum[-1], spectrum[0]), rel=1e-6)


TABLE = Table(
    ["class", "samples", "deciders", "relative error"],
    [["none", 0, "", math.nan], ["a|b", 3, "1, 2", 0.0314159], ["c", 2, "1", math.inf]],
)
MARKDOWN = r"""| class | samples | deciders | relative error |
| --- | --- | --- | --- |
| none | 0 |  | nan |
| a\|b | 3 | 1, 2 | 0.03142 |
| c | 2 | 1 | inf |"""


class TabulatesAtTheEnd(pl.Callback):
    """Writes a report with a table after each epoch."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        scalars, tables = {Tag("ours", "error", "mean"): 0.5}, {Tag("ours", "deficit", "table"): TABLE}
        write_report(trainer, Report(trainer.global_step, scalars, {}, tables))


@pytest.fixture(scope="module")
def tabulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two epochs of two batches, with every kind of logger."""
    path = tmp_path_factory.mktemp("tables")
    with offline(path):
        wandb_logger = WandbLogger(offline=True, save_dir=path)
        loggers = [
            TensorBoardLogger(path, name="plain", version=""),
            OtherTensorBoardLogger(path, name="prefixed", version="", prefix="mine"),
            CSVLogger(path, name="csv", version=""),
            wandb_logger,
        ]
        fit(mlp(batches=2), TabulatesAtTheEnd(), logger=loggers, max_epochs=2)
        wandb_logger.experiment.finish()
        wandb.teardown()
        yield path


@pytest.mark.parametrize(("folder", "tag"), [("plain", "ours/deficit/table"), ("prefixed", "mine-ours/deficit/table")])
def test_tensorboard_shows_tables_as_text(tabulated: Path, folder: str, tag: str) -> None:
    file = accumulated(tabulated / folder)
    assert set(file.PluginTagToContent("text")) == {tag}
    assert file.SummaryMetadata(tag).data_class == DATA_CLASS_TENSOR
    read = {event.step: make_ndarray(event.tensor_proto).tolist() for event in file.Tensors(tag)}
    assert read == {step: [MARKDOWN.encode()] for step in (2, 4)}


def test_tensorboard_renders_the_table(tabulated: Path) -> None:
    """As TensorBoard's own text dashboard does."""
    from tensorboard.plugins.text.text_plugin import text_array_to_html

    (event, *_) = accumulated(tabulated / "plain").Tensors("ours/deficit/table")
    page = text_array_to_html(make_ndarray(event.tensor_proto), enable_markdown=True)
    assert page.count("<tr>") == 5  # one of them around the table: text is a list of cells
    assert "<th>relative error</th>" in page
    assert "<td>a|b</td>" in page


def test_tensorboard_has_the_table_in_the_event_of_its_report(tabulated: Path) -> None:
    ours = [[value.tag for value in event.summary.value] for event in events(tabulated / "plain")]
    assert ours.count(["ours/error/mean", "ours/deficit/table"]) == 2


def test_csv_has_no_tables(tabulated: Path) -> None:
    with (tabulated / "csv" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {tag for tag in rows[0] if tag.startswith("ours")} == {"ours/error/mean"}
    assert [row["step"] for row in rows if row["ours/error/mean"]] == ["2", "4"]


def test_wandb_has_tables_of_numbers(tabulated: Path) -> None:
    rows = [row for row in history(tabulated) if "ours/deficit/table" in row]
    assert [row["trainer/global_step"] for row in rows] == [2, 4]
    assert [row["ours/error/mean"] for row in rows] == [0.5, 0.5]
    (folder,) = tabulated.glob("wandb/offline-run-*/files")
    for row in rows:
        place = row["ours/deficit/table"]
        assert (place["_type"], place["nrows"], place["ncols"]) == ("table-file", 3, 4)
        table = json.loads((folder / place["path"]).read_text())
        assert table["columns"] == TABLE.columns
        assert str(table["data"]) == str(TABLE.rows)
