import pytest
import torch
from torch import nn

from rank_callbacks.callbacks.leading_readings import _MOST_VALUES, LEADING
from rank_callbacks.callbacks.weight_readings import WeightReadings
from rank_callbacks.figures import depth_profile
from rank_callbacks.figures.approximation import _SIDES, Approximation, Seen, approximations, noted
from rank_callbacks.rows import Row
from tests.figures.tables import marks

SAID = approximations(marks(4, 2000, 5000, "a") + marks(0, 0, 5000, "exact") + marks(2, 500, 100, "b"), "weight_rank")
A, B, EXACT = Seen("a", 5000, 5, 1), Seen("b", 100, 5, 3), Seen("exact", 5000, 5, 5)


def note(measure: str, *seen: Seen, group: str = "weight_rank") -> str:
    return noted(SAID, seen, group, measure)


def test_reports_of_which_something_is_said() -> None:
    assert {("a", 5000): Approximation(4, 2000), ("b", 100): Approximation(2, 500)} == SAID


def test_every_measure_that_a_report_takes_from_leading_values_has_its_side() -> None:
    assert set(_SIDES) == LEADING
    assert noted(SAID, [A], "weight_rank", f"distance_to_rank_{_MOST_VALUES}").startswith("distance to rank 32: upper")
    assert noted(SAID, [A], "weight_rank", f"distance_to_rank_{_MOST_VALUES + 1}").startswith("distance to rank 33: oldest")


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        ("stable_rank", "stable rank: upper bound in 4 of 5 layers"),
        ("distance_to_rank_10", "distance to rank 10: upper bound in 4 of 5 layers"),
        ("relative_distance_to_rank_10", "relative distance to rank 10: upper bound in 4 of 5 layers"),
        ("spectral_norm", "spectral norm: lower bound in 4 of 5 layers"),
        ("energy_at_rank_10", "energy at rank 10: lower bound in 4 of 5 layers"),
        ("frobenius_norm", ""),
        ("effective_rank", "effective rank: oldest spectrum 2,000 steps old"),
        ("numerical_rank_1e-2", "numerical rank 1e-2: oldest spectrum 2,000 steps old"),
    ],
)
def test_of_each_measure(measure: str, expected: str) -> None:
    assert note(measure, A) == expected


def test_exact_reports_have_no_note() -> None:
    """Of another step, of another run, or without marks."""
    assert note("stable_rank", EXACT) == note("effective_rank", A._replace(report=5001), EXACT) == ""


def test_which_runs() -> None:
    assert note("stable_rank", A, EXACT) == "stable rank: upper bound in 4 of 5 layers (a)"
    assert note("stable_rank", A, B, EXACT) == "stable rank: upper bound in 2 to 4 of 5 layers (a, b)"
    assert note("effective_rank", A, B) == "effective rank: oldest spectrum 500 to 2,000 steps old (a, b)"


def test_many_runs_are_counted() -> None:
    said = {(f"run {place}", 5): Approximation(2, 0) for place in range(4)}
    seen = [Seen(f"run {place}", 5, 3, 3) for place in range(9)]
    assert noted(said, seen, "weight_rank", "stable_rank") == "stable rank: upper bound in 2 of 3 layers (4 of 9 runs)"


def test_layers_without_scalars_are_not_counted() -> None:
    """Of more than 200 layers only their mean is logged."""
    assert note("stable_rank", Seen("a", 5000, 0, 0)) == "stable rank: upper bound in 4 layers"
    assert note("effective_rank", Seen("a", 5000, 0, 0)) == "effective rank: oldest spectrum 2,000 steps old"


def test_layers_that_were_not_read_yet() -> None:
    assert note("effective_rank", Seen("a", 5000, 3, 1)).endswith("2,000 steps old, 2 layers not read yet")


def test_layers_that_have_been_read_since_are_not_counted() -> None:
    """Of several reports of a run the last tells what was not read yet."""
    seen = [Seen("b", 100, 3, 3), Seen("b", 200, 5, 5)]
    assert note("effective_rank", *seen) == "effective rank: oldest spectrum 500 steps old"


def test_change_of_weights_is_only_read_whole() -> None:
    said = approximations(marks(4, 2000, 5000, "a"), "weight_change_rank")
    assert noted(said, [A], "weight_change_rank", "stable_rank") == "stable rank: oldest spectrum 2,000 steps old"


def test_other_groups_are_not_marked() -> None:
    assert approximations(marks(4, 2000, 5000), "gradient_rank") == {}


def test_those_of_the_monitor() -> None:
    """A model with two layers of which a report without time reads leading values alone, and one that costs nothing."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(140, 150), nn.Linear(150, 140), nn.Linear(140, 3))
    weights = WeightReadings(["effective_rank", "stable_rank"], None, "filters", False, "auto", "auto")
    rows = [
        Row("run", step, tag, value)
        for step, seconds in ((0, None), (50, 0.0), (100, None))
        for tag, value in weights.read(network, step, seconds).scalars.items()
    ]
    for measure, expected in {
        "stable_rank": "stable rank: upper bound in 2 of 3 layers",
        "effective_rank": "effective rank: oldest spectrum 50 steps old",
    }.items():
        figure = depth_profile(rows, "weight_rank", measure)
        titles = [frame["layout"]["title"]["text"] for frame in figure["frames"]]
        assert [expected in title for title in titles] == [False, True, False]
    assert [len(frame["data"][0]["y"]) for frame in figure["frames"]] == [3, 3, 3]
    assert None not in figure["frames"][1]["data"][0]["y"]
    assert figure["frames"][1]["data"][0]["marker"]["symbol"] == [100, 100, 0]


def test_those_of_the_monitor_that_reads_no_spectra() -> None:
    """Counts and norms are exact all the same."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(140, 150), nn.Linear(150, 3))
    measures = ["numerical_rank", "stable_rank", "frobenius_norm"]
    report = WeightReadings(measures, None, "filters", False, "auto", "krylov").read(network, 0, None)
    rows = [Row("run", 0, tag, value) for tag, value in report.scalars.items()]
    titles = {name: depth_profile(rows, "weight_rank", name)["layout"]["title"]["text"] for name in measures}
    assert "upper bound in 1 of 2 layers" in titles["stable_rank"]
    assert titles["numerical_rank"] == "numerical rank (weight rank)"
    assert titles["frobenius_norm"] == "frobenius norm (weight rank)"


def test_marks_that_are_nan_say_nothing() -> None:
    rows = [row._replace(value=float("nan")) for row in marks(1, 1, 5)]
    assert approximations(rows, "weight_rank") == {}
