import json
import math
from typing import Any

import plotly.graph_objects as go
import pytest
import torch

from rank_callbacks import FeatureRankMonitor
from rank_callbacks.figures import depth_profile
from rank_callbacks.rows import Row
from rank_callbacks.tags import Tag
from tests.figures.tables import depths, in_turn, marks, readings
from tests.models import CLASSES, Classifier, two_layers
from tests.training import Recorder, fit


def drawn(figure: Any, step: int) -> dict[str, dict[str, float | None]]:
    """What the slider shows at a step: by run, then by layer in order."""
    (frame,) = (frame for frame in figure["frames"] if frame["name"] == str(step))
    lines = zip(figure["data"], frame["data"], strict=True)
    return {line["name"]: dict(zip(line["text"], now["y"], strict=True)) for line, now in lines}


STEM, BLOCK, HEAD = {"stem": 8.0}, {"block": 5.0}, {"head": 3.0}


class TestOrder:
    def test_by_depth(self) -> None:
        """Whatever the order and the run in which readings come."""
        figure = depth_profile(readings({4: HEAD | STEM | BLOCK}) + depths("stem", "block", "head"))
        assert list(drawn(figure, 4)["run"].items()) == [("stem", 8.0), ("block", 5.0), ("head", 3.0)]
        assert figure["data"][0]["x"] == [0, 1, 2]

    def test_by_number_without_depths(self) -> None:
        figure = depth_profile(readings({4: {"block.10": 1.0, "block.9": 2.0, "block.1": 3.0}}))
        assert list(drawn(figure, 4)["run"]) == ["block.1", "block.9", "block.10"]

    def test_by_depths_of_another_group(self) -> None:
        table = readings({4: HEAD | STEM}, group="network_rank", measure="jacobian_rank") + depths("stem", "head")
        assert list(drawn(depth_profile(table, "network_rank", "jacobian_rank"), 4)["run"]) == ["stem", "head"]

    def test_by_places_that_are_given(self) -> None:
        figure = depth_profile(readings({4: HEAD | STEM}), places={"stem": 0.0, "head": 1.0})
        assert list(drawn(figure, 4)["run"]) == ["stem", "head"]

    def test_layers_without_a_depth_follow(self) -> None:
        table = depths("stem", "head") + readings({4: BLOCK | HEAD | STEM})
        assert list(drawn(depth_profile(table), 4)["run"]) == ["stem", "head", "block"]


class TestFrames:
    def test_one_a_step_in_order(self) -> None:
        figure = depth_profile(readings({10: STEM, 0: STEM, 5: STEM}))
        assert [frame["name"] for frame in figure["frames"]] == ["0", "5", "10"]
        (slider,) = figure["layout"]["sliders"]
        assert [move["label"] for move in slider["steps"]] == ["0", "5", "10"]
        assert [move["args"][0] for move in slider["steps"]] == [["0"], ["5"], ["10"]]

    def test_of_many_steps_a_hundred_with_the_first_and_the_last(self) -> None:
        steps = [int(frame["name"]) for frame in depth_profile(readings(dict.fromkeys(range(1000), STEM)))["frames"]]
        assert len(steps) == 100
        assert (steps[0], steps[-1]) == (0, 999)
        assert steps == sorted(set(steps))

    def test_last_is_shown_first(self) -> None:
        figure = depth_profile(readings({5: {"stem": 2.0}, 0: {"stem": 7.0}}))
        assert [line["y"] for line in figure["data"]] == [[2.0]]
        assert figure["layout"]["sliders"][0]["active"] == 1

    def test_one_axis_holds_them_all(self) -> None:
        figure = depth_profile(readings({0: {"stem": 40.0, "head": math.nan}, 5: {"stem": 2.0, "head": 1.0}}))
        low, high = figure["layout"]["yaxis"]["range"]
        assert low == 0
        assert 40 < high < 45

    def test_runs_are_lines_that_differ(self) -> None:
        figure = depth_profile(readings({0: STEM | HEAD, 5: STEM}, "first") + readings({0: HEAD, 5: HEAD}, "second"))
        assert [line["name"] for line in figure["data"]] == ["first", "second"]
        assert figure["data"][0]["line"] != figure["data"][1]["line"]
        assert figure["layout"]["showlegend"]
        assert not depth_profile(readings({0: STEM}))["layout"]["showlegend"]

    def test_run_without_a_reading_keeps_its_last(self) -> None:
        """And has none before its first, nor of another run's layers."""
        table = readings({0: {"stem": 1.0}, 10: {"stem": 2.0}}, "first") + readings({5: {"head": 3.0}}, "second")
        figure = depth_profile(table + depths("stem", "head"))
        assert drawn(figure, 0) == {"first": {"stem": 1.0, "head": None}, "second": {"stem": None, "head": None}}
        assert drawn(figure, 5) == {"first": {"stem": 1.0, "head": None}, "second": {"stem": None, "head": 3.0}}
        assert drawn(figure, 10) == {"first": {"stem": 2.0, "head": None}, "second": {"stem": None, "head": 3.0}}


