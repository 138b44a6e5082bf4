import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rank_callbacks import (
    FeatureRankMonitor,
    GradientRankMonitor,
    NetworkRankMonitor,
    NeuralCollapseMonitor,
    RankCollapseMonitor,
    WeightRankMonitor,
)
from rank_callbacks.callbacks.monitor import Monitor
from rank_callbacks.callbacks.readings import Spectrum, measured, shows_layers, spectra_by_tag, tagged, unreadable, warn_of_nan
from rank_callbacks.catalog import MEASURES
from rank_callbacks.tags import Tag
from tests.models import CLASSES, Classifier
from tests.training import fit


def spectrum(*values: float, shape: tuple[int, ...] = (4, 4), noise: float = 0.0, rtol: float | None = None) -> Spectrum:
    return Spectrum(torch.tensor(values, dtype=torch.float64), shape, torch.tensor(noise, dtype=torch.float64), rtol)


@pytest.mark.parametrize(
    ("measure", "value"),
    [
        ("stable_rank", 1.3125),
        ("spectral_norm", 4.0),
        ("frobenius_norm", math.sqrt(21)),
        ("numerical_rank", 3.0),
        ("numerical_rank_0.3", 2.0),
        ("energy_rank_0.9", 2.0),
        ("distance_to_rank_1", math.sqrt(5)),
        ("relative_distance_to_rank_1", math.sqrt(5 / 21)),
        ("mp_soft_rank", 21 / 16 * (2 + 2) ** 2 / 16),
    ],
)
def test_measure_by_name_and_suffix(measure: str, value: float) -> None:
    assert measured({"layer": spectrum(4, 2, 1, 0)}, [measure])[measure]["layer"].item() == pytest.approx(value)


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_of_the_catalogue_can_be_read(name: str) -> None:
    suffix = "_2" if MEASURES[name].parameter and MEASURES[name].default is None else ""
    value = measured({"layer": spectrum(*(2.0**-n for n in range(12)), shape=(12, 20))}, [name + suffix])
    assert value[name + suffix]["layer"].isfinite()


def test_rounding_noise_is_the_floor_of_the_numerical_rank() -> None:
    narrow, wide = spectrum(1.0, 1e-2, 1e-4, noise=1e-3), spectrum(1.0, 1e-2, 1e-4, noise=1e-8)
    ranks = measured({"narrow": narrow, "wide": wide}, ["numerical_rank_0"])["numerical_rank_0"]
    assert {layer: rank.item() for layer, rank in ranks.items()} == {"narrow": 2, "wide": 3}


def test_spectrums_own_tolerance_holds_where_the_name_has_none() -> None:
    of_layers = {"layer": spectrum(1.0, 0.5, 0.1, rtol=0.2)}
    values = measured(of_layers, ["numerical_rank", "numerical_rank_0.01"])
    assert values["numerical_rank"]["layer"] == 2
    assert values["numerical_rank_0.01"]["layer"] == 3


def test_unknown_measure() -> None:
    with pytest.raises(ValueError, match="name of a measure, got 'rank'"):
        measured({"layer": spectrum(1.0)}, ["rank"])


VALUES = {"stable_rank": {"a": torch.tensor(1.0), "b": torch.tensor(4.0)}}


def test_tagged_with_summaries_and_layers() -> None:
    expected = {"mean_over_layers": 2.5, "min_over_layers": 1.0, "max_over_layers": 4.0, "a": 1.0, "b": 4.0}
    got = tagged("weight_rank", VALUES, per_layer=True)
    assert got == {Tag("weight_rank", "stable_rank", layer): value for layer, value in expected.items()}
    assert all(type(value) is float for value in got.values())


def test_tagged_with_summaries_only() -> None:
    layers = [tag.layer for tag in tagged("weight_rank", VALUES, per_layer=False)]
    assert layers == ["mean_over_layers", "min_over_layers", "max_over_layers"]


def test_one_nan_spoils_the_summaries() -> None:
    got = tagged("weight_rank", {"stable_rank": {"a": torch.tensor(torch.nan), "b": torch.tensor(4.0)}}, per_layer=True)
    assert {tag.layer for tag, value in got.items() if math.isnan(value)} == {
        "mean_over_layers", "min_over_layers", "max_over_layers", "a",
    }  # fmt: skip


