"""Spectra against NumPy's float64 SVD, within the error bounds that the docstring states."""

import math
from functools import cache

import numpy as np
import pytest
import torch

from rank_callbacks.functional import (
    numerical_rank,
    rounding_noise,
    rounding_rtol,
    singular_values,
    singular_values_of_each,
    spectrum_cost,
)
from rank_callbacks.functional.spectrum import METHODS

NAN, INF = float("nan"), float("inf")
EPS = 2.0**-52

SHAPES = [
    (1, 1),
    (1, 9),
    (9, 1),
    (7, 5),
    (33, 33),
    (64, 40),
    (300, 70),  # two column blocks
    (70, 300),
    (600, 260),  # four column blocks, the last one narrower
    (9000, 40),  # several chunks of rows
    (9000, 70),  # of both
    (5, 8, 6),
    (2, 3, 6, 8),
    (3, 100, 70),
    (2, 2, 70, 100),
]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64, torch.complex128]

every_method = pytest.mark.parametrize("method", METHODS)
# Below and above the sizes that ``auto`` leaves to LAPACK and that are multiplied in one block.
small_and_large = pytest.mark.parametrize("shape", [(12, 8), (100, 40), (100, 70), (70, 100)], ids=str)


def reference(matrix: torch.Tensor) -> torch.Tensor:
    wide = matrix.to(torch.complex128 if matrix.is_complex() else torch.float64)
    return torch.from_numpy(np.linalg.svd(wide.numpy(), compute_uv=False))


@cache
def random_matrix(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix and its singular values, the same for every method."""
    matrix = torch.randn(shape, dtype=dtype)
    return matrix, reference(matrix)


def bound_of_gram(values: torch.Tensor) -> torch.Tensor:
    """The docstring's 1e-16·σ₁²/σ, an order of magnitude: measured are 2e-16 with 40 columns, 2e-15 with 260."""
    return 4e-15 * values[..., :1] ** 2 / values


def decaying(rows: int, columns: int, decades: int = 10) -> torch.Tensor:
    """A float64 matrix whose singular values fall evenly over so many decades."""
    rank = min(rows, columns)
    left, right = (torch.linalg.qr(torch.randn(side, rank, dtype=torch.float64)).Q for side in (rows, columns))
    return (left * torch.logspace(0, -decades, rank, dtype=torch.float64)) @ right.T


@every_method
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_singular_values_are_those_of_numpy(shape, dtype, method):
    matrix, expected = random_matrix(shape, dtype)
    values = singular_values(matrix, method)
    assert values.dtype == torch.float64
    assert ((values - expected).abs() <= bound_of_gram(expected)).all()  # svd: the same, as these are well-conditioned


@every_method
def test_known_singular_values_of_the_matrix_of_reciprocals(method):
    matrix = torch.tensor([[1 / (i + j + 1) for j in range(4)] for i in range(6)], dtype=torch.float64)
    known = [1.55522917, 0.201046092, 0.0103566881, 2.39804792e-4]
    assert singular_values(matrix, method).tolist() == pytest.approx(known, rel=3e-9)


@every_method
def test_singular_values_descend(method):
    assert (singular_values(torch.randn(4, 90, 80), method).diff() <= 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(300, 70), (70, 300), (40, 33), (20, 20)], ids=str)
def test_error_of_svd_over_ten_decades(shape, dtype):
    matrix = decaying(*shape).to(dtype)
    expected = reference(matrix)
    assert ((singular_values(matrix, "svd") - expected).abs() <= 1e-15 * expected[0]).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [(), (1,)], ids=["matrix", "batch"])
