import re

import pytest
import torch

from rank_callbacks.metrics import SelfDuality, TotalClusterVariation, WithinClassVariability
from tests.metrics.cases import CASES, CLASSES, WIDTH, linear

each = pytest.mark.parametrize("name", CASES)


def message(text: str) -> str:
    return f"^{re.escape(text)}$"


@pytest.mark.parametrize("num_classes", [1, 0, -3, 2.5])
def test_too_few_classes(num_classes: int) -> None:
    with pytest.raises(ValueError, match=message(f"Expected num_classes to be a whole number from 2, got {num_classes}.")):
        TotalClusterVariation(num_classes, WIDTH)


@pytest.mark.parametrize("num_features", [0, -1, 1.5])
def test_too_few_features(num_features: int) -> None:
    with pytest.raises(ValueError, match=message(f"Expected num_features to be a whole number from 1, got {num_features}.")):
        TotalClusterVariation(CLASSES, num_features)


def test_unknown_variant_of_nc1() -> None:
    known = "pinv, svds, pinv_sample_mean, fuzziness, quotient"
    with pytest.raises(ValueError, match=message(f"Expected variant to be one of {known}, got 'svd'.")):
        WithinClassVariability(CLASSES, WIDTH, variant="svd")


def test_unknown_variant_of_self_duality() -> None:
    with pytest.raises(ValueError, match=message("Expected variant to be one of papyan, zhu, got 'han'.")):
        SelfDuality(CLASSES, WIDTH, linear(), variant="han")


@each
def test_unknown_option(name: str) -> None:
    with pytest.raises(ValueError, match="Unexpected keyword arguments: `reduction`"):
        CASES[name].metric(linear(), reduction="sum")


@each
@pytest.mark.parametrize("shape", [(3, WIDTH + 1), (3, 2, WIDTH - 1), (3,), ()])
def test_features_of_another_width(name: str, shape: tuple[int, ...]) -> None:
    metric = CASES[name].metric(linear())
    metric.update(torch.zeros(2, WIDTH), torch.zeros(2, dtype=torch.long))
    expected = f"Expected features of shape (*, {WIDTH}), as num_features says, got {shape}."
    with pytest.raises(ValueError, match=message(expected)):
        metric.update(torch.zeros(shape), torch.zeros(3, dtype=torch.long))


@each
@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.tensor([0, 1, CLASSES]), "Expected labels from 0 to 3, got 4"),
        (torch.tensor([0, 1, -100]), "Expected labels from 0 to 3, got -100"),
        (torch.tensor([0, 1]), "Expected a label for each of 3 rows"),
        (torch.tensor([0.0, 1.0, 2.0]), "Expected labels to be integers"),
        (torch.full((3, CLASSES), 0.5), "Expected one-hot or soft labels"),
    ],
)
def test_labels_that_do_not_fit_leave_the_state_as_it_was(name: str, labels: torch.Tensor, said: str) -> None:
    metric = CASES[name].metric(linear())
    metric.update(torch.randn(2, WIDTH), torch.tensor([0, 1]))
    before = [part.clone() for state in metric.metric_state.values() for part in state]
    with pytest.raises(ValueError, match=said):
        metric.update(torch.randn(3, WIDTH), labels)
    after = [part for state in metric.metric_state.values() for part in state]
    assert all(map(torch.equal, after, before))
    assert len(after) == len(before)
