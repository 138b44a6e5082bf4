import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.metrics.cases import CASES, linear, samples
from tests.metrics.feature_cases import FEATURE_CASES, objects
from tests.metrics.two_processes import SHARES, second_share

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes saw, the first process first."""
    folder = tmp_path_factory.mktemp("processes")
    commands = [[sys.executable, "-m", "tests.metrics.two_processes", str(folder), process] for process in "01"]
    scripts = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        errors = [script.communicate(timeout=150)[1] for script in scripts]
    finally:
        for script in scripts:
            script.kill()
    assert not any(script.returncode for script in scripts), "\n".join(errors)
    return [torch.load(folder / f"{process}.pt") for process in "01"]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", CASES)
def test_two_processes_compute_what_one_does(seen: list[dict[str, Any]], share: str, name: str) -> None:
    features, labels = samples()
    expected = CASES[name].twin(features, labels, linear())
    first, second = (process[share][name] for process in seen)
    torch.testing.assert_close(first["value"], expected, atol=0, rtol=1e-12)
    assert torch.equal(first["value"], second["value"])


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", CASES)
def test_each_process_goes_on_from_its_own_samples(seen: list[dict[str, Any]], share: str, name: str) -> None:
    assert all(process[share][name]["restored"] for process in seen)
    features, labels = samples()
    more = torch.cat([features, features[:5], features[:5] + 1]), torch.cat([labels, labels[:5], labels[:5]])
    for process in seen:
        torch.testing.assert_close(process[share][name]["later"], CASES[name].twin(*more, linear()), atol=0, rtol=1e-10)


def test_shares_differ_in_size_and_in_their_classes() -> None:
    _, labels = samples()
    few = second_share("few", labels)
    assert labels[few].unique().tolist() == [0, 3]
    assert 0 < few.sum() < (~few).sum()
    assert second_share("most", labels).sum() == len(labels) - 1
    assert not second_share("none", labels).any()


def test_forward_that_syncs_gives_the_value_of_both(seen: list[dict[str, Any]]) -> None:
    features, labels = samples()
    for process in seen:
        torch.testing.assert_close(process["forward"], CASES["nc1_pinv"].twin(features, labels, linear()))


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", FEATURE_CASES)
def test_two_processes_see_the_rank_of_all_features(seen: list[dict[str, Any]], share: str, name: str) -> None:
    first, second = (process["of features"][share][name] for process in seen)
    torch.testing.assert_close(first["value"], FEATURE_CASES[name].twin(objects()), atol=0, rtol=1e-10)
    assert torch.equal(first["value"], second["value"])
    assert first["restored"]
    assert second["restored"]
    views = objects()
    more = FEATURE_CASES[name].twin(torch.cat([views, views[:5], views[:5] + 1]))
    for process in (first, second):
        torch.testing.assert_close(process["later"], more, atol=0, rtol=1e-10)
