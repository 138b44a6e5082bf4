import inspect
import re

import pytest

from rank_callbacks import functional
from rank_callbacks.catalog import MEASURES, find_measure
from rank_callbacks.functional import rank

# relative_distance_to_rank is distance_to_rank as it comes, with relative=True.
FUNCTIONS = {"relative_distance_to_rank": "distance_to_rank"}

every_row = pytest.mark.parametrize("row", MEASURES.values(), ids=list(MEASURES))


def function_of(name: str):
    return getattr(functional, FUNCTIONS.get(name, name))


def test_every_function_that_measures_has_a_row():
    assert {FUNCTIONS.get(name, name) for name in MEASURES} == set(rank.__all__) - {"rounding_noise", "rounding_rtol"}


@every_row
def test_a_row_agrees_with_the_signature_of_its_function(row):
    parameters = inspect.signature(function_of(row.name)).parameters
    assert next(iter(parameters)) == "singular_values"
    if row.parameter is None:
        assert not {"rtol", "energy", "epsilon", "k"} & parameters.keys()
    else:
        default = parameters[row.parameter].default
        assert row.default == (None if default is inspect.Parameter.empty else default)


@every_row
def test_a_row_cites_the_address_that_its_function_cites(row):
    address = re.fullmatch(r".+ \(.+, \d{4}\), (https://\S+)", row.source)
    assert address, row.source
    assert address[1] in function_of(row.name).__doc__


@every_row
def test_a_row_is_complete(row):
    assert MEASURES[row.name] is row
    assert all((row.title, row.formula, row.bounds, row.at_zero, row.how_to_read))
    assert row.title.endswith(".")
    assert row.how_to_read.endswith(".")


@pytest.mark.parametrize(
    ("name", "row", "value"),
    [
        ("stable_rank", "stable_rank", None),
        ("alpha", "alpha", None),
        ("numerical_rank", "numerical_rank", 1e-3),
        ("numerical_rank_1e-2", "numerical_rank", 1e-2),
        ("numerical_rank_0.05", "numerical_rank", 0.05),
        ("numerical_rank_0", "numerical_rank", 0.0),
        ("rankme", "rankme", 1e-7),
        ("rankme_1e-5", "rankme", 1e-5),
        ("rankme_0", "rankme", 0.0),
        ("energy_effective_rank", "energy_effective_rank", None),
        ("energy_rank", "energy_rank", 0.99),
        ("energy_rank_0.9", "energy_rank", 0.9),
        ("energy_rank_1", "energy_rank", 1.0),
        ("distance_to_rank_10", "distance_to_rank", 10),
        ("distance_to_rank_0", "distance_to_rank", 0),
        ("relative_distance_to_rank_10", "relative_distance_to_rank", 10),
    ],
)
def test_a_name_means_a_row_and_the_value_of_its_parameter(name, row, value):
    found, parameter = find_measure(name)
    assert found is MEASURES[row]
    assert parameter == value


def test_a_rank_in_a_name_is_an_integer():
    _, k = find_measure("distance_to_rank_10")
    assert isinstance(k, int)


@every_row
def test_every_row_is_found_by_its_name(row):
    suffix = "_10" if row.parameter == "k" else ""
    assert find_measure(row.name + suffix)[0] is row


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("efective_rank", "Expected the name of a measure, got 'efective_rank'. Choose from stable_rank, "),
        ("", "Expected the name of a measure, got ''."),
        ("stable_rank_3", "Expected the name of a measure, got 'stable_rank_3'."),
        ("rank_10", "Expected the name of a measure, got 'rank_10'."),
        ("distance_to_rank", "Measure 'distance_to_rank' needs its k in the name: distance_to_rank_10, for example."),
        (
            "relative_distance_to_rank",
            "Measure 'relative_distance_to_rank' needs its k in the name: relative_distance_to_rank_10, for example.",
        ),
        ("numerical_rank_low", "Expected a number for rtol at the end of 'numerical_rank_low', got 'low'."),
        ("numerical_rank_-1", "Expected a number from 0 for rtol in 'numerical_rank_-1', got -1."),
        ("numerical_rank_nan", "Expected a number from 0 for rtol in 'numerical_rank_nan', got nan."),
        ("numerical_rank_inf", "Expected a number from 0 for rtol in 'numerical_rank_inf', got inf."),
        ("rankme_-1", "Expected a number from 0 for epsilon in 'rankme_-1', got -1."),
        ("energy_effective_rank_3", "Expected the name of a measure, got 'energy_effective_rank_3'."),
        ("energy_rank_0", "Expected a share in (0, 1] for energy in 'energy_rank_0', got 0."),
        ("energy_rank_99", "Expected a share in (0, 1] for energy in 'energy_rank_99', got 99."),
        ("distance_to_rank_2.5", "Expected a whole number from 0 for k in 'distance_to_rank_2.5', got 2.5."),
        ("distance_to_rank_-2", "Expected a whole number from 0 for k in 'distance_to_rank_-2', got -2."),
        ("distance_to_rank_nan", "Expected a whole number from 0 for k in 'distance_to_rank_nan', got nan."),
    ],
)
def test_a_name_that_means_no_measure_is_refused(name, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        find_measure(name)


def test_an_unknown_name_is_answered_with_every_spelling():
    with pytest.raises(ValueError, match=r"Choose from (.+)\.$") as raised:
        find_measure("rank")
    spellings = re.search(r"Choose from (.+)\.$", str(raised.value))[1].split(", ")
    assert len(spellings) == len(MEASURES)
    assert all(find_measure(spelling.replace("<k>", "10")) for spelling in spellings)
