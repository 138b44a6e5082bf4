"""How well a few other logits tell a class's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rank_callbacks.functional.labels import labelled_rows

if TYPE_CHECKING:
    from sklearn.linear_model import Lasso

__all__ = ["ClassDeficit", "DeficitTable", "independence_deficit"]

# One sample is told by any other logit.
_LEAST_SAMPLES = 2


class ClassDeficit(NamedTuple):
    """How well the logit of one class is told by those that decide it, on samples of that class.

    Args:
        label: The class.
        samples: How many samples of it there are.
        deciders: The classes whose logits are used, the greatest weight first; fewer where others have none.
        weights: Their weights.
        relative_error: Mean of |y − ŷ| / |y|; infinite where a logit is 0 and its prediction is not.
        accuracy: Share of the samples that are classified as it.
        accuracy_predicted: The same with ŷ in place of its logit.
    """

    label: int
    samples: int
    deciders: tuple[int, ...]
    weights: tuple[float, ...]
    relative_error: float
    accuracy: float
    accuracy_predicted: float


class DeficitTable(tuple[ClassDeficit, ...]):
    """A ``ClassDeficit`` a class; printed, a table."""

    __slots__ = ()

    def __str__(self) -> str:
        cells = [("class", "logit", "error", "accuracy")]
        cells += [(str(row.label), _formula(row), _percent(row.relative_error), _change(row)) for row in self]
        widths = [max(len(line[column]) for line in cells) for column in range(4)]
        return "\n".join(
            f"{label:>{widths[0]}}  {formula:<{widths[1]}}  {error:>{widths[2]}}  {accuracy:>{widths[3]}}"
            for label, formula, error, accuracy in cells
        )


def independence_deficit(
    logits: Tensor,
    labels: Tensor,
    penalty: float = 20.0,
    deciders: int = 3,
    classes: Iterable[int] | None = None,
) -> DeficitTable:
    """Predict each class's logit from a few other logits, with no intercept, on the samples of that class alone.

    The weights minimise (1/n)·Σ (y_i − w·y_{−i})² + penalty·‖w‖₁, scikit-learn's Lasso of alpha = penalty/2; then the
    ``deciders`` largest are kept as they are, and the logit becomes ŷ_i = Σ w_j·y_j over these. A class that is told so is no
    category of its own to the network.

    Penalty and weights depend on the scale of the logits. Of few samples many classes tell anything.

    Args:
        logits: Shape ``(N, K)``, any real floating type; float64 inside.
        labels: Classes 0..K−1, of shape ``(N,)``.
        penalty: Of the paper's code.
        deciders: How many weights are kept, from 1.
        classes: Which classes to predict; all by default.

    Returns:
        A row a class. One of fewer than 2 samples, or of a logit that is not finite, has no deciders and NaN for numbers.

    Raises:
        ImportError: If scikit-learn is absent.
        ValueError: If shapes, labels or classes do not fit, or a number is out of range.

    Example:
        >>> first, second = torch.tensor([10.0, 20.0, 30.0]), torch.tensor([0.0, 5.0, 0.0])
        >>> logits = torch.stack([first, second, first / 2], dim=1)
        >>> print(independence_deficit(logits, torch.zeros(3, dtype=torch.long), penalty=0.01, classes=[0]))
        class  logit       error      accuracy
            0  2.00 * [2]  0.00%  100% -> 100%

    Reference:
        Rank diminishing in deep neural networks (Feng et al., 2022), https://arxiv.org/abs/2206.06072
    """
    _check(logits, penalty, deciders)
    labels = labelled_rows(labels, logits.shape[1], len(logits)).classes
    if len(labels) != len(logits):
        raise ValueError(f"Expected one class a row for {len(logits)} rows, got soft labels of {len(labels)} classes.")
    chosen = range(logits.shape[1]) if classes is None else list(classes)
    unknown = [label for label in chosen if not 0 <= label < logits.shape[1]]
    if unknown:
        raise ValueError(f"Expected classes from 0 to {logits.shape[1] - 1}, got {', '.join(map(str, unknown))}.")
    model = _lasso(penalty)
    logits, labels = logits.detach().double().cpu(), labels.cpu()
    return DeficitTable(_deficit(model, logits[labels == label], label, deciders) for label in chosen)


def _check(logits: Tensor, penalty: float, deciders: int) -> None:
    if logits.dim() != 2 or logits.shape[1] < 2 or not logits.is_floating_point():
        raise ValueError(f"Expected logits of shape (N, K), K from 2, got {logits.dtype} of shape {tuple(logits.shape)}.")
    if not 0 < penalty < float("inf"):
        raise ValueError(f"Expected penalty to be above 0, got {penalty}.")
    if deciders < 1:
        raise ValueError(f"Expected deciders to be from 1, got {deciders}.")


def _lasso(penalty: float) -> Lasso:
    try:
        from sklearn.linear_model import Lasso
    except ImportError as error:
        raise ImportError(
            "independence_deficit needs scikit-learn: install it by `pip install 'rank-callbacks[network]'`."
        ) from error
    # Without a seed it draws one from NumPy's global generator, though it does nothing random.
    return Lasso(alpha=penalty / 2, fit_intercept=False, tol=1e-6, max_iter=10_000, random_state=0)


def _deficit(model: Lasso, logits: Tensor, label: int, deciders: int) -> ClassDeficit:
    if len(logits) < _LEAST_SAMPLES or not logits.isfinite().all():
        return ClassDeficit(label, len(logits), (), (), *(3 * [float("nan")]))
    logit, others = logits[:, label], logits.clone()
    others[:, label] = 0  # a column of zeros has no weight
    weights = torch.from_numpy(model.fit(others.numpy(), logit.numpy()).coef_).double()
    order = weights.abs().argsort(descending=True, stable=True)[:deciders]
    order = order[weights[order] != 0]
    predicted = others[:, order] @ weights[order]
    replaced = others.index_fill(1, torch.tensor(label), 0.0)
    replaced[:, label] = predicted
    error = torch.where(logit == predicted, 0.0, (logit - predicted).abs() / logit.abs())
    accuracies = [(rows.argmax(1) == label).double().mean().item() for rows in (logits, replaced)]
    return ClassDeficit(
        label, len(logits), tuple(order.tolist()), tuple(weights[order].tolist()), error.mean().item(), *accuracies
    )


def _formula(row: ClassDeficit) -> str:
    if row.relative_error != row.relative_error:
        return f"- ({row.samples} samples)" if row.samples < _LEAST_SAMPLES else "- (not finite)"
    terms = [f"{weight:.2f} * [{label}]" for label, weight in zip(row.deciders, row.weights, strict=True)]
    return " + ".join(terms).replace("+ -", "- ") or "0"


def _change(row: ClassDeficit) -> str:
    return "-" if row.accuracy != row.accuracy else f"{row.accuracy:.0%} -> {row.accuracy_predicted:.0%}"


def _percent(share: float) -> str:
    return "-" if share != share else f"{share:.2%}"
