"""Training with every monitor is bit by bit that without, in every way that a CPU can train: ``pytest -s`` shows the table."""

from collections.abc import Iterator
from pathlib import Path
from shutil import which

import pytest
import torch

from rank_callbacks import FeatureRankMonitor, GradientRankMonitor, NeuralCollapseMonitor, RankCollapseMonitor
from tests.callbacks.two_processes_configurations import TWO
from tests.configurations import MONITORS, OPTIMIZERS, Configuration, Verdicts, seen, table, verdicts
from tests.models import CLASSES
from tests.processes import run_script
from tests.training import Recorder

PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true", "16-mixed")
# Monitors meet the precision and the accumulation in hooks of the training, the optimizer in its gradients and state alone:
# so all of the former with one optimizer, and each optimizer once with every precision.
ONE = [
    *(Configuration(precision, accumulate) for precision in PRECISIONS for accumulate in (1, 3)),
    *(Configuration(precision, 3, optimizer="fused AdamW") for precision in PRECISIONS),
    *(Configuration(precision, 1, optimizer="foreach Adam") for precision in PRECISIONS),
]
WAYS = ("model", "model in place", "network", "network in place")
COMPILED = [Configuration(compiled=way, backend="eager") for way in WAYS]
COMPILED_SLOWLY = [
    *(Configuration(precision, compiled=way, backend="aot_eager") for precision in PRECISIONS for way in WAYS),
    *(Configuration(accumulate=3, compiled=way, backend="eager", optimizer=name) for way in WAYS for name in OPTIMIZERS),
    Configuration("bf16-mixed", 3, compiled="network", backend="aot_eager", optimizer="fused AdamW"),
]
INDUCTOR = [
    *(Configuration(compiled=way, backend="inductor") for way in WAYS),
    Configuration("bf16-mixed", 3, compiled="network", backend="inductor", optimizer="fused AdamW"),
]

# What hooks must see as it passes; of NetworkRankMonitor the classifier's inputs alone.
BLIND = dict.fromkeys(("feature_rank", "feature_rank_in_training", "neural_collapse", "rank_collapse"), "warned")
NEEDS_WHOLE = dict.fromkeys(("rank_collapse", "network_rank", "truncation"), "refused")


def expected(configuration: Configuration) -> dict[str, str]:
    blind = BLIND if configuration.compiled != "no" else {}
    return dict.fromkeys(MONITORS, "identical") | blind | (NEEDS_WHOLE if configuration.strategy == "fsdp2" else {})


@pytest.fixture(scope="module")
def rows() -> Iterator[dict[str, dict[str, str]]]:
    """What became of each monitor, by configuration, shown at the end."""
    rows: dict[str, dict[str, str]] = {}
    yield rows
    if rows:
        print(f"\n\n{table(rows)}")


def check(configuration: Configuration, rows: dict[str, dict[str, str]]) -> Verdicts:
    found = verdicts(configuration)
    rows[str(configuration)] = found.of
    assert found.of == expected(configuration)
    return found


@pytest.mark.parametrize("configuration", ONE, ids=str)
def test_one_process(configuration: Configuration, rows: dict[str, dict[str, str]]) -> None:
    found = check(configuration, rows)
    assert not found.watched.warned
    assert {"feature_rank", "network_rank", "truncation"} <= found.watched.validated


def check_compiled(configuration: Configuration, rows: dict[str, dict[str, str]]) -> None:
    """One graph more than without monitors at most, where the first was traced beside hooks; no reading without a reason."""
    found = check(configuration, rows)
    watched, without = found.watched.compiler, found.without.compiler
    assert without["graphs"] > 0
    assert watched["graphs"] <= without["graphs"] + 1
    assert watched["frames"] <= without["frames"] + 1
    assert watched["breaks"] == without["breaks"]
    assert found.watched.warned
    assert all("hooks do not see into what torch.compile compiles" in text for text in found.watched.warned)


@pytest.mark.parametrize("configuration", COMPILED, ids=str)
def test_compiled(configuration: Configuration, rows: dict[str, dict[str, str]]) -> None:
    check_compiled(configuration, rows)


@pytest.mark.slow
@pytest.mark.parametrize("configuration", COMPILED_SLOWLY, ids=str)
def test_compiled_with_all_else(configuration: Configuration, rows: dict[str, dict[str, str]]) -> None:
    check_compiled(configuration, rows)


@pytest.mark.slow
@pytest.mark.skipif(not (which("g++") or which("clang++")), reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("configuration", INDUCTOR, ids=str)
def test_compiled_by_inductor(configuration: Configuration, rows: dict[str, dict[str, str]]) -> None:
    check_compiled(configuration, rows)


@pytest.mark.parametrize("name", ["default", pytest.param("slow", marks=pytest.mark.slow)])
def test_two_processes(name: str, rows: dict[str, dict[str, str]], tmp_path: Path) -> None:
    """The second writes no reading: what it says is that nothing has changed."""
    run_script("tests.callbacks.two_processes_configurations", tmp_path, name, seconds=300)
    first, second = (torch.load(tmp_path / f"{name}-{process}.pt") for process in (0, 1))
    for configuration in TWO[name]:
        one, other = first[str(configuration)], second[str(configuration)]
        rows[str(configuration)] = one["of"]
        assert one["of"] == expected(configuration)
        assert all(said in {"silent", "warned", "refused"} for said in other["of"].values()), other["of"]
        for error in one["errors"].values():
            assert "ModelParallelStrategy shards parameters" in error


def readings(compiled: str) -> dict[str, float]:
    """Of monitors that look at a loader of their own, and of gradients."""
    recorder = Recorder()
    generator = torch.Generator().manual_seed(1)
    loader = [[torch.randn(12, 6, generator=generator), torch.arange(12) % CLASSES] for _ in range(2)]
    monitors = [
        FeatureRankMonitor(every_n_steps=4, data=loader),
        NeuralCollapseMonitor(CLASSES, every_n_steps=4, data=loader),
        RankCollapseMonitor(CLASSES, every_n_steps=4, data=loader),
        GradientRankMonitor(every_n_steps=4),
    ]
    seen(Configuration("64-true", compiled=compiled, backend="eager"), *monitors, logger=recorder)
    ours = ("feature_rank", "neural_collapse", "rank_collapse", "gradient_rank")
    return {f"{tag} at {step}": value for step, tag, value in recorder.rows if tag.startswith(ours)}


@pytest.mark.parametrize("way", ["model", "network in place"])
def test_a_loader_is_looked_at_as_if_nothing_were_compiled(way: str) -> None:
    """And gradients are read; their bounds, which need what passes, are not."""
    plain, compiled = readings("no"), readings(way)
    of_passes = ("bound", "utilization", "input_rank", "delta_rank")
    kept = {tag: value for tag, value in plain.items() if tag.split("/")[1] not in of_passes}
    assert {tag.split("/")[0] for tag in kept} == {"feature_rank", "neural_collapse", "rank_collapse", "gradient_rank"}
    assert len(kept) < len(plain)
    assert compiled == pytest.approx(kept, rel=1e-9, abs=1e-12, nan_ok=True)
