import json
import math
from itertools import pairwise

import pytest

from rank_callbacks.figures.layer_sweep import layer_sweep
from rank_callbacks.rows import Row
from tests.figures.tables import in_turn, reading


def rank(run: str, value: float, layer: str = "net.x", step: int = 9) -> Row:
    return reading("weight_rank", "effective_rank", layer, value, run, step)


SETTINGS = {"a": 0.0, "b": 0.01, "c": 0.1, "c2": 0.1}
TABLE = [rank("a", 40.0), rank("b", 30.0), rank("c", 12.0), rank("c2", 8.0)]


def test_mean_and_interval_over_seeds() -> None:
    (line,) = layer_sweep(TABLE, SETTINGS)["data"]
    assert line["y"] == [40.0, None, 30.0, 10.0]
    assert line["error_y"]["array"][:3] == [None, None, None]
    # s = 4/√2 over √2 runs, and t of one degree of freedom.
    assert line["error_y"]["array"][3] == pytest.approx(12.706 * 2)
    assert "10 ± 25, 2 runs" in line["text"][3]


def test_a_line_a_layer() -> None:
    figure = layer_sweep([*TABLE, *(rank(run, 5.0, "net.y") for run in SETTINGS)], SETTINGS)
    assert [line["name"] for line in figure["data"]] == ["x", "y"]
    json.dumps(figure, allow_nan=False)


def test_lines_are_in_the_order_of_the_network() -> None:
    table = [rank(run, 5.0, layer) for run in SETTINGS for layer in ("net.head", "net.hidden2", "net.hidden1")]
    places = {"net.hidden1": 0.0, "net.hidden2": 1.0, "net.head": 2.0}
    assert [line["name"] for line in layer_sweep(table, SETTINGS, places=places)["data"]] == ["hidden1", "hidden2", "head"]


def test_last_reading_counts_and_nan_is_none() -> None:
    table = [*TABLE, rank("b", 3.0, step=20), rank("c2", math.nan, step=20)]
    (line,) = layer_sweep(table, SETTINGS)["data"]
    assert line["y"][2:] == [3.0, 12.0]


def test_run_without_setting_is_left_out() -> None:
    (line,) = layer_sweep(TABLE, {"a": 0.2, "b": 0.3})["data"]
    assert (line["x"], line["y"]) == ([0.2, 0.3], [40.0, 30.0])


def test_markup_is_text() -> None:
    (line,) = layer_sweep([rank("a", 1.0, "<b>x</b>")], {"a": "<i>"})["data"]
    assert line["name"] == "&lt;b&gt;x&lt;/b&gt;"
    assert line["x"] == ["&lt;i&gt;"]


def test_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="Add WeightRankMonitor"):
        layer_sweep([], SETTINGS)


def test_layers_in_turn() -> None:
    """The last reading of each, hollow where its run has reported since."""
    table = [row for row in in_turn("a") if row.step <= 100] + in_turn("b")
    figure = layer_sweep(table, {"a": 1.0, "b": 2.0})
    lines = {line["name"]: line for line in figure["data"]}
    assert {name: line["y"] for name, line in lines.items()} == {"a": [8, 7], "b": [5, 4], "c": [3, 2]}
    assert lines["a"]["marker"]["symbol"] == [100, 0]
    assert "symbol" not in lines["b"]["marker"]
    assert lines["a"]["text"][0].startswith("<b>a</b>: 8, 1 run (step 50)<br>")
    assert "effective rank: oldest spectrum 100 steps old (a)" in figure["layout"]["title"]["text"]


def test_layer_far_beyond_the_others_does_not_stretch_the_axis() -> None:
    layers = {"net.a": 2.0, "net.b": 3.0, "net.c": 4.0, "net.d": 2e15}
    heights = layer_sweep([rank("a", value, layer) for layer, value in layers.items()], SETTINGS)["layout"]["yaxis"]
    assert heights["range"] == [0, pytest.approx(1.05 * 4)]
    assert heights["title"]["text"] == "effective rank, 1 beyond the axis"
    assert "range" not in layer_sweep(TABLE, SETTINGS)["layout"]["yaxis"]


@pytest.mark.parametrize(("count", "colours", "width"), [(28, 7, 2), (29, 7, 1), (150, 7, 1)])
def test_many_layers_are_thin_lines_in_the_order_of_the_network(count: int, colours: int, width: int) -> None:
    lines = layer_sweep([rank("a", 5.0, f"net.{place}") for place in range(count)], SETTINGS)["data"]
    looks = [line["line"]["color"] for line in lines]
    assert len(set(looks)) == colours
    assert {line["line"]["width"] for line in lines} == {width}
    changes = sum(one != other for one, other in pairwise(looks))
    assert changes == (colours - 1 if width == 1 else count - 1)
