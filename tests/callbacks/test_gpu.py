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


def test_simulated_gpu_takes_no_tensor_of_the_cpu(found: dict[str, Any]) -> None:
    assert "same device" in found["mixed"]
