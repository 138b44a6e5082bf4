import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.context import RequestContext
from tensorboard.util.tensor_util import make_tensor_proto
from torch.utils.tensorboard import SummaryWriter

from rank_callbacks.rows import Row
from rank_callbacks.tags import Tag
from rank_callbacks.tensorboard_plugin.listing import read_listing
from rank_callbacks.tensorboard_plugin.series import Logs
from rank_callbacks.writers import MatrixSpectrum
from tests.tensorboard_plugin.conftest import DECAYS
from tests.tensorboard_plugin.logs import Run, event_file, provider, train, write

LAYER = "network.0.weight"
RANK = Tag("weight_rank", "effective_rank", LAYER)
KINDS = pytest.mark.parametrize("kind", ["fast", "slow"])


@pytest.fixture
def logs(data_provider: Any) -> Logs:
    return logs_of(data_provider)


def logs_of(data_provider: Any) -> Logs:
    return Logs(data_provider, RequestContext(), "")


def everything(tag: Tag) -> bool:
    return True


def ours(run: Run) -> dict[tuple[int, str], float]:
    """What monitors logged, as float32, in which TensorBoard keeps it."""
    return {key: float(np.float32(value)) for key, value in run.readings.items() if key[1].count("/") >= 2}


def test_rows_are_what_the_monitors_logged(logs: Logs, runs: dict[str, Run]) -> None:
    for name, run in runs.items():
        rows = logs.rows([name], everything)
        assert len(rows) == len(ours(run)) > 100
        found = {(row.step, str(row.tag)): row.value for row in rows}
        # nan_ok: few readings of so small a network are NaN by definition
        assert found == pytest.approx(ours(run), rel=0, abs=0, nan_ok=True)


def test_rows_of_what_is_wanted_only(logs: Logs) -> None:
    rows = logs.rows(["decay=0.01"], lambda tag: tag == RANK)
    assert [(row.run, row.step, row.tag) for row in rows] == [("decay=0.01", step, RANK) for step in (0, 2, 4, 6, 8)]
    assert logs.rows(["decay=0.01"], lambda tag: False) == []
    assert logs.rows(["no such run"], everything) == []


def test_last_readings(logs: Logs, runs: dict[str, Run]) -> None:
    (row,) = logs.rows(["decay=0"], lambda tag: tag == RANK, last=True)
    assert row.step == 8


def test_spectra_are_the_singular_values_of_the_weights(logs: Logs, runs: dict[str, Run]) -> None:
    spectra = logs.spectra(list(runs), "weight_rank", LAYER)
    assert spectra.shape == (5, 6)
    assert list(spectra.by_run) == list(runs)
    for name, by_step in spectra.by_run.items():
        assert list(by_step) == [0, 2, 4, 6, 8]
        for step, values in by_step.items():
            np.testing.assert_allclose(values, np.linalg.svd(runs[name].weights.at[step][LAYER])[1], rtol=1e-5, atol=1e-6)


def test_layers_stand_as_the_report_has_them(logs: Logs) -> None:
    assert logs.orders(["decay=0"], "weight_rank") == {"network.0.weight": 0, "network.2.weight": 1}


def test_runs_in_the_order_of_their_numbers(logs: Logs) -> None:
    assert logs.listing.runs == ["<img src=x onerror=alert(1)>", "decay=0", "decay=0.01"]


def test_hyperparameters(logs: Logs) -> None:
    logged = logs.hyperparameters(list(DECAYS))
    assert logged == {run: {"weight_decay": decay, "optimizer": "SGD"} for run, decay in DECAYS.items()}


def test_scalars_of_the_user(logs: Logs) -> None:
    accuracies = logs.others(["decay=0", "decay=0.01"], "accuracy")
    assert {run: list(by_step.values())[-1] for run, by_step in accuracies.items()} == pytest.approx(
        {"decay=0": 0.5, "decay=0.01": 0.51}
    )
    assert logs.others(["decay=0"], "no such scalar") == {}


