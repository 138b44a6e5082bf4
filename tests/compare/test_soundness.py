import math

import numpy as np
import pytest

from rank_callbacks.compare.run import Run
from rank_callbacks.compare.soundness import problems, sound
from rank_callbacks.rows import Row
from rank_callbacks.tags import Tag
from tests.compare.sweeps import distances, made_run, ranks, sweep_of


def test_a_clean_sweep_has_no_problems() -> None:
    runs = sweep_of()
    assert problems(runs) == {run.name: [] for run in runs}
    assert sound(runs) == runs


def odd_run(**changes: object) -> Run:
    return sweep_of([0.1])[0]._replace(name="odd", **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (odd_run(notes=["still running"]), ["still running"]),
        (odd_run(hyperparameters={"lr": 0.1}), ["no hyperparameter weight_decay, but lr"]),
        (
            odd_run(hyperparameters={f"h{place}": 1.0 for place in range(22)}),
            [f"no hyperparameter weight_decay, but {', '.join(f'h{place}' for place in range(20))} and 2 more"],
        ),
        (odd_run(hyperparameters={"weight_decay": math.inf}), ["the hyperparameter weight_decay is inf"]),
        (odd_run(rows=[]), ["no readings of any monitor"]),
        (
            made_run("odd", 0.1, ranks(1.0, 2.0, layers=("net.a.weight", "net.c.weight"))),
            ["other layers than most runs: has net.c.weight, lacks net.b.weight"],
        ),
        (
            made_run("odd", 0.1, ranks(1.0, math.nan) | distances(0.1, (0.5, 0.2), (0.1, math.inf))),
            ["effective ranks that are NaN or infinite at the end: net.b.weight"],
        ),
    ],
    ids=["noted", "no setting", "no setting of many", "infinite setting", "empty", "other layers", "NaN"],
)
def test_what_is_wrong_is_named_and_left_out(run: Run, expected: list[str]) -> None:
    runs = [*sweep_of(), run]
    assert problems(runs)["odd"] == expected
    assert sound(runs) == runs[:-1]


def test_nan_that_has_passed_is_none_at_the_end() -> None:
    run = odd_run()
    early = [row._replace(step=1, value=math.nan) for row in run.rows]
    assert problems([run._replace(rows=[*early, *run.rows])])["odd"] == []


def test_mean_alone_that_is_nan_is_named() -> None:
    readings = ranks(1.0, 2.0) | {("weight_rank", "effective_rank", "mean_over_layers"): math.nan}
    assert problems([made_run("odd", 0.1, readings)])["odd"] == [
        "effective ranks that are NaN or infinite at the end: mean_over_layers"
    ]


def test_nan_of_another_measure_and_remarks_spoil_nothing() -> None:
    """A layer whose inputs have collapsed to a point has no TCV ratio."""
    run = made_run("odd", 0.1, ranks(1.0, 2.0) | distances(0.1, (0.5, math.nan), (0.1, math.inf)))
    runs = [*sweep_of(), run._replace(remarks=["1 of its readings are NaN"])]
    assert problems(runs)["odd"] == []
    assert sound(runs) == runs


def test_a_training_that_two_loggers_wrote_counts_once() -> None:
    """Float32 in one of them; times are of the process."""
    (run,) = sweep_of([0.1])
    timed = [run._replace(rows=[*run.rows, Row(run.name, 9, Tag("monitor", "seconds", "all"), time)]) for time in (1.0, 2.0)]
    again = timed[1]._replace(
        name="again", kind="wandb", rows=[row._replace(value=np.float32(row.value).item()) for row in timed[1].rows]
    )
    runs = [*sweep_of(), timed[0], again]
    assert problems(runs)["again"] == ["the readings and settings of wd=0.1 again: the same training, which counts once"]
    assert sound(runs) == runs[:-1]
    seeds = [
        each._replace(hyperparameters={**each.hyperparameters, "seed": name})
        for each, name in zip(runs[3:], "ab", strict=True)
    ]
    assert sound([*sweep_of(), *seeds]) == [*sweep_of(), *seeds]


def test_a_setting_that_one_logger_alone_was_told_does_not_count() -> None:
    """RankDashboard adds the optimizer's weight decay to TensorBoard's hyperparameters."""
    (run,) = sweep_of([0.1])
    table = run._replace(name="table", hyperparameters={"weight_decay": 0.1, "wd": 0.1})
    again = ["the readings and settings of wd=0.1 again: the same training, which counts once"]
    for both in ([run, table], [run, table._replace(hyperparameters={"weight_decay": 0.1})]):
        assert list(problems(both).values()) == [[], again]
    other = table._replace(hyperparameters={"weight_decay": 0.1, "wd": 0.2}, name="other")
    assert list(problems([table, other]).values()) == [[], []]
    for one in (table, other):
        assert problems([table, other, one._replace(name="third")])["third"] == [again[0].replace("wd=0.1", one.name)]


def test_a_copy_of_a_run_that_is_not_compared_is() -> None:
    failed = odd_run(notes=["still running"])
    assert problems([*sweep_of(), failed, odd_run()._replace(name="whole")])["whole"] == []
