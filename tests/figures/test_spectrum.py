import math
from typing import Any

import numpy as np
import pytest

from rank_callbacks.figures import Figure, spectrum
from rank_callbacks.figures.spectrum import marchenko_pastur_edge


def named(figure: Figure) -> dict[str, dict[str, Any]]:
    return {line["name"]: line for line in figure["data"]}


def test_values_against_their_place() -> None:
    lines = named(spectrum({"run": {5: [4.0, 2.0, 1.0], 0: [3.0, 2.5, 2.0]}}, (3, 3)))
    assert (lines["step 5"]["x"], lines["step 5"]["y"]) == ([1, 2, 3], [4.0, 2.0, 1.0])
    assert (lines["step 0"]["x"], lines["step 0"]["y"]) == ([1, 2, 3], [3.0, 2.5, 2.0])


def test_the_latest_is_bold_and_the_earliest_faint() -> None:
    figure = spectrum({"run": {step: [2.0, 1.0] for step in range(0, 1000, 10)}}, (2, 2))
    curves = [line for line in figure["data"] if line["name"].startswith("step")]
    assert [line["name"] for line in curves] == ["step 0", "step 250", "step 500", "step 740", "step 990"]
    assert [line["opacity"] for line in curves] == sorted(line["opacity"] for line in curves)
    assert curves[-1]["line"]["width"] > curves[0]["line"]["width"]


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_what_has_no_logarithm_is_left_out(value: float) -> None:
    line = named(spectrum({"run": {0: [4.0, 2.0, value, 1.0]}}, (4, 4)))["step 0"]
    assert (line["x"], line["y"]) == ([1, 2, 4], [4.0, 2.0, 1.0])


def test_all_zero() -> None:
    figure = spectrum({"run": {0: [0.0, 0.0]}}, (2, 2), k=1)
    assert [line["y"] for line in figure["data"]] == [[]]


def test_tolerance_is_relative_to_the_latest_largest() -> None:
    lines = named(spectrum({"run": {0: [9.0, 1.0], 1: [4.0, 1.0]}}, (2, 2), tolerance=0.01))
    assert lines["0.01 · σ₁"]["y"] == pytest.approx([0.04, 0.04])


def test_rank_k() -> None:
    line = named(spectrum({"run": {0: [4.0, 2.0, 1.0]}}, (3, 3), k=2))["rank K = 2"]
    assert line["x"] == [2, 2]
    assert "rank K = 2" not in named(spectrum({"run": {0: [4.0, 2.0, 1.0]}}, (3, 3)))


class TestMarchenkoPastur:
    def test_a_random_matrix_ends_at_the_edge(self) -> None:
        """Within the fluctuations of its largest singular value, some n^(-2/3)."""
        values = np.linalg.svd(np.random.default_rng(0).normal(size=(400, 900)), compute_uv=False)
        assert values[0] == pytest.approx(marchenko_pastur_edge(values, (400, 900)), rel=0.02)

    def test_it_is_drawn(self) -> None:
        lines = named(spectrum({"run": {0: [3.0, 4.0]}}, (4, 9)))
        # sqrt(25 / 36) · (2 + 3)
        assert lines["Marchenko-Pastur edge"]["y"] == pytest.approx([25 / 6, 25 / 6])

    @pytest.mark.parametrize("shape", [(2, 4, 9), (0, 9)])
    def test_of_two_dimensions_alone(self, shape: tuple[int, ...]) -> None:
        assert "Marchenko-Pastur edge" not in named(spectrum({"run": {0: [3.0, 4.0]}}, shape))


def test_runs_have_colours_and_names() -> None:
    figure = spectrum({run: {0: [2.0], 1: [2.0], 2: [1.0]} for run in ("first", "<b>")}, (1, 1))
    names = [line["name"] for line in figure["data"] if "step" in line["name"]]
    assert names == ["first step 0", "first step 2", "&lt;b&gt; step 0", "&lt;b&gt; step 2"]
    assert len({line["line"]["color"] for line in figure["data"]}) == 2


def test_many_values_keep_the_head_and_the_end() -> None:
    line = named(spectrum({"run": {0: [1 / i for i in range(1, 16385)]}}, (16384, 16384)))["step 0"]
    assert len(line["x"]) <= 1000
    assert line["x"][:100] == list(range(1, 101))
    assert line["x"][-1] == 16384


@pytest.mark.parametrize("spectra", [{}, {"run": {}}], ids=str)
def test_no_spectrum(spectra: dict) -> None:
    with pytest.raises(ValueError, match="Add WeightRankMonitor, GradientRankMonitor or FeatureRankMonitor"):
        spectrum(spectra, (2, 2))