def test_table_of_the_gradient_monitor(logs: Logs) -> None:
    rows = logs.table("decay=0", Tag("gradient_rank", "bounds", "table"))
    assert [row["layer"] for row in rows] == ["network.0.weight", "network.2.weight"]
    assert rows[0]["bound by"] == "batch of 4"
    assert logs.table("decay=0", Tag("gradient_rank", "bounds", "no such table")) == []


def test_nothing_is_said_where_all_is_well(logs: Logs) -> None:
    assert logs.listing.notes == []


@KINDS
def test_a_folder_without_anything_of_ours(tmp_path: Path, kind: str) -> None:
    writer = SummaryWriter(tmp_path / "run")
    writer.add_scalar("loss", 1.0, 0)
    writer.add_scalar("val/metrics/accuracy", 1.0, 0)
    writer.close()
    with provider(kind, tmp_path) as found:
        listing = logs_of(found).listing
    assert listing.runs == []
    assert set(listing.others["run"]) == {"loss", "val/metrics/accuracy"}


@KINDS
def test_prefix_of_a_logger_is_no_part_of_the_group(tmp_path: Path, kind: str) -> None:
    logged = train(tmp_path, "run", prefix="my-net", batches=2)
    with provider(kind, tmp_path) as found:
        logs = logs_of(found)
        rows = logs.rows(["run (my-net)"], everything)
        accuracies = logs.others(["run (my-net)"], "accuracy")
        spectra = logs.spectra(["run (my-net)"], "weight_rank", LAYER)
    assert logs.listing.runs == ["run (my-net)"]
    assert {(row.step, str(row.tag)) for row in rows} == set(ours(logged))
    assert list(accuracies) == ["run (my-net)"]
    assert list(spectra.by_run["run (my-net)"]) == [0, 2]
    assert logs.hyperparameters(["run (my-net)"])["run (my-net)"]["weight_decay"] == pytest.approx(0.01)


@KINDS
def test_two_loggers_of_one_folder_are_two_runs(tmp_path: Path, kind: str) -> None:
    for prefix, value in {"": 1.0, "ema": 2.0}.items():
        write(tmp_path, "run", {RANK: value}, prefix=prefix)
    with provider(kind, tmp_path) as found:
        rows = logs_of(found).rows(["run", "run (ema)"], everything)
    assert rows == [Row("run", 0, RANK, 1.0), Row("run (ema)", 0, RANK, 2.0)]


@KINDS
def test_group_that_the_user_named(tmp_path: Path, kind: str) -> None:
    tag = Tag("collapse_of_teacher", "nc1_pinv", "penultimate")
    write(tmp_path, "run", {tag: 1.0})
    with provider(kind, tmp_path) as found:
        assert logs_of(found).rows(["run"], everything) == [Row("run", 0, tag, 1.0)]


@KINDS
def test_spectra_of_a_later_version_are_named_and_the_rest_is_shown(tmp_path: Path, kind: str) -> None:
    write(tmp_path, "run", {RANK: 1.0}, spectra={RANK._replace(measure="spectrum"): spectrum([2.0, 1.0])})
    for tag, content in {
        "weight_rank/spectrum/new": b'{"version": 2, "shape": [2, 2], "place": 1}',
        "weight_rank/spectrum/odd": b"\xff",
    }.items():
        write_tensor(tmp_path / "run", tag, content)
    with provider(kind, tmp_path) as found:
        logs = logs_of(found)
        assert logs.spectra(["run"], "weight_rank", LAYER).by_run == {"run": {0: [2.0, 1.0]}}
        assert logs.spectra(["run"], "weight_rank", "new").by_run == {}
    (note,) = logs.listing.notes
    assert note == "Some spectra of run were written by another version of rank_callbacks and are left out."


def spectrum(values: list[float]) -> MatrixSpectrum:
    return MatrixSpectrum(np.array(values, dtype=np.float32), (2, 2))


