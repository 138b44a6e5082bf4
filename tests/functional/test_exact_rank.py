import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rank_callbacks.functional import exact_rank, factor_tolerances, numerical_rank, outer_product_spectrum, rounding_rtol

dimensions = st.integers(1, 40)
types = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])
some = settings(max_examples=150, deadline=None, derandomize=True)


def of_rank(rows: int, columns: int, rank: int, dtype: torch.dtype) -> Tensor:
    """Singular values within a decade, and the rounding of the type."""
    left, right = (torch.linalg.qr(torch.randn(size, rank, dtype=torch.float64)).Q for size in (rows, columns))
    return (left * torch.logspace(0, -1, left.shape[1], dtype=torch.float64)[: right.shape[1]] @ right.mT).to(dtype)


@some
@given(seed=st.integers(0, 999), rows=dimensions, columns=dimensions, rank=st.integers(0, 40), dtype=types)
def test_rank_of_a_rounded_matrix_is_that_of_the_matrix(seed, rows, columns, rank, dtype) -> None:
    torch.manual_seed(seed)
    rank = min(rank, rows, columns)
    assert exact_rank(of_rank(rows, columns, rank, dtype)) == rank


@some
@given(seed=st.integers(0, 999), size=st.integers(2, 60), rank=st.integers(1, 60))
def test_inertia_counts_as_singular_values_do(seed, size, rank) -> None:
    """Over a spectrum from far above to far below the tolerance, but for values within a few per cent of it."""
    torch.manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q for _ in range(2))
    matrix = (left * torch.logspace(0, -9, size, dtype=torch.float64) @ right).float()
    values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    tolerance = size * torch.finfo(torch.float32).eps * values[0]
    assert (values > 1.1 * tolerance).sum() <= exact_rank(matrix) <= (values > 0.9 * tolerance).sum()


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e10, 1e30])
def test_rank_at_any_scale(scale: float) -> None:
    assert exact_rank(of_rank(30, 20, 5, torch.float32) * scale) == 5


def test_rank_does_not_fall_with_the_number_of_rows() -> None:
    """A tolerance of max(m, n)·ε would be 6e-3 for 50,000 rows."""
    few = torch.randn(100, 8) * torch.tensor([1.0] * 7 + [1e-3])
    assert exact_rank(few) == exact_rank(few.repeat(500, 1)) == 8


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_of_what_is_not_finite_no_less_than_full_rank_is_known(dtype: torch.dtype, bad: float) -> None:
    matrix = torch.zeros(5, 3, dtype=dtype)
    matrix[1, 1] = bad
    assert exact_rank(matrix) == 3


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (4, 3), (1, 1)], ids=str)
def test_zeros_have_rank_zero(shape: tuple[int, int]) -> None:
    assert exact_rank(torch.zeros(shape)) == 0


@some
@given(
    seed=st.integers(0, 999),
    b=st.integers(1, 12),
    sizes=st.tuples(dimensions, dimensions),
    ranks=st.tuples(st.integers(0, 12), st.integers(0, 12)),
    dtype=types,
)
def test_ranks_of_factors_come_with_the_spectrum_of_their_product(seed, b, sizes, ranks, dtype) -> None:
    torch.manual_seed(seed)
    input_rank, delta_rank = (min(rank, b, size) for rank, size in zip(ranks, sizes, strict=True))
    inputs, deltas = of_rank(b, sizes[0], input_rank, dtype), of_rank(b, sizes[1], delta_rank, dtype)
    spectrum = outer_product_spectrum(deltas, inputs)
    assert (spectrum.input_rank, spectrum.delta_rank) == (input_rank, delta_rank)


@some
@given(seed=st.integers(0, 999), rows=st.integers(1, 60), sizes=st.tuples(dimensions, dimensions), offset=st.integers(-3, 6))
def test_no_gradient_in_float32_has_a_higher_rank_than_its_factors(seed, rows, sizes, offset) -> None:
    """Also where the output gradients sum to zero and cancel a large mean of the inputs."""
    torch.manual_seed(seed)
    inputs = torch.randn(rows, sizes[0]) + 10.0**offset
    deltas = torch.randn(rows, sizes[1])
    deltas -= deltas.mean(0)
    of_deltas, of_inputs = factor_tolerances(deltas, inputs)
    values = torch.linalg.svdvals(deltas.double().mT @ inputs.double())  # the product itself may round as well
    rank = numerical_rank(values, rounding_rtol((sizes[1], sizes[0]), torch.float32)).item()
    assert rank <= min(exact_rank(inputs, of_inputs), exact_rank(deltas, of_deltas))


def test_large_mean_does_not_hide_the_rest_of_the_inputs() -> None:
    inputs, deltas = torch.randn(64, 64) + 1e5, torch.randn(64, 64)
    deltas -= deltas.mean(0)
    assert exact_rank(inputs) == 1
    assert exact_rank(inputs, factor_tolerances(deltas, inputs)[1]) >= 63
