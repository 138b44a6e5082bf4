import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training import assert_identical

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have saved what they saw; a script of its own, since forking a process with threads can hang."""
    path = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "tests.callbacks.two_processes_truncation", str(path)]
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


def test_accuracy_is_that_of_one_process_on_all_samples(folder: Path) -> None:
    """Of uneven shares: five batches in one process, two in the other."""
    (one,), (first, second) = seen(folder, "watched-1"), seen(folder, "watched-2")
    assert len(first["rows"]) == 5 * 3
    assert first["rows"] == pytest.approx(one["rows"], rel=1e-12)
    assert second["rows"] == {}
    accuracies = {value for (_, tag), value in first["rows"].items() if "/accuracy" in tag}
    assert len(accuracies) > 3
    assert all(53 * value == pytest.approx(round(53 * value), abs=1e-9) for value in accuracies)


def test_training_is_bit_identical_with_and_without_the_monitor(folder: Path) -> None:
    watched, unwatched = seen(folder, "watched-2"), seen(folder, "unwatched-2")
    assert len(watched) == len(unwatched) == 2
    for with_monitor, without in zip(watched, unwatched, strict=True):
        assert_identical(with_monitor["outcome"], without["outcome"])
    assert_identical(watched[0]["outcome"]["model"], watched[1]["outcome"]["model"])
    assert watched[0]["outcome"]["losses"] != watched[1]["outcome"]["losses"]
