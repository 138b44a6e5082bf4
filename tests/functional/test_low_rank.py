import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rank_callbacks.functional import leading_subspace, low_rank_singular_values, outer_product_spectrum

SHAPES = [(40, 40), (300, 20), (20, 300), (130, 70), (1, 9), (9, 1)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
dimensions = st.integers(1, 40)
some = settings(max_examples=80, deadline=None, derandomize=True)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def svd(matrix: Tensor) -> np.ndarray:
    return np.linalg.svd(matrix.double().numpy(), compute_uv=False)


def product(rows: int, columns: int, rank: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Of exactly that rank in float64; in a narrower type with the noise of its multiplication."""
    return (torch.randn(rows, rank, dtype=torch.float64) @ torch.randn(rank, columns, dtype=torch.float64)).to(dtype)


def with_spectrum(values: Tensor, rows: int, columns: int) -> Tensor:
    left, right = (torch.linalg.qr(torch.randn(size, len(values), dtype=torch.float64)).Q for size in (rows, columns))
    return left * values @ right.mT


@pytest.mark.parametrize("rank", [1, 3, 9])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@shapes
def test_sketch_finds_all_of_a_matrix_of_low_rank(shape: tuple[int, int], dtype: torch.dtype, rank: int) -> None:
    matrix = product(*shape, rank, dtype)
    values, residual = low_rank_singular_values(matrix, rank, generator())
    truth = svd(matrix)
    assert values.dtype == torch.float64
    assert values.shape == (min(shape),)
    np.testing.assert_allclose(values, truth, rtol=0, atol=1e-7 * truth[0])
    assert residual <= 1e-6 * truth[0]


@some
@given(seed=st.integers(0, 999), rows=dimensions, columns=dimensions, true_rank=st.integers(0, 12), rank=st.integers(0, 12))
def test_residual_is_the_norm_of_what_is_missed(seed, rows, columns, true_rank, rank) -> None:
    """For any rank that is asked for: no value is further off than it, and it has the energy that the values lack."""
    torch.manual_seed(seed)
    matrix = product(rows, columns, true_rank)
    values, residual = low_rank_singular_values(matrix, rank, generator(seed))
    truth = svd(matrix)
    assert np.abs(values.numpy() - truth).max() <= residual.item() + 1e-7 * truth[0]
    missed = np.sqrt(max(0, (truth**2).sum() - values.square().sum().item()))
    assert residual.item() == pytest.approx(missed, abs=1e-6 * truth[0])
    assert (values.diff() <= 0).all()


@shapes
def test_rank_given_too_small_leaves_an_honest_residual(shape: tuple[int, int]) -> None:
    """No sketch of r + 8 columns is nearer than the best matrix of that rank; a random one is not many times further."""
    matrix = torch.randn(shape, dtype=torch.float64)
    values, residual = low_rank_singular_values(matrix, 2, generator())
    missing = np.linalg.norm(svd(matrix)[10:])
    assert residual.item() >= missing * (1 - 1e-9)
    assert residual.item() <= 3 * missing + 1e-7 * values[0]
    assert values.count_nonzero() <= 10


@pytest.mark.parametrize("rank", [25, 1000])
def test_rank_given_too_large_is_a_full_spectrum(rank: int) -> None:
    matrix = torch.randn(20, 30, dtype=torch.float64)
    values, residual = low_rank_singular_values(matrix, rank, generator())
    np.testing.assert_allclose(values, svd(matrix), rtol=1e-10)
    assert residual <= 1e-6 * values[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sketch_of_a_narrow_type_sees_the_rounding_that_is_in_it(dtype: torch.dtype) -> None:
    """Rounded, a matrix of rank 4 has full rank: the sketch finds the four values and says what it leaves."""
    matrix = product(60, 50, 4, dtype)
    values, residual = low_rank_singular_values(matrix, 4, generator())
    truth = svd(matrix)
    assert truth[4] > 0
    np.testing.assert_allclose(values[:4], truth[:4], rtol=1e-4)
    assert np.linalg.norm(truth[12:]) <= residual.item() <= 3 * np.linalg.norm(truth[12:])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@shapes
def test_sketch_of_what_is_not_finite_is_nan(shape: tuple[int, int], dtype: torch.dtype, bad: float) -> None:
    matrix = torch.randn(shape).to(dtype)
    matrix[-1, -1] = bad
    values, residual = low_rank_singular_values(matrix, 2, generator())
    assert values.shape == (min(shape),)
    assert values.isnan().all()
    assert residual.isnan()


@shapes
def test_sketch_of_zeros_is_zero(shape: tuple[int, int]) -> None:
    values, residual = low_rank_singular_values(torch.zeros(shape), 3, generator())
    assert values.tolist() == [0.0] * min(shape)
    assert residual == 0


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)], ids=str)
def test_sketch_of_nothing_is_empty(shape: tuple[int, int]) -> None:
    values, residual = low_rank_singular_values(torch.zeros(shape), 3, generator())
    assert values.shape == (0,)
    assert residual == 0


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [(torch.float32, scale) for scale in (1e-36, 1e-30, 1e-10, 1e10, 1e30, 1e37)]
    + [(torch.float64, scale) for scale in (1e-200, 1e200)],
    ids=str,
)
def test_sketch_at_any_scale(dtype: torch.dtype, scale: float) -> None:
    matrix = product(30, 40, 3, dtype) * scale
    values, residual = low_rank_singular_values(matrix, 3, generator())
    np.testing.assert_allclose(values[:3], svd(matrix)[:3], rtol=1e-5)
    assert residual <= 1e-5 * values[0]
    assert residual.dtype == torch.float64


def test_sketch_leaves_the_matrix_and_the_global_generator_and_repeats() -> None:
    matrix, state = torch.randn(30, 20), torch.get_rng_state()
    copy = matrix.clone()
    state = torch.get_rng_state()
    first, again, other = (low_rank_singular_values(matrix, 2, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(matrix, copy)
    assert torch.equal(first.singular_values, again.singular_values)
    assert not torch.equal(first.singular_values, other.singular_values)


@some
@given(
    seed=st.integers(0, 999),
    b=dimensions,
    m=dimensions,
    n=dimensions,
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_outer_products_have_the_singular_values_of_their_sum(seed, b, m, n, dtype) -> None:
    """Also for more rows than the matrix has."""
    torch.manual_seed(seed)
    deltas, inputs = torch.randn(b, m).to(dtype), torch.randn(b, n).to(dtype)
    truth = svd(deltas.double().mT @ inputs.double())
    values = outer_product_spectrum(deltas, inputs).singular_values
    assert values.dtype == torch.float64
    assert values.shape == (min(m, n),)
    np.testing.assert_allclose(values, truth, rtol=0, atol=1e-7 * truth[0])


@some
@given(seed=st.integers(0, 999), b=dimensions, m=dimensions, n=dimensions, vectors=st.integers(0, 4), double=st.booleans())
def test_outer_products_have_the_left_singular_vectors_of_their_sum(seed, b, m, n, vectors, double) -> None:
    torch.manual_seed(seed)
    dtype = torch.float64 if double else torch.float32
    values = torch.logspace(0, -b / 4, b, dtype=torch.float64)
    deltas, inputs = with_spectrum(values[: min(b, m)], b, m).to(dtype), torch.randn(b, n).to(dtype)
    vectors = min(vectors, b, m, n)
    basis = outer_product_spectrum(deltas, inputs, vectors).left_vectors
    assert basis.shape == (m, vectors)
    left, truth, _ = np.linalg.svd((deltas.double().mT @ inputs.double()).numpy())
    for place in range(vectors):
        gap = min(abs(np.append(np.delete(truth, place), 0) - truth[place])) / truth[0]
        if gap > 1e-3:
            assert abs(np.dot(left[:, place], basis[:, place].numpy())) == pytest.approx(1, abs=1e-6)


def test_outer_products_of_float32_are_those_of_the_gradient_that_autograd_multiplies() -> None:
    layer = torch.nn.Linear(100, 80, bias=False)
    inputs = torch.randn(6, 100)
    output = layer(inputs)
    output.retain_grad()
    output.tanh().square().sum().backward()
    truth = svd(layer.weight.grad)
    np.testing.assert_allclose(
        outer_product_spectrum(output.grad, inputs).singular_values, truth, rtol=0, atol=1e-6 * truth[0]
    )


@pytest.mark.parametrize("small", ["deltas", "inputs"])
def test_outer_products_of_factors_of_low_rank(small: str) -> None:
    deltas, inputs = (product(12, 30, 3 if name == small else 12) for name in ("deltas", "inputs"))
    values = outer_product_spectrum(deltas, inputs).singular_values
    np.testing.assert_allclose(values, svd(deltas.mT @ inputs), rtol=0, atol=1e-7 * values[0])
    assert values[2] > 1e-3 * values[0]
    assert (values[3:] <= 1e-7 * values[0]).all()


def test_outer_products_down_to_a_millionth_of_the_largest() -> None:
    """What the docstring promises to tell from 0."""
    inputs = torch.linalg.qr(torch.randn(40, 7, dtype=torch.float64)).Q.mT
    wanted = torch.logspace(0, -6, 7, dtype=torch.float64)
    deltas = wanted[:, None] * torch.linalg.qr(torch.randn(50, 7, dtype=torch.float64)).Q.mT
    np.testing.assert_allclose(outer_product_spectrum(deltas, inputs).singular_values[:7], wanted, rtol=1e-2)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", ["deltas", "inputs"])
def test_outer_products_of_what_is_not_finite_are_nan(place: str, bad: float) -> None:
    factors = {"deltas": torch.randn(3, 5), "inputs": torch.randn(3, 4)}
    factors[place][1, 2] = bad
    values = outer_product_spectrum(**factors).singular_values
    assert values.shape == (4,)
    assert values.isnan().all()


@pytest.mark.parametrize("rows", [0, 3])
def test_outer_products_of_zeros_or_of_no_rows_are_zero(rows: int) -> None:
    assert outer_product_spectrum(torch.zeros(rows, 5), torch.ones(rows, 4)).singular_values.tolist() == [0.0] * 4


def overlap(basis: Tensor, matrix: Tensor) -> float:
    """Least cosine of an angle between a subspace and that of the leading eigenvectors of A·Aᵀ."""
    _, vectors = torch.linalg.eigh(matrix.double() @ matrix.double().mT)
    return torch.linalg.svdvals(basis.double().mT @ vectors[:, -basis.shape[1] :])[-1].item()


@pytest.mark.parametrize("rank", [1, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(40, 40), (200, 30), (30, 200)], ids=str)
def test_leading_subspace_is_that_of_the_eigenvectors(shape: tuple[int, int], dtype: torch.dtype, rank: int) -> None:
    """With a third of a decade between values, as in the gradients of small networks."""
    values = torch.logspace(0, -min(shape) / 3, min(shape), dtype=torch.float64)
    matrix = with_spectrum(values, *shape).to(dtype)
    basis = leading_subspace(matrix, rank, generator())
    assert basis.shape == (shape[0], rank)
    assert basis.dtype == dtype
    torch.testing.assert_close(basis.mT @ basis, torch.eye(rank, dtype=dtype), atol=1e-5, rtol=0)
    assert overlap(basis, matrix) == pytest.approx(1, abs=1e-5)


def test_each_iteration_brings_the_subspace_nearer() -> None:
    """The tangent of the angle shrinks by (σ_{r+8}/σ_r)², here by 4."""
    values = torch.cat([torch.full((4,), 2.0), torch.ones(56)]).double()
    matrix = with_spectrum(values, 60, 60)
    cosines = [overlap(leading_subspace(matrix, 4, generator(), iterations), matrix) for iterations in range(5)]
    tangents = [np.sqrt(1 / cosine**2 - 1) for cosine in cosines]
    assert tangents[0] > 1.2  # of the sketch alone
    assert tangents[:-1] == pytest.approx([4 * tangent for tangent in tangents[1:]], rel=1e-3)
    assert overlap(leading_subspace(matrix, 4, generator()), matrix) == cosines[3]


def test_leading_subspace_is_ordered() -> None:
    matrix = torch.diag(torch.tensor([1.0, 3.0, 2.0, 0.5]).double())
    expected = torch.eye(4, dtype=torch.float64)[:, [1, 2, 0]]
    torch.testing.assert_close(leading_subspace(matrix, 3, generator()).abs(), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1e20, 1e37])
def test_leading_subspace_at_any_scale(scale: float) -> None:
    """Products of the matrix with itself would leave float32."""
    matrix = with_spectrum(torch.logspace(0, -6, 20).double(), 40, 30)
    assert overlap(leading_subspace((matrix * scale).float(), 3, generator()), matrix) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_leading_subspace_of_a_narrow_type_is_float32(dtype: torch.dtype) -> None:
    matrix = with_spectrum(torch.logspace(0, -6, 20).double(), 40, 30).to(dtype)
    basis = leading_subspace(matrix, 3, generator())
    assert basis.dtype == torch.float32
    assert overlap(basis, matrix) == pytest.approx(1, abs=1e-5)


def test_leading_subspace_leaves_the_global_generator_and_repeats() -> None:
    matrix = torch.randn(30, 20)
    state = torch.get_rng_state()
    first, again = (leading_subspace(matrix, 2, generator()) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
