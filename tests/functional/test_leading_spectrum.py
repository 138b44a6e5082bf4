import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rank_callbacks.functional import LeadingSpectrum, leading_distance, leading_spectrum

SHAPES = [(200, 200), (300, 140), (140, 300), (40, 9), (9, 40), (20, 20), (1, 7), (7, 1), (1, 1)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
types = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def svd(matrix: Tensor) -> np.ndarray:
    return np.linalg.svd(matrix.double().numpy(), compute_uv=False)


def with_spectrum(values: Tensor, rows: int, columns: int) -> Tensor:
    left, right = (torch.linalg.qr(torch.randn(size, len(values), dtype=torch.float64)).Q for size in (rows, columns))
    return left * values @ right.mT


def decaying(shape: tuple[int, int]) -> Tensor:
    return with_spectrum(torch.logspace(0, -3, min(shape), dtype=torch.float64), *shape)


@types
@shapes
def test_values_of_a_spectrum_that_decays_are_those_of_numpy(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = decaying(shape).to(dtype)
    truth = np.append(svd(matrix), np.zeros(16))[:16]
    leading = leading_spectrum(matrix, generator=generator())
    assert leading.singular_values.dtype == torch.float64
    assert leading.singular_values.shape == (16,)
    np.testing.assert_allclose(leading.singular_values[:4], truth[:4], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(leading.singular_values, truth, rtol=0, atol=1e-2)
    assert leading.frobenius_norm.item() == pytest.approx(np.linalg.norm(svd(matrix)), rel=1e-7)
    assert leading.reads <= 20


@pytest.mark.parametrize("shape", [(256, 256), (400, 200), (200, 600)], ids=str)
def test_without_a_gap_a_cold_start_is_near_and_a_warm_one_nearer(shape: tuple[int, int]) -> None:
    for seed in range(3):
        matrix = torch.randn(shape, generator=generator(seed))
        truth = svd(matrix)[0]
        cold = leading_spectrum(matrix, generator=generator(seed))
        warm = leading_spectrum(matrix, cold.basis, generator=generator(seed))
        assert truth * (1 - 1e-3) <= cold.singular_values[0] <= truth * (1 + 1e-6)
        assert truth * (1 - 2e-4) <= warm.singular_values[0] <= truth * (1 + 1e-6)
        assert warm.reads == 3


@pytest.mark.parametrize("depth", [1, 2, 3, None])
@pytest.mark.parametrize("spectrum", ["flat", "gaussian", "decay", "low rank", "one"])
def test_no_value_is_above_the_true_one(spectrum: str, depth: int | None) -> None:
    """So stable rank and distance are upper bounds."""
    values = {
        "flat": torch.ones(150),
        "decay": torch.logspace(0, -6, 150),
        "low rank": torch.cat([torch.ones(5), torch.zeros(145)]),
        "one": torch.eye(150)[0],
    }
    matrix = torch.randn(150, 170) if spectrum == "gaussian" else with_spectrum(values[spectrum].double(), 150, 170).float()
    truth, basis = svd(matrix), None
    for _ in range(3):
        leading = leading_spectrum(matrix, basis, generator=generator(), depth=depth)
        basis = leading.basis
        assert (leading.singular_values.numpy() <= truth[:16] + 1e-6 * truth[0]).all()
        assert leading.singular_values[0] <= truth[0] * (1 + 1e-6)
        assert (leading.frobenius_norm / leading.singular_values[0]) ** 2 >= (truth**2).sum() / truth[0] ** 2 * (1 - 2e-6)
        assert leading.reads == (2 * depth - 1 if depth else leading.reads) <= 20


def test_error_of_a_given_depth_is_that_of_the_krylov_space() -> None:
    """The naive version: Ritz values of the whole matrix on the span of X, AᵀAX, AᵀAAᵀAX by NumPy's QR."""
    matrix = torch.randn(60, 50, dtype=torch.float64)
    start = torch.randn(50, 4, dtype=torch.float64)
    block = torch.cat([start[:, :3], torch.randn(50, 1, generator=generator()).double()], dim=1).numpy()
    wide = matrix.numpy()
    space = np.hstack([block, wide.T @ wide @ block, wide.T @ wide @ wide.T @ wide @ block])
    expected = np.linalg.svd(wide @ np.linalg.qr(space)[0], compute_uv=False)[:4]
    found = leading_spectrum(matrix, start, generator=generator(), block=4, depth=3)
    np.testing.assert_allclose(found.singular_values, expected, rtol=1e-9)
    assert found.reads == 5


def test_basis_holds_the_singular_vectors() -> None:
    matrix = with_spectrum(torch.tensor([5.0, 3.0, 2.0, 1e-3]).double(), 60, 50)
    _, _, right = np.linalg.svd(matrix.numpy())
    basis = leading_spectrum(matrix, generator=generator()).basis
    assert basis is not None
    assert basis.shape == (50, 16)
    np.testing.assert_allclose(np.abs(np.diag(right[:3] @ basis[:, :3].numpy())), 1, rtol=1e-9)


def test_a_direction_that_grows_from_nothing_is_found() -> None:
    """Outside of the span of the basis and of its products, where only the random column can see it."""
    matrix = torch.zeros(200, 200)
    matrix[range(20), range(20)] = torch.linspace(2, 1, 20)
    basis = leading_spectrum(matrix, generator=generator()).basis
    matrix[100, 100] = 3
    leading = leading_spectrum(matrix, basis, generator=generator())
    assert leading.singular_values[0] == pytest.approx(3, rel=1e-2)
    again = leading_spectrum(matrix, leading.basis, generator=generator())
    assert again.singular_values[0] == pytest.approx(3, rel=1e-6)


@pytest.fixture(scope="module")
def training() -> list[Tensor]:
    """A weight matrix of a network that learns, every 50 steps."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 160), nn.ReLU(), nn.Linear(160, 160), nn.ReLU(), nn.Linear(160, 10))
    centres = torch.randn(10, 64)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    weights = []
    for step in range(801):
        if step % 50 == 0:
            weights.append(network[2].weight.detach().clone())
        classes = torch.randint(0, 10, (64,))
        loss = nn.functional.cross_entropy(network(centres[classes] + torch.randn(64, 64)), classes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return weights


def test_spectral_norm_along_a_training_run(training: list[Tensor]) -> None:
    errors, basis = [], None
    for weight in training:
        leading = leading_spectrum(weight, basis, generator=generator())
        basis = leading.basis
        errors.append(leading.singular_values[0].item() / svd(weight)[0] - 1)
    assert max(errors) <= 1e-6
    assert np.quantile(np.abs(errors[2:]), 0.9) <= 1e-5
    assert max(np.abs(errors[2:])) <= 1e-3


def test_distance_along_a_training_run(training: list[Tensor]) -> None:
    basis = None
    for weight in training:
        leading = leading_spectrum(weight, basis, generator=generator())
        basis = leading.basis
        truth = svd(weight)
        distance = np.linalg.norm(truth[8:]) / np.linalg.norm(truth)
        assert distance * (1 - 1e-6) <= leading_distance(weight, leading, 8) <= distance * (1 + 1e-2)


@pytest.mark.parametrize("tail", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6])
@pytest.mark.parametrize("shape", [(200, 150), (150, 200)], ids=str)
def test_distance_keeps_its_digits_where_little_is_left(shape: tuple[int, int], tail: float) -> None:
    values = torch.cat([torch.tensor([1.0, 0.9, 0.8]), torch.full((100,), tail / 10)]).double()
    matrix = with_spectrum(values, *shape).float()
    leading = leading_spectrum(matrix, generator=generator())
    truth = np.linalg.norm(svd(matrix)[3:])
    assert leading_distance(matrix, leading, 3, relative=False).item() == pytest.approx(truth, rel=1e-3 + 2e-8 / tail)
    relative = leading_distance(matrix, leading, 3).item()
    assert relative == pytest.approx(truth / np.linalg.norm(svd(matrix)), rel=1e-3 + 2e-8 / tail)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-10, 1e10, 1e20, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_any_scale(dtype: torch.dtype, scale: float) -> None:
    matrix = (decaying((150, 140)) * scale).to(dtype)
    for start in (None, leading_spectrum(matrix, generator=generator()).basis):
        leading = leading_spectrum(matrix, start, generator=generator())
        truth = svd(matrix)
        np.testing.assert_allclose(leading.singular_values[:8], truth[:8], rtol=1e-4)
        assert leading.frobenius_norm.item() == pytest.approx(np.linalg.norm(truth), rel=1e-6)
        distance = np.linalg.norm(truth[3:])
        assert leading_distance(matrix, leading, 3, relative=False).item() == pytest.approx(distance, rel=1e-4)


def test_float64_at_the_ends_of_its_range() -> None:
    for scale in (1e-250, 1e250):
        matrix = decaying((60, 50)) * scale
        leading = leading_spectrum(matrix, generator=generator())
        np.testing.assert_allclose(leading.singular_values[:8] / scale, svd(decaying((60, 50)))[:8], rtol=1e-5)


@shapes
def test_zeros(shape: tuple[int, int]) -> None:
    leading = leading_spectrum(torch.zeros(shape), generator=generator())
    assert leading.singular_values.tolist() == [0.0] * 16
    assert leading.frobenius_norm == 0
    assert leading.basis is None
    assert leading_distance(torch.zeros(shape), leading, 2) == 0


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@types
@shapes
def test_not_finite(shape: tuple[int, int], dtype: torch.dtype, bad: float) -> None:
    matrix = torch.randn(shape).to(dtype)
    start = leading_spectrum(matrix, generator=generator()).basis
    matrix[-1, -1] = bad
    leading = leading_spectrum(matrix, start, generator=generator())
    assert leading.singular_values.isnan().all()
    assert leading.frobenius_norm.isnan()
    assert leading.basis is None
    assert leading_distance(matrix, leading, 2).isnan()


def test_precision_of_products_is_forced_inside_only() -> None:
    matrix = torch.randn(160, 150)
    expected = leading_spectrum(matrix, generator=generator())
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = leading_spectrum(matrix, generator=generator())
            assert torch.is_autocast_enabled("cpu")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(found.singular_values, expected.singular_values)


def test_leaves_the_matrix_and_the_global_generator_and_repeats() -> None:
    matrix = torch.randn(150, 140, requires_grad=True)
    copy, state = matrix.detach().clone(), torch.get_rng_state()
    first, again = (leading_spectrum(matrix, generator=generator()) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(matrix, copy)
    assert torch.equal(first.singular_values, again.singular_values)
    assert not first.singular_values.requires_grad


class Processes:
    """Threads that stand for processes, and the sum over them; counts the bytes of one."""

    def __init__(self, count: int) -> None:
        self.barrier, self.parts, self.bytes, self.calls = threading.Barrier(count, timeout=30), [None] * count, 0, 0

    def total(self, place: int) -> Callable[[Tensor], Tensor]:
        def summed(tensor: Tensor) -> Tensor:
            assert tensor.is_contiguous()
            self.parts[place] = tensor
            self.barrier.wait()
            result = torch.stack(self.parts).sum(0)
            if place == 0:
                self.bytes, self.calls = self.bytes + tensor.nbytes, self.calls + 1
            self.barrier.wait()
            return tensor.copy_(result)  # in place, as an all-reduce is

        return summed


def on_shards(matrix: Tensor, sizes: list[int], call: Callable[[Tensor, Callable], object]) -> tuple[list, Processes]:
    shards, processes, results = matrix.split(sizes), Processes(len(sizes)), [None] * len(sizes)

    def run(place: int) -> None:
        results[place] = call(shards[place], processes.total(place))

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(sizes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results, processes


@pytest.mark.parametrize("scale", [1, 1e-25, 1e25])
@pytest.mark.parametrize("shape", [(203, 140), (140, 203), (203, 40)], ids=str)
def test_shards_of_rows_give_what_the_whole_matrix_does(shape: tuple[int, int], scale: float) -> None:
    matrix = decaying(shape).float() * scale
    sizes = [100, 0, shape[0] - 107, 7]

    def twice(rows: Tensor, total: Callable) -> tuple[LeadingSpectrum, Tensor]:
        first = leading_spectrum(rows, generator=generator(), total=total)
        again = leading_spectrum(rows, first.basis, generator=generator(), total=total)
        return again, leading_distance(rows, again, 3, total=total)

    results, _ = on_shards(matrix, sizes, twice)
    truth = svd(matrix)
    for leading, distance in results:
        np.testing.assert_allclose(leading.singular_values[:8], truth[:8], rtol=1e-5)
        assert leading.singular_values[0].item() == pytest.approx(truth[0], rel=1e-6)
        assert leading.frobenius_norm.item() == pytest.approx(np.linalg.norm(truth), rel=1e-6)
        assert distance.item() == pytest.approx(np.linalg.norm(truth[3:]) / np.linalg.norm(truth), rel=1e-5)
        assert torch.equal(leading.basis, results[0][0].basis)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_shards_send_a_block_for_each_product_back_and_a_little_more(depth: int) -> None:
    matrix = torch.randn(500, 130)
    start = torch.randn(130, 16)
    _, processes = on_shards(
        matrix,
        [300, 200],
        lambda rows, total: leading_spectrum(rows, start, generator=generator(), depth=depth, total=total),
    )
    assert processes.bytes == 8 + (depth - 1) * 130 * 16 * 4 + 8 * ((16 * depth) ** 2 + 1)
    assert processes.calls == depth + 1


def test_shards_of_which_one_is_not_finite() -> None:
    matrix = torch.randn(30, 20)
    matrix[25, 3] = torch.nan
    results, _ = on_shards(matrix, [20, 10], lambda rows, total: leading_spectrum(rows, generator=generator(), total=total))
    assert all(leading.singular_values.isnan().all() and leading.basis is None for leading in results)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"matrix": torch.ones(3)}, "Expected a matrix of shape"),
        ({"matrix": torch.ones(3, 3, dtype=torch.int64)}, "Expected a matrix of shape"),
        ({"matrix": torch.ones(3, 3, dtype=torch.complex64)}, "Expected a matrix of shape"),
        ({"block": 0}, "Expected block and depth to be whole numbers from 1, got 0 and None"),
        ({"depth": 0}, "Expected block and depth to be whole numbers from 1, got 16 and 0"),
        ({"start": torch.ones(4, 16)}, "Expected start to be a basis of 3 rows"),
    ],
)
def test_misuse(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        leading_spectrum(**{"matrix": torch.ones(3, 5), "generator": generator()} | options)


def test_distance_to_more_ranks_than_there_are_values() -> None:
    leading = leading_spectrum(torch.ones(3, 5), generator=generator())
    with pytest.raises(ValueError, match="Expected k to be a whole number from 0 to 16, got 17"):
        leading_distance(torch.ones(3, 5), leading, 17)
