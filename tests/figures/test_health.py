import math

import pytest

from rank_callbacks.figures import Finding, findings
from rank_callbacks.rows import Row
from tests.figures.tables import reading


def history(group: str, measure: str, layer: str, values: list[float], run: str = "run") -> list[Row]:
    """A reading every hundred steps."""
    return [reading(group, measure, layer, value, run, 100 * place) for place, value in enumerate(values)]


def only(rows: list[Row]) -> Finding:
    (finding,) = findings(rows)
    return finding


def test_nothing() -> None:
    assert findings([]) == []


class TestLowGradient:
    def test_five_reports_in_a_row(self) -> None:
        finding = only(history("gradient_rank", "utilization", "fc.weight", [0.5, 0.09, 0.08, 0.07, 0.06, 0.05, 0.04]))
        assert finding[:4] == ("warning", "run", "fc.weight", 100)
        assert "fc.weight has less than a tenth" in finding.text
        assert "from step 100 on: 5% at step 500" in finding.text

    @pytest.mark.parametrize("values", [[0.09] * 4, [0.09] * 4 + [0.1] + [0.09] * 4, [0.1] * 9], ids=str)
    def test_not_for_less(self, values: list[float]) -> None:
        assert findings(history("gradient_rank", "utilization", "fc.weight", values)) == []

    def test_reports_may_come_in_any_order(self) -> None:
        rows = history("gradient_rank", "utilization", "fc.weight", [0.5] + [0.05] * 5)
        assert findings(reversed(rows)) == findings(rows)


class TestFallenRank:
    @pytest.mark.parametrize("group", ["weight_rank", "feature_rank"])
    def test_says_when_it_crossed_for_good(self, group: str) -> None:
        finding = only(history(group, "effective_rank", "fc", [40.0, 19.0, 25.0, 20.0, 12.0]))
        assert finding[:4] == ("notice", "run", "fc", 300)
        assert finding.text.endswith("down to 12 at step 400, from 40 at step 0; below half since step 300.")

    def test_not_where_it_came_back(self) -> None:
        assert findings(history("weight_rank", "effective_rank", "fc", [40.0, 10.0, 30.0])) == []

    def test_not_of_gradients_which_always_fall(self) -> None:
        assert findings(history("gradient_rank", "effective_rank", "fc", [40.0, 10.0])) == []

    @pytest.mark.parametrize("values", [[40.0, 21.0], [0.0, 0.0], [40.0]], ids=str)
    def test_not_for_less(self, values: list[float]) -> None:
        assert findings(history("weight_rank", "effective_rank", "fc", values)) == []


class TestNotANumber:
    def test_all_measures_of_a_layer_in_one(self) -> None:
        rows = history("weight_rank", "effective_rank", "fc", [4.0, math.nan, math.nan])
        rows += history("weight_rank", "stable_rank", "fc", [4.0, 3.0, math.nan])
        finding = only(rows)
        assert finding[:4] == ("error", "run", "fc", 100)
        assert finding.text.startswith("weight_rank of fc reads NaN since step 100 (effective_rank, stable_rank). Look")

    def test_recovered(self) -> None:
        assert "recovered" in only(history("weight_rank", "stable_rank", "fc", [4.0, math.nan, 3.0])).text

    def test_from_the_first_report(self) -> None:
        assert only(history("weight_rank", "effective_rank", "fc", [math.nan])).severity == "error"

    def test_not_of_a_measure_that_never_was_a_number(self) -> None:
        assert findings(history("neural_collapse", "nc1_pinv", "fc", [math.nan, math.nan])) == []

    def test_not_of_a_measure_for_which_it_is_an_answer(self) -> None:
        assert findings(history("rank_collapse", "certificate_loose", "fc", [1.0, math.nan])) == []

    def test_infinity_is_a_reading(self) -> None:
        assert findings(history("neural_collapse", "nc1_pinv", "fc", [1.0, math.inf])) == []


class TestDeadFeatures:
    def test_more_than_half(self) -> None:
        finding = only(history("feature_rank", "dead_fraction", "relu", [0.6, 0.6]))
        assert finding[:4] == ("warning", "run", "relu", 0)
        assert finding.text.startswith("60% of the features of relu are 0 for every input at step 100, after 60% at first")

    def test_grown(self) -> None:
        assert only(history("feature_rank", "dead_fraction", "relu", [0.1, 0.15, 0.25])).step == 200

    @pytest.mark.parametrize("values", [[0.5, 0.5], [0.1, 0.19], [0.0, 0.3, 0.05]], ids=str)
    def test_not_for_less(self, values: list[float]) -> None:
        assert findings(history("feature_rank", "dead_fraction", "relu", values)) == []


class TestCost:
    def test_of_all_monitors_together(self) -> None:
        rows = history("monitor", "share_of_training", "weight_rank", [0.01, 0.02])
        rows += history("monitor", "share_of_training", "rank_collapse", [0.5, 0.04])
        finding = only(rows)
        assert finding[:4] == ("warning", "run", "", 100)
        assert "6% of the time of training up to step 100 (rank_collapse 4.0%, weight_rank 2.0%)" in finding.text

    def test_who_chose_the_cadence_is_not_told_to_raise_it(self) -> None:
        rows = history("monitor", "share_of_training", "weight_rank", [0.07])
        assert only(rows).text.endswith("(weight_rank 7.0%): raise every_n_steps of weight_rank.")
        rows += history("monitor", "every_n_steps", "weight_rank", [2000.0])
        assert "weight_rank has chosen to report every 2,000 steps" in only(rows).text
        assert "raise" not in only(rows).text

    @pytest.mark.parametrize(
        ("group", "way_out"),
        [
            ("rank_collapse", "raise every_n_steps"),
            ("network_rank", "raise every_n_epochs"),
            ("feature_rank", "raise every_n_steps"),
        ],
    )
    def test_the_way_out_is_an_argument_that_the_monitor_has(self, group: str, way_out: str) -> None:
        text = only(history("monitor", "share_of_training", group, [0.07])).text
        assert text.endswith(f"({group} 7.0%): {way_out} of {group}.")

    def test_not_for_less(self) -> None:
        assert findings(history("monitor", "share_of_training", "weight_rank", [0.5, 0.05])) == []


def test_worst_first_and_runs_apart() -> None:
    rows = history("weight_rank", "effective_rank", "fc", [40.0, 12.0], "first")
    rows += history("weight_rank", "effective_rank", "fc", [40.0, 12.0], "second")
    rows += history("feature_rank", "dead_fraction", "relu", [0.6])
    rows += history("weight_rank", "stable_rank", "fc", [4.0, math.nan], "second")
    found = findings(rows)
    assert [finding.severity for finding in found] == ["error", "warning", "notice", "notice"]
    assert [finding.run for finding in found] == ["second", "run", "first", "second"]


def test_means_over_layers_are_looked_at_in_their_layers() -> None:
    assert findings(history("weight_rank", "effective_rank", "mean_over_layers", [40.0, 12.0])) == []
