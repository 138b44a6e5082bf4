import math

import pytest

from rank_callbacks.figures import Figure, heatmap
from tests.figures.tables import depths, in_turn, readings

TABLE = readings({0: {"head": 4.0, "stem": 10.0}, 50: {"head": 4.0, "stem": 5.0}, 60: {"head": 1.0, "stem": 2.0}})


def drawn(figure: Figure) -> dict[tuple[str, str], tuple[float | None, float | None]]:
    """Share and value by layer and step."""
    (cells,) = figure["data"]
    return {
        (layer, step): (share, value)
        for layer, shares, values in zip(cells["y"], cells["z"], cells["customdata"], strict=True)
        for step, share, value in zip(cells["x"], shares, values, strict=True)
    }


def of(table: list, run: str = "run") -> Figure:
    return heatmap(table, run, "feature_rank", "effective_rank")


def test_share_of_the_largest_of_the_layer_and_value() -> None:
    assert drawn(of(TABLE)) == {
        ("head", "0"): (1.0, 4.0),
        ("head", "50"): (1.0, 4.0),
        ("head", "60"): (0.25, 1.0),
        ("stem", "0"): (1.0, 10.0),
        ("stem", "50"): (0.5, 5.0),
        ("stem", "60"): (0.2, 2.0),
    }


def test_layers_from_input_at_the_top() -> None:
    figure = of(TABLE + [row._replace(run="run") for row in depths("stem", "head")])
    assert figure["data"][0]["y"] == ["stem", "head"]
    assert figure["layout"]["yaxis"]["autorange"] == "reversed"


def test_of_one_run() -> None:
    table = TABLE + readings({70: {"other": 9.0}}, "second")
    assert drawn(of(table)) == drawn(of(TABLE))


def test_means_are_no_layers() -> None:
    assert drawn(of(TABLE + readings({0: {"mean_over_layers": 9.0}}))) == drawn(of(TABLE))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_not_finite_and_absent_so_far_are_gaps(value: float) -> None:
    cells = drawn(of(readings({0: {"a": 2.0}, 1: {"a": value, "b": 1.0}})))
    assert cells == {("a", "0"): (1.0, 2.0), ("a", "1"): (None, None), ("b", "0"): (None, None), ("b", "1"): (1.0, 1.0)}


class TestInTurn:
    """Layers that are not read at each report."""

    def test_last_reading_is_pale_and_says_its_step(self) -> None:
        read, pale = heatmap(in_turn(), "run", "weight_rank", "effective_rank")["data"]
        assert read["x"] == pale["x"] == ["0", "50", "100", "150"]
        assert read["customdata"] == pale["customdata"] == [[9, 8, 8, 7], [6, 6, 5, 4], [3, 3, 3, 2]]
        assert [[value is None for value in row] for row in pale["z"]] == [
            [True, True, False, True],
            [True, False, True, True],
            [True, False, False, True],
        ]
        assert pale["text"] == [["", "", " (step 50)", ""], ["", " (step 0)", "", ""], ["", " (step 0)", " (step 0)", ""]]
        for row, other in zip(read["z"], pale["z"], strict=True):
            assert [(one is None) + (two is None) for one, two in zip(row, other, strict=True)] == [1, 1, 1, 1]
        assert pale["opacity"] < 1
        assert pale["meta"] == read["meta"]
        assert "%{text}" in pale["hovertemplate"]

    def test_title_says_how_many_reports_are_not_exact(self) -> None:
        title = heatmap(in_turn(), "run", "weight_rank", "effective_rank")["layout"]["title"]["text"]
        assert "effective rank: oldest spectrum 50 to 100 steps old at 2 of 4 reports" in title
        table = [
            row._replace(tag=row.tag._replace(measure="stable_rank")) if row.tag.group != "monitor" else row
            for row in in_turn()
        ]
        title = heatmap(table, "run", "weight_rank", "stable_rank")["layout"]["title"]["text"]
        assert "stable rank: upper bound in 2 of 3 layers at 2 of 4 reports" in title

    def test_a_nan_is_not_covered_by_an_older_reading(self) -> None:
        table = readings({0: {"a": 2.0, "b": 1.0}, 1: {"a": math.nan, "b": 1.0}, 2: {"b": 1.0}})
        (read, pale) = of(table)["data"]
        assert [row[0] for row in (read["z"], pale["z"])] == [[1.0, None, None], [None, None, None]]


def test_zero_throughout_is_dark() -> None:
    assert drawn(of(readings({0: {"a": 0.0}}))) == {("a", "0"): (0.0, 0.0)}


def test_negative_values_have_colours_as_well() -> None:
    figure = of(readings({0: {"a": -2.0}, 1: {"a": 1.0}}))
    assert figure["data"][0]["z"] == [[-1.0, 0.5]]
    assert figure["data"][0]["zmin"] == -1


def test_of_many_steps_the_first_and_the_last_are_kept() -> None:
    (cells,) = of(readings({step: {"a": 1.0} for step in range(1000)}))["data"]
    assert len(cells["x"]) == len(cells["z"][0]) <= 300
    assert (cells["x"][0], cells["x"][-1]) == ("0", "999")


def test_names_as_they_are_for_a_click() -> None:
    (cells,) = of(readings({0: {"<b>": 1.0}}))["data"]
    assert (cells["y"], cells["meta"]) == (["&lt;b&gt;"], {"layers": ["<b>"]})


def test_no_such_run() -> None:
    with pytest.raises(ValueError, match=r"Expected the name of a run, got 'none'\. Choose from run\."):
        of(TABLE, "none")


def test_nothing_at_all() -> None:
    with pytest.raises(ValueError, match="Add FeatureRankMonitor"):
        of([])