class TestReadings:
    def test_of_the_measure_and_group_alone(self) -> None:
        """Of layers, not of their means."""
        table = readings({0: STEM | {"mean_over_layers": 9.0, "min_over_layers": 9.0, "max_over_layers": 9.0}})
        table += readings({1: {"other": 9.0}}, measure="stable_rank") + readings({2: {"other": 9.0}}, group="weight_rank")
        figure = depth_profile(table)
        assert [frame["name"] for frame in figure["frames"]] == ["0"]
        assert drawn(figure, 0) == {"run": {"stem": 8.0}}

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_not_finite_is_a_gap(self, value: float) -> None:
        figure = depth_profile(readings({0: STEM | {"block": value} | HEAD}) + depths("stem", "block", "head"))
        assert drawn(figure, 0) == {"run": {"stem": 8.0, "block": None, "head": 3.0}}
        assert figure["layout"]["yaxis"]["range"] == pytest.approx([0, 8.4])

    def test_nothing_but_nan_is_drawn(self) -> None:
        figure = depth_profile(readings({0: {"stem": math.nan}}))
        assert figure["layout"]["yaxis"]["range"] == pytest.approx([0, 1.05])

    def test_generator(self) -> None:
        assert len(depth_profile(row for row in readings({0: STEM}))["frames"]) == 1

    def test_those_of_the_monitor(self) -> None:
        """In the order of the network, from the rows that a logger has."""

        class Net(Classifier):
            def forward(self, inputs: torch.Tensor) -> torch.Tensor:
                return self.network(inputs)

        recorder, monitor = Recorder(), FeatureRankMonitor(every_n_steps=2, window=1)
        fit(Net(two_layers(), torch.randn(12, 6)), monitor, logger=recorder, max_epochs=2)
        rows = reversed(recorder.readings("feature_rank").items())
        figure = depth_profile([Row("run", step, Tag.parse(tag), value) for (step, tag), value in rows])
        assert [frame["name"] for frame in figure["frames"]] == ["2", "5"]
        assert list(drawn(figure, 2)["run"]) == ["network.0", "network.1", "network.2"]
        assert drawn(figure, 2)["run"]["network.2"] <= CLASSES


@pytest.mark.parametrize("table", [[], readings({0: STEM}, measure="stable_rank")], ids=["none", "of another measure"])
def test_no_such_readings(table: list[Row]) -> None:
    with pytest.raises(ValueError, match="Expected readings with tags feature_rank/effective_rank/<layer>, got none"):
        depth_profile(table)


def test_error_says_which_callback_to_add() -> None:
    with pytest.raises(ValueError, match="Add FeatureRankMonitor to the trainer's callbacks"):
        depth_profile(readings({0: STEM}, group="weight_rank"))


