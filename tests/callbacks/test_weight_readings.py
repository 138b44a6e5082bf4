import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rank_callbacks import WeightRankMonitor
from rank_callbacks.callbacks.leading_readings import WITHOUT_SPECTRUM, measures_among
from rank_callbacks.callbacks.weight_readings import WeightReadings, WeightReport
from rank_callbacks.functional import numerical_rank, participation_ratio, singular_values
from rank_callbacks.tags import Tag
from tests.models import CLASSES, Classifier
from tests.training import Recorder, fit

WIDE = ["0.weight", "1.weight", "2.weight"]
CHEAP = ["spectral_norm", "frobenius_norm", "stable_rank", "energy_at_rank_4", "distance_to_rank_8"]
CHEAP += ["relative_distance_to_rank_8"]
OF_GRAM = ["numerical_rank_0.03", "numerical_rank_0.2", "participation_ratio"]


def model() -> nn.Sequential:
    """Three layers of which the whole spectrum is dear, and one of which it is not."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(150, 200), nn.Linear(200, 300), nn.Linear(300, 140), nn.Linear(140, 3))
    with torch.no_grad():
        for layer, decay in zip(network, (0.1, 0.5, 1.0, 0.0), strict=True):
            left, values, right = torch.linalg.svd(layer.weight, full_matrices=False)
            layer.weight.copy_(left * (1 + torch.arange(len(values))) ** -decay @ right)
    return network


def reader(measures: list[str], method: Any = "auto", **given: Any) -> WeightReadings:
    return WeightReadings(
        measures, **({"layers": None, "conv": "filters", "change": False, "scalars": "auto"} | given), method=method
    )


def of_layers(report: WeightReport, measure: str) -> dict[str, float]:
    return {
        tag.layer: value for tag, value in report.scalars.items() if tag.measure == measure and "over_layers" not in tag.layer
    }


def truth(matrix: Tensor) -> dict[str, float]:
    values = np.linalg.svd(matrix.detach().double().numpy(), compute_uv=False)
    norm = math.sqrt((values**2).sum())
    tail = math.sqrt((values[8:] ** 2).sum())
    return {
        "spectral_norm": values[0],
        "frobenius_norm": norm,
        "stable_rank": (norm / values[0]) ** 2,
        "energy_at_rank_4": (values[:4] ** 2).sum() / norm**2,
        "distance_to_rank_8": tail,
        "relative_distance_to_rank_8": tail / norm,
    }


class TestExact:
    @pytest.mark.parametrize("method", ["auto", "exact"])
    def test_everything_is_read_where_time_is_no_matter(self, method: str) -> None:
        network = model()
        report = reader(["effective_rank", *CHEAP], method).read(network, 7, seconds=None)
        for name in (*WIDE, "3.weight"):
            expected = truth(network.get_parameter(name))
            for measure in CHEAP:
                assert report.scalars[Tag("weight_rank", measure, name)] == pytest.approx(expected[measure], rel=1e-9)
        assert of_layers(report, "effective_rank").keys() == {*WIDE, "3.weight"}
        assert {tag.layer for tag in report.spectra} == {*WIDE, "3.weight"}
        assert not [tag for tag in report.scalars if tag.group == "monitor"]
        assert report.seconds == 0

    def test_first_report_of_a_small_model_is_whole(self) -> None:
        report = reader(["effective_rank"]).read(model(), 0, seconds=0.0)
        assert of_layers(report, "effective_rank").keys() == {*WIDE, "3.weight"}
        assert report.scalars[Tag("monitor", "approximate_layers", "weight_rank")] == 0


class TestAuto:
    def test_without_time_wide_layers_are_read_from_leading_values(self) -> None:
        network, weights = model(), reader(["effective_rank", *CHEAP])
        weights.read(network, 0, seconds=0.0)
        report = weights.read(network, 50, seconds=0.0)
        assert report.scalars[Tag("monitor", "approximate_layers", "weight_rank")] == 3
        assert report.scalars[Tag("monitor", "spectrum_age", "weight_rank")] == 50
        assert {tag.layer for tag in report.spectra} == {"3.weight"}
        assert of_layers(report, "effective_rank").keys() == {"3.weight"}
        for name in WIDE:
            expected = truth(network.get_parameter(name))
            assert expected["stable_rank"] <= report.scalars[Tag("weight_rank", "stable_rank", name)] * (1 + 1e-6)
            for measure in CHEAP:
                # The first layer's spectrum is nearly flat: of a cold start the norm is good to 1e-3, its tail to 1e-2.
                assert report.scalars[Tag("weight_rank", measure, name)] == pytest.approx(expected[measure], rel=3e-2)

    def test_leading_values_get_better_from_report_to_report(self) -> None:
        network, weights = model(), reader(CHEAP)
        for step in range(0, 300, 50):
            report = weights.read(network, step, seconds=0.0)
        for name in WIDE:
            expected = truth(network.get_parameter(name))["stable_rank"]
            assert report.scalars[Tag("weight_rank", "stable_rank", name)] == pytest.approx(expected, rel=1e-4)

    def test_means_are_of_the_latest_reading_of_each_layer(self) -> None:
        network, weights = model(), reader(["effective_rank"])
        before = of_layers(weights.read(network, 0, seconds=0.0), "effective_rank")
        with torch.no_grad():
            network[3].weight[1:] = 0
            network[0].weight.mul_(torch.rand(200, 150))
        report = weights.read(network, 50, seconds=0.0)
        expected = [*(before[name] for name in WIDE), 1.0]
        assert report.scalars[Tag("weight_rank", "effective_rank", "mean_over_layers")] == pytest.approx(np.mean(expected))
        assert report.scalars[Tag("weight_rank", "effective_rank", "min_over_layers")] == pytest.approx(1.0)

    def test_layers_take_turns_as_time_allows(self) -> None:
        network, weights = model(), reader(["effective_rank"])
        weights.read(network, 0, seconds=None)
        seen, ages = [], []
        for step in (10, 20, 30, 40, 50):
            weights._turns._correction = 1.0
            report = weights.read(network, step, seconds=0.0011)  # the second takes a millisecond of it, the others 0.4
            seen.append([name[0] for name in WIDE if name in of_layers(report, "effective_rank")])
            ages.append(report.scalars[Tag("monitor", "spectrum_age", "weight_rank")])
            assert report.seconds > 0
        assert seen == [["0"], ["1"], ["0", "2"], ["1"], ["0", "2"]]
        assert ages == [10, 20, 10, 10, 10]

    def test_no_mean_before_every_layer_was_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("rank_callbacks.callbacks.weight_readings._AT_START", 0.0)
        report = reader(["effective_rank", "stable_rank"]).read(model(), 0, seconds=0.0)
        over = {tag.measure for tag in report.scalars if tag.layer == "mean_over_layers"}
        assert over == {"stable_rank"}

    def test_change_is_of_the_layers_whose_turn_it_is(self) -> None:
        network, weights = model(), reader(["frobenius_norm"], change=True)
        weights.read(network, 0, seconds=None)
        with torch.no_grad():
            for layer in network:
                layer.weight += 1
        report = weights.read(network, 50, seconds=0.0)
        change = {tag.layer: value for tag, value in report.scalars.items() if tag.group == "weight_change_rank"}
        assert change["3.weight"] == pytest.approx(math.sqrt(3 * 140), rel=1e-6)
        assert not set(WIDE) & change.keys()


class TestKrylov:
    def test_no_spectrum_of_a_wide_layer_is_ever_read(self) -> None:
        network, weights = model(), reader([*CHEAP, *OF_GRAM], "krylov")
        for step in range(0, 300, 50):
            report = weights.read(network, step, seconds=None)
        assert {tag.layer for tag in report.spectra} == {"3.weight"}
        assert report.scalars[Tag("monitor", "approximate_layers", "weight_rank")] == 3
        for name in WIDE:
            expected = truth(network.get_parameter(name))
            for measure in CHEAP:
                assert report.scalars[Tag("weight_rank", measure, name)] == pytest.approx(expected[measure], rel=2e-3)
            values = singular_values(network.get_parameter(name).detach())
            for measure in OF_GRAM:
                kind, _, rtol = measure.rpartition("_")
                exact = numerical_rank(values, float(rtol)) if kind == "numerical_rank" else participation_ratio(values)
                assert report.scalars[Tag("weight_rank", measure, name)] == pytest.approx(float(exact), rel=1e-6)
            for measure in ("stable_rank", "distance_to_rank_8", "relative_distance_to_rank_8"):
                assert report.scalars[Tag("weight_rank", measure, name)] >= expected[measure] * (1 - 1e-6)

    def test_zero_and_nan(self) -> None:
        network, weights = model(), reader([*CHEAP, *OF_GRAM], "krylov")
        with torch.no_grad():
            network[0].weight.zero_()
            network[1].weight[3, 4] = math.nan
            network[2].weight[0, 0] = math.inf
        with pytest.warns(UserWarning, match="reads NaN at step 5") as caught:
            report = weights.read(network, 5, seconds=None)
        assert sorted(str(one.message).split()[0] for one in caught) == ["1.weight", "2.weight"]
        for measure in [*CHEAP, *OF_GRAM]:
            readings = of_layers(report, measure)
            assert readings["0.weight"] == 0
            assert math.isnan(readings["1.weight"])
            assert math.isnan(readings["2.weight"])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            weights.read(network, 6, seconds=None)

    def test_a_layer_is_read_again_after_nan(self) -> None:
        network, weights = model(), reader(["spectral_norm"], "krylov")
        whole = network[1].weight.detach().clone()
        with torch.no_grad():
            network[1].weight[3, 4] = math.nan
            with pytest.warns(UserWarning, match=r"1\.weight reads NaN"):
                weights.read(network, 0, seconds=None)
            network[1].weight.copy_(whole)
        report = weights.read(network, 50, seconds=None)
        assert of_layers(report, "spectral_norm")["1.weight"] == pytest.approx(float(singular_values(whole)[0]), rel=1e-3)

    def test_two_readers_agree_and_draw_nothing_from_the_global_generator(self) -> None:
        network, state = model(), torch.get_rng_state()
        first, second = (reader(CHEAP, "krylov").read(network, 3, seconds=None).scalars for _ in range(2))
        assert first == second
        assert torch.equal(torch.get_rng_state(), state)


class TestMisuse:
    @pytest.mark.parametrize("measure", ["effective_rank", "nuclear_rank", "distance_to_rank_33", "energy_rank_0.9"])
    def test_krylov_refuses_what_it_cannot_read(self, measure: str) -> None:
        assert not measures_among([measure], WITHOUT_SPECTRUM)
        with pytest.raises(ValueError, match=f"method='krylov' cannot read {measure}. It reads distance_to_rank, "):
            WeightRankMonitor(["stable_rank", measure], method="krylov")

    def test_krylov_refuses_the_change(self) -> None:
        with pytest.raises(ValueError, match="cannot read change=True"):
            WeightRankMonitor(["stable_rank"], change=True, method="krylov")

    def test_unknown_method(self) -> None:
        with pytest.raises(ValueError, match="method to be one of auto, exact, krylov, got 'lanczos'"):
            WeightRankMonitor(method="lanczos")  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["auto", "exact", "krylov"])
def test_in_training(method: Any) -> None:
    recorder = Recorder()
    network = nn.Sequential(nn.Linear(150, 140), nn.ReLU(), nn.Linear(140, CLASSES))
    monitor = WeightRankMonitor(["stable_rank"], every_n_steps=2, method=method)
    fit(Classifier(network, torch.randn(20, 150)), monitor, logger=recorder)
    assert recorder.steps("weight_rank") == [0, 2, 4, 5]
    expected = singular_values(network[0].weight.detach())
    reading = recorder.readings("weight_rank")[5, "weight_rank/stable_rank/network.0.weight"]
    assert reading == pytest.approx(
        float(expected.square().sum() / expected[0] ** 2), rel=1e-3 if method == "krylov" else 1e-9
    )
