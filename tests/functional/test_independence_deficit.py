import builtins
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rank_callbacks.functional.network import ClassDeficit, independence_deficit
from tests.training import assert_identical


def naive_weights(logits: Tensor, label: int, penalty: float) -> np.ndarray:
    """Proximal gradient descent on (1/n)·Σ (y_i − w·y_{−i})² + penalty·‖w‖₁."""
    values = logits.double().numpy()
    others, target = np.delete(values, label, 1), values[:, label]
    step = len(values) / (2 * np.linalg.norm(others, 2) ** 2)
    weights = np.zeros(others.shape[1])
    for _ in range(4_000):
        moved = weights - step * 2 / len(values) * others.T @ (others @ weights - target)
        weights = np.sign(moved) * np.maximum(np.abs(moved) - step * penalty, 0)
    return np.insert(weights, label, 0)


def problem(classes: int = 6, samples: int = 120) -> tuple[Tensor, Tensor]:
    """Logits of which those of each class lean on others."""
    torch.manual_seed(3)
    mixing = torch.eye(classes) + 0.25 * torch.randn(classes, classes)
    labels = torch.arange(samples) % classes
    return (4 * torch.randn(samples, classes) + 8 * torch.eye(classes)[labels]) @ mixing, labels


@pytest.mark.parametrize("penalty", [0.5, 20.0, 40.0])
@pytest.mark.parametrize("deciders", [1, 3, 10])
def test_agrees_with_a_naive_version(penalty: float, deciders: int) -> None:
    logits, labels = problem()
    table = independence_deficit(logits, labels, penalty, deciders)
    assert [row.label for row in table] == list(range(6))
    for row in table:
        own = logits[labels == row.label].double().numpy()
        weights = naive_weights(logits[labels == row.label], row.label, penalty)
        order = [place for place in np.argsort(-np.abs(weights))[:deciders] if abs(weights[place]) > 1e-9]
        assert row.samples == 20
        assert list(row.deciders) == order
        np.testing.assert_allclose(row.weights, weights[order], rtol=1e-3, atol=1e-5)
        predicted = own[:, order] @ weights[order]
        replaced = own.copy()
        replaced[:, row.label] = predicted
        error = np.abs((own[:, row.label] - predicted) / own[:, row.label]).mean()
        assert row.relative_error == pytest.approx(error, rel=1e-3)
        assert row.accuracy == (own.argmax(1) == row.label).mean()
        assert row.accuracy_predicted == (replaced.argmax(1) == row.label).mean()
    assert any(row.deciders for row in table)


def test_weights_meet_the_conditions_of_the_minimum() -> None:
    """The gradient of the squares is −penalty·sign(w) where w is not 0, and within ±penalty where it is."""
    logits, labels = problem()
    (row,) = independence_deficit(logits, labels, 20.0, deciders=5, classes=[2])
    own = logits[labels == 2].double().numpy()
    weights = np.zeros(6)
    weights[list(row.deciders)] = row.weights
    gradient = np.delete(2 / len(own) * own.T @ (own @ weights - own[:, 2]), 2)
    others = np.delete(weights, 2)
    assert 0 < np.count_nonzero(others) < 5
    np.testing.assert_allclose(gradient[others != 0], -20 * np.sign(others[others != 0]), rtol=1e-2)
    assert (np.abs(gradient[others == 0]) <= 20 * 1.01).all()


def test_a_class_that_is_a_multiple_of_another() -> None:
    """The headline of the paper; the penalty takes 10/mean(y²) off the weight."""
    broccoli = torch.linspace(20, 40, 30).double()
    logits = torch.stack([0.923 * broccoli, broccoli, torch.zeros(30)], dim=1)
    (row,) = independence_deficit(logits, torch.zeros(30, dtype=torch.long), classes=[0])
    assert row.deciders == (1,)
    weight = 0.923 - 10 / broccoli.square().mean().item()
    assert row.weights == pytest.approx((weight,), rel=1e-6)
    assert row.relative_error == pytest.approx(1 - weight / 0.923, rel=1e-6)
    assert row.accuracy == 0


