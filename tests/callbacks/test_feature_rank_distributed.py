from pathlib import Path

import pytest

from tests.processes import run_script, seen
from tests.training import assert_identical

DATA = pytest.mark.parametrize("data", ["train", "val", "loader"])
STEPS = {"train": {4, 8, 11}, "val": {5, 11}, "loader": {0, 4, 8, 11}}
SAMPLES = {"train": 36, "val": 72, "loader": 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes have saved what they saw."""
    path = tmp_path_factory.mktemp("processes")
    run_script("tests.callbacks.two_processes_feature_rank", path)
    return path


def of_layers(rows: dict[tuple[int, str], float], *layers: str) -> dict[tuple[int, str], float]:
    return {key: value for key, value in rows.items() if key[1].split("/")[2] in layers}


@DATA
def test_readings_are_those_of_one_process_on_all_samples(folder: Path, data: str) -> None:
    """Of uneven shares, of each class and of views as well; rows come in another order."""
    (one,), two = seen(folder, f"{data}-1"), seen(folder, f"{data}-2")[0]
    shared = of_layers(two["rows"], "network.0", "network.1")
    assert {step for step, _ in shared} == STEPS[data]
    measures = {tag.split("/")[1] for _, tag in shared}
    assert measures > {"effective_rank", "saturation_of_class_2", "two_nn", "lidar", "samples_per_class", "depth"}
    assert shared == pytest.approx(of_layers(one["rows"], "network.0", "network.1"), rel=1e-10, abs=1e-10, nan_ok=True)


@DATA
def test_samples_of_all_processes_are_counted(folder: Path, data: str) -> None:
    """Every process goes through a loader, but each sample counts once."""
    rows = of_layers(seen(folder, f"{data}-2")[0]["rows"], "network.0")
    counts = {value for (_, tag), value in rows.items() if tag == "feature_rank/samples/network.0"}
    assert counts == {SAMPLES[data]}


@pytest.mark.parametrize("data", ["train", "val"])
def test_layer_that_runs_in_one_process_alone_is_read(folder: Path, data: str) -> None:
    """Nobody waits for the other process to have any."""
    (one,), two = seen(folder, f"{data}-1"), seen(folder, f"{data}-2")[0]
    alone = {key: value for key, value in of_layers(two["rows"], "alone").items() if "/depth/" not in key[1]}
    expected = {key: value for key, value in of_layers(one["rows"], "alone").items() if "/depth/" not in key[1]}
    assert len(alone) == 9 * len(STEPS[data])  # its rows are not as many as the labels, so there are none of classes
    assert alone == pytest.approx(expected, rel=1e-10, abs=1e-10, nan_ok=True)


@DATA
def test_layer_that_one_process_refuses_is_read_by_none(folder: Path, data: str) -> None:
    """Nor one of another width in each, unless the rows of the first count alone; nor one that does not run."""
    assert {layer for layer in ("refused", "widths") if of_layers(seen(folder, f"{data}-1")[0]["rows"], layer)}
    for process in seen(folder, f"{data}-2"):
        found = {tag.split("/")[2] for tag in process["metrics"]} & {"refused", "widths", "never"}
        assert found == ({"widths"} if data == "loader" else set())


@DATA
def test_readings_are_equal_on_both_processes(folder: Path, data: str) -> None:
    """But for the depth of a layer that ran on one of them."""
    first, second = seen(folder, f"{data}-2")
    metrics = [{tag: value for tag, value in one["metrics"].items() if "/depth/" not in tag} for one in (first, second)]
    assert metrics[0].keys() > {"feature_rank/lidar/network.0", "feature_rank/two_nn/network.1"}
    assert metrics[0] == pytest.approx(metrics[1], rel=0, abs=0, nan_ok=True)
    assert second["rows"] == {}
    assert first["outcome"]["losses"] != second["outcome"]["losses"]


def test_sample_of_two_processes_is_bounded_and_the_same_at_each_report(folder: Path) -> None:
    rows = seen(folder, "sampled-2")[0]["rows"]
    assert {value for (_, tag), value in rows.items() if tag == "feature_rank/samples/network.0"} == {30}
    ranks = [value for (_, tag), value in rows.items() if tag == "feature_rank/effective_rank/network.0"]
    assert len(ranks) == 2
    assert len(set(ranks)) == 1


@DATA
def test_training_is_bit_identical_with_and_without_the_monitor(folder: Path, data: str) -> None:
    watched, unwatched = seen(folder, f"{data}-2"), seen(folder, "unwatched-2")
    assert len(watched) == len(unwatched) == 2
    for with_monitor, without in zip(watched, unwatched, strict=True):
        assert_identical(with_monitor["outcome"], without["outcome"])
