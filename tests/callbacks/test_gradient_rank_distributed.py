from pathlib import Path

import numpy as np
import pytest

from tests.gradients import BATCH, LAYERS, exact_rank
from tests.models import CLASSES
from tests.processes import run_script, seen
from tests.training import assert_identical


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes have saved what they saw."""
    path = tmp_path_factory.mktemp("processes")
    run_script("tests.callbacks.two_processes_gradients", path)
    return path


def of_measure(rows: dict[tuple[int, str], float], measure: str) -> dict[tuple[int, str], float]:
    return {(step, tag.split("/")[2]): value for (step, tag), value in rows.items() if f"gradient_rank/{measure}/net" in tag}


def test_averaged_gradient_is_what_is_read(folder: Path) -> None:
    first, second = seen(folder, "two")
    assert list(first["gradients"]) == [0, 1, 2, 3]
    matrices = {(step, name): matrix for step, of_layers in first["gradients"].items() for name, matrix in of_layers.items()}
    norms = {key: np.linalg.norm(matrix) for key, matrix in matrices.items()}
    assert of_measure(first["rows"], "frobenius_norm") == pytest.approx(norms, rel=1e-6)
    assert of_measure(first["rows"], "numerical_rank") == {key: exact_rank(matrix) for key, matrix in matrices.items()}
    assert first["outcome"]["losses"] != second["outcome"]["losses"]


def test_bound_is_that_of_all_processes_batches(folder: Path) -> None:
    bounds = of_measure(seen(folder, "two")[0]["rows"], "bound")
    assert bounds == {(s, n): CLASSES if n == LAYERS[2] else 2 * BATCH for s in range(4) for n in LAYERS}
    assert max(of_measure(seen(folder, "two")[0]["rows"], "utilization").values()) == 1


def test_readings_are_those_of_one_process_on_all_samples(folder: Path) -> None:
    """Compared at the first step: Adam makes whole steps of the last digits of gradients near zero."""
    (one,), two = seen(folder, "one"), seen(folder, "two")[0]
    for measure in ("frobenius_norm", "numerical_rank"):
        of_one, of_two = (of_measure(run["rows"], measure) for run in (one, two))
        for layer in LAYERS:
            assert of_two[0, layer] == pytest.approx(of_one[0, layer], rel=1e-5)


@pytest.mark.parametrize("name", ["two", "watched"])
def test_readings_are_equal_on_both_processes(folder: Path, name: str) -> None:
    """But for what is said of the rows of a process's own batch."""
    first, second = seen(folder, name)
    alike = [tag for tag in first["metrics"] if "/input_rank/" not in tag and "/delta_rank/" not in tag]
    assert {tag.split("/")[0] for tag in alike} == {"gradient_rank", "update_rank", "moment_rank"}
    assert first["metrics"].keys() == second["metrics"].keys()
    assert {tag: first["metrics"][tag] for tag in alike} == {tag: second["metrics"][tag] for tag in alike}
    assert second["rows"] == {}


def test_training_is_bit_identical_with_and_without_the_monitor(folder: Path) -> None:
    watched, unwatched = seen(folder, "watched"), seen(folder, "unwatched")
    assert len(watched) == len(unwatched) == 2
    assert watched[0]["metrics"]
    assert not unwatched[0]["metrics"]
    for with_monitor, without in zip(watched, unwatched, strict=True):
        assert_identical(with_monitor["outcome"], without["outcome"])
