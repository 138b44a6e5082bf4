import numpy as np
import pytest
import torch

from rank_callbacks.functional import matrix_norm


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-12, 1, 1e12, 1e30, 1e36])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_norm_at_any_scale(dtype: torch.dtype, scale: float) -> None:
    matrix = (torch.randn(40, 30).double() * scale).to(dtype)
    for view in (matrix, matrix.mT, matrix[:, ::2]):
        assert matrix_norm(view).item() == pytest.approx(np.linalg.norm(view.double().numpy() / scale) * scale, rel=1e-6)


def test_float64_at_the_ends_of_its_range() -> None:
    for scale in (1e-250, 1e250):
        assert matrix_norm(torch.tensor([[3, 4]]).double() * scale).item() == pytest.approx(5 * scale)


def test_many_rows_keep_their_digits() -> None:
    matrix = torch.rand(50_000, 20)
    assert matrix_norm(matrix).item() == pytest.approx(np.linalg.norm(matrix.double().numpy()), rel=1e-8)


def test_zero_empty_and_not_finite() -> None:
    assert matrix_norm(torch.zeros(3, 4)) == 0
    assert matrix_norm(torch.zeros(0, 4)) == 0
    assert matrix_norm(torch.tensor([[1.0, torch.nan]])).isnan()
    assert not matrix_norm(torch.tensor([[1.0, torch.inf]])).isfinite()