def test_error_says_which_measures_there_are() -> None:
    table = readings({0: STEM}, measure="stable_rank") + readings({0: STEM}, measure="rankme")
    with pytest.raises(ValueError, match=r"The runs have these measures of feature_rank: rankme, stable_rank\."):
        depth_profile(table)


class TestManyLayers:
    LAYERS = tuple(f"model.encoder.layers.{i}.attention.weight" for i in range(200))

    def test_all_are_drawn_and_some_are_labelled(self) -> None:
        figure = depth_profile(readings({0: dict.fromkeys(self.LAYERS, 1.0)}))
        (line,), axis = figure["data"], figure["layout"]["xaxis"]
        assert line["text"] == list(self.LAYERS)
        assert line["x"] == list(range(200))
        assert (axis["tickvals"][0], axis["tickvals"][-1]) == (0, 199)
        assert len(axis["tickvals"]) == len(axis["ticktext"]) <= 40

    def test_labels_leave_out_what_all_names_share(self) -> None:
        axis = depth_profile(readings({0: dict.fromkeys(self.LAYERS, 1.0)}))["layout"]["xaxis"]
        assert axis["ticktext"] == [str(place) for place in axis["tickvals"]]


def test_runs_can_be_told_apart() -> None:
    """28 of them, by colour and dash."""
    figure = depth_profile(row for place in range(28) for row in readings({0: STEM}, f"run {place}"))
    assert len({(line["line"]["color"], line["line"]["dash"]) for line in figure["data"]}) == 28


def test_negative_values_are_in_the_chart() -> None:
    figure = depth_profile(readings({0: {"stem": -1.0, "head": 1.0}}))
    assert figure["layout"]["yaxis"]["range"] == pytest.approx([-1.05, 1.05])


def test_hover_says_what_the_measure_is() -> None:
    (line,) = depth_profile(readings({0: STEM}))["data"]
    assert "Exponential of the entropy of the singular values." in line["hovertemplate"]


def test_play_goes_through_all_steps_and_pause_stops() -> None:
    (menu,) = depth_profile(readings({0: STEM, 1: STEM}))["layout"]["updatemenus"]
    assert [(button["method"], button["args"][0]) for button in menu["buttons"]] == [("animate", None), ("animate", [None])]


def test_titles_say_what_is_drawn() -> None:
    table = readings({0: STEM}, measure="jacobian_rank", group="network_rank")
    layout = depth_profile(table, "network_rank", "jacobian_rank")["layout"]
    assert layout["title"]["text"] == layout["yaxis"]["title"]["text"]
    assert "jacobian rank" in layout["title"]["text"].lower()
    assert layout["xaxis"]["title"]["text"] == "layer, from input to output"


def test_plotly_takes_it() -> None:
    """Which refuses what it does not know."""
    figure = depth_profile(readings({0: STEM | {"block": math.nan}, 1: STEM}) + readings({1: HEAD}, "second"))
    shown = json.loads(go.Figure(figure).to_json())
    assert len(shown["frames"]) == 2
    assert json.loads(json.dumps(figure, allow_nan=False)) == figure


