import numpy as np
import pytest
import torch
from torch import Tensor

from rank_callbacks.functional.krylov import spectral_norm_bounds


def bounds(matrix: Tensor, seed: int = 0, steps: int = 20) -> tuple[float, float]:
    start = torch.randn(matrix.shape[1], generator=torch.Generator().manual_seed(seed)).double()
    lower, upper = spectral_norm_bounds(lambda v: matrix @ v, lambda u: matrix.mT @ u, start, steps)
    return lower.item(), upper.item()


SPECTRA = {
    "flat": torch.ones(300),
    "line": torch.linspace(1, 0, 300),
    "decay": torch.logspace(0, -8, 300),
    "one": torch.eye(300)[0],
    "nearly flat": torch.cat([torch.tensor([1.01]), torch.ones(299)]),
}


@pytest.mark.parametrize("values", list(SPECTRA.values()), ids=list(SPECTRA))
@pytest.mark.parametrize("steps", [12, 20, 40])
def test_the_norm_is_between_its_bounds(values: Tensor, steps: int) -> None:
    left, right = (torch.linalg.qr(torch.randn(size, 300, dtype=torch.float64)).Q for size in (350, 300))
    matrix = left * values.double() @ right.mT
    norm = np.linalg.norm(matrix.numpy(), 2)
    allowed = 1 / np.sqrt(1 - (np.log(1.648 * np.sqrt(300) / 1e-6) / (2 * steps - 1)) ** 2)
    for seed in range(3):
        lower, upper = bounds(matrix, seed, steps)
        assert lower <= norm * (1 + 1e-12)
        assert norm <= upper * (1 + 1e-12)
        assert upper == pytest.approx(allowed * lower, rel=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (5, 3), (8, 8)], ids=str)
def test_a_space_that_is_exhausted_is_exact(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64)
    assert bounds(matrix)[0] == pytest.approx(np.linalg.norm(matrix.numpy(), 2), rel=1e-12)


def test_too_few_steps_bound_nothing() -> None:
    lower, upper = bounds(torch.eye(4).double(), steps=5)
    assert lower == pytest.approx(1)
    assert upper == np.inf


def test_zero_and_nan() -> None:
    assert bounds(torch.zeros(3, 4).double()) == (0, 0)
    assert np.isnan(bounds(torch.full((3, 4), torch.nan).double())).all()
