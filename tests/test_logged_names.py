import pytest

from rank_callbacks.logged_names import prefix_and_tag
from rank_callbacks.tags import Tag


@pytest.mark.parametrize(
    "name",
    [
        "weight_rank/effective_rank/head.weight",
        "truncation/accuracy_at_rtol_0.1/network",
        "train_features/centered_energy_rank_0.95/encoder.0",
        "train_features/dead_fraction/encoder.0",
        "train_collapse/nc1_pinv/penultimate",
        "first_epochs/independence_deficit/class_3",
        "coarse/tcv_input/encoder.0",
        "heads/utilization/encoder.0",
        "heads/subspace_overlap_8/encoder.0",
    ],
)
def test_tags_of_monitors(name: str) -> None:
    assert prefix_and_tag(name) == ("", Tag.parse(name))


@pytest.mark.parametrize("name", ["loss", "val/accuracy", "val/accuracy/top1", "train_features/size/encoder.0"])
def test_tags_of_others(name: str) -> None:
    assert prefix_and_tag(name) == ("", None)


def test_prefix_of_a_logger() -> None:
    assert prefix_and_tag("mine-feature_rank/rankme/head") == ("mine-", Tag("feature_rank", "rankme", "head"))
