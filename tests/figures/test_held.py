import math

from rank_callbacks.figures.held import Held, last_snapshots, report_steps, snapshots
from rank_callbacks.figures.selection import select
from rank_callbacks.rows import Row
from tests.figures.tables import in_turn, marks, readings

GROUP = ("weight_rank", "effective_rank")


def steps_of(rows: list[Row]) -> list[int]:
    return report_steps(rows, select(rows, *GROUP), *GROUP)["run"]


def test_latest_reading_at_or_before_each_step() -> None:
    """As a search of the whole history finds it."""
    of_run = {0: {"a": 1.0, "b": 2.0}, 3: {"b": 4.0}, 7: {"a": math.nan}, 9: {"c": 5.0}}
    for step, now in snapshots(of_run, [0, 3, 5, 7, 9], range(12)).items():
        expected = {}
        for layer in "abc":
            read = [before for before, report in of_run.items() if before <= step and layer in report]
            if read:
                expected[layer] = Held(of_run[max(read)][layer], max(read))
        assert now is not None
        assert str(now.layers) == str(expected)
        assert now.report == max(report for report in (0, 3, 5, 7, 9) if report <= step)


def test_nothing_before_the_first_report() -> None:
    assert snapshots({5: {"a": 1.0}}, [5], [0, 4]) == {0: None, 4: None}


def test_a_layer_is_old_once_its_run_has_reported_without_it() -> None:
    now = snapshots({0: {"a": 1.0}, 1500: {"b": 1.0}}, [0, 1500], [2000])[2000]
    assert now is not None
    assert [now.old(layer) for layer in "abc"] == [True, False, False]
    assert [now.when(layer) for layer in "abc"] == [" (step 0)", "", ""]
    assert [now.when(layer, 2000) for layer in "abc"] == [" (step 0)", " (step 1,500)", ""]
    assert now.seen("run") == ("run", 1500, 2, 1)


def test_every_step_with_a_reading_is_a_report() -> None:
    assert steps_of(readings({9: {"a": 1.0}, 0: {"b": 1.0}}, group="weight_rank")) == [0, 9]


def test_reports_of_a_run_that_says_how_exact_they_are() -> None:
    """Also one for which no layer had its turn; and none where only a reading is left of thinned logs."""
    assert steps_of(in_turn()) == [0, 50, 100, 150]
    assert steps_of(in_turn() + marks(3, 125, 125)) == [0, 50, 100, 125, 150]
    assert steps_of(in_turn() + readings({70: {"a": 1.0}}, group="weight_rank")) == [0, 50, 100, 150]
    assert steps_of(in_turn() + readings({170: {"a": 1.0}}, group="weight_rank")) == [0, 50, 100, 150, 170]


def test_marks_of_another_group_tell_nothing() -> None:
    assert steps_of(readings({9: {"a": 1.0}}, group="weight_rank") + marks(1, 1, 5, group="gradient_rank")) == [9]


def test_reading_between_two_reports_is_no_report() -> None:
    now = snapshots({0: {"a": 1.0}, 70: {"b": 1.0}}, [0, 100], [80])[80]
    assert now is not None
    assert (now.report, now.layers["b"].step, now.old("a")) == (0, 70, False)


def test_last_report_of_each_run() -> None:
    rows = in_turn("first") + [row for row in in_turn("second") if row.step <= 50]
    last = last_snapshots(rows, select(rows, *GROUP), *GROUP)
    assert {run: now.report for run, now in last.items()} == {"first": 150, "second": 50}
    assert last["second"].layers == {"a": Held(8.0, 50), "b": Held(6.0, 0), "c": Held(3.0, 0)}
