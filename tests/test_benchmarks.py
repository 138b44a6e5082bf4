import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rank_callbacks.catalog import MEASURES

ROOT = Path(__file__).parents[1]
MONITORS = ["weight_rank", "gradient_rank", "feature_rank", "neural_collapse", "rank_collapse"]


@pytest.fixture(scope="module")
def spectra() -> str:
    command = [sys.executable, "-m", "benchmarks.spectra", "--quick", "--models", "mlp", "resnet18", "transformer"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def table(output: str, title: str) -> dict[str, list[str]]:
    """The cells of a table by the names of its rows; two spaces or more separate them."""
    lines = output.partition(title)[2].partition("\n\n")[0].splitlines()[1:]
    rows = [[cell.strip() for cell in line.split("  ") if cell] for line in lines]
    return {name: cells for name, *cells in rows}


def test_single_matrices_are_timed_by_every_candidate(spectra: str) -> None:
    rows = table(spectra, "Single matrices")
    assert {"128x128", "96x384", "64x576", "8x27", "192x48"} <= rows.keys()
    assert all(len(cells) == 7 for cells in rows.values())


def test_whole_models_are_timed_with_all_their_matrices(spectra: str) -> None:
    rows = table(spectra, "Whole models")
    counts = {name: rows[f"{name}, ours"][-1] for name in ("mlp", "resnet18", "transformer")}
    assert counts == {"mlp": "5", "resnet18": "21", "transformer": "27"}


def test_every_measure_of_the_catalogue_has_its_errors(spectra: str) -> None:
    rows = table(spectra, "Accuracy")
    assert len(rows) == len(MEASURES)
    assert all(float(cell) < 1e-5 for cell in rows["frobenius_norm"])


def test_bars_are_not_judged_by_a_quick_run(spectra: str) -> None:
    assert table(spectra, "Bars")["768x3072"] == ["5.0", "-"]


@pytest.fixture(scope="module")
def collapse() -> str:
    command = [sys.executable, "-m", "benchmarks.collapse", "--quick"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(("title", "cells"), [("Time", 9), ("Memory", 6)])
def test_collapse_is_timed_and_weighed_by_every_candidate(collapse: str, title: str, cells: int) -> None:
    rows = table(collapse, title)
    assert list(rows) == ["N = 96, D = 16, K = 3", "N = 400, D = 16, K = 40"]
    assert all(len(row) == cells for row in rows.values())


@pytest.mark.parametrize("regime", ["spread", "collapse"])
def test_collapse_is_compared_with_the_truth(collapse: str, regime: str) -> None:
    rows = table(collapse, f"Accuracy, {regime}")
    assert list(rows) == ["truth", "ours", "ours, batches", "K cov", "pooled", "streamed"]
    assert all(len(row) == 4 for row in rows.values())


def test_our_measures_of_collapse_keep_their_digits(collapse: str) -> None:
    bars = table(collapse, "Bars")
    assert bars["D = 2048, K = 10"] == [">= 15.0", "-"]
    assert bars["relative error"][-1] == "ok"


def test_every_way_to_look_at_features_is_timed() -> None:
    command = [sys.executable, "-m", "benchmarks.features", "--quick"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = [line.split() for line in output.splitlines() if line.startswith("MLP")]
    assert [" ".join(line[4:-3]) for line in lines] == [
        "FeatureRankMonitor",
        "FeatureRankMonitor, mean",
        "all moments",
        "all rows",
        "delve",
    ]


def printed(benchmark: str, *options: str) -> str:
    """What ``python -m benchmarks.<benchmark>`` prints."""
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_leading_values_are_timed_and_held_to_their_bars() -> None:
    output = printed("krylov", "--quick", "--models", "mlp")
    assert {"96x96", "128x128", "256x256"} <= table(output, "Square matrices").keys()
    bars = table(output, "Bars")
    assert bars["training run, above"][0] == "<= 1e-06"
    assert all(cells[-1] not in {"ok", "MISSED"} for cells in bars.values())


def test_every_monitor_accounts_for_its_time() -> None:
    rows = table(printed("overhead", "--quick"), "MLP 784-16x4-10")
    assert [*MONITORS, "all"] == list(rows)[1:7]
    assert all(rows[name][3].endswith("%") for name in MONITORS)


def test_sharing_among_many_processes_is_counted() -> None:
    rows = table(printed("scale", "--quick"), "all spectra")
    assert list(rows) == ["1", "8", "64", "256", "1024"]
    assert float(rows["1024"][0]) < float(rows["1"][0])


def test_peaks_of_memory_are_compared() -> None:
    rows = table(printed("memory", "--quick"), "MLP 784-16x4-10")
    (reports, *peaks) = rows["all, every 8"]
    assert int(reports) >= 2 * len(MONITORS)
    assert len(peaks) == 4
    assert float(rows["no monitor, 17 steps"][-2]) > 0


def test_two_processes_are_compared_with_one() -> None:
    (cells,) = table(printed("processes", "--quick"), "a report of exact spectra").values()
    assert float(cells[2]) > 0
    assert float(cells[3]) > 0


def test_a_gpu_is_measured_only_where_there_is_one() -> None:
    assert "--steps" in printed("gpu", "--help")
    if not torch.cuda.is_available():
        assert printed("gpu") == "No GPU here: nothing was measured.\n"
