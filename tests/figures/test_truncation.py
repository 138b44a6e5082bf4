import json
import math

import pytest
from scipy.stats import t

from rank_callbacks.figures.truncation import (
    Truncated,
    accuracy_by_size,
    accuracy_by_tolerance,
    size_by_tolerance,
    truncations,
)
from rank_callbacks.rows import Row
from rank_callbacks.tags import Tag

# Two settings; of the second three seeds, of which one lacks a tolerance and one has no samples at another.
SWEEP = {
    "a": [Truncated(0.0, 0.9, 1.0), Truncated(0.1, 0.8, 0.6), Truncated(0.3, 0.5, 0.2)],
    "b1": [Truncated(0.0, 0.8, 1.0), Truncated(0.1, 0.8, 0.1), Truncated(0.3, 0.7, 0.04)],
    "b2": [Truncated(0.0, 0.9, 1.0), Truncated(0.1, 0.7, 0.3), Truncated(0.3, math.nan, 0.08)],
    "b3": [Truncated(0.0, 0.7, 1.0), Truncated(0.1, 0.9, 0.2)],
}
SETTINGS = {"a": 0.0, "b1": 0.01, "b2": 0.01, "b3": 0.01}


def rows(run: str, step: int, **values: float) -> list[Row]:
    return [Row(run, step, Tag("truncation", name.replace("__", "."), "network"), value) for name, value in values.items()]


def test_last_readings_by_run_and_tolerance() -> None:
    table = [
        *rows("a", 9, accuracy=0.9, accuracy_at_rtol_0__3=0.5, parameters_at_rtol_0__3=0.2, accuracy_at_rtol_0__05=0.8),
        *rows("a", 3, accuracy=0.1, accuracy_at_rtol_0__3=0.1, parameters_at_rtol_0__3=0.9),
        *rows("b", 3, parameters_at_rtol_0__3=0.9),
        Row("c", 3, Tag("weight_rank", "effective_rank", "fc"), 1.0),
    ]
    found = truncations(table)
    assert found["a"][0] == Truncated(0.0, 0.9, 1.0)
    assert found["a"][1][:2] == (0.05, 0.8)
    assert math.isnan(found["a"][1].share)
    assert found["a"][2] == Truncated(0.3, 0.5, 0.2)
    assert (found["b"], set(found)) == ([], {"a", "b"})


def test_tolerances_are_read_as_the_monitor_writes_them() -> None:
    for rtol in (1e-5, 0.1, 1 / 3, 2.0):
        names = {f"accuracy_at_rtol_{rtol:g}": 0.5, f"parameters_at_rtol_{rtol:g}": 0.25}
        (one,) = truncations([Row("a", 1, Tag("truncation", name, "network"), value) for name, value in names.items()])["a"]
        assert one == (float(f"{rtol:g}"), 0.5, 0.25)


def test_a_curve_a_setting_with_the_network_as_trained_at_its_left() -> None:
    figure = accuracy_by_tolerance(SWEEP, SETTINGS)
    one, seeds = figure["data"]
    assert (one["x"], one["y"], one["error_y"]["array"]) == ([0.0, 0.1, 0.3], [0.9, 0.8, 0.5], [None] * 3)
    assert seeds["y"] == pytest.approx([0.8, 0.8, 0.7])
    # s = 0.1 over √3 seeds; at 0.3 there is one.
    half = t.ppf(0.975, 2) * 0.1 / math.sqrt(3)
    assert seeds["error_y"]["array"] == [pytest.approx(half, rel=1e-3), pytest.approx(half, rel=1e-3), None]
    assert [line["name"] for line in figure["data"]] == ["weight decay = 0", "weight decay = 0.01"]
    assert "0.8 ± 0.25" in seeds["text"][1]
    assert "3 runs" in seeds["text"][1]
    assert "tolerance 0.3, 1 run<br>" in seeds["text"][2]
    assert "as trained" in seeds["text"][0]
    json.dumps(figure, allow_nan=False)


def test_tolerances_far_apart_are_on_a_log_axis_with_the_network_as_trained_under_0() -> None:
    truncated = [Truncated(rtol, 0.9, 0.5) for rtol in (0.0, 0.01, 0.1, 1.0)]
    figure = accuracy_by_tolerance({"a": truncated}, {"a": 0.1})
    assert figure["layout"]["xaxis"]["type"] == "log"
    assert figure["layout"]["xaxis"]["ticktext"] == ["0", "0.01", "0.1", "1"]
    assert figure["data"][0]["x"][0] == pytest.approx(0.001)


@pytest.mark.parametrize(("settings", "widest"), [(5, 1.05**4), (200, 1.25)])
def test_curves_stand_side_by_side_on_a_log_axis(settings: int, widest: float) -> None:
    truncated = {str(run): [Truncated(rtol, 0.9, 0.5) for rtol in (0.01, 0.1)] for run in range(settings)}
    lines = size_by_tolerance(truncated, {run: float(run) for run in truncated})["data"]
    first, last = lines[0]["x"], lines[-1]["x"]
    assert [right / left for left, right in zip(first, last, strict=True)] == pytest.approx([widest] * 2)
    assert [math.sqrt(left * right) for left, right in zip(first, last, strict=True)] == pytest.approx([0.01, 0.1])


def test_accuracy_against_size() -> None:
    figure = accuracy_by_size(SWEEP, SETTINGS)
    assert figure["data"][1]["x"] == pytest.approx([1, 0.2, 0.04])
    assert figure["data"][1]["y"] == pytest.approx([0.8, 0.8, 0.7])
    assert len(figure["data"][1]["text"]) == 3
    unknown = {"a": [Truncated(0.0, 0.9, 1.0), Truncated(0.1, 0.8, math.nan)]}
    assert accuracy_by_size(unknown, {"a": 0.1})["data"][0]["x"] == [1.0]


def test_size_needs_no_accuracy() -> None:
    sizes = {run: [one._replace(accuracy=math.nan) for one in of_run] for run, of_run in SWEEP.items()}
    figure = size_by_tolerance(sizes, SETTINGS)
    assert figure["data"][1]["y"] == pytest.approx([1, 0.2, 0.06])
    json.dumps(figure, allow_nan=False)


def test_runs_without_setting_are_left_out() -> None:
    (line,) = accuracy_by_tolerance(SWEEP, {"a": 0.0})["data"]
    assert line["y"] == [0.9, 0.8, 0.5]


def test_settings_are_text() -> None:
    (line,) = accuracy_by_tolerance({"a": SWEEP["a"]}, {"a": "<b>"}, "<i>x</i>")["data"]
    assert line["name"] == "&lt;i&gt;x&lt;/i&gt; = &lt;b&gt;"
    assert "<i>" not in line["text"][0]


@pytest.mark.parametrize("chart", [accuracy_by_tolerance, accuracy_by_size, size_by_tolerance])
def test_nothing_to_draw(chart) -> None:
    for truncated in ({}, {"b": SWEEP["a"]}, {"a": [Truncated(0.1, math.nan, math.nan)]}):
        with pytest.raises(ValueError, match="Add TruncationMonitor to the trainer's callbacks"):
            chart(truncated, {"a": 0.1})
