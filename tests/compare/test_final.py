import math

import pytest

from rank_callbacks.compare.final import accuracy_name, final_accuracy, final_table, in_order_of, last_readings
from rank_callbacks.compare.run import Run
from rank_callbacks.rows import Row
from rank_callbacks.tags import Tag
from tests.compare.sweeps import made_run, ranks, sweep_of


def test_one_row_a_run_in_order_of_the_setting() -> None:
    columns, rows = final_table(list(reversed(sweep_of())))
    assert columns[:4] == ["run", "weight_decay", "val_accuracy", "effective rank"]
    assert [row[:2] for row in rows] == [["wd=0", 0.0], ["wd=0.001", 0.001], ["wd=0.01", 0.01]]
    assert [row[3] for row in rows] == [30.0, 15.0, 10.0]
    assert {len(row) for row in rows} == {len(columns)}


def test_every_column() -> None:
    readings = {
        ("weight_rank", "effective_rank", "mean_over_layers"): 12.0,
        ("neural_collapse", "nc1_pinv", "penultimate"): 0.3,
        ("neural_collapse", "nc1_pinv", "mean_over_layers"): 0.7,
        ("rank_collapse", "tcv_ratio_input", "mean_over_layers"): 0.4,
        ("rank_collapse", "distance_to_rank_k", "mean_over_layers"): 1.5,
        ("rank_collapse", "certificate_joint", "mean_over_layers"): 2.5,
        ("monitor", "share_of_training", "weight_rank"): 0.01,
        ("monitor", "share_of_training", "rank_collapse"): 0.02,
    }
    columns, (row,) = final_table([made_run("a", 0.1, readings, 0.8)])
    assert columns[3:] == ["effective rank", "NC1", "TCV ratio", "distance to rank K", "joint certificate", "share of time"]
    assert row[:-1] == ["a", 0.1, 0.8, 12.0, 0.3, 0.4, 1.5, 2.5]
    assert row[-1] == pytest.approx(0.03)


def test_what_was_not_logged_is_none_and_nan_stays() -> None:
    _, (broken, nothing) = final_table([Run("a", "csv", {}, [], {}, {}), made_run("b", 1.0, ranks(math.nan, 1.0), math.nan)])
    assert nothing == ["a", *[None] * 8]
    assert math.isnan(float(broken[2] or 0))
    assert math.isnan(float(broken[3] or 0))


def test_mean_of_layers_where_no_mean_was_logged() -> None:
    readings = ranks(10.0, 20.0)
    del readings["weight_rank", "effective_rank", "mean_over_layers"]
    _, (row,) = final_table([made_run("a", 0.1, readings)])
    assert row[3] == pytest.approx(15)


def test_last_step_counts_and_of_a_restart_the_later() -> None:
    tag = Tag("weight_rank", "effective_rank", "a")
    rows = [Row("r", step, tag, value) for step, value in ((9, 1.0), (5, 2.0), (9, 3.0))]
    assert last_readings(Run("r", "csv", {}, rows, {}, {})) == {tag: 3.0}


def test_last_accuracy_whatever_the_order() -> None:
    run = Run("r", "csv", {}, [], {"acc": [(9, 0.9), (2, 0.2)]}, {})
    assert final_accuracy(run, "acc") == pytest.approx(0.9)
    assert final_accuracy(run, "other") is None
    assert final_accuracy(run, None) is None


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([["loss"]], None),
        ([["train_acc", "val_acc"]], "val_acc"),
        ([["val_acc", "test_Accuracy"]], "test_Accuracy"),
        ([["acc"], ["acc"], ["val_acc"]], "acc"),
        ([["train_acc"], ["train_acc", "val_acc"], ["train_acc", "val_acc"]], "val_acc"),
        ([["acc_a"], ["acc_b"], ["test_acc"]], "test_acc"),
    ],
)
def test_accuracy_is_found_by_name(names: list[list[str]], expected: str | None) -> None:
    runs = [Run(str(place), "csv", {}, [], {name: [(1, 0.5)] for name in of_run}, {}) for place, of_run in enumerate(names)]
    assert accuracy_name(runs) == expected


def test_order_has_numbers_then_text_then_none() -> None:
    values = {"a": "adam", "b": 10.0, "c": 2, "d": math.nan, "e": "sgd"}
    runs = [Run(name, "csv", {"x": value}, [], {}, {}) for name, value in values.items()] + [Run("f", "csv", {}, [], {}, {})]
    assert [run.name for run in in_order_of(runs, "x")] == ["c", "b", "a", "d", "e", "f"]
