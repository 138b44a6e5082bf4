import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rank_callbacks.tags import Tag

without_slash = st.text(min_size=1).filter(lambda text: "/" not in text)
layers = st.text(min_size=1) | st.text(alphabet="ab0./_-", min_size=1)


@settings(derandomize=True, deadline=None)
@given(without_slash, without_slash, layers)
def test_a_tag_is_read_as_it_was_written(group, measure, layer):
    tag = Tag(group, measure, layer)
    assert Tag.parse(str(tag)) == tag


@pytest.mark.parametrize(
    "layer", ["encoder.0.weight", "mean_over_layers", "block/attention.q", "/leading", "trailing/", "two//slashes"]
)
def test_a_layer_may_hold_dots_and_slashes(layer):
    tag = Tag.parse(f"gradient_rank/numerical_rank_1e-2/{layer}")
    assert tag == ("gradient_rank", "numerical_rank_1e-2", layer)
    assert str(tag) == f"gradient_rank/numerical_rank_1e-2/{layer}"


def test_tags_are_dictionary_keys_by_value():
    values = {Tag("weight_rank", "stable_rank", "0.weight"): "a"}
    assert values[Tag.parse("weight_rank/stable_rank/0.weight")] == "a"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "//",
        "loss",
        "train/loss",
        "weight_rank/stable_rank",
        "weight_rank/stable_rank/",
        "/stable_rank/0",
        "weight_rank//0",
    ],
)
def test_what_has_not_three_parts_is_no_tag(text):
    with pytest.raises(ValueError, match=re.escape(f"Expected a tag of the form 'group/measure/layer', got {text!r}.")):
        Tag.parse(text)
