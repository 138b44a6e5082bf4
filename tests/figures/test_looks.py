import math

import pytest

from rank_callbacks.figures.looks import COLOURS, axis, finite, log_axis, plain, ramp, reach, run_look


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_what_json_does_not_know_is_none(value: float | None) -> None:
    assert finite(value) is None


def test_a_number_stays() -> None:
    assert finite(0.5) == pytest.approx(0.5)


@pytest.mark.parametrize(("text", "shown"), [("<b>x</b>", "&lt;b&gt;x&lt;/b&gt;"), ("&lt;", "&amp;lt;"), ("wd=0.1", "wd=0.1")])
def test_plain(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_looks_of_runs_differ() -> None:
    looks = {(look["color"], look["dash"]) for look in map(run_look, range(28))}
    assert len(looks) == 28
    assert run_look(28) == run_look(0)


def test_no_colour_is_that_of_a_page() -> None:
    """White and black, by the brightness of Rec. 709 with linear channels taken as they are."""
    for colour in COLOURS:
        red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        assert 0.15 < 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.85


def test_ramp_is_dark_to_light_and_one_value_has_a_colour() -> None:
    colours = [ramp(place, 7) for place in range(7)]
    assert len(set(colours)) == 7
    assert ramp(0, 1) == colours[0]


class TestLogAxis:
    def test_powers_of_ten_over_many_decades(self) -> None:
        assert log_axis("x", [1e-6, 1.0])["dtick"] == 1

    def test_two_and_five_between_them_over_few(self) -> None:
        assert log_axis("x", [0.01, None, 1.0])["dtick"] == "D2"

    @pytest.mark.parametrize("values", [[1.0, 2.0], [], [None, 0.0]], ids=str)
    def test_plotly_chooses_within_one(self, values: list[float | None]) -> None:
        assert "dtick" not in log_axis("x", values)


def test_options_of_an_axis_are_kept() -> None:
    assert axis("x", nticks=3)["nticks"] == 3


class TestReach:
    def test_peaks_count_and_not_how_often_a_line_is_low(self) -> None:
        """A gradient whose norm falls by 10⁴ in all layers was not far beyond the others."""
        assert reach([[5000.0] + [0.5] * 9] * 3) == (5000.0, 0)

    @pytest.mark.parametrize("high", [999.0, 1000.0])
    def test_a_thousand_times_is_not_yet_far(self, high: float) -> None:
        assert reach([[1.0], [1.0], [high]]) == (high, 0)

    @pytest.mark.parametrize("lines", [[], [[]], [[None]]], ids=str)
    def test_nothing(self, lines: list[list[float | None]]) -> None:
        assert reach(lines) == (1.0, 0)
