import math

import pytest

from rank_callbacks.compare.run import Run
from rank_callbacks.compare.soundness import problems, sound
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
        (odd_run(hyperparameters={"lr": 0.1}), ["no hyperparameter weight_decay"]),
        (odd_run(hyperparameters={"weight_decay": math.inf}), ["the hyperparameter weight_decay is inf"]),
        (odd_run(rows=[]), ["no readings of any monitor"]),
        (
            made_run("odd", 0.1, ranks(1.0, 2.0, layers=("net.a.weight", "net.c.weight"))),
            ["other layers than most runs: has net.c.weight, lacks net.b.weight"],
        ),
        (
            made_run("odd", 0.1, ranks(1.0, math.nan) | distances(0.1, (0.5, 0.2), (0.1, math.inf))),
            ["readings that are NaN or infinite at the end: net.b.weight"],
        ),
    ],
    ids=["noted", "no setting", "infinite setting", "empty", "other layers", "NaN"],
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
        "readings that are NaN or infinite at the end: mean_over_layers"
    ]
