from pathlib import Path

import pytest

from tests.processes import run_script, seen
from tests.training import assert_identical


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes have saved what they saw."""
    path = tmp_path_factory.mktemp("processes")
    run_script("tests.callbacks.two_processes_features", path)
    return path


DATA = pytest.mark.parametrize("data", ["train", "val", "loader"])


@DATA
def test_readings_are_those_of_one_process_on_all_samples(folder: Path, data: str) -> None:
    """A process that has not seen a class included; the layer that runs in one process alone apart."""
    (one,), two = seen(folder, f"{data}-1"), seen(folder, f"{data}-2")[0]

    def shared(rows: dict[tuple[int, str], float]) -> dict[tuple[int, str], float]:
        return {key: value for key, value in rows.items() if key[1].split("/")[2] in {"network.0", "network.1", "penultimate"}}

    assert {step for step, _ in two["rows"]} == {"train": {4, 8, 12, 16}, "val": {5, 11, 17}, "loader": {0, 4, 8, 12, 16, 17}}[
        data
    ]
    assert {tag for _, tag in shared(two["rows"])} >= {"neural_collapse/nearest_center_mismatch/penultimate"}
    assert shared(two["rows"]) == pytest.approx(shared(one["rows"]), rel=1e-5, abs=1e-7)
    samples = {"train": 9, "val": 18, "loader": 6}[data]
    assert {value for (_, tag), value in two["rows"].items() if tag.endswith("samples_per_class/penultimate")} == {samples}


@DATA
def test_first_report_is_that_of_one_process_to_rounding(folder: Path, data: str) -> None:
    (one,), two = seen(folder, f"{data}-1"), seen(folder, f"{data}-2")[0]
    layer = "neural_collapse/nc1_pinv/penultimate"
    step = min(step for step, _ in two["rows"])
    assert two["rows"][step, layer] == pytest.approx(one["rows"][step, layer], rel=1e-6)


def test_layer_that_runs_in_one_process_alone_is_read(folder: Path) -> None:
    """Of a step it has six samples, one of which is of class 1; nobody waits for the other process to have any."""
    rows = seen(folder, "train-2")[0]["rows"]
    counts = {step: value for (step, tag), value in rows.items() if tag == "neural_collapse/samples_per_class/alone"}
    assert counts == dict.fromkeys([4, 8, 12, 16], 3)
    assert not any(tag.endswith("/never") for _, tag in rows)


@DATA
def test_readings_are_equal_on_both_processes(folder: Path, data: str) -> None:
    first, second = seen(folder, f"{data}-2")
    assert first["metrics"] == second["metrics"] != {}
    last = max(step for step, _ in first["rows"])
    assert first["metrics"] == pytest.approx(
        {tag: value for (step, tag), value in first["rows"].items() if step == last}, rel=1e-6
    )
    assert second["rows"] == {}
    assert first["outcome"]["losses"] != second["outcome"]["losses"]


@DATA
def test_training_is_bit_identical_with_and_without_the_monitor(folder: Path, data: str) -> None:
    watched, unwatched = seen(folder, f"{data}-2"), seen(folder, "unwatched-2")
    assert len(watched) == len(unwatched) == 2
    for with_monitor, without in zip(watched, unwatched, strict=True):
        assert_identical(with_monitor["outcome"], without["outcome"])
