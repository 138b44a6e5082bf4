import math
from typing import Any

import pytest

from rank_callbacks.figures import Figure, sweep
from rank_callbacks.rows import Row
from tests.figures.tables import in_turn, reading

DECAYS = {"a": 0.0, "b": 0.01, "c": 0.1, "c2": 0.1}
HYPERPARAMETERS = {run: {"weight_decay": decay} for run, decay in DECAYS.items()}


def rank(run: str, value: float, layer: str = "mean_over_layers", step: int = 9) -> Row:
    return reading("weight_rank", "effective_rank", layer, value, run, step)


TABLE = [rank("a", 40.0), rank("b", 30.0), rank("c", 12.0), rank("c2", 8.0)]


def named(figure: Figure) -> dict[str, dict[str, Any]]:
    return {trace["name"]: trace for trace in figure["data"] if "name" in trace}


def test_mean_and_range_of_runs_of_one_setting() -> None:
    line = named(sweep(TABLE, HYPERPARAMETERS))["mean over layers"]
    assert line["y"] == [40.0, None, 30.0, 10.0]
    assert line["x"][2:] == [0.01, 0.1]
    assert line["error_y"]["array"] == line["error_y"]["arrayminus"] == [0.0, None, 0.0, 2.0]


def test_zero_has_its_own_tick_and_dots_lead_to_it() -> None:
    figure = sweep(TABLE, HYPERPARAMETERS)
    (dots,) = (trace for trace in figure["data"] if "name" not in trace)
    assert dots["y"] == [40.0, 30.0]
    assert dots["x"] == [figure["layout"]["xaxis"]["tickvals"][0], 0.01]
    assert figure["layout"]["xaxis"]["ticktext"] == ["0", "0.01", "0.1"]


def test_final_reading_counts() -> None:
    table = [*TABLE, rank("b", 3.0, step=20), rank("b", 99.0, step=1)]
    assert named(sweep(table, HYPERPARAMETERS))["mean over layers"]["y"][2:] == [3.0, 10.0]


def test_layers_are_faint_behind() -> None:
    table = [*TABLE, *(rank(run, 5.0, layer) for run in DECAYS for layer in ("net.x", "net.y"))]
    figure = sweep(table, HYPERPARAMETERS)
    assert [trace["name"] for trace in figure["data"] if "name" in trace] == ["x", "y", "mean over layers"]
    lines = named(figure)
    assert lines["x"]["opacity"] < lines["mean over layers"]["opacity"]


def test_three_panels() -> None:
    table = [*TABLE, *(reading("neural_collapse", "nc1_pinv", "penultimate", 0.1, run) for run in DECAYS)]
    figure = sweep(table, HYPERPARAMETERS, accuracies=dict.fromkeys(DECAYS, 0.9))
    lines = named(figure)
    assert [lines[name]["xaxis"] for name in ("mean over layers", "accuracy", "nc1 pinv")] == ["x", "x2", "x3"]
    assert [text["text"] for text in figure["layout"]["annotations"]] == [
        "<b>effective rank (weight rank)</b>",
        "<b>accuracy</b>",
        "<b>NC1</b>",
    ]


def test_panel_without_values_is_left_out() -> None:
    figure = sweep(TABLE, HYPERPARAMETERS, accuracies={"another": 0.9, "a": math.nan})
    assert len(figure["layout"]["annotations"]) == 1


def test_nan_is_no_value() -> None:
    line = named(sweep([*TABLE, rank("c2", math.nan, step=20)], HYPERPARAMETERS))["mean over layers"]
    assert line["y"][2:] == [30.0, 12.0]


def test_run_without_the_hyperparameter_is_left_out() -> None:
    hyperparameters = {**HYPERPARAMETERS, "c2": {"lr": 0.1}}
    assert named(sweep(TABLE, hyperparameters))["mean over layers"]["y"][2:] == [30.0, 12.0]


def test_categories() -> None:
    figure = sweep(TABLE, {run: {"optimizer": "adam" if run == "a" else "sgd"} for run in DECAYS}, "optimizer")
    assert named(figure)["mean over layers"]["x"] == ["adam", "sgd"]


def test_hover_names_the_runs() -> None:
    assert named(sweep(TABLE, HYPERPARAMETERS))["mean over layers"]["text"][-1].startswith(
        "<b>mean over layers</b>: 10 (8 to 12)<br>c, c2"
    )


def test_no_such_hyperparameter() -> None:
    with pytest.raises(ValueError, match="Expected runs with the hyperparameter 'lr', got weight_decay"):
        sweep(TABLE, HYPERPARAMETERS, "lr")


def test_nothing() -> None:
    with pytest.raises(ValueError, match="Add WeightRankMonitor"):
        sweep([], HYPERPARAMETERS)


class TestInTurn:
    """Layers that are not read at each report."""

    TABLE = [row for row in in_turn("a") if row.step <= 100] + in_turn("b")

    def test_last_reading_of_each_layer_hollow_where_it_is_old(self) -> None:
        lines = named(sweep(self.TABLE, {"a": {"lr": 1.0}, "b": {"lr": 2.0}}, "lr"))
        assert {name: line["y"] for name, line in lines.items()} == {
            "a": [8, 7],
            "b": [5, 4],
            "c": [3, 2],
            "mean over layers": [5, 5],
        }
        assert lines["c"]["marker"]["symbol"] == lines["a"]["marker"]["symbol"] == [100, 0]
        assert not {"symbol"} & (lines["b"]["marker"].keys() | lines["mean over layers"]["marker"].keys())
        assert lines["a"]["text"][0].startswith("<b>a</b>: 8<br>a (step 50)")
        assert lines["a"]["text"][1].startswith("<b>a</b>: 7<br>b<")

    def test_title(self) -> None:
        text = sweep(self.TABLE, {"a": {"lr": 1.0}, "b": {"lr": 2.0}}, "lr")["layout"]["title"]["text"]
        assert "effective rank: oldest spectrum 100 steps old (a)" in text

    def test_runs_that_ended_with_an_exact_report_have_no_note(self) -> None:
        assert sweep(self.TABLE, {"b": {"lr": 2.0}}, "lr")["layout"]["title"]["text"] == "1 runs by lr"


def test_layer_far_beyond_the_others_does_not_stretch_the_axis() -> None:
    """Nor does the mean that it spoils; the titles of other panels stay."""
    layers = {"net.a": 2.0, "net.b": 3.0, "net.c": 4.0, "net.d": 2e15, "mean_over_layers": 5e14}
    table = [rank(run, value, layer) for run in DECAYS for layer, value in layers.items()]
    figure = sweep(table, HYPERPARAMETERS, accuracies=dict.fromkeys(DECAYS, 0.9))
    assert figure["layout"]["yaxis"]["range"] == [0, pytest.approx(1.05 * 4)]
    titles = [one["text"] for one in figure["layout"]["annotations"]]
    assert titles == ["<b>effective rank (weight rank), 2 beyond the axis</b>", "<b>accuracy</b>"]
    assert "range" not in figure["layout"]["yaxis2"]
    assert "range" not in sweep(TABLE, HYPERPARAMETERS)["layout"]["yaxis"]
