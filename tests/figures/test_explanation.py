import pytest

from rank_callbacks.catalog import MEASURES
from rank_callbacks.collapse_catalog import NEURAL_COLLAPSE, RANK_COLLAPSE
from rank_callbacks.feature_catalog import FEATURE_RANK, NETWORK_RANK, TRUNCATION
from rank_callbacks.figures import CHARTS, explain, how_to_read

GROUPS = {
    "neural_collapse": NEURAL_COLLAPSE,
    "rank_collapse": RANK_COLLAPSE,
    "feature_rank": FEATURE_RANK,
    "network_rank": NETWORK_RANK,
    "truncation": TRUNCATION,
}


@pytest.mark.parametrize("group", GROUPS)
def test_every_row_of_the_catalogues_is_found(group: str) -> None:
    for name, row in GROUPS[group].items():
        assert explain(group, name)[:4] == (row.title, row.formula, row.bounds, row.how_to_read)


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_is_found(name: str) -> None:
    row = MEASURES[name]
    spelling = name if row.parameter is None or row.default is not None else f"{name}_10"
    assert explain("weight_rank", spelling).title == row.title


@pytest.mark.parametrize("name", ["bound", "utilization", "input_rank", "delta_rank", "subspace_overlap_8", "class_rank"])
def test_readings_of_gradients_alone(name: str) -> None:
    assert explain("gradient_rank", name) is not None


@pytest.mark.parametrize("name", ["seconds", "share_of_training", "every_n_steps", "approximate_layers", "spectrum_age"])
def test_what_monitors_say_of_themselves(name: str) -> None:
    assert explain("monitor", name).title.endswith(".")


def test_one_name_in_two_groups() -> None:
    """rank_collapse counts above 1e-3 always."""
    assert "thousandth" in explain("rank_collapse", "numerical_rank").title
    assert "tolerance" in explain("weight_rank", "numerical_rank").title


@pytest.mark.parametrize("suffix", ["_of_class_3", "_mean_over_classes", "_min_over_classes"])
def test_of_classes(suffix: str) -> None:
    assert explain("feature_rank", f"effective_rank{suffix}").title == MEASURES["effective_rank"].title


def test_centered() -> None:
    assert explain("feature_rank", "centered_energy_rank_0.95").title.startswith(MEASURES["energy_rank"].title)
    assert "mean" in explain("feature_rank", "centered_energy_rank_0.95").title


def test_a_group_of_the_users_own() -> None:
    assert explain("validation", "nc1_pinv").title == NEURAL_COLLAPSE["nc1_pinv"].title


def test_of_a_later_version() -> None:
    assert explain("weight_rank", "rank_of_tomorrow") is None
    assert how_to_read("heatmap", "weight_rank", "rank_of_tomorrow").startswith("A row is a layer")


@pytest.mark.parametrize("view", [*CHARTS, "findings"])
def test_every_chart_has_its_words(view: str) -> None:
    assert how_to_read(view).endswith(".")


def test_words_of_the_measure_follow() -> None:
    text = how_to_read("depth_profile", "feature_rank", "effective_rank")
    assert text.endswith(MEASURES["effective_rank"].how_to_read)
    assert "number of classes" in text


def test_no_such_chart() -> None:
    with pytest.raises(ValueError, match=r"Expected the name of a chart, got 'pie'\. Choose from depth_profile, heatmap"):
        how_to_read("pie")


def test_tolerances_of_truncation() -> None:
    assert explain("truncation", "accuracy_at_rtol_0.1") == explain("truncation", "accuracy_at_rtol")
    assert "left" in explain("truncation", "parameters_at_rtol_1e-05").title
