from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from torch import Tensor

from rank_callbacks.functional.network import classification_dimension

some = settings(max_examples=60, deadline=None, derandomize=True)


def accuracies(features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None, centered: bool) -> list[float]:
    """By the number of principal components of scikit-learn, projected with or without the mean."""
    rows, classes = features.double().numpy(), labels.numpy()
    offset = 0 if bias is None else bias.double().numpy()
    components = PCA(svd_solver="full").fit(rows).components_
    mean = rows.mean(0) if centered else 0
    found = []
    for dimension in range(len(components) + 1):
        basis = components[:dimension]
        projected = (rows - mean) @ basis.T @ basis + mean
        logits = projected @ weight.double().numpy().T + offset
        found.append((logits.argmax(1) == classes).mean())
    return found


def first(found: list[float], full: float, share: float) -> int:
    return next(dimension for dimension, accuracy in enumerate(found) if accuracy >= share * full)


def problem(seed: int, rows: int, width: int, classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator)
    weight, bias = (torch.randn(size, generator=generator).double() for size in ((classes, width), (classes,)))
    noise = torch.randn(rows, width, generator=generator) * torch.linspace(2, 0.3, width)
    return (noise + 0.7 * weight[labels] + 1).double(), labels, weight, bias


@some
@given(
    seed=st.integers(0, 999),
    width=st.integers(1, 40),
    classes=st.integers(1, 6),
    share=st.sampled_from([0.3, 0.8, 0.95, 1.0]),
    centered=st.booleans(),
    with_bias=st.booleans(),
)
def test_is_the_first_of_a_naive_search(seed, width, classes, share, centered, with_bias) -> None:
    """Over more dimensions than are looked at in one block."""
    features, labels, weight, bias = problem(seed, 60, width, classes)
    offset = bias if with_bias else None
    found = accuracies(features, labels, weight, offset, centered)
    logits = features @ weight.mT + (bias if with_bias else 0)
    full = (logits.argmax(1) == labels).double().mean().item()
    expected = first(found, full, share)
    assert classification_dimension(features, labels, weight, offset, share, centered).item() == expected


def test_accuracy_that_falls_on_the_way() -> None:
    """Two components are right, three are not, four are."""
    features = torch.tensor([[4.0, 0, 0, 0], [0, 3, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]).double()
    features = torch.cat([features, -features])
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    weight = torch.tensor([[1.0, 1, 1, 1], [-1, -1, -1, -1]])
    found = accuracies(features, labels, weight, None, False)
    assert found == [0.5, 0.625, 0.75, 0.875, 1.0]
    shares = {0.4: 0, 0.5: 0, 0.6: 1, 0.7: 2, 0.8: 3, 0.9: 4, 1.0: 4}
    assert {s: classification_dimension(features, labels, weight, share=s).item() for s in shares} == shares


def test_dips_do_not_delay_the_first_hit() -> None:
    """Accuracy falls again after the first dimension that is enough."""
    for seed in range(50):
        features, labels, weight, bias = problem(seed, 40, 12, 4)
        found = accuracies(features, labels, weight, bias, False)
        hit = first(found, found[-1], 0.8)
        if any(accuracy < 0.8 * found[-1] for accuracy in found[hit:]):
            assert classification_dimension(features, labels, weight, bias, 0.8).item() == hit
            return
    raise AssertionError("no problem whose accuracy falls again was found")


@pytest.mark.parametrize("centered", [False, True])
def test_mean_matters_only_where_it_is_projected(centered: bool) -> None:
    """Classes differ along the first axis; the mean, along the last, keeps the bias in balance."""
    features = torch.tensor([[1.0, 0.1, 10], [-1, -0.1, 10], [1, -0.1, 10], [-1, 0.1, 10]])
    labels, weight, bias = torch.tensor([0, 1, 0, 1]), torch.tensor([[1.0, 0, 1], [-1, 0, 0]]), torch.tensor([-10.0, 0])
    assert classification_dimension(features, labels, weight, bias, centered=centered).item() == (1 if centered else 3)


@pytest.mark.parametrize("logits", [1, 7, 10**6])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, logits: int) -> None:
    import sys

    features, labels, weight, bias = problem(0, 50, 30, 5)
    expected = classification_dimension(features, labels, weight, bias)
    home = sys.modules["rank_callbacks.functional.classification_dimension"]
    monkeypatch.setattr(home, "_LOGITS_AT_ONCE", logits)
    monkeypatch.setattr(home, "_DIMENSIONS_AT_ONCE", 3)
    assert classification_dimension(features, labels, weight, bias) == expected


def test_classifier_that_needs_no_features() -> None:
    features, labels = torch.randn(6, 4), torch.ones(6, dtype=torch.long)
    assert classification_dimension(features, labels, torch.zeros(2, 4), torch.tensor([0.0, 1])).item() == 0


def test_classifier_that_is_never_right() -> None:
    features, labels = torch.randn(6, 4), torch.zeros(6, dtype=torch.long)
    assert classification_dimension(features, labels, torch.zeros(2, 4), torch.tensor([0.0, 1])).item() == 0


def test_one_sample_and_labels_in_other_forms() -> None:
    features, weight = torch.tensor([[0.0, 2.0]]), torch.eye(2)
    for labels in (torch.tensor([1]), torch.tensor([[0, 1]])):
        assert classification_dimension(features, labels, weight, centered=True).item() == 0
        assert 0 < classification_dimension(features, labels, weight).item() <= 2


@pytest.mark.parametrize("place", ["features", "weight", "bias"])
def test_what_is_not_finite_is_nan(place: str) -> None:
    tensors = {"features": torch.randn(5, 3), "weight": torch.randn(2, 3), "bias": torch.randn(2)}
    tensors[place].view(-1)[0] = torch.nan
    assert classification_dimension(labels=torch.zeros(5, dtype=torch.long), **tensors).isnan()


def test_inputs_are_left_alone() -> None:
    features, labels, weight, bias = problem(0, 50, 30, 5)
    before = [tensor.clone() for tensor in (features, labels, weight, bias)]
    classification_dimension(features, labels, weight.requires_grad_(), bias)
    assert all(torch.equal(one, other) for one, other in zip(before, (features, labels, weight, bias), strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": torch.zeros(5, 4)}, r"weight of shape \(K, D\), got \(5, 4\) and \(2, 3\)"),
        ({"features": torch.zeros(5)}, "features of shape"),
        ({"features": torch.zeros(0, 3)}, "features of shape"),
        ({"bias": torch.zeros(3)}, r"bias of shape \(2,\), got \(3,\)"),
        ({"share": 0.0}, "share to be above 0 and up to 1, got 0"),
        ({"share": 1.1}, "got 1.1"),
        ({"labels": torch.full((5,), 2)}, "labels from 0 to 1, got 2"),
        ({"labels": torch.zeros(4, dtype=torch.long)}, "a label for each of 5 rows"),
        ({"labels": torch.full((5, 2), 0.5)}, "soft labels"),
    ],
)
def test_misuse(arguments: dict[str, Any], message: str) -> None:
    good = {"features": torch.zeros(5, 3), "labels": torch.zeros(5, dtype=torch.long), "weight": torch.zeros(2, 3)}
    with pytest.raises(ValueError, match=message):
        classification_dimension(**(good | arguments))
