import re
from collections.abc import Sequence

import pytest

from rank_callbacks.matrices import select
from rank_callbacks.matrices.selection import in_short

MODEL = {
    name: place for place, name in enumerate(["encoder.0.weight", "encoder.1.qkv.weight.q", "encoder2.weight", "head.weight"])
}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        pytest.param(None, list(MODEL), id="all"),
        pytest.param("head.weight", ["head.weight"], id="full name"),
        pytest.param("encoder", ["encoder.0.weight", "encoder.1.qkv.weight.q"], id="all inside a module"),
        pytest.param("encoder.1.qkv.weight", ["encoder.1.qkv.weight.q"], id="all parts of a parameter"),
        pytest.param("encoder*", ["encoder.0.weight", "encoder.1.qkv.weight.q", "encoder2.weight"], id="star"),
        pytest.param("*.weight", list(MODEL), id="star before a parameter and its parts"),
        pytest.param("encoder.?", ["encoder.0.weight", "encoder.1.qkv.weight.q"], id="question mark"),
        pytest.param("encoder.[!1]", ["encoder.0.weight"], id="set"),
        pytest.param(["head", "encoder.0"], ["encoder.0.weight", "head.weight"], id="several, in the model's order"),
        pytest.param(("head", "h*"), ["head.weight"], id="twice the same"),
        pytest.param(lambda name: name.endswith(".q"), ["encoder.1.qkv.weight.q"], id="function"),
    ],
)
def test_layers_choose_by_name(layers: object, expected: list[str]) -> None:
    assert select(MODEL, layers) == {name: MODEL[name] for name in expected}
    assert list(select(MODEL, layers)) == expected


@pytest.mark.parametrize("pattern", ["encode", "Head", "weight", "0", "head.weight.q", "", "encoder."])
@pytest.mark.parametrize("others", [[], ["head"]])
def test_pattern_that_matches_nothing_is_refused(pattern: str, others: Sequence[str]) -> None:
    message = f"Expected '{pattern}' in layers to match a matrix, but it does not. Choose from encoder.0.weight, "
    with pytest.raises(ValueError, match=re.escape(message)):
        select(MODEL, [*others, pattern])


def test_function_that_accepts_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Expected layers to accept the name of a matrix, got none\. Choose from encoder\.0"):
        select(MODEL, lambda name: False)


@pytest.mark.parametrize("layers", [[], ()])
def test_no_pattern_is_refused(layers: Sequence[str]) -> None:
    with pytest.raises(ValueError, match=r"Expected at least one pattern in layers, got none\. Choose from encoder\.0"):
        select(MODEL, layers)


def test_nothing_to_choose_from_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a model with at least one weight matrix, got none\.$"):
        select({}, None)


@pytest.mark.parametrize("layers", ["pos_embed", [], lambda name: False])
def test_refusal_says_what_is_left_out_and_why(layers: object) -> None:
    with pytest.raises(ValueError, match=r"head\.weight\. pos_embed is left out: \(1, 5, 8\) is no matrix\."):
        select(MODEL, layers, {"pos_embed": "(1, 5, 8) is no matrix"})


def test_what_is_left_out_for_one_reason_is_told_together_and_in_short() -> None:
    left_out = dict.fromkeys(["a", "b"], "frozen") | dict.fromkeys("cdefgh", "no matrix")
    with pytest.raises(ValueError, match=r"got none\. a and b are left out: frozen\. c, d, e and 3 more are left out: no m"):
        select({}, None, left_out)
    assert in_short([*"abcde"]) == "a, b, c, d and e"
    assert in_short(["a"]) == "a"


def test_what_is_left_out_is_not_chosen() -> None:
    assert select({"head.weight": 1}, "*", {"head.table": "no matrix"}) == {"head.weight": 1}