@pytest.mark.parametrize("shape", [(300, 70), (70, 300), (600, 260), (40, 33)], ids=str)
def test_error_of_gram_over_ten_decades(shape, batch, dtype):
    matrix = decaying(*shape).to(dtype)
    values, expected = singular_values(matrix.expand(*batch, *shape), "gram").reshape(-1), reference(matrix)
    hidden_below = math.sqrt(math.sqrt(min(shape)) * EPS) * expected[0]
    visible = expected > 1.01 * hidden_below
    error = (values - expected).abs()
    assert (error <= bound_of_gram(expected))[visible].all()
    assert (error <= 1e-8 * expected[0])[visible].all()
    assert (values[expected < 0.99 * hidden_below] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("shape", [(20, 20), (300, 32), (300, 70)], ids=str)
def test_error_of_auto_is_far_below_the_rounding_of_a_narrow_type(shape, dtype):
    matrix = torch.randn(shape, dtype=dtype)
    expected = reference(matrix)
    error = (singular_values(matrix) - expected).abs().max()
    assert error < 1e-3 * rounding_noise(matrix)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_error_of_auto_over_ten_decades_is_below_the_tolerance_of_exact_rank(dtype):
    matrix = decaying(600, 260).to(dtype)
    expected = reference(matrix)
    error = (singular_values(matrix) - expected).abs().max()
    assert error < 0.01 * rounding_rtol((600, 260), dtype) * expected[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_auto_keeps_the_digits_of_a_wide_type(dtype):
    matrix = decaying(300, 70).to(dtype)
    expected = reference(matrix)
    assert ((singular_values(matrix) - expected).abs() <= 1e-15).all()


@pytest.mark.parametrize("rank", [1, 5, 20])
@pytest.mark.parametrize("shape", [(300, 120), (120, 300), (40, 33)], ids=str)
def test_exact_rank_in_float32_through_gram(shape, rank):
    product = torch.randn(shape[0], rank, dtype=torch.float64) @ torch.randn(rank, shape[1], dtype=torch.float64)
    values = singular_values(product.float(), "gram")
    assert numerical_rank(values, rtol=0, noise=rounding_noise(product.float())).item() == rank


@every_method
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (3, 0, 4), (3, 4, 0), (0, 4, 3), (0, 100, 70)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
def test_zero_sized_dimensions(shape, dtype, method):
    values = singular_values(torch.zeros(shape, dtype=dtype), method)
    assert values.shape == (*shape[:-2], min(shape[-2:]))
    assert values.dtype == torch.float64


@every_method
@small_and_large
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_zero_matrix_has_zero_singular_values(shape, dtype, method):
    assert (singular_values(torch.zeros(shape, dtype=dtype), method) == 0).all()


@every_method
@small_and_large
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_one_bad_entry_spoils_its_own_matrix_only(shape, dtype, method, bad):
    batch = torch.randn(3, *shape, dtype=dtype)
    good = singular_values(batch, method)
    batch[1, 4, 6] = bad
    values = singular_values(batch, method)
    assert values[1].isnan().all()
    torch.testing.assert_close(values[[0, 2]], good[[0, 2]], rtol=1e-13, atol=0)
    assert singular_values(batch[1], method).isnan().all()


@every_method
def test_infinities_that_cancel_read_nan(method):
    matrix = torch.randn(80, 70)
    matrix[3, 4], matrix[5, 6] = INF, -INF
    assert singular_values(matrix, method).isnan().all()


@every_method
@small_and_large
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_squares_of_float64_entries_neither_overflow_nor_underflow(shape, dtype, method, scale):
    matrix = torch.randn(shape, dtype=dtype)
    torch.testing.assert_close(singular_values(matrix * scale, method) / scale, reference(matrix), rtol=1e-12, atol=0)


@every_method
@small_and_large
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_squares_of_float32_entries_neither_overflow_nor_underflow(shape, method, scale):
    matrix = torch.randn(shape) * scale
    torch.testing.assert_close(singular_values(matrix, method), reference(matrix), rtol=1e-10, atol=0)


@every_method
def test_largest_and_smallest_of_float64_are_finite(method):
    assert singular_values(torch.full((40, 40), 1e306, dtype=torch.float64), method)[0].item() == pytest.approx(4e307)
    assert singular_values(torch.full((40, 40), 1e-308, dtype=torch.float64), method)[0].item() == pytest.approx(4e-307)


@every_method
def test_strided_views_are_read_and_left_as_they_are(method):
    stored = torch.randn(140, 200)
    before = stored.clone()
    view = stored.T[::2, 10:]
    torch.testing.assert_close(singular_values(view, method), reference(view.contiguous()), rtol=1e-10, atol=0)
    assert torch.equal(stored, before)


@every_method
def test_global_random_state_is_left_alone(method):
    matrix = torch.randn(600, 260)
    before = torch.random.get_rng_state()
    singular_values(matrix, method)
    singular_values_of_each({"one": matrix, "other": matrix[:9, :9]}, method)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("matrix", "got"),
    [
        pytest.param(torch.ones(3), r"shape \(3,\) of torch\.float32", id="vector"),
        pytest.param(torch.tensor(1.0), r"shape \(\) of torch\.float32", id="scalar"),
        pytest.param(torch.ones(2, 3, dtype=torch.int64), r"shape \(2, 3\) of torch\.int64", id="integers"),
        pytest.param(torch.ones(2, 3, dtype=torch.bool), r"shape \(2, 3\) of torch\.bool", id="booleans"),
    ],
)
def test_what_is_no_matrix_is_refused(matrix, got):
    message = rf"Expected a matrix of shape \(\.\.\., m, n\) and floating type, got {got}\."
    with pytest.raises(ValueError, match=message):
        singular_values(matrix)
    with pytest.raises(ValueError, match=message):
        singular_values_of_each({"layer": matrix})


def test_unknown_method_is_refused():
    message = r"Expected method to be one of auto, gram, svd, got 'lanczos'\."
    with pytest.raises(ValueError, match=message):
        singular_values(torch.ones(2, 2), "lanczos")
    with pytest.raises(ValueError, match=message):
        singular_values_of_each({"layer": torch.ones(2, 2)}, "lanczos")


def differently_shaped() -> dict[str, torch.Tensor]:
    return {
        "small.1": torch.randn(8, 6),
        "large": torch.randn(50, 40),
        "small.2": torch.randn(8, 6),
        "transposed": torch.randn(6, 8),
        "double": torch.randn(8, 6, dtype=torch.float64),
        "blocks": torch.randn(3, 8, 6),
        "small.3": torch.randn(8, 6),
        "large.too": torch.randn(50, 40),
        "empty": torch.zeros(0, 6),
        "empty.too": torch.zeros(0, 6),
    }


@every_method
def test_names_and_their_order_are_kept(method):
    matrices = differently_shaped()
    assert list(singular_values_of_each(matrices, method)) == list(matrices)
    assert singular_values_of_each({}, method) == {}


@every_method
def test_many_matrices_equal_single_calls(method):
    matrices = differently_shaped()
    values = singular_values_of_each(matrices, method)
    for name in matrices.keys() - {"blocks"}:
        torch.testing.assert_close(values[name], singular_values(matrices[name], method), rtol=1e-13, atol=0)


@every_method
@pytest.mark.parametrize("shape", [(4, 7, 5), (3, 5, 7), (2, 100, 70), (2, 3, 7, 5), (1, 7, 5)], ids=str)
def test_blocks_are_one_block_diagonal_matrix(shape, method):
    blocks = torch.randn(shape)
    dense = torch.block_diag(*blocks.flatten(0, -3))
    values = singular_values_of_each({"layer": blocks}, method)["layer"]
    torch.testing.assert_close(values, reference(dense)[: len(values)], rtol=1e-10, atol=0)


def test_one_bad_matrix_among_alike_spoils_no_other():
    matrices = {name: torch.randn(8, 6) for name in "abc"}
    matrices["b"][2, 3] = NAN
    values = singular_values_of_each(matrices)
    assert {name: value.isnan().any().item() for name, value in values.items()} == {"a": False, "b": True, "c": False}


@pytest.mark.parametrize("shape", [(1, 1), (10, 10), (512, 4608), (4608, 512), (50257, 768)], ids=str)
def test_cost_rises_with_both_dimensions_and_is_the_same_transposed(shape):
    rows, columns = shape
    cost = spectrum_cost(shape)
    assert 0 < cost < min(spectrum_cost((rows + 1, columns)), spectrum_cost((rows, columns + 1)))
    assert cost == spectrum_cost((columns, rows))


@pytest.mark.parametrize("blocks", [(1,), (5,), (2, 3), (0,)], ids=str)
def test_cost_is_linear_in_blocks(blocks):
    assert spectrum_cost((*blocks, 30, 20)) == pytest.approx(math.prod(blocks) * spectrum_cost((30, 20)))


def gradients(matrix: torch.Tensor, method: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Of one weighted sum of the singular values: ours, and autograd's of ``torch.linalg.svdvals`` in float64."""
    matrix.requires_grad_()
    wide = matrix.to(torch.complex128 if matrix.is_complex() else torch.float64)
    weights = torch.linspace(1, 2, min(matrix.shape[-2:]), dtype=torch.float64)
    sums = [(values * weights).sum() for values in (singular_values(matrix, method), torch.linalg.svdvals(wide))]
    (ours,), (theirs,) = (torch.autograd.grad(total, matrix) for total in sums)
    return ours, theirs


@pytest.mark.parametrize("method", ["auto", "svd"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("shape", [(12, 8), (80, 50), (50, 80), (3, 60, 40), (300, 70), (3, 100, 70)], ids=str)
def test_gradient_is_that_of_torch(shape, dtype, method):
    torch.testing.assert_close(*gradients(torch.randn(shape, dtype=dtype), method), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(12, 8), (300, 70)], ids=str)
def test_gram_gives_no_gradient_rather_than_a_wrong_one(shape):
    assert not singular_values(torch.randn(shape, requires_grad=True), "gram").requires_grad
