from rank_callbacks.figures import cadences, findings
from rank_callbacks.rows import Row
from tests.figures.tables import reading, readings


def cadence(monitor: str, steps: float, run: str = "run", step: int = 0) -> Row:
    return reading("monitor", "every_n_steps", monitor, steps, run, step)


def test_a_sentence_a_run() -> None:
    found = cadences([cadence("weight_rank", 2000), cadence("gradient_rank", 100), cadence("weight_rank", 50, "other")])
    assert [(one.run, one.text.partition(",")[0]) for one in found] == [
        ("run", "gradient_rank reports every 100 steps"),
        ("other", "weight_rank reports every 50 steps"),
    ]
    assert "steps, weight_rank every 2,000, which keeps" in found[0].text


def test_the_last_choice_counts() -> None:
    (one,) = cadences([cadence("weight_rank", 500, step=20), cadence("weight_rank", 50, step=10)])
    assert one.text.startswith("weight_rank reports every 500 steps,")


def test_nothing_was_chosen() -> None:
    assert cadences(readings({0: {"a": 1.0}}, group="weight_rank")) == []


def test_gaps_are_no_findings() -> None:
    """Reports far apart, and layers in turn."""
    rows = readings({0: {"a": 9.0, "b": 9.0}, 2000: {"a": 8.5}, 12000: {"b": 8.0}}, group="weight_rank")
    assert findings([*rows, *(cadence("weight_rank", 2000, step=step) for step in (2000, 12000))]) == []
