import math

from rank_callbacks.callbacks.history import History
from rank_callbacks.rows import Row
from rank_callbacks.tags import Tag

TAG, OTHER = Tag("weight_rank", "stable_rank", "fc"), Tag("weight_rank", "stable_rank", "head")


def filled(reports: int) -> History:
    history = History()
    for step in range(reports):
        history.add(step, {TAG: float(step)})
    return history


def test_short_runs_are_kept_whole() -> None:
    assert filled(112).rows() == [Row("", step, TAG, float(step)) for step in range(112)]


def test_long_runs_keep_the_first_the_latest_and_points_between() -> None:
    steps = [row.step for row in filled(100_000).rows()]
    assert len(steps) <= 120
    assert steps == sorted(set(steps))
    assert steps[0] == 0
    assert steps[-8:] == list(range(99_992, 100_000))
    assert sum(step < 50_000 for step in steps) >= 20


def test_ends() -> None:
    history = filled(50)
    history.add(50, {OTHER: 1.0})
    assert [row.step for row in history.ends([TAG])] == [0, *range(42, 50)]
    assert history.ends([OTHER]) == [Row("", 50, OTHER, 1.0)]
    assert history.tags() == [TAG, OTHER]
    assert list(history.first_and_last()) == [(TAG, 0.0, 49.0, 49), (OTHER, 1.0, 1.0, 50)]


def test_state_is_what_was_kept() -> None:
    history = filled(300)
    history.add(300, {OTHER: math.inf})
    copy = History()
    copy.restore(history.state())
    assert copy.rows() == history.rows()
    copy.add(301, {TAG: 0.0})
    assert copy.rows() != history.rows()
