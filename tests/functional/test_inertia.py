import numpy as np
import pytest
import torch
from torch import Tensor

from rank_callbacks.functional import numerical_rank, positive_eigenvalues, rank_by_inertia, rounding_noise, singular_values

from .test_leading_spectrum import on_shards


def svd(matrix: Tensor) -> np.ndarray:
    return np.linalg.svd(matrix.double().numpy(), compute_uv=False)


def with_spectrum(values: Tensor, rows: int, columns: int) -> Tensor:
    left, right = (torch.linalg.qr(torch.randn(size, len(values), dtype=torch.float64)).Q for size in (rows, columns))
    return left * values @ right.mT


def random_case(seed: int) -> tuple[Tensor, float]:
    """A matrix of any shape, spectrum and type, and a relative tolerance."""
    torch.manual_seed(seed)
    rows, columns = torch.randint(1, 49, (2,)).tolist()
    least = min(rows, columns)
    decay = torch.logspace(0, -float(torch.rand(())) * 9, least, dtype=torch.float64)
    signs = (torch.rand(least, dtype=torch.float64) < 0.8).double()  # some are exactly 0
    matrix = torch.randn(rows, columns) if seed % 4 == 0 else with_spectrum(decay * signs, rows, columns)
    dtype = (torch.float32, torch.float64, torch.bfloat16)[seed % 3]
    return matrix.to(dtype), (0.3, 0.1, 1e-2, 1e-3, 1e-4, 1e-6)[seed % 6]


@pytest.mark.parametrize("first", range(0, 4000, 1000))
def test_rank_is_that_of_the_spectrum_in_4000_random_cases(first: int) -> None:
    """Of ``numpy.linalg.svd`` in float64 and of the library, the floor by rounding included; away from ties."""
    ties = 0
    for seed in range(first, first + 1000):
        matrix, rtol = random_case(seed)
        values, noise = singular_values(matrix), rounding_noise(matrix)
        threshold = max(rtol * values[0], noise)
        truth = svd(matrix)
        if threshold == 0 or (np.abs(truth - threshold.item()) < 1e-6 * threshold.item() + 1e-14 * truth[0]).any():
            ties += 1
            continue
        rank = rank_by_inertia(matrix, threshold)
        assert rank == (truth > threshold.item()).sum(), seed
        assert rank == numerical_rank(values, rtol, noise), seed
    assert ties < 30


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15, 1e30])
@pytest.mark.parametrize("shape", [(90, 60), (60, 90)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_any_scale(dtype: torch.dtype, shape: tuple[int, int], scale: float) -> None:
    matrix = (with_spectrum(torch.logspace(0, -4, 60, dtype=torch.float64), *shape) * scale).to(dtype)
    for rtol in (0.5, 1e-1, 1e-2, 1e-3):
        assert rank_by_inertia(matrix, rtol * svd(matrix)[0]) == (svd(matrix) > rtol * svd(matrix)[0]).sum()


def test_float64_at_the_ends_of_its_range() -> None:
    for scale in (1e-250, 1e250):
        assert rank_by_inertia(torch.diag(torch.tensor([3.0, 2, 1]).double() * scale), 1.5 * scale) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rank", [1, 4])
def test_exactly_singular(rank: int, dtype: torch.dtype) -> None:
    whole = torch.randint(-3, 4, (50, rank)).double() @ torch.randint(-3, 4, (rank, 40)).double()
    for matrix in (whole.to(dtype), whole.mT.to(dtype)):
        assert rank_by_inertia(matrix, 1e-3 * svd(matrix)[0]) == rank


def test_bfloat16_has_its_rounding_not_counted() -> None:
    matrix = (torch.randn(80, 4) @ torch.randn(4, 70)).bfloat16()
    assert rank_by_inertia(matrix, rounding_noise(matrix)) == 4
    assert rank_by_inertia(matrix, 1e-5 * svd(matrix)[0]) == 70


def test_threshold_of_zero_is_that_of_the_spectrum() -> None:
    for matrix in (torch.randn(30, 20), torch.ones(30, 20), torch.randn(20, 30).double()):
        assert rank_by_inertia(matrix, 0) == numerical_rank(singular_values(matrix), 0)


@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (1, 1), (0, 5), (5, 0)], ids=str)
def test_zeros_and_no_entries(shape: tuple[int, int]) -> None:
    for threshold in (0, 1):
        rank = rank_by_inertia(torch.zeros(shape), threshold)
        assert rank == 0
        assert rank.dtype == torch.float64


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_not_finite(dtype: torch.dtype, bad: float) -> None:
    matrix = torch.randn(30, 20).to(dtype)
    assert rank_by_inertia(matrix, torch.tensor(torch.nan)).isnan()
    matrix[3, 4] = bad
    assert rank_by_inertia(matrix, 1).isnan()


def test_a_lower_bound_of_the_norm_counts_no_fewer() -> None:
    for seed in range(20):
        matrix = torch.randn(40, 30, generator=torch.Generator().manual_seed(seed)).double()
        exact, low = (rank_by_inertia(matrix, 0.3 * norm * svd(matrix)[0]) for norm in (1, 1 - 1e-3))
        assert exact <= low <= exact + 1


def test_blocks_of_two_in_the_factorisation_count_one_each() -> None:
    """Zeros on the diagonal force pivots of 2 x 2, with one positive and one negative eigenvalue."""
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double()
    assert positive_eigenvalues(torch.block_diag(swap, swap, swap)) == 3
    for seed in range(200):
        torch.manual_seed(seed)
        symmetric = torch.randn(15, 15).double()
        symmetric = (symmetric + symmetric.mT).fill_diagonal_(0)
        assert positive_eigenvalues(symmetric, 0.1) == (np.linalg.eigvalsh(symmetric.numpy()) > 0.1).sum()


@pytest.mark.parametrize("level", [0.0, 1e-7, 1e-2, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(90, 20), (20, 90)], ids=str)
def test_shards_of_rows(shape: tuple[int, int], dtype: torch.dtype, level: float) -> None:
    matrix = with_spectrum(torch.logspace(0, -3, 15, dtype=torch.float64), *shape).to(dtype)
    sizes = [10, 0, shape[0] - 13, 3]
    results, processes = on_shards(matrix, sizes, lambda rows, total: rank_by_inertia(rows, level, total=total))
    expected = {0.0: None, 1e-7: None}.get(level, float((svd(matrix) > level).sum()))
    assert len({float(rank) for rank in results}) == 1
    assert expected is None or results[0] == expected
    assert results[0] >= 15 or level > 1e-3
    assert processes.bytes == 8 + 8 * shape[1] ** 2


def test_negative_threshold() -> None:
    with pytest.raises(ValueError, match=r"Expected threshold to be a number from 0, got -1\.0"):
        rank_by_inertia(torch.ones(3, 3), -1)
