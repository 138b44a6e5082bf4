import csv
import json
import math
import os
import shutil
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pandas
import pytest
import wandb
from pandas.testing import assert_frame_equal
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from wandb.proto.wandb_internal_pb2 import HistoryItem, HistoryRecord, Record

from rank_callbacks.compare import load, read_runs
from rank_callbacks.compare.long_table import long_table, write_long_table
from rank_callbacks.compare.run import Run
from rank_callbacks.tags import Tag
from rank_callbacks.writers import MatrixSpectrum
from tests.tensorboard_plugin.logs import event_file, write
from tests.training import Recorder, Weights
from tests.writers.test_writers import offline

KINDS = ["tensorboard", "csv", "wandb"]


@pytest.fixture(scope="module")
def runs(trained: tuple[Path, Recorder, Weights]) -> dict[str, Run]:
    return {run.kind: run for run in read_runs(trained[0])}


def cells(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Without names of runs, by step and tag; values as TensorBoard has them."""
    frame = frame.astype({"group": "str", "measure": "str", "layer": "str", "value": "float32"})
    parts = ["step", "group", "measure", "layer"]
    return frame.drop(columns="run").sort_values(parts).reset_index(drop=True)


def test_every_kind_of_source_is_found(runs: dict[str, Run]) -> None:
    assert set(runs) == set(KINDS)
    assert runs["tensorboard"].name == "event files"
    assert runs["csv"].name == "table"
    assert runs["wandb"].name.startswith("wandb/offline-run-")
    assert [run.notes for run in runs.values()] == [[], [], []]


@pytest.mark.parametrize("kind", KINDS)
def test_readings_are_those_that_were_logged(kind: str, runs: dict[str, Run], trained: tuple[Path, Recorder, Weights]) -> None:
    logged = {(step, tag): np.float32(value) for step, tag, value in trained[1].rows if len(tag.split("/")) == 3}
    read = {(row.step, str(row.tag)): np.float32(row.value) for row in runs[kind].rows}
    assert len(read) == len(runs[kind].rows) > 100
    assert read.keys() == logged.keys()
    np.testing.assert_array_equal(list(read.values()), [logged[at] for at in read])
    assert [row.step for row in runs[kind].rows] == sorted(row.step for row in runs[kind].rows)
    assert {row.run for row in runs[kind].rows} == {runs[kind].name}


@pytest.mark.parametrize("kind", KINDS)
def test_other_numbers_are_metrics(kind: str, runs: dict[str, Run]) -> None:
    assert [step for step, _ in runs[kind].metrics["val/accuracy"]] == [3, 7]
    assert [value for _, value in runs[kind].metrics["val/accuracy"]] == pytest.approx([0.5, 0.5 + 1 / 3])
    assert {"epoch"} <= runs[kind].metrics.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_hyperparameters(kind: str, runs: dict[str, Run]) -> None:
    expected = {
        "weight_decay": 5e-4,
        "optimizer/name": "<b>SGD</b>",
        "optimizer/nesterov": True,
        "widths": "[4, 3]",
        "epochs": 2.0,
    }
    assert runs[kind].hyperparameters == expected
    assert runs[kind].hyperparameters["optimizer/nesterov"] is True


def test_hyperparameters_of_event_files_alone(runs: dict[str, Run], settings: dict[str, object], tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="a", default_hp_metric=False)
    logger.log_hyperparams(settings, {"final": 0.0})
    logger.finalize("success")
    (tmp_path / "a" / "hparams.yaml").unlink(missing_ok=True)
    (run,) = read_runs(tmp_path)
    assert run.hyperparameters == runs["csv"].hyperparameters


@pytest.mark.parametrize("kind", KINDS[1:])
def test_all_kinds_give_the_same_table(kind: str, runs: dict[str, Run], trained: tuple[Path, Recorder, Weights]) -> None:
    frames = {name: cells(load(trained[0] / run.name)) for name, run in runs.items()}
    assert_frame_equal(frames["tensorboard"], frames[kind], check_exact=True)


def test_spectra_of_event_files(runs: dict[str, Run], trained: tuple[Path, Recorder, Weights]) -> None:
    (shape, spectra) = next(
        (s.shape, s.by_step)
        for tag, s in runs["tensorboard"].spectra.items()
        if tag == Tag("weight_rank", "spectrum", "network.0.weight")
    )
    for step, values in spectra.items():
        matrix = trained[2].at[step]["network.0.weight"]
        assert shape == matrix.shape
        np.testing.assert_allclose(values, np.linalg.svd(matrix, compute_uv=False), rtol=1e-5)
    assert list(spectra) == [0, 2, 4, 6, 8]


def test_columns(trained: tuple[Path, Recorder, Weights]) -> None:
    frame = load([str(trained[0])])
    assert list(frame.columns[:6]) == ["run", "step", "group", "measure", "layer", "value"]
    names = {"epochs", "optimizer/name", "optimizer/nesterov", "weight_decay", "widths"}
    assert set(frame.columns[6:]) == {f"hyperparameter.{name}" for name in names}
    assert frame["hyperparameter.weight_decay"].dtype == np.float64
    assert frame["hyperparameter.optimizer/nesterov"].dtype == np.bool_
    accuracy = frame[frame.measure == "val/accuracy"]
    assert len(accuracy) == 6
    assert set(accuracy.group) == set(accuracy.layer) == {""}


def test_parquet_reads_back_as_the_table_was(runs: dict[str, Run], tmp_path: Path) -> None:
    """Types, categories, missing settings, NaN and notes among it."""
    pytest.importorskip("pyarrow")
    odd = runs["csv"]._replace(name="odd", hyperparameters={"opt": "<b>", "fast": True}, notes=["Failed."])
    odd = odd._replace(metrics={"val/accuracy": [(0, float("nan")), (1, float("inf"))]})
    write_long_table([runs["csv"], odd], tmp_path / "table.parquet")
    read = pandas.read_parquet(tmp_path / "table.parquet")
    assert_frame_equal(read, long_table([runs["csv"], odd]), check_exact=True)
    assert read.attrs["notes"] == {"odd": ["Failed."]}


def test_parquet_needs_its_package(runs: dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pyarrow", "fastparquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ImportError, match=r"A table in Parquet needs pandas and pyarrow: pip install 'rank-callbacks\[parquet\]'"
    ):
        write_long_table([runs["csv"]], tmp_path / "table.parquet")


def test_a_wide_record_of_wandb_spans_blocks(trained: tuple[Path, Recorder, Weights]) -> None:
    """Or reading the log of blocks would not have been tried."""
    (file,) = trained[0].glob("wandb/offline-run-*/run-*.wandb")
    assert file.stat().st_size > 2 * 32768


RANK = Tag("weight_rank", "effective_rank", "head.weight")


def notes(folder: Path) -> dict[str, list[str]]:
    return {run.name: [*run.notes, *run.remarks] for run in read_runs(folder)}


def rows_of_csv(folder: Path, *rows: str, settings: str = "weight_decay: 0.1\n") -> None:
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("\n".join(rows))
    if settings:
        (folder / "hparams.yaml").write_text(settings)


HEAD = f"step,accuracy,{RANK}"


def test_nothing_is_wrong_with_a_whole_run(tmp_path: Path) -> None:
    rows_of_csv(tmp_path / "a", HEAD, "0,,2.5", "99,0.5,", "100,,2")
    rows_of_csv(tmp_path / "b", HEAD, "0,,2.5", "99,0.5,")
    assert notes(tmp_path) == {"a": [], "b": []}


@pytest.mark.parametrize(
    ("rows", "settings", "note"),
    [
        ([], "lr: 1", "Empty: it has logged no numbers."),
        ([HEAD], "lr: 1", "Empty: it has logged no numbers."),
        ([HEAD, "5,,2.5"], "lr: 1", "Ends at step 5, others at 100: failed, stopped or still running."),
        ([HEAD, "100,,2.5"], "", "Has logged no hyperparameters."),
        ([HEAD, "90,,nan", "100,,2"], "lr: 1", f"1 of its 2 readings are NaN, the first at step 90: {RANK}."),
        ([HEAD, "100,,2", "10"], "lr: 1", "Cut off: 1 rows of its metrics.csv cannot be read whole."),
        ([HEAD, "100,,2", "101,,2.b"], "lr: 1", "Cut off: 1 rows of its metrics.csv cannot be read whole."),
        (["loss,accuracy", "1,2"], "lr: 1", "Its metrics.csv has no column 'step'."),
        ([HEAD, "100,,2"], "a: [", "Its hparams.yaml cannot be read: "),
    ],
)
def test_what_is_wrong_is_noted(rows: list[str], settings: str, note: str, tmp_path: Path) -> None:
    rows_of_csv(tmp_path / "whole", HEAD, "100,,2")
    rows_of_csv(tmp_path / "wrong", *rows, settings=settings)
    found = notes(tmp_path)
    assert found["whole"] == []
    assert any(each.startswith(note) for each in found["wrong"])


def test_runs_of_other_lengths_by_their_settings_are_whole(tmp_path: Path) -> None:
    rows_of_csv(tmp_path / "short", HEAD, "10,,2", settings="epochs: 1")
    rows_of_csv(tmp_path / "long", HEAD, "100,,2", settings="epochs: 10")
    assert notes(tmp_path) == {"short": [], "long": []}


def test_epochs_tell_the_length_where_all_have_them(tmp_path: Path) -> None:
    """Larger batches make fewer steps."""
    rows_of_csv(tmp_path / "small", "step,epoch,a", "100,9,2", settings="batch: 1")
    rows_of_csv(tmp_path / "large", "step,epoch,a", "10,9,2", settings="batch: 10")
    rows_of_csv(tmp_path / "failed", "step,epoch,a", "60,6,2", settings="batch: 1")
    assert notes(tmp_path) == {
        "small": [],
        "large": [],
        "failed": ["Ends at epoch 6, others at 9: failed, stopped or still running."],
    }


@pytest.mark.parametrize(
    ("rows", "settings", "note"),
    [
        (["step,epoch,a", "9,0,2", "19,1,2", "29,2,2"], "epochs: 6", "Ends at epoch 2, with epochs=6: "),
        (["step,epoch,a", "9,0,2", "59,5,2"], "max_epochs: 6", None),
        # With an epoch or two between readings an end is not seen to the epoch.
        (["step,epoch,a", "19,1,2", "39,3,2"], "max_epochs: 6", None),
        (["step,epoch,a", "9,0,2", "19,1,2", "39,3,2"], "max_epochs: 6", None),
        (["step,epoch,a", "9,0,2", "19,1,2", "39,3,2"], "max_epochs: 7", "Ends at epoch 3, with max_epochs=7: "),
        (["step,a", "9,2", "19,2", "29,2"], "max_steps: 60", "Ends at step 29, with max_steps=60: "),
        (["step,a", "9,2", "49,2", "59,2"], "max_steps: 60", None),
        # Whichever limit comes first ends a run.
        (["step,epoch,a", "9,0,2", "19,1,2", "29,2,2"], "max_epochs: 99\nmax_steps: 30", None),
        (["step,epoch,a", "9,0,2", "19,1,2", "29,2,2"], "max_epochs: -1\nmax_steps: 30", None),
        (["step,epoch,a", "9,0,2", "19,1,2", "29,2,2"], "max_epochs: many", None),
        # May count anything, the steps of a diffusion among it.
        (["step,epoch,a", "9,0,2", "19,1,2"], "num_steps: 1000", None),
        (["step,a", "9,2", "19,2"], "epochs: 1000", None),
    ],
)
def test_a_run_alone_that_ends_before_it_meant_to(rows: list[str], settings: str, note: str | None, tmp_path: Path) -> None:
    rows_of_csv(tmp_path / "alone", *rows, settings=settings)
    assert notes(tmp_path)["alone"] == ([] if note is None else [f"{note}failed, stopped or still running."])
    assert [run.notes for run in read_runs(tmp_path, any_length=True)] == [[]]


def test_runs_may_be_asked_to_have_any_length(tmp_path: Path) -> None:
    """As early stopping leaves them."""
    rows_of_csv(tmp_path / "long", "step,epoch,a", "100,9,2")
    rows_of_csv(tmp_path / "stopped", "step,epoch,a", "60,6,2")
    assert [run.notes for run in read_runs(tmp_path, any_length=True)] == [[], []]
    assert load(tmp_path, any_length=True).attrs["notes"] == {}
    assert set(notes(tmp_path)["stopped"]) == {"Ends at epoch 6, others at 9: failed, stopped or still running."}


def test_a_run_that_tells_that_it_finished_may_be_shorter(tmp_path: Path) -> None:
    rows_of_csv(tmp_path / "long", "step,epoch,a", "100,9,2")
    for name, code in (("finished", 0), ("failed", 1)):
        with offline(tmp_path / name):
            logger = WandbLogger(offline=True, save_dir=tmp_path / name)
            logger.log_hyperparams({"lr": 0.1})
            logger.log_metrics({"epoch": 6, "a": 0.5}, step=60)
            logger.experiment.finish(exit_code=code)
            wandb.teardown()
    found = {run.name.split("/")[0]: list(run.notes) for run in read_runs(tmp_path)}
    assert found["finished"] == []
    assert "Ends at epoch 6, others at 9: failed, stopped or still running." in found["failed"]


def test_nan_and_another_log_spoil_no_run(tmp_path: Path) -> None:
    write(tmp_path, "a", {RANK: math.nan}, {RANK: 1.0})
    (tmp_path / "a" / "metrics.csv").write_text(f"step,{RANK}\n0,7\n")
    (tmp_path / "a" / "hparams.yaml").write_text("lr: 1")
    (run,) = read_runs(tmp_path)
    assert run.notes == []
    assert [remark.split()[0] for remark in run.remarks] == ["Its", "1"]


def test_a_file_that_was_cut_off_before_a_restart_spoils_no_run(tmp_path: Path) -> None:
    write(tmp_path, "first", {RANK: 1.0}, {RANK: 2.0})
    write(tmp_path, "second", {RANK: 1.0}, {RANK: 5.0}, {RANK: 6.0})
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "hparams.yaml").write_text("lr: 1")
    cut, whole = (tmp_path / "a" / f"events.out.tfevents.{time}.host" for time in (100, 200))
    cut.write_bytes(event_file(tmp_path / "first").read_bytes()[:-2])
    shutil.move(event_file(tmp_path / "second"), whole)
    (run,) = read_runs(tmp_path / "a")
    assert run.notes == []
    assert run.remarks == [f"Cut off: {cut.name} ends within a record."]


def test_a_run_without_a_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "hparams.yaml").write_text("lr: !!python/object/apply:os.system ['false']\nwidth: 3")
    (run,) = read_runs(tmp_path)
    assert run.hyperparameters == {"lr": "object/apply:os.system", "width": 3.0}
    assert run.notes[0] == "There is no metrics.csv: it ended before it logged anything."


@pytest.mark.parametrize("missing", [2, 7])
def test_event_file_that_is_cut_off(missing: int, tmp_path: Path) -> None:
    write(tmp_path, "a", {RANK: 1.0}, {RANK: 2.0}, {RANK: 3.0})
    file = event_file(tmp_path / "a")
    file.write_bytes(file.read_bytes()[:-missing])
    (run,) = read_runs(tmp_path)
    assert [(row.step, row.value) for row in run.rows] == [(0, 1.0), (1, 2.0)]
    assert run.notes[0] == f"Cut off: {file.name} ends within a record."


@pytest.mark.parametrize("length", [20, 2**63])
def test_event_file_of_noise(length: int, tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.1").write_bytes(struct.pack("<QI", length, 0) + b"\xff" * 24)
    (run,) = read_runs(tmp_path)
    assert run.name == tmp_path.name
    assert "Cut off: events.out.tfevents.1 ends within a record." in run.notes


def test_spectra_of_another_version_are_noted(tmp_path: Path) -> None:
    spectrum = {Tag("weight_rank", "spectrum", "head.weight"): MatrixSpectrum(np.ones(2, dtype=np.float32), (2, 2))}
    write(tmp_path, "a", {RANK: 1.0}, spectra=spectrum)
    file = event_file(tmp_path / "a")
    file.write_bytes(file.read_bytes().replace(b'"version": 1', b'"version": 2'))
    (run,) = read_runs(tmp_path)
    assert not run.spectra
    assert run.remarks[0] == "Some of its spectra were written by another version of rank_callbacks and are left out."


def test_a_later_event_file_is_right(tmp_path: Path) -> None:
    write(tmp_path, "first", {RANK: 1.0}, {RANK: 2.0})
    write(tmp_path, "second", {RANK: 1.0}, {RANK: 5.0}, {RANK: 6.0})
    (tmp_path / "a").mkdir()
    shutil.move(event_file(tmp_path / "first"), tmp_path / "a" / "events.out.tfevents.100.host")
    shutil.move(event_file(tmp_path / "second"), tmp_path / "a" / "events.out.tfevents.200.host")
    (run,) = read_runs(tmp_path / "a")
    assert [(row.step, row.value) for row in run.rows] == [(0, 1.0), (1, 5.0), (2, 6.0)]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_wandb_file_that_is_cut_off(share: float, trained: tuple[Path, Recorder, Weights], tmp_path: Path) -> None:
    (file,) = trained[0].glob("wandb/offline-run-*/run-*.wandb")
    data = file.read_bytes()
    (tmp_path / file.name).write_bytes(data[: int(share * len(data))])
    (run,) = read_runs(tmp_path)
    assert run.notes[0] == "Cut off: its file ends within a record, or is damaged there."
    assert "It has not ended: still running, or killed." in run.notes
    whole = {row[1:] for found in read_runs(trained[0]) if found.kind == "wandb" for row in found.rows}
    assert len(run.rows) < len(whole)


def history_of(step: int, filler: int) -> bytes:
    values = {"_step": str(step), "loss": f"{step}.5", "_filler": json.dumps("x" * filler)}
    return Record(
        history=HistoryRecord(item=[HistoryItem(key=name, value_json=value) for name, value in values.items()])
    ).SerializeToString()


def test_wandb_blocks_end_with_nothing_where_no_header_fits(tmp_path: Path) -> None:
    """LevelDB's log: the last 5 bytes of the first block are left empty."""
    first, second = history_of(1, 32749 - len(history_of(1, 20000)) + 20000), history_of(2, 3)
    assert len(first) == 32768 - 7 - 7 - 5
    first, second = (struct.pack("<IHB", zlib.crc32(b"\1" + data), len(data), 1) + data for data in (first, second))
    (tmp_path / "run-abc.wandb").write_bytes(b":W&B123" + first + bytes(5) + second)
    (run,) = read_runs(tmp_path)
    assert run.metrics == {"loss": [(1, 1.5), (2, 2.5)]}


def test_sizes_of_tables_and_pictures_are_no_readings_of_wandb(tmp_path: Path) -> None:
    """Nested as its client writes them; a group of numbers is nested as well, and another name may begin like theirs."""
    media = [("loss", "_type", '"histogram"'), ("loss", "values", "[1]"), ("monitor/final_readings", "nrows", "112")]
    media += [("weight_rank/depth_profile", name, value) for name, value in (("size", "7806"), ("_type", '"plotly-file"'))]
    media += [("monitor/final_readings", "_type", '"table-file"'), ("val", "accuracy", "0.5")]
    items = [HistoryItem(nested_key=[name, part], value_json=value) for name, part, value in media]
    items += [
        HistoryItem(key=name, value_json=value) for name, value in (("_step", "3"), (str(RANK), "2"), ("loss/train", "1"))
    ]
    data = Record(history=HistoryRecord(item=items)).SerializeToString()
    head = struct.pack("<IHB", zlib.crc32(b"\1" + data), len(data), 1)
    (tmp_path / "run-abc.wandb").write_bytes(b":W&B123" + head + data)
    (run,) = read_runs(tmp_path)
    assert [row[1:] for row in run.rows] == [(3, RANK, 2.0)]
    assert run.metrics == {"val/accuracy": [(3, 0.5)], "loss/train": [(3, 1.0)]}


def test_wandb_file_that_ends_within_a_header(trained: tuple[Path, Recorder, Weights], tmp_path: Path) -> None:
    (file,) = trained[0].glob("wandb/offline-run-*/run-*.wandb")
    (tmp_path / file.name).write_bytes(file.read_bytes() + b"\0" * 3)
    (run,) = read_runs(tmp_path)
    assert run.notes == ["Cut off: its file ends within a record, or is damaged there."]


def test_wandb_file_with_a_damaged_byte(trained: tuple[Path, Recorder, Weights], tmp_path: Path) -> None:
    (file,) = trained[0].glob("wandb/offline-run-*/run-*.wandb")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / file.name).write_bytes(data)
    (run,) = read_runs(tmp_path)
    assert run.notes[0] == "Cut off: its file ends within a record, or is damaged there."
    assert 0 < len(run.rows) < 482


