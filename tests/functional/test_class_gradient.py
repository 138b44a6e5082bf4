"""Ranks of one class's gradient, against the gradient with the rows of all others zeroed."""

import numpy as np
import pytest
import torch

from rank_callbacks.functional import class_gradient_ranks


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("classes", [1, 3, 10])
def test_ranks_are_those_of_the_gradient_with_other_rows_zeroed(classes: int, dtype: torch.dtype) -> None:
    deltas, inputs, labels = torch.randn(40, 12, dtype=dtype), torch.randn(40, 30, dtype=dtype), torch.randint(classes, (40,))
    deltas[:, 6:] = 0  # so that large classes are bound by something else than their size
    expected = {
        int(c): int(np.linalg.matrix_rank(np.where(labels == c, deltas.T.double(), 0) @ inputs.double().numpy(), rtol=1e-5))
        for c in labels.unique()
    }
    assert class_gradient_ranks(deltas, inputs, labels) == expected


def test_a_class_of_one_sample_has_a_gradient_of_rank_one() -> None:
    assert class_gradient_ranks(torch.randn(5, 8), torch.randn(5, 9), torch.arange(5)) == dict.fromkeys(range(5), 1)
