from pathlib import Path

import pytest

from tests.processes import run_script, seen
from tests.training import assert_identical


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes have saved what they saw."""
    path = tmp_path_factory.mktemp("processes")
    run_script("tests.callbacks.two_processes_truncation", path)
    return path


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
