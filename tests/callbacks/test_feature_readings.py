import math

import numpy as np
import pytest
import torch
from torch import Tensor

from rank_callbacks import functional
from rank_callbacks.callbacks.feature_readings import (
    Part,
    check_measure,
    is_of_spectrum,
    needs_centered,
    readings_of_classes,
    readings_of_layers,
    readings_of_rows,
    readings_of_spectra,
)
from rank_callbacks.callbacks.readings import Spectrum

OF_SPECTRA = ["effective_rank", "rankme", "numerical_rank", "energy_rank_0.95", "centered_stable_rank"]
OF_CENTERED = ["centered_energy_rank_0.95", "alpha_req", "saturation", "corrected_participation_ratio"]
OF_ROWS = ["two_nn", "dead_fraction", "dormant_ratio", "dormant_ratio_0.1", "dormant_ratio_0"]


@pytest.mark.parametrize("name", [*OF_SPECTRA, *OF_CENTERED, *OF_ROWS, "lidar"])
def test_known_measures(name: str) -> None:
    check_measure(name)
    assert is_of_spectrum(name) == (name in [*OF_SPECTRA, *OF_CENTERED])
    assert needs_centered(name) == (name.startswith("centered_") or name in OF_CENTERED)


OWN = r"features alone: alpha_req, saturation, corrected_participation_ratio, two_nn, dead_fraction, dormant_ratio, lidar\."


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("efective_rank", f"'efective_rank'.* {OWN} 'centered_' before a name centres the features", id="typo"),
        pytest.param("centered_rank", OWN, id="centred typo"),
        pytest.param("centered_two_nn", OWN, id="centred rows"),
        pytest.param("centered_saturation", OWN, id="centred twice"),
        pytest.param("centered_centered_stable_rank", OWN, id="centred twice as well"),
        pytest.param("lidar_2", OWN, id="lidar with a parameter"),
        pytest.param("energy_rank_2", "energy", id="energy above 1"),
        pytest.param("dormant_ratio_-1", "number from 0 for tau at the end of 'dormant_ratio_-1', got '-1'", id="below 0"),
        pytest.param("dormant_ratio_nan", "number from 0 for tau at the end of 'dormant_ratio_nan', got 'nan'", id="NaN"),
        pytest.param("dormant_ratio_inf", "got 'inf'", id="infinite"),
        pytest.param("dormant_ratio_x", "got 'x'", id="no number"),
        pytest.param("", "got ''", id="empty"),
    ],
)
def test_unknown_measures(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_measure(name)


def spectrum(rows: Tensor) -> Spectrum:
    values = torch.linalg.svdvals(rows) / math.sqrt(len(rows))
    return Spectrum(values, tuple(rows.shape), torch.zeros((), dtype=torch.float64))


def test_each_measure_is_of_its_own_spectrum() -> None:
    parts = {part: torch.randn(40, 25, dtype=torch.float64) + 2 for part in (("a", None), ("b", None), ("a", 1))}
    raw = {part: spectrum(rows) for part, rows in parts.items()}
    centered = {part: spectrum(rows - rows.mean(0)) for part, rows in parts.items()}
    measures = ["effective_rank", "centered_effective_rank", "alpha_req", "two_nn", "saturation"]
    got = readings_of_spectra(raw, centered, [*measures, "corrected_participation_ratio", "lidar"])
    assert list(got) == [
        "effective_rank",
        "centered_effective_rank",
        "alpha_req",
        "saturation",
        "corrected_participation_ratio",
    ]
    for part in parts:
        assert got["effective_rank"][part] == functional.effective_rank(raw[part].singular_values)
        of_centered = centered[part].singular_values
        assert got["centered_effective_rank"][part] == functional.effective_rank(of_centered)
        assert got["alpha_req"][part] == functional.alpha_req(of_centered)
        assert got["saturation"][part] == functional.saturation(of_centered, 25)
        assert got["corrected_participation_ratio"][part] == functional.corrected_participation_ratio(of_centered, 40)
    assert readings_of_layers(got["effective_rank"]).keys() == {"a", "b"}


def of_parts(values: dict[Part, float]) -> dict[Part, Tensor]:
    return {part: torch.tensor(value, dtype=torch.float64) for part, value in values.items()}


def test_classes() -> None:
    values = of_parts({("a", None): 9, ("a", 0): 3, ("a", 2): 1, ("a", 5): 5, ("b", None): 9, ("b", 5): 4})
    readings, lowest = readings_of_classes("stable_rank", values, each=True)
    assert {name: {layer: float(one) for layer, one in of.items()} for name, of in readings.items()} == {
        "stable_rank_of_class_0": {"a": 3},
        "stable_rank_of_class_2": {"a": 1},
        "stable_rank_of_class_5": {"a": 5, "b": 4},
        "stable_rank_mean_over_classes": {"a": 3, "b": 4},
        "stable_rank_min_over_classes": {"a": 1, "b": 4},
    }
    assert lowest == {"a": 2, "b": 5}
    summaries, same = readings_of_classes("stable_rank", values, each=False)
    assert list(summaries) == ["stable_rank_mean_over_classes", "stable_rank_min_over_classes"]
    assert same == lowest


def test_class_that_reads_nan_is_not_passed_over() -> None:
    values = of_parts({("a", 0): 3, ("a", 1): math.nan, ("b", 0): 2, ("b", 1): 3})
    readings, lowest = readings_of_classes("stable_rank", values, each=False)
    assert all(of["a"].isnan() for of in readings.values())
    assert [float(of["b"]) for of in readings.values()] == [2.5, 2]
    assert lowest == {"b": 0}


def test_no_classes() -> None:
    readings, lowest = readings_of_classes("stable_rank", of_parts({("a", None): 3}), each=True)
    assert readings == {"stable_rank_mean_over_classes": {}, "stable_rank_min_over_classes": {}}
    assert lowest == {}


def test_rows() -> None:
    """Of ten features one is dead, one has a twentieth of the mean size of the others."""
    features = torch.rand(200, 10, dtype=torch.float64) + 0.5
    features[:, 3] = 0
    features[:, 7] /= 20
    got = readings_of_rows(features, [*OF_ROWS, "effective_rank", "lidar"])
    sizes = np.abs(features.numpy()).mean(0)
    expected = {"dead_fraction": 0.1, "dormant_ratio": 0.1, "dormant_ratio_0": 0.1}
    expected |= {"dormant_ratio_0.1": (sizes <= 0.1 * sizes.mean()).mean(), "two_nn": float(functional.two_nn(features))}
    assert 10 * expected["dormant_ratio_0.1"] == 2
    assert {name: float(value) for name, value in got.items()} == expected


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_rows_read_nan(count: int) -> None:
    got = readings_of_rows(torch.ones(count, 3), OF_ROWS)
    assert list(got) == OF_ROWS
    assert all(value.isnan() and value.dtype == torch.float64 for value in got.values())
