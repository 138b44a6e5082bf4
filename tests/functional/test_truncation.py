"""Best approximations of lower rank against the theorem of Eckart and Young and against NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rank_callbacks.functional.rank import distance_to_rank, rounding_noise
from rank_callbacks.functional.spectrum import singular_values, singular_values_of_each
from rank_callbacks.functional.truncation import factored_parameters, kept_rank, truncated

NAN = float("nan")


def numpy_truncated(matrix: torch.Tensor, rank: int) -> np.ndarray:
    """The sum of the first few outer products, one after the other."""
    left, values, right = np.linalg.svd(matrix.double().numpy())
    total = np.zeros(tuple(matrix.shape))
    for i in range(rank):
        total += values[i] * np.outer(left[:, i], right[i])
    return total


def assembled(blocks: torch.Tensor) -> torch.Tensor:
    """The block-diagonal matrix itself."""
    return torch.block_diag(*blocks)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.integers(1, 12), st.integers(1, 12), st.integers(0, 12), st.sampled_from([torch.float64, torch.float32, torch.bfloat16])
)
def test_the_sum_of_the_first_outer_products(rows: int, columns: int, rank: int, dtype: torch.dtype) -> None:
    matrix = torch.randn(rows, columns, dtype=torch.float64).to(dtype)
    result = truncated(matrix, rank)
    assert result.dtype == dtype
    rounding = 1e-12 + torch.finfo(dtype).eps * matrix.abs().max().item() * 4
    np.testing.assert_allclose(result.double().numpy(), numpy_truncated(matrix, min(rank, rows, columns)), atol=rounding)


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (4, 6, 3)], ids=str)
@pytest.mark.parametrize("rank", [0, 1, 3, 5])
def test_the_error_is_the_distance_of_eckart_and_young(shape: tuple[int, ...], rank: int) -> None:
    matrix = torch.randn(shape, dtype=torch.float64)
    distance = torch.linalg.vector_norm(matrix - truncated(matrix, rank))
    values = singular_values_of_each({"matrix": matrix})["matrix"]
    torch.testing.assert_close(distance, distance_to_rank(values, rank, relative=False), rtol=1e-12, atol=1e-12)


def test_no_other_matrix_of_the_rank_is_nearer() -> None:
    matrix = torch.randn(7, 6, dtype=torch.float64)
    nearest = torch.linalg.vector_norm(matrix - truncated(matrix, 2))
    for _ in range(200):
        up = torch.randn(7, 2, dtype=torch.float64)
        other = up @ torch.linalg.lstsq(up, matrix).solution  # the best with this column space
        assert torch.linalg.vector_norm(matrix - other) > nearest


def test_blocks_are_one_block_diagonal_matrix() -> None:
    blocks = torch.randn(3, 4, 5, dtype=torch.float64) * torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64)[:, None, None]
    result = truncated(blocks, 6)
    torch.testing.assert_close(assembled(result), truncated(assembled(blocks), 6))
    assert [int(torch.linalg.matrix_rank(block)) for block in result] == [2, 4, 0]


def test_equal_singular_values_at_the_border() -> None:
    assert torch.linalg.matrix_rank(truncated(torch.eye(6, dtype=torch.float64), 4)) == 4
    assert torch.linalg.matrix_rank(assembled(truncated(torch.eye(3, dtype=torch.float64).expand(2, 3, 3), 4))) == 4


def test_twice_is_once() -> None:
    once = truncated(torch.randn(8, 8, dtype=torch.float64), 3)
    torch.testing.assert_close(truncated(once, 3), once, rtol=0, atol=1e-13)


def test_complex() -> None:
    matrix = torch.randn(6, 4, dtype=torch.complex64)
    assert torch.linalg.matrix_rank(truncated(matrix, 2), rtol=1e-5) == 2
    assert truncated(matrix, 2).dtype == torch.complex64


@pytest.mark.parametrize("rank", [3, 4, 100])
def test_nothing_to_cut_leaves_every_bit(rank: int) -> None:
    matrix = torch.randn(3, 4)
    result = truncated(matrix, rank)
    assert torch.equal(result, matrix)
    assert result.data_ptr() != matrix.data_ptr()


def test_what_is_not_finite_is_left() -> None:
    matrix = torch.tensor([[1.0, NAN], [2.0, 3.0]])
    torch.testing.assert_close(truncated(matrix, 1), matrix, equal_nan=True)


def test_empty_matrix() -> None:
    assert truncated(torch.zeros(0, 4), 2).shape == (0, 4)


def test_magnitudes_at_which_squares_vanish() -> None:
    matrix = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(truncated(matrix * 1e-200, 2) * 1e200, truncated(matrix, 2))


@pytest.mark.parametrize(
    ("rule", "count"),
    [
        ({"rtol": 0.5}, 1),  # above the tolerance, not at it
        ({"rtol": 0.49}, 2),
        ({"rtol": 0.0}, 3),
        ({"energy": 0.79}, 1),  # 16 of 20.01
        ({"energy": 0.9}, 2),
        ({"energy": 1.0}, 3),
        ({"rank": 0}, 0),
        ({"rank": 2}, 2),
        ({"rank": 9}, 4),
    ],
    ids=str,
)
def test_kept_rank(rule: dict[str, float], count: int) -> None:
    values = torch.tensor([4.0, 2.0, 0.1, 0.0])
    assert kept_rank(values, **rule) == count
    assert kept_rank(torch.stack([values, values]), **rule).tolist() == [count, count]
    assert kept_rank(torch.tensor([NAN, NAN]), **rule).isnan()


@pytest.mark.parametrize(("rule", "count"), [({"rtol": 0.1}, 0), ({"energy": 0.9}, 0), ({"rank": 2}, 2)], ids=str)
def test_kept_rank_of_zeros(rule: dict[str, float], count: int) -> None:
    assert kept_rank(torch.zeros(4), **rule) == count


def test_rounding_is_not_kept() -> None:
    matrix = (torch.randn(64, 4) @ torch.randn(4, 64)).bfloat16()
    assert kept_rank(singular_values(matrix), rtol=1e-4, noise=rounding_noise(matrix)) == 4


@pytest.mark.parametrize(("rank", "numbers"), [(0, 0), (1, 30), (6, 180), (7, 200), (10, 200)])
def test_factored_parameters(rank: int, numbers: int) -> None:
    assert factored_parameters(torch.ones(10), (10, 20), rank) == numbers


def test_each_block_has_factors_of_its_own() -> None:
    values = torch.tensor([[4.0, 3.0, 2.0], [1.0, 0.0, 0.0]])
    assert factored_parameters(values, (2, 3, 9), rank=4) == 27 + 12  # the first whole, the second as 3 + 9


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({}, "exactly one of rtol, energy and rank, got none"),
        ({"rtol": 0.1, "rank": 3}, "exactly one of rtol, energy and rank, got rtol=0.1 and rank=3"),
        ({"rtol": -0.1}, "Expected rtol to be a number from 0, got -0.1"),
        ({"rtol": NAN}, "Expected rtol to be a number from 0, got nan"),
        ({"energy": 0.0}, r"Expected energy to be in \(0, 1\], got 0.0"),
        ({"energy": 1.1}, r"Expected energy to be in \(0, 1\], got 1.1"),
        ({"rank": -1}, "Expected rank to be a whole number from 0, got -1"),
        ({"rank": 1.5}, "Expected rank to be a whole number from 0, got 1.5"),
    ],
)
def test_rules_that_are_none(rule: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kept_rank(torch.ones(3), **rule)


@pytest.mark.parametrize("matrix", [torch.ones(3), torch.ones(2, 2, 2, 2), torch.ones(2, 2, dtype=torch.int64)])
def test_what_is_no_matrix(matrix: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="Expected a matrix of shape"):
        truncated(matrix, 1)


def test_negative_rank() -> None:
    with pytest.raises(ValueError, match="Expected rank to be a whole number from 0, got -1"):
        truncated(torch.ones(2, 2), -1)