def test_a_run_of_wandb_without_its_file(tmp_path: Path) -> None:
    (tmp_path / "wandb" / "offline-run-20260101_120000-abcdefgh").mkdir(parents=True)
    (run,) = read_runs(tmp_path)
    assert run.kind == "wandb"
    assert "Empty: it has logged no numbers." in run.notes


def test_a_failed_run_of_wandb(tmp_path: Path) -> None:
    with offline(tmp_path):
        logger = WandbLogger(offline=True, save_dir=tmp_path)
        logger.log_metrics({str(RANK): float("nan"), "loss": float("inf")}, step=3)
        logger.experiment.finish(exit_code=3)
        wandb.teardown()
    (run,) = read_runs(tmp_path)
    assert run.notes[0] == "Failed with exit code 3."
    assert run.metrics["loss"] == [(3, float("inf"))]
    assert np.isnan([row.value for row in run.rows]).tolist() == [True]


def test_two_prefixes_are_two_runs_and_one_is_none(tmp_path: Path) -> None:
    write(tmp_path, "alone", {RANK: 1.0}, prefix="mine")
    logger = TensorBoardLogger(tmp_path, name="", version="alone", prefix="mine")
    logger.log_metrics({"accuracy": 0.5}, 7)
    logger.finalize("success")
    write(tmp_path, "both", {RANK: 1.0}, prefix="a")
    write(tmp_path, "both", {RANK: 2.0}, prefix="b")
    assert {run.name: [row[1:] for row in run.rows] for run in read_runs(tmp_path)} == {
        "alone": [(0, RANK, 1.0)],
        "both (a)": [(0, RANK, 1.0)],
        "both (b)": [(0, RANK, 2.0)],
    }
    assert read_runs(tmp_path / "alone")[0].metrics["accuracy"] == [(7, 0.5)]


