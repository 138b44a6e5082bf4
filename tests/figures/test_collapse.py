import math
from typing import Any

import pytest

from rank_callbacks.figures import Figure, collapse
from rank_callbacks.rows import Row
from tests.figures.tables import reading


def layer(
    name: str, distance: float, variation: float, decay: float, run: str = "run", step: int = 0, **bounds: float
) -> list[Row]:
    values = {"relative_distance_to_rank_k": distance, "tcv_ratio_input": variation, "weight_decay": decay, **bounds}
    return [reading("rank_collapse", measure, name, value, run, step) for measure, value in values.items()]


def marks(figure: Figure) -> dict[str, dict[str, Any]]:
    """By λ; of one run each."""
    return {trace["name"]: trace for trace in figure["data"] if trace.get("name", "").startswith("λ") and trace["x"] != [None]}


FIRST = layer("a", 0.5, 0.2, 0.01, "first")
SECOND = layer("a", 0.1, 0.3, 0.1, "second")


def test_distance_against_variation_over_weight_decay() -> None:
    found = marks(collapse(FIRST + SECOND))
    assert (found["λ = 0.01"]["x"], found["λ = 0.01"]["y"]) == (pytest.approx([20.0]), [0.5])
    assert (found["λ = 0.1"]["x"], found["λ = 0.1"]["y"]) == (pytest.approx([3.0]), [0.1])


def test_small_weight_decays_are_darker() -> None:
    found = marks(collapse(SECOND + FIRST + layer("a", 0.1, 0.1, 1.0, "third")))
    assert list(found) == ["λ = 0.01", "λ = 0.1", "λ = 1"]
    greens = [int(trace["marker"]["color"][3:5], 16) for trace in found.values()]
    assert greens == sorted(set(greens))


def test_latest_report() -> None:
    assert marks(collapse(FIRST + layer("a", 0.25, 0.2, 0.01, "first", step=9)))["λ = 0.01"]["y"] == [0.25]


def test_weight_decay_as_given_before_that_of_readings() -> None:
    assert marks(collapse(FIRST, {"first": 0.02}))["λ = 0.02"]["x"] == pytest.approx([10.0])


def test_without_weight_decay_beyond_the_others() -> None:
    figure = collapse(FIRST + layer("a", 0.9, 0.2, 0.0, "free"))
    assert marks(figure)["λ = 0"]["x"][0] > 20.0
    (text,) = figure["layout"]["annotations"]
    assert text["text"] == "λ = 0"
    assert text["x"] == pytest.approx(math.log10(marks(figure)["λ = 0"]["x"][0]))
    assert collapse(FIRST)["layout"]["annotations"] == []


def test_bounds_are_relative_to_the_norm() -> None:
    """‖W‖ = 2 / 0.5 = 4."""
    bounds = {"distance_to_rank_k": 2.0, "alignment_bound": 3.0, "certificate_joint": 8.0, "certificate_loose": 16.0}
    figure = collapse(layer("a", 0.5, 0.2, 0.01, **bounds))
    ticks = [trace for trace in figure["data"] if trace.get("marker", {}).get("symbol") == "line-ew" and trace["x"] != [None]]
    assert [trace["y"] for trace in ticks] == [[0.75], [2.0], [None], [4.0]]
    (stem,) = (trace for trace in figure["data"] if trace["mode"] == "lines")
    assert stem["y"] == [0.5, 2.0, None]


def test_loose_bounds_wait_in_the_legend() -> None:
    figure = collapse(layer("a", 0.5, 0.2, 0.01, distance_to_rank_k=2.0, alignment_bound=3.0, certificate_loose=16.0))
    waiting = {trace["name"] for trace in figure["data"] if trace.get("visible") == "legendonly" and "name" in trace}
    assert waiting == {"loose certificate"}


def test_layers_have_symbols() -> None:
    figure = collapse(layer("net.a", 0.5, 0.2, 0.01) + layer("net.b", 0.4, 0.2, 0.01))
    (points,) = marks(figure).values()
    keys = {trace["name"]: trace["marker"]["symbol"] for trace in figure["data"] if trace.get("name") in {"a", "b"}}
    assert points["marker"]["symbol"] == [keys["a"], keys["b"]]
    assert keys["a"] != keys["b"]


def test_seeds_share_a_legend_entry() -> None:
    figure = collapse(FIRST + layer("a", 0.4, 0.2, 0.01, "seed 2"))
    shown = [trace["showlegend"] for trace in figure["data"] if trace.get("name") == "λ = 0.01"]
    assert shown == [True, False]


def test_paths_lead_to_the_marks() -> None:
    table = layer("a", 0.9, 0.4, 0.01, step=0) + layer("a", 0.5, 0.2, 0.01, step=5)
    (path,) = (trace for trace in collapse(table, paths=True)["data"] if trace.get("line", {}).get("dash") == "dot")
    assert path["x"] == [pytest.approx(40.0), pytest.approx(20.0), None]
    assert path["y"] == [0.9, 0.5, None]


def test_head_that_has_rank_k_at_most_is_left_out() -> None:
    (points,) = marks(collapse(FIRST + layer("head", 0.0, 0.2, 0.01, "first"))).values()
    assert points["y"] == [0.5]


def test_nan_is_left_out() -> None:
    (points,) = marks(collapse(FIRST + layer("b", math.nan, 0.2, 0.01, "first"))).values()
    assert points["y"] == [0.5]


def test_nothing() -> None:
    with pytest.raises(ValueError, match="Add RankCollapseMonitor to the trainer's callbacks"):
        collapse([])


def test_nothing_that_can_be_placed() -> None:
    with pytest.raises(ValueError, match="tcv_ratio_input above 0 and a weight decay, got none"):
        collapse(FIRST[:1])


@pytest.mark.parametrize(("layers", "size", "opacity"), [(60, 12, 0.6), (61, 7, 0.25)], ids=str)
def test_marks_of_many_layers_are_small_and_their_lines_faint(layers: int, size: int, opacity: float) -> None:
    """Of several runs each is as crowded as it is alone, whatever it has reported before."""
    bounds = {"distance_to_rank_k": 2.0, "alignment_bound": 3.0}
    places = [(f"l.{place}", run, step) for place in range(layers) for run in "ab" for step in (0, 9)]
    table = [row for name, run, step in places for row in layer(name, 0.5, 0.2, 0.01, run, step, **bounds)]
    figure = collapse(table, paths=True)
    assert {trace["marker"]["size"] for trace in figure["data"] if trace.get("name") == "λ = 0.01"} == {size}
    assert {trace["opacity"] for trace in figure["data"] if trace["mode"] == "lines"} == {opacity}
