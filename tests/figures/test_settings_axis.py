import pytest

from rank_callbacks.figures.settings_axis import SettingsAxis


def test_close_values_are_on_a_linear_axis() -> None:
    settings = SettingsAxis([0, 1, 2])
    assert settings.drawn("x")["type"] == "linear"
    assert [settings.place(value) for value in (0, 1, 2)] == [0, 1, 2]


def test_values_far_apart_are_on_a_log_axis_with_zero_at_its_left() -> None:
    settings = SettingsAxis([0.1, 0, 0.01, 0.001])
    axis = settings.drawn("x")
    assert axis["type"] == "log"
    assert axis["tickvals"] == pytest.approx([1e-4, 0.001, 0.01, 0.1])
    assert axis["ticktext"] == ["0", "0.001", "0.01", "0.1"]
    assert settings.zero_apart


def test_negative_values_have_no_logarithm() -> None:
    assert SettingsAxis([-1, 0.01, 100]).drawn("x")["type"] == "linear"


@pytest.mark.parametrize("values", [["adam", "sgd"], [True, False], ["adam", 3]], ids=str)
def test_what_is_no_number_is_a_category(values: list) -> None:
    axis = SettingsAxis(values).drawn("x")
    assert axis["type"] == "category"
    assert set(axis["categoryarray"]) == {str(value) for value in values}


def test_of_many_values_some_are_labelled() -> None:
    axis = SettingsAxis(range(1, 100)).drawn("x")
    assert len(axis["tickvals"]) <= 8
    assert (axis["ticktext"][0], axis["ticktext"][-1]) == ("1", "99")


def test_one_value() -> None:
    assert SettingsAxis([0]).place(0) == 0
    assert SettingsAxis([0, 0.1]).drawn("x")["type"] == "linear"


def test_categories_are_no_markup() -> None:
    assert SettingsAxis(["<b>"]).place("<b>") == "&lt;b&gt;"