class TestInTurn:
    """Layers that are not read at each report."""

    def drawn(self, *tables: list[Row], measure: str = "effective_rank") -> Any:
        return depth_profile([row for table in tables for row in table], "weight_rank", measure)

    def test_layer_keeps_its_last_reading_and_is_hollow(self) -> None:
        figure = self.drawn(in_turn())
        frames = {frame["name"]: frame["data"][0] for frame in figure["frames"]}
        assert {step: frame["y"] for step, frame in frames.items()} == {
            "0": [9, 6, 3],
            "50": [8, 6, 3],
            "100": [8, 5, 3],
            "150": [7, 4, 2],
        }
        hollow = {step: [symbol == 100 for symbol in frame["marker"]["symbol"]] for step, frame in frames.items()}
        assert hollow == {
            "0": [False] * 3,
            "50": [False, True, True],
            "100": [True, False, True],
            "150": [False] * 3,
        }
        assert frames["100"]["customdata"] == [" (step 50)", "", " (step 0)"]
        assert "%{customdata}" in figure["data"][0]["hovertemplate"]

    def test_title_is_of_the_step_that_is_shown(self) -> None:
        titles = [frame["layout"]["title"]["text"] for frame in self.drawn(in_turn())["frames"]]
        assert [title.partition("effective rank: ")[2].removesuffix("</span>") for title in titles] == [
            "",
            "oldest spectrum 50 steps old",
            "oldest spectrum 100 steps old",
            "",
        ]
        figure = self.drawn([row for row in in_turn() if row.step <= 100])
        assert figure["layout"]["title"]["text"] == titles[2]
        assert figure["layout"]["sliders"][0]["steps"][0]["args"][1]["frame"]["redraw"]  # or the title would stay

    def test_nothing_is_marked_where_all_is_exact(self) -> None:
        """The last report, which has no mark, is whole."""
        table = readings({0: STEM | HEAD, 5: STEM | HEAD}, group="weight_rank")
        figure = self.drawn(table)
        assert figure["layout"]["title"]["text"] == "effective rank (weight rank)"
        assert not any("layout" in frame or {"marker", "customdata"} & set(frame["data"][0]) for frame in figure["frames"])
        assert not figure["layout"]["sliders"][0]["steps"][0]["args"][1]["frame"]["redraw"]

    def test_cadence_of_another_run_makes_no_mark_hollow(self) -> None:
        """But hover tells the step."""
        other = readings({0: STEM, 100: STEM}, "slow", group="weight_rank")
        figure = self.drawn(readings({0: STEM, 50: STEM, 100: STEM}, "quick", group="weight_rank"), other)
        quick, slow = figure["frames"][1]["data"]
        assert (quick.keys(), slow.keys()) == ({"y"}, {"y", "customdata"})
        assert slow["customdata"] == [" (step 0)"]

    def test_reading_between_two_reports_that_thinning_left(self) -> None:
        """Is shown at the next, and makes no step of its own."""
        table = [row for row in in_turn() if row.step != 50 or row.tag.layer == "a"]
        figure = self.drawn(table)
        assert [frame["name"] for frame in figure["frames"]] == ["0", "100", "150"]
        assert figure["frames"][1]["data"][0]["customdata"] == [" (step 50)", "", " (step 0)"]

    def test_runs_are_named_where_there_are_several(self) -> None:
        table = [row for row in in_turn("<b>", "stable_rank") if row.step <= 100]
        exact = [row._replace(run="exact") for row in table if row.tag.group != "monitor"]
        title = self.drawn(table, exact, measure="stable_rank")["layout"]["title"]["text"]
        assert "stable rank: upper bound in 2 of 3 layers (&lt;b&gt;)" in title

    def test_layers_that_were_never_read_are_counted(self) -> None:
        """A model so large that its first report had no time for most of its layers."""
        figure = self.drawn(readings({0: {"a": 1.0}}, group="weight_rank"), marks(4, 0, 0))
        assert "effective rank: 4 layers not read yet" in figure["layout"]["title"]["text"]

    def test_plotly_takes_it(self) -> None:
        figure = self.drawn(in_turn())
        assert len(go.Figure(figure).frames) == 4
        assert json.loads(json.dumps(figure, allow_nan=False)) == figure


def test_layer_far_beyond_the_others_does_not_stretch_the_axis() -> None:
    """The exponent of an orthogonal matrix is some 10¹⁵, of others 2 to 6."""
    layers = {f"layer.{place}": 2.0 + place for place in range(4)}
    figure = depth_profile(readings({0: layers, 9: layers | {"layer.0": 2e15}}, measure="alpha"), measure="alpha")
    assert figure["layout"]["yaxis"]["range"] == [0, pytest.approx(1.05 * 5)]
    assert figure["layout"]["yaxis"]["title"]["text"] == "alpha (feature rank), 1 beyond the axis"
    assert drawn(figure, 9)["run"]["layer.0"] == pytest.approx(2e15)
