"""On a GPU, as far as that can be tried without one: no tensor of it meets one of the CPU."""

from typing import Any

import pytest

from tests.processes import run_script, seen

NAMES = [
    *("weights", "leading", "gradients", "features", "features_in_training"),
    *("neural_collapse", "rank_collapse", "truncation", "auto", "observer"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What monitors read in the same training on the CPU and on a simulated GPU, by monitor."""
    path = tmp_path_factory.mktemp("gpu")
    run_script("tests.callbacks.gpu_training", path)
    return seen(path, "gpu")[0]


@pytest.mark.parametrize("name", NAMES)
def test_readings_and_training_are_those_of_the_cpu(found: dict[str, Any], name: str) -> None:
    of = found[name]
    here, there = ({tag: value for tag, value in of[place].items() if "monitor/" not in tag} for place in ("cpu", "gpu"))
    assert here
    assert there == pytest.approx(here, rel=1e-6, nan_ok=True)
    assert of["is_alike"]


def test_whole_spectra_are_finished_in_the_background(found: dict[str, Any]) -> None:
    """With the steps that they are of, and all that the host waits for are copies: of weights, gradients and linear rows."""
    of = found["background"]
    here, there = ({key: value for key, value in of[place].items() if "monitor/" not in key[1]} for place in ("cpu", "gpu"))
    assert {step for step, _ in here} == {0, 50, 70}
    assert there == pytest.approx(here, rel=1e-6)
    assert of["is_alike"]
    assert {name: count for name, count in of["waits"].items() if count} == {"_to_copy": 2 * (4 + 4 + 2 * 3)}
    assert of["threads"] == []


@pytest.mark.parametrize(("way", "outcome"), [("crashed", "RuntimeError"), ("terminated", "SIGTERMException")])
def test_last_report_is_written_and_no_thread_left_at_an_early_end(found: dict[str, Any], way: str, outcome: str) -> None:
    of = found[way]
    assert of["outcome"] == outcome
    assert {(step, tag.split("/")[0]) for step, tag in of["rows"] if "mean_over_layers" in tag and "rank/eff" in tag} == {
        (step, group) for step in (0, 50) for group in ("weight_rank", "gradient_rank")
    }
    assert of["threads"] == []


def test_simulated_gpu_takes_no_tensor_of_the_cpu(found: dict[str, Any]) -> None:
    assert "same device" in found["mixed"]