def test_only_samples_of_the_class_count() -> None:
    logits, labels = problem()
    changed = logits.clone()
    changed[labels != 1] = torch.nan
    assert independence_deficit(logits, labels, classes=[1]) == independence_deficit(changed, labels, classes=[1])


def test_classes_of_too_few_samples_or_not_finite() -> None:
    logits, labels = torch.randn(5, 4), torch.tensor([0, 0, 1, 3, 3])
    logits[3, 0] = torch.inf
    table = independence_deficit(logits, labels)
    assert [(row.label, row.samples, row.deciders) for row in table[1:]] == [(1, 1, ()), (2, 0, ()), (3, 2, ())]
    assert all(math.isnan(number) for row in table[1:] for number in row[4:])
    assert math.isfinite(table[0].relative_error)
    lines = str(table).splitlines()
    assert lines[0].split() == ["class", "logit", "error", "accuracy"]
    assert "- (1 samples)" in lines[2]
    assert "- (not finite)" in lines[4]


def test_logit_of_zero() -> None:
    """Told exactly, it has no error; else its relative one is infinite."""
    logits = torch.tensor([[0.0, 0.0], [10.0, 10.0]]).double()
    row = independence_deficit(logits, torch.zeros(2, dtype=torch.long), 1e-6, classes=[0])[0]
    assert row.relative_error == pytest.approx(0, abs=1e-6)
    row = independence_deficit(logits + torch.tensor([0.0, 1.0]), torch.zeros(2, dtype=torch.long), 1e-6, classes=[0])[0]
    assert row.relative_error == math.inf


def test_table() -> None:
    rows = (ClassDeficit(7, 9, (12, 3), (0.5, -0.25), 0.034, 0.5, 0.25), ClassDeficit(10, 9, (), (), 1.0, 1.0, 0.0))
    table = type(independence_deficit(torch.zeros(2, 2), torch.tensor([0, 0])))(rows)
    assert str(table).splitlines() == [
        "class  logit                       error    accuracy",
        "    7  0.50 * [12] - 0.25 * [3]    3.40%  50% -> 25%",
        "   10  0                         100.00%  100% -> 0%",
    ]


def test_inputs_are_left_alone() -> None:
    logits, labels = problem()
    before, state = logits.clone(), torch.get_rng_state()
    legacy = np.random.get_state(legacy=True)  # ruff: ignore[numpy-legacy-random]
    independence_deficit(logits.requires_grad_(), labels)
    assert_identical(legacy, np.random.get_state(legacy=True))  # ruff: ignore[numpy-legacy-random]
    assert torch.equal(before, logits)
    assert torch.equal(state, torch.get_rng_state())


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"rank-callbacks\[network\]"):
        independence_deficit(*problem())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"logits": torch.zeros(3)}, r"shape \(N, K\), K from 2"),
        ({"logits": torch.zeros(3, 1)}, r"shape \(N, K\), K from 2"),
        ({"logits": torch.zeros(3, 2, dtype=torch.int64)}, "torch.int64"),
        ({"labels": torch.zeros(2, dtype=torch.long)}, "a label for each of 3 rows"),
        ({"labels": torch.full((3, 2), 0.5)}, "soft labels"),
        ({"penalty": 0.0}, "penalty to be above 0, got 0"),
        ({"deciders": 0}, "deciders to be from 1, got 0"),
        ({"classes": [1, 2, -1]}, "classes from 0 to 1, got 2, -1"),
    ],
)
def test_misuse(arguments: dict[str, Any], message: str) -> None:
    good = {"logits": torch.zeros(3, 2), "labels": torch.zeros(3, dtype=torch.long)}
    with pytest.raises(ValueError, match=message):
        independence_deficit(**(good | arguments))
