"""The gradient of one class: the outer products that its samples alone add."""

from __future__ import annotations

import torch
from torch import Tensor

from rank_callbacks.functional.exact_rank import exact_rank
from rank_callbacks.functional.low_rank import outer_product_spectrum
from rank_callbacks.functional.rank import numerical_rank, rounding_rtol

__all__ = ["class_gradient_ranks"]


def class_gradient_ranks(deltas: Tensor, inputs: Tensor, labels: Tensor) -> dict[int, int]:
    """Exact rank of Δ_cᵀX_c for every class c that the batch holds, Δ_c and X_c the rows of its samples.

    Args:
        deltas: Output gradients Δ of a linear layer, shape ``(b, m)``.
        inputs: Its inputs X, shape ``(b, n)``.
        labels: Class of each row, integers of shape ``(b,)``.

    Returns:
        Ranks by class, each at most the number of the class's samples.

    Example:
        >>> class_gradient_ranks(torch.eye(3), torch.eye(3), torch.tensor([7, 7, 2]))
        {2: 1, 7: 2}

    Reference:
        Low-rank learning by design (Baker et al., 2024), https://arxiv.org/abs/2402.06751, whose code zeroes the rows of all
        other classes.
    """
    return {int(c): _rank(deltas[labels == c], inputs[labels == c]) for c in labels.unique()}


def _rank(deltas: Tensor, inputs: Tensor) -> int:
    if deltas.dtype == torch.float64:  # squares would lose half of its digits
        return exact_rank(deltas.mT @ inputs)
    values = outer_product_spectrum(deltas, inputs).singular_values
    rank = numerical_rank(values, rounding_rtol((deltas.shape[1], inputs.shape[1]), deltas.dtype))
    return len(values) if rank.isnan() else int(rank)
