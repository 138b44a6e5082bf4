from collections import UserDict
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from rank_callbacks.callbacks.batch_labels import labels_of, labels_of_rows

INPUTS, LABELS = torch.zeros(2, 3), torch.tensor([1, 0])


class Pair(NamedTuple):
    inputs: Tensor
    labels: Tensor


@pytest.mark.parametrize(
    ("batch", "labels"),
    [
        pytest.param((INPUTS, LABELS), None, id="tuple"),
        pytest.param([INPUTS, LABELS], None, id="list"),
        pytest.param([INPUTS, LABELS, INPUTS], None, id="more items"),
        pytest.param(Pair(INPUTS, LABELS), None, id="named tuple"),
        pytest.param([{"pixels": INPUTS}, LABELS], None, id="nested inputs"),
        pytest.param({"x": INPUTS, "y": LABELS}, "y", id="dict"),
        pytest.param(UserDict(x=INPUTS, y=LABELS), "y", id="mapping"),
        pytest.param((INPUTS, {"y": LABELS}), lambda batch: batch[1]["y"], id="function of a tuple"),
        pytest.param({"x": INPUTS, "y": LABELS}, lambda batch: batch["y"], id="function of a dict"),
        pytest.param(SimpleNamespace(y=LABELS), lambda batch: batch.y, id="function of an object"),
    ],
)
def test_labels_are_found(batch: Any, labels: Any) -> None:
    assert labels_of(batch, labels) is LABELS


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("labels", [None, lambda batch: batch[1]], ids=["second item", "function"])
def test_column_of_classes_is_a_vector(dtype: torch.dtype, labels: Any) -> None:
    column = LABELS.to(dtype)[:, None]
    assert torch.equal(labels_of((INPUTS, column), labels), LABELS.to(dtype))


@pytest.mark.parametrize(
    "labels", [torch.zeros(2, 1), torch.zeros(2, 1, 1).long(), torch.zeros(1, 2).long()], ids=["floats", "maps", "a row"]
)
def test_other_labels_keep_their_shape(labels: Tensor) -> None:
    assert labels_of((INPUTS, labels)) is labels


HINT = r"Name the labels by labels='key' for a dict, or by labels=lambda batch: \.\.\."


@pytest.mark.parametrize(
    ("batch", "labels", "message"),
    [
        pytest.param(
            {"x": INPUTS, "y": LABELS},
            None,
            r"as the second item of the batch, got NoneType\. The batch is a dict with the keys 'x', 'y'\.",
            id="dict without a key",
        ),
        pytest.param({"x": INPUTS, 3: 1}, "z", r"as batch\['z'\], got NoneType\. .* with the keys 'x', 3", id="no such key"),
        pytest.param(UserDict(x=INPUTS), "z", "a UserDict with the keys 'x'", id="mapping"),
        pytest.param((INPUTS, LABELS), "y", r"as batch\['y'\], got NoneType\. .* a tuple of Tensor, Tensor", id="key"),
        pytest.param((INPUTS,), None, r"got NoneType\. The batch is a tuple of Tensor\.", id="inputs alone"),
        pytest.param([], None, "The batch is a list of nothing", id="empty"),
        pytest.param(INPUTS, None, "The batch is a Tensor", id="tensor"),
        pytest.param((INPUTS, [1, 0]), None, r"second item of the batch, got list\. .* tuple of Tensor, list", id="list"),
        pytest.param((INPUTS, {"y": LABELS}), None, "got dict", id="nested"),
        pytest.param({"y": [1, 0]}, "y", r"as batch\['y'\], got list", id="key of a list"),
        pytest.param((INPUTS, LABELS), lambda batch: 3, "as what labels= returns, got int", id="function"),
        pytest.param(None, None, "The batch is a NoneType", id="nothing"),
    ],
)
def test_where_there_are_none_the_batch_is_described(batch: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        labels_of(batch, labels)
    assert error.match("Expected a tensor of labels as ")
    assert error.match(HINT)


# Labels of rows: B = 4 samples, T = 5 tokens, K = 3 classes.

OF_SAMPLES, OF_TOKENS = torch.arange(4), torch.arange(20).reshape(4, 5)
SOFT, SOFT_TOKENS = torch.arange(12.0).reshape(4, 3), torch.arange(60.0).reshape(4, 5, 3)


@pytest.mark.parametrize(
    ("shape", "batch_dim", "labels", "expected"),
    [
        pytest.param((4,), None, OF_SAMPLES, OF_SAMPLES, id="a row a sample"),
        pytest.param((4, 5), None, OF_SAMPLES, OF_SAMPLES[:, None].expand(4, 5), id="tokens"),
        pytest.param((5, 4), None, OF_SAMPLES, OF_SAMPLES.expand(5, 4), id="tokens first"),
        pytest.param((4, 4), None, OF_SAMPLES, OF_SAMPLES[:, None].expand(4, 4), id="as many tokens as samples"),
        pytest.param((4, 4), 1, OF_SAMPLES, OF_SAMPLES.expand(4, 4), id="as many, and it is known which"),
        pytest.param((1, 4), 1, OF_SAMPLES, OF_SAMPLES[None], id="one token"),
        pytest.param((4, 5, 6), None, OF_SAMPLES, OF_SAMPLES[:, None, None].expand(4, 5, 6), id="positions"),
        pytest.param((4, 5), None, OF_TOKENS, OF_TOKENS, id="token labels"),
        pytest.param((5, 4), None, OF_TOKENS, OF_TOKENS.T, id="token labels, tokens first"),
        pytest.param((5, 4), 1, OF_TOKENS, OF_TOKENS.T, id="token labels, known to be second"),
        pytest.param((4,), None, SOFT, SOFT, id="soft"),
        pytest.param((4, 5), None, SOFT, SOFT[:, None].expand(4, 5, 3), id="soft, tokens"),
        pytest.param((5, 4), 1, SOFT, SOFT.expand(5, 4, 3), id="soft, tokens first"),
        pytest.param((4, 5), None, SOFT_TOKENS, SOFT_TOKENS, id="soft token labels"),
        pytest.param((5, 4), 1, SOFT_TOKENS, SOFT_TOKENS.transpose(0, 1), id="soft token labels, tokens first"),
        pytest.param((20,), None, OF_SAMPLES, None, id="folded tokens"),
        pytest.param((20,), None, OF_TOKENS, None, id="folded tokens with labels of their own"),
        pytest.param((4,), None, OF_TOKENS, None, id="token labels of samples"),
        pytest.param((5,), None, OF_SAMPLES, None, id="too few"),
        pytest.param((2, 3, 4), None, OF_SAMPLES, None, id="samples in the third dimension"),
        pytest.param((5, 4), 0, OF_SAMPLES, None, id="known to be elsewhere"),
        pytest.param((), None, OF_SAMPLES, None, id="no rows"),
        pytest.param((3,), None, SOFT, None, id="as many rows as classes"),
    ],
)
def test_labels_of_rows(shape: tuple[int, ...], batch_dim: int | None, labels: Tensor, expected: Tensor | None) -> None:
    found = labels_of_rows(shape, labels, batch_dim)
    assert (found is None) == (expected is None)
    assert expected is None or torch.equal(found, expected)