@pytest.mark.parametrize("values", [{}, {"stable_rank": {}}], ids=["no measure", "no layer"])
def test_nothing_measured_is_no_reading(values: dict[str, dict[str, torch.Tensor]]) -> None:
    assert tagged("weight_rank", values, per_layer=True) == {}


@pytest.mark.parametrize(
    ("scalars", "layers", "shown"), [("auto", 200, True), ("auto", 201, False), ("all", 201, True), ("all", 10_000, True)]
)
def test_layers_are_shown_up_to_two_hundred(scalars: str, layers: int, shown: bool) -> None:
    assert shows_layers(scalars, layers) == shown


def test_layers_that_are_left_out_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    told: set[str] = set()
    with caplog.at_level("INFO"):
        assert shows_layers("all", 999, "weight_rank", told)
        assert shows_layers("auto", 9, "weight_rank", told)
        assert not shows_layers("auto", 999)
        assert not caplog.records
        for _ in range(3):
            assert not shows_layers("auto", 999, "weight_rank", told)
    (line,) = caplog.messages
    assert line.startswith("weight_rank has 999 layers, of which it logs the mean, minimum and maximum alone: ")
    assert line.endswith('scalars="all" logs each.')
    with caplog.at_level("INFO"):
        shows_layers("auto", 999, "weight_rank", set())
    assert caplog.messages == [line, line]


@pytest.mark.parametrize(
    "monitor",
    [
        WeightRankMonitor(["stable_rank"], every_n_steps=1, change=True),
        GradientRankMonitor(["stable_rank"], every_n_steps=1, update=True),
        FeatureRankMonitor(["stable_rank"], data="train", every_n_steps=1, num_classes=CLASSES),
        NeuralCollapseMonitor(CLASSES, layers="network.*", every_n_steps=1),
        RankCollapseMonitor(CLASSES, every_n_steps=1),
        NetworkRankMonitor(["jacobian_rank"], inputs=1),
    ],
    ids=lambda monitor: type(monitor).__name__,
)
def test_a_monitor_says_once_a_fit_that_it_leaves_layers_out(monitor: Monitor, caplog: pytest.LogCaptureFixture) -> None:
    network = nn.Sequential(*(nn.Linear(2, 2) for _ in range(201)), nn.Linear(2, CLASSES))
    for fits in (1, 2):
        with caplog.at_level("INFO"):
            fit(Called(network, torch.randn(8, 2)), monitor)
        told = [record.message for record in caplog.records if "alone" in record.message]
        assert len(told) == fits
        assert told[0].startswith(f"{monitor.group} has 20")


class Called(Classifier):
    """As the network's own forward."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.network(inputs)


@pytest.mark.parametrize(
    "monitor",
    [
        WeightRankMonitor,
        GradientRankMonitor,
        FeatureRankMonitor,
        lambda measures: NeuralCollapseMonitor(CLASSES, measures=measures),
        NetworkRankMonitor,
    ],
)
def test_a_single_name_is_no_list(monitor: Any) -> None:
    with pytest.raises(ValueError, match=r"Expected measures to be a list of names, got 'rankme'. Write \['rankme'\]."):
        monitor("rankme")


def test_spectra_for_writers() -> None:
    (tag, (values, shape)), *others = spectra_by_tag("weight_rank", {"a.weight": spectrum(2.0, 1e-3)}).items()
    assert others == []
    assert str(tag) == "weight_rank/spectrum/a.weight"
    assert values.dtype == np.float32
    assert values.tolist() == [2.0, float(np.float32(1e-3))]
    assert shape == spectrum(2.0, 1e-3).shape


def test_one_warning_a_layer(recwarn: pytest.WarningsRecorder) -> None:
    warned: set[str] = set()
    spectra = {"good": spectrum(1.0), "bad": spectrum(math.nan, math.nan)}
    for step in (3, 4):
        warn_of_nan(unreadable(spectra), step, warned)
    (warning,) = recwarn
    assert "bad" in str(warning.message)
    assert "step 3" in str(warning.message)
    assert warned == {"bad"}
