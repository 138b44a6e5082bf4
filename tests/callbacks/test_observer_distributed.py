from pathlib import Path
from typing import Any

import pytest

from tests import processes
from tests.training import assert_identical


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes have saved what they saw."""
    path = tmp_path_factory.mktemp("processes")
    processes.run_script("tests.callbacks.two_processes_observer", path)
    return path


def seen(folder: Path, name: str, run: str) -> list[dict[str, Any]]:
    return [of_process[run] for of_process in processes.seen(folder, name)]


def test_readings_of_two_processes_are_those_of_one(folder: Path) -> None:
    """But for bounds, which of two batches add up."""
    (one,), (first, second) = seen(folder, "one", "watched"), seen(folder, "two", "watched")
    of_batches = ("bound", "utilization", "input_rank", "delta_rank")
    expected = {key: value for key, value in one["rows"].items() if key[1].split("/")[1] not in of_batches}
    assert len(expected) > 100
    assert {key: first["rows"][key] for key in expected} == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert first["rows"].keys() >= {(0, "gradient_rank/bound/0.weight"), (60, "weight_rank/effective_rank/2.weight")}
    assert second["rows"] == {}


def test_training_is_bit_identical(folder: Path) -> None:
    for run in ("watched", "auto"):
        for with_observer, without in zip(seen(folder, "two", run), seen(folder, "two", "unwatched"), strict=True):
            assert_identical(with_observer["weights"], without["weights"])


def test_processes_agree_on_the_cadence(folder: Path) -> None:
    """Or one would wait for the other for ever."""
    first, _ = seen(folder, "two", "auto")
    assert {step for step, tag in first["rows"] if tag.startswith("weight_rank/")} >= {0, 60}