def write_tensor(folder: Path, tag: str, content: bytes) -> None:
    data = SummaryMetadata.PluginData(plugin_name="rank_callbacks", content=content)
    metadata = SummaryMetadata(plugin_data=data, data_class=DATA_CLASS_TENSOR)
    writer = SummaryWriter(folder)
    tensor = make_tensor_proto(np.ones(2, dtype=np.float32))
    writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, tensor=tensor, metadata=metadata)]), 0)
    writer.close()


@KINDS
def test_run_that_died_while_it_wrote(tmp_path: Path, kind: str) -> None:
    whole = train(tmp_path, "run", batches=4)
    file = event_file(tmp_path / "run")
    file.write_bytes(file.read_bytes()[: -file.stat().st_size // 3])
    with provider(kind, tmp_path) as found:
        rows = logs_of(found).rows(["run"], everything)
    readings = ours(whole)
    assert 0 < len(rows) < len(readings)
    for row in rows:
        assert row.value == pytest.approx(readings[row.step, str(row.tag)], abs=0, nan_ok=True)


@KINDS
def test_nan_is_read_as_nan(tmp_path: Path, kind: str) -> None:
    write(tmp_path, "run", {RANK: math.nan}, spectra={RANK._replace(measure="spectrum"): spectrum([math.nan] * 2)})
    with provider(kind, tmp_path) as found:
        (row,) = logs_of(found).rows(["run"], everything)
        values = logs_of(found).spectra(["run"], "weight_rank", LAYER).by_run["run"][0]
    assert math.isnan(row.value)
    assert all(math.isnan(value) for value in values)


@KINDS
def test_steps_are_thinned_alike_in_all_layers_and_ends_stay(tmp_path: Path, kind: str) -> None:
    tags = [RANK._replace(layer=f"layer.{i}") for i in range(3)]
    writer = SummaryWriter(tmp_path / "run")
    for step in range(0, 1000, 10):
        # One layer is measured every other time: a draw by tag, as TensorBoard's own, would tear layers apart.
        values = [Summary.Value(tag=str(tag), simple_value=step) for tag in tags[: 2 + (step // 10) % 2]]
        writer._get_file_writer().add_summary(Summary(value=values), step)
    writer.close()
    with provider(kind, tmp_path) as found:
        rows = logs_of(found).rows(["run"], everything, most=75)
    steps = {tag: [row.step for row in rows if row.tag == tag] for tag in tags}
    assert steps[tags[0]] == steps[tags[1]]
    # The layer's last reading by each step that stays.
    assert steps[tags[2]] == [max(range(10, step + 1, 20)) for step in steps[tags[0]][1:]]
    assert len(steps[tags[0]]) == 25
    assert (steps[tags[0]][0], steps[tags[0]][-1]) == (0, 990)
    gaps = np.diff(steps[tags[0]])
    assert gaps.max() <= 2 * gaps.min()


@KINDS
def test_layers_in_turn_are_all_left_when_steps_are_thinned(tmp_path: Path, kind: str) -> None:
    """Of seven layers one at each report, so that each stands at few of the steps that stay or at none."""
    tags = [RANK._replace(layer=f"layer.{i}") for i in range(7)]
    writer = SummaryWriter(tmp_path / "run")
    for step in range(210):
        values = [Summary.Value(tag="weight_rank/effective_rank/mean_over_layers", simple_value=0.0)]
        values.append(Summary.Value(tag=str(tags[step % 7]), simple_value=step))
        writer._get_file_writer().add_summary(Summary(value=values), step)
    writer.close()
    with provider(kind, tmp_path) as found:
        rows = logs_of(found).rows(["run"], everything, most=168)  # 21 steps of 8 tags
    steps = {tag: [row.step for row in rows if row.tag == tag] for tag in tags}
    assert [max(steps[tag]) for tag in tags] == [203, 204, 205, 206, 207, 208, 209]
    assert all(np.diff(steps[tag]).max() <= 21 for tag in tags)
    assert all(row.value == row.step for row in rows if row.tag in tags)


def test_a_listing_names_without_reading(data_provider: Any) -> None:
    listing = read_listing(data_provider, RequestContext(), "")
    assert listing.scalars["decay=0"][RANK] == ("decay=0", str(RANK))