def test_two_logs_in_one_folder_are_one_run(tmp_path: Path) -> None:
    write(tmp_path, "a", {RANK: 1.0})
    (tmp_path / "a" / "metrics.csv").write_text(f"step,{RANK}\n0,7\n")
    (run,) = read_runs(tmp_path)
    assert run.kind == "tensorboard"
    assert run.remarks[0] == "Its folder has a log of csv as well, taken for the same run and left unread."


def test_names_stay_unique_over_several_folders(tmp_path: Path) -> None:
    for sweep in ("one", "two"):
        rows_of_csv(tmp_path / sweep / "a", HEAD, "0,,2")
    rows_of_csv(tmp_path / "two" / "b", HEAD, "0,,2")
    names = [run.name for run in read_runs([tmp_path / "one", tmp_path / "two", tmp_path / "two"])]
    assert sorted(names) == sorted([f"{tmp_path}/one/a", f"{tmp_path}/two/a", "b"])


def test_where(tmp_path: Path) -> None:
    for name, settings in {"a": "lr: 0.001\nopt: SGD\nfast: true", "b": "lr: 0.01\nopt: SGD", "c": "opt: Adam"}.items():
        rows_of_csv(tmp_path / name, HEAD, "0,,2", settings=settings)
    kept = {
        where: [run.name for run in read_runs(tmp_path, dict([where]))]
        for where in [("lr", "1e-3"), ("lr", 0.01), ("opt", "SGD"), ("fast", "True"), ("fast", True)]
    }
    assert list(kept.values()) == [["a"], ["b"], ["a", "b"], ["a"], ["a"]]
    with pytest.raises(ValueError, match=r"Expected a run with lr=5, found none. The runs have lr=0.001, lr=0.01\."):
        read_runs(tmp_path, {"lr": 5})
    with pytest.raises(ValueError, match=r"got 'lrr'. Choose from \['fast', 'lr', 'opt'\]"):
        read_runs(tmp_path, {"lrr": 5})


