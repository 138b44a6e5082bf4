import numpy as np
import pytest
import torch
from torch import Tensor

from rank_callbacks.functional import fourth_moment, gram_participation_ratio, participation_ratio, singular_values

from .test_leading_spectrum import on_shards

SHAPES = [(300, 300), (400, 130), (130, 400), (20, 9), (1, 5), (5, 1)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
BAR = {torch.float32: 1e-7, torch.float64: 1e-13, torch.bfloat16: 1e-7, torch.float16: 1e-7}
types = pytest.mark.parametrize("dtype", BAR, ids=str)


def svd(matrix: Tensor) -> np.ndarray:
    return np.linalg.svd(matrix.double().numpy(), compute_uv=False)


@types
@shapes
def test_sum_of_fourth_powers_is_that_of_numpy(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = torch.randn(shape).to(dtype)
    values = svd(matrix)
    assert fourth_moment(matrix).item() == pytest.approx((values**4).sum(), rel=5 * BAR[dtype])
    ratio = gram_participation_ratio(matrix)
    assert ratio.dtype == torch.float64
    assert ratio.item() == pytest.approx((values**2).sum() ** 2 / (values**4).sum(), rel=5 * BAR[dtype])


@pytest.mark.parametrize("decay", [0, 1, 4, 12])
@pytest.mark.parametrize("shape", [(300, 280), (200, 300)], ids=str)
def test_participation_ratio_in_float32_is_that_of_the_spectrum(shape: tuple[int, int], decay: int) -> None:
    left, right = (torch.linalg.qr(torch.randn(size, 200).double()).Q for size in shape)
    matrix = (left * torch.logspace(0, -decay, 200).double() @ right.mT).float()
    expected = participation_ratio(singular_values(matrix.double())).item()
    assert gram_participation_ratio(matrix).item() == pytest.approx(expected, rel=2e-7)


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_any_scale(dtype: torch.dtype, scale: float) -> None:
    matrix = (torch.randn(50, 40).double() * scale).to(dtype)
    expected = (svd(matrix / scale) ** 4).sum()
    assert fourth_moment(matrix).item() / scale**4 == pytest.approx(expected, rel=1e-5)
    assert gram_participation_ratio(matrix) == pytest.approx(participation_ratio(singular_values(matrix)).item(), rel=1e-6)


@pytest.mark.parametrize(("scale", "expected"), [(1e-100, 0), (1e100, np.inf), (1e200, np.inf)])
def test_fourth_power_that_float64_does_not_hold(scale: float, expected: float) -> None:
    matrix = scale * torch.eye(3, dtype=torch.float64)
    assert fourth_moment(matrix).item() == expected
    assert gram_participation_ratio(matrix).item() == pytest.approx(3)


@shapes
def test_zeros(shape: tuple[int, int]) -> None:
    assert fourth_moment(torch.zeros(shape)) == 0
    assert gram_participation_ratio(torch.zeros(shape)) == 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_not_finite(bad: float) -> None:
    matrix = torch.randn(30, 20)
    matrix[3, 4] = bad
    assert fourth_moment(matrix).isnan()
    assert gram_participation_ratio(matrix).isnan()


@pytest.mark.parametrize("shape", [(90, 20), (20, 90)], ids=str)
def test_shards_of_rows(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape)
    results, processes = on_shards(
        matrix, [10, 0, shape[0] - 13, 3], lambda rows, total: gram_participation_ratio(rows, total=total)
    )
    for ratio in results:
        assert ratio.item() == pytest.approx(participation_ratio(singular_values(matrix)).item(), rel=1e-6)
    assert processes.bytes <= 4 * shape[1] ** 2 + 16


def test_precision_of_products_is_forced() -> None:
    matrix = torch.randn(300, 300)
    expected = fourth_moment(matrix)
    with torch.autocast("cpu", torch.bfloat16):
        assert fourth_moment(matrix) == expected
