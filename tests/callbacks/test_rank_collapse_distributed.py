from pathlib import Path
from typing import Any

import pytest

from tests.callbacks.test_rank_collapse import OF_SGD, assert_certified, readings
from tests.processes import run_script, seen
from tests.training import Recorder, assert_identical


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes have saved what they saw."""
    path = tmp_path_factory.mktemp("processes")
    run_script("tests.callbacks.two_processes_collapse", path)
    return path


def recorded(run: dict[str, Any]) -> Recorder:
    recorder = Recorder()
    recorder.rows = run["rows"]
    return recorder


RUNS = ["mlp-1", "mlp-2", "mlp-last", "conv-1", "conv-2", "conv-last", "norm", "probe"]


@pytest.mark.parametrize("name", RUNS)
def test_certificates_hold(name: str, folder: Path) -> None:
    assert_certified(recorded(seen(folder, f"{name}-two")[0]))


@pytest.mark.parametrize("name", [*RUNS, "spare"])
def test_readings_are_identical_on_both_processes(name: str, folder: Path) -> None:
    first, second = seen(folder, f"{name}-two")
    assert len(first["metrics"]) > 20
    assert first["metrics"] == second["metrics"]
    assert second["rows"] == []
    if name != "probe":
        assert first["outcome"]["losses"] != second["outcome"]["losses"]


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("mlp-1", [*range(8)]),
        ("mlp-2", [2]),
        ("mlp-last", [7]),
        ("conv-1", [*range(8)]),
        ("conv-2", [2]),
        ("conv-last", [7]),
        ("probe", [0, 2, 4, 6, 7]),
    ],
)
def test_readings_are_those_of_one_process_on_all_samples(name: str, steps: list[int], folder: Path) -> None:
    (one,), (two, _) = seen(folder, f"{name}-one"), seen(folder, f"{name}-two")
    one, two = recorded(one), recorded(two)
    assert one.steps("rank_collapse") == two.steps("rank_collapse") == steps
    measures = set(OF_SGD) - ({"sgd_rank_bound", "norm_ratio"} if name == "probe" else set())
    assert {tag.split("/")[1] for _, tag in two.readings("rank_collapse")} == measures
    for measure in measures:
        assert readings(two, measure) == pytest.approx(readings(one, measure), rel=1e-5, abs=1e-10), measure


def test_training_is_bit_identical_with_and_without_the_monitor(folder: Path) -> None:
    watched, unwatched = seen(folder, "norm-two"), seen(folder, "norm-unwatched")
    assert len(watched) == len(unwatched) == 2
    for with_monitor, without in zip(watched, unwatched, strict=True):
        assert_identical(with_monitor["outcome"], without["outcome"])


def test_layer_that_one_process_does_not_use_has_no_reading_on_either(folder: Path) -> None:
    recorder = recorded(seen(folder, "spare-two")[0])
    assert {layer for _, layer in readings(recorder, "tcv_input")} == {"network.body.weight"}
    assert_certified(recorder)