def test_a_missing_hyperparameter_is_missing_in_the_table(tmp_path: Path) -> None:
    rows_of_csv(tmp_path / "a", HEAD, "0,,2", settings="lr: 1\nopt: SGD")
    rows_of_csv(tmp_path / "b", HEAD, "0,,2", settings="width: 1")
    rows_of_csv(tmp_path / "empty")
    frame = load(tmp_path)
    assert frame["run"].tolist() == ["a", "b"]
    assert frame["hyperparameter.lr"].tolist() == pytest.approx([1.0, float("nan")], nan_ok=True)
    assert frame["hyperparameter.opt"].isna().tolist() == [False, True]
    assert frame.attrs["notes"] == {"empty": ["Empty: it has logged no numbers."]}


def test_a_folder_without_runs_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found none. Looked for TensorBoard's event files .*metrics.csv.*offline-run-"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="which does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="Expected a folder with runs, got none"):
        load([])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_log_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    rows_of_csv(tmp_path / "a", HEAD, "0,,2")
    (tmp_path / "a" / "metrics.csv").chmod(0)
    assert notes(tmp_path)["a"][0] == "Cannot be read: Permission denied."


def test_csv_quotes_what_needs_it(tmp_path: Path) -> None:
    head = 'step,"weight_rank/effective_rank/a,""b""","acc, top1"'
    rows_of_csv(tmp_path / "lr=1,wd=2", head, "0,1,2", settings="'a,b': 'c\"d'")
    rows_of_csv(tmp_path / "plain", head, "0,1,2", settings="")
    write_long_table(read_runs(tmp_path), tmp_path / "out.csv")
    with (tmp_path / "out.csv").open() as file:
        assert list(csv.reader(file)) == [
            ["run", "step", "group", "measure", "layer", "value", "hyperparameter.a,b"],
            ["lr=1,wd=2", "0", "weight_rank", "effective_rank", 'a,"b"', "1.0", 'c"d'],
            ["lr=1,wd=2", "0", "", "acc, top1", "", "2.0", 'c"d'],
            ["plain", "0", "weight_rank", "effective_rank", 'a,"b"', "1.0", ""],
            ["plain", "0", "", "acc, top1", "", "2.0", ""],
        ]


def test_csv_is_exact(tmp_path: Path) -> None:
    values = [1 / 3, 1e-300, float("inf"), -0.0]
    rows_of_csv(tmp_path / "a", HEAD, *[f"{step},,{value!r}" for step, value in enumerate(values)])
    write_long_table(read_runs(tmp_path), tmp_path / "out.csv")
    with (tmp_path / "out.csv").open() as file:
        assert [float(row["value"]) for row in csv.DictReader(file)] == values
