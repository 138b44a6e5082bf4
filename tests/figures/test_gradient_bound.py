import math
from typing import Any

import pytest

from rank_callbacks.figures import Figure, gradient_bound
from rank_callbacks.rows import Row
from tests.figures.tables import depths, reading


def gradients(layer: str, bound: float, utilization: float, effective: float, run: str = "run", step: int = 0) -> list[Row]:
    values = {"bound": bound, "utilization": utilization, "effective_rank": effective}
    return [reading("gradient_rank", measure, layer, value, run, step) for measure, value in values.items()]


TABLE = gradients("head", 10, 0.9, 4.5) + gradients("stem", 89, 57 / 89, 8.9)


def named(figure: Figure) -> dict[str, dict[str, Any]]:
    return {trace["name"]: trace for trace in figure["data"]}


def test_bound_rank_and_effective_rank_by_layer() -> None:
    traces = named(gradient_bound(TABLE + depths("stem", "head")))
    assert traces["bound"]["y"] == [89, 10]
    assert traces["rank"]["y"] == [57, 9]
    assert traces["effective rank"]["y"] == [8.9, 4.5]


def test_rank_is_whole_though_shares_are_rounded_to_float32() -> None:
    assert named(gradient_bound(gradients("head", 10, 0.8999999761581421, 1)))["rank"]["y"] == [9.0]


def test_bars_of_a_run_stand_in_one_place() -> None:
    figure = gradient_bound(TABLE + gradients("head", 10, 0.1, 1, "second"))
    bars = [trace for trace in figure["data"] if trace["type"] == "bar"]
    assert [(bar["x"][0] + bar["offset"], bar["width"]) for bar in bars] == [(-0.375, 0.375)] * 2 + [(0.0, 0.375)] * 2
    marks = [trace["x"] for trace in figure["data"] if trace["type"] == "scatter"]
    assert marks == [[-0.1875, 0.8125], [0.1875, 1.1875]]
    assert figure["layout"]["barmode"] == "overlay"


def test_latest_report_and_that_of_a_step() -> None:
    table = TABLE + gradients("head", 10, 0.1, 1, step=9)
    assert named(gradient_bound(table))["rank"]["y"] == [1, 57]
    assert named(gradient_bound(table, step=8))["rank"]["y"] == [9, 57]
    assert gradient_bound(table)["layout"]["title"]["text"].endswith("at step 9")


def test_layer_that_was_not_read_keeps_its_last_bars_hatched() -> None:
    table = TABLE + gradients("head", 10, 0.1, 1, step=1500)
    traces = named(gradient_bound(table))
    assert traces["bound"]["y"] == [10, 89]
    assert traces["rank"]["marker"]["pattern"]["shape"] == ["", "/"]
    assert [text.split("<br>")[0] for text in traces["rank"]["text"]] == ["<b>head</b>, run", "<b>stem</b>, run (step 0)"]
    assert "pattern" not in named(gradient_bound(TABLE))["rank"]["marker"]


def test_chosen_runs() -> None:
    table = TABLE + gradients("head", 10, 0.1, 1, "second")
    assert named(gradient_bound(table, ["second"]))["rank"]["y"] == [1]


def test_no_reading_and_nan_are_gaps() -> None:
    table = [reading("gradient_rank", "bound", "head", 10.0), reading("gradient_rank", "effective_rank", "head", math.nan)]
    traces = named(gradient_bound(table))
    assert (traces["rank"]["y"], traces["effective rank"]["y"]) == ([None], [None])


def test_hover_tells_what_binds() -> None:
    (text, _) = named(gradient_bound(TABLE, reasons={"head": "10 classes <b>"}))["rank"]["text"]
    assert "rank 9 of 10 (90%)" in text
    assert "effective rank 4.5" in text
    assert text.endswith("bound by: 10 classes &lt;b&gt;")


def test_mean_over_layers_is_no_layer() -> None:
    figure = gradient_bound([*TABLE, reading("gradient_rank", "bound", "mean_over_layers", 50)])
    assert named(figure)["bound"]["x"] == [0, 1]


@pytest.mark.parametrize("runs", [None, ["second"]])
def test_nothing(runs: list[str] | None) -> None:
    with pytest.raises(ValueError, match=r"gradient_rank/bound/<layer>, got none\. Add GradientRankMonitor"):
        gradient_bound(TABLE if runs else [], runs)


@pytest.mark.parametrize(("layers", "runs", "width", "size"), [(60, 1, 1, 9), (61, 1, 0, 5), (30, 2, 1, 9), (31, 2, 0, 5)])
def test_outlines_and_marks_do_not_hide_narrow_bars(layers: int, runs: int, width: int, size: int) -> None:
    names = [(f"layer.{place}", f"run {run}") for place in range(layers) for run in range(runs)]
    traces = gradient_bound([row for layer, run in names for row in gradients(layer, 10, 0.5, 2, run)])["data"]
    assert {trace["marker"]["line"]["width"] for trace in traces if trace["name"] == "bound"} == {width}
    assert {trace["marker"]["size"] for trace in traces if trace["type"] == "scatter"} == {size}
