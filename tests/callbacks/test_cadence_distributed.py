from typing import Any

import pytest

from tests.processes import run_script, seen


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes has saved. That they come to an end at all is the first test: none waits for another."""
    path = tmp_path_factory.mktemp("processes")
    run_script("tests.callbacks.two_processes_cadence", path)
    return seen(path, "auto")


def test_what_a_launched_process_sends_home_fits_its_pipe(processes: list[dict[str, Any]]) -> None:
    """Readings of 23 layers do not: Lightning would wait for ever."""
    for process in processes:
        assert {tag.split("/")[-1] for tag in process["metrics"] if "rank" in tag and not tag.startswith("monitor/")} == {
            *("mean_over_layers", "min_over_layers", "max_over_layers"),
        }


def test_processes_of_different_speed_choose_alike(processes: list[dict[str, Any]]) -> None:
    first, second = processes
    assert first["chosen"] == second["chosen"]
    assert all(every is not None and every >= 50 for every in first["chosen"][:2])


def test_first_process_reports_of_every_monitor(processes: list[dict[str, Any]]) -> None:
    first, second = processes
    assert {tag.split("/")[0] for _, tag, _ in first["rows"]} >= {
        *("weight_rank", "gradient_rank", "feature_rank", "neural_collapse", "rank_collapse", "monitor"),
    }
    assert not [tag for _, tag, _ in second["rows"] if "rank" in tag or "collapse" in tag]
    weights = {step for step, tag, _ in first["rows"] if tag.startswith("weight_rank/")}
    assert weights >= {0, 130}
