import math
from pathlib import Path

import pytest

from tests.processes import run_script, seen
from tests.training import assert_identical

CASES = pytest.mark.parametrize("case", ["odd", "lone", "probed", "unlabelled"])
OF_PROBE = {"jacobian_rank", "jacobian_rank_0.3", "perturbed_pca_dimension"}
OF_CLASSES = {
    "classification_dimension",
    "centered_classification_dimension",
    "independence_deficit",
    "predicted_logit_accuracy",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes have saved what they saw."""
    path = tmp_path_factory.mktemp("processes")
    run_script("tests.callbacks.two_processes_network_rank", path)
    return path


@CASES
def test_readings_are_those_of_one_process(folder: Path, case: str) -> None:
    """Of five inputs, of one that the second process does not see, of probes, and of labels that the first has alone."""
    (one,), two = seen(folder, f"{case}-1"), seen(folder, f"{case}-2")[0]
    assert {step for step, _ in two["rows"]} == {2, 5}
    measures = {tag.split("/")[1] for _, tag in two["rows"]}
    assert measures == OF_PROBE | OF_CLASSES | ({"jacobian_error"} if case == "probed" else set())
    assert two["rows"] == pytest.approx(one["rows"], rel=1e-9)
    for row, wanted in zip(two["deficit"], one["deficit"], strict=True):
        label, samples, deciders, weights, *_ = row
        assert (label, samples, deciders) == wanted[:3]
        assert weights == pytest.approx(wanted[3], rel=1e-6)
    assert sum(samples for _, samples, *_ in two["deficit"]) == (24 if case == "unlabelled" else 36)
    assert any(deciders for _, _, deciders, *_ in two["deficit"])


def test_inputs_of_either_process_count(folder: Path) -> None:
    """Without which nothing is said of sharing above: the mean is no mean over three inputs, nor over two."""
    values = [value for (_, tag), value in seen(folder, "odd-2")[0]["rows"].items() if tag.split("/")[1] in OF_PROBE]
    fifths = {round(5 * value % 5, 6) for value in values if math.isclose(5 * value, round(5 * value))}
    assert fifths - {0.0}
    assert seen(folder, "lone-2")[0]["rows"] != seen(folder, "odd-2")[0]["rows"]


def test_inputs_are_taken_from_the_batches_of_both(folder: Path) -> None:
    """Two from the first, one from the second: ranks are thirds."""
    first, second = seen(folder, "batch-2")
    assert first["metrics"] == second["metrics"] != {}
    ranks = [value for tag, value in first["metrics"].items() if "/network." in tag]
    assert [3 * rank for rank in ranks] == pytest.approx([round(3 * rank) for rank in ranks])
    assert any(rank % 1 for rank in ranks)


@CASES
def test_readings_are_equal_on_both_processes(folder: Path, case: str) -> None:
    first, second = seen(folder, f"{case}-2")
    assert first["metrics"] == pytest.approx(second["metrics"], rel=0, abs=0)
    assert first["deficit"] == second["deficit"]
    assert first["metrics"] == pytest.approx(
        {tag: value for (step, tag), value in first["rows"].items() if step == 5}, rel=1e-6
    )
    assert second["rows"] == {}


def test_failure_of_one_process_makes_no_other_wait(folder: Path) -> None:
    """It warns, and the means are NaN on both; classes are read."""
    first, second = seen(folder, "failing-2")
    assert first["warnings"] == []
    assert second["warnings"] == ["network_rank has no reading: jacobian_rank, jacobian_rank_0.3 failed with MemoryError: ."]
    assert {step for step, _ in first["rows"]} == {2, 5}
    for process in (first, second):
        broken = {tag.split("/")[1] for tag, value in process["metrics"].items() if math.isnan(value)}
        assert broken == {"jacobian_rank", "jacobian_rank_0.3"}
    whole = {key: value for key, value in seen(folder, "odd-2")[0]["rows"].items() if key[1].split("/")[1] in OF_CLASSES}
    assert {key: value for key, value in first["rows"].items() if key[1].split("/")[1] in OF_CLASSES} == whole != {}


@pytest.mark.parametrize("case", ["odd", "lone", "probed", "failing"])
def test_training_is_bit_identical_with_and_without_the_monitor(folder: Path, case: str) -> None:
    watched, unwatched = seen(folder, f"{case}-2"), seen(folder, "unwatched-2")
    assert len(watched) == len(unwatched) == 2
    for with_monitor, without in zip(watched, unwatched, strict=True):
        assert_identical(with_monitor["outcome"], without["outcome"])
    assert watched[0]["outcome"]["losses"] != watched[1]["outcome"]["losses"]
