import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.callbacks.test_rank_collapse import OF_SGD, assert_certified, readings
from tests.training import Recorder, assert_identical

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have saved what they saw; a script of its own, since forking a process with threads can hang."""
    path = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "tests.callbacks.two_processes_collapse", str(path)]
    env = {name: value for name, value in os.environ.items() if name != "MASTER_PORT"}  # left by another test, and in use
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True, env=env) as script:
        try:
            _, errors = script.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            os.killpg(script.pid, signal.SIGKILL)
            raise
    assert script.returncode == 0, errors
    return path


def seen(folder: Path, name: str) -> list[dict[str, Any]]:
    """What each process saved, the first process first."""
    return [torch.load(path, weights_only=False) for path in sorted(folder.glob(f"{name}-*.pt"))]


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
