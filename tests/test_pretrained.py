"""Measures of trained weights against NumPy in float64: the speaker encoder that Resemblyzer ships."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rank_callbacks.functional import effective_rank, numerical_rank, singular_values, stable_rank
from rank_callbacks.matrices import weight_matrices

PACKAGE = find_spec("resemblyzer")  # found but not imported: its own dependencies are not installed
GATES = ("input", "forget", "cell", "output")
HIDDEN = 256

pytestmark = pytest.mark.skipif(PACKAGE is None, reason="needs trained weights: pip install --no-deps -r tests/references.txt")


@pytest.fixture(scope="module")
def encoder() -> nn.ModuleDict:
    checkpoint = torch.load(Path(PACKAGE.origin).with_name("pretrained.pt"), map_location="cpu", weights_only=True)
    layers = nn.ModuleDict({"lstm": nn.LSTM(40, HIDDEN, 3, batch_first=True), "linear": nn.Linear(HIDDEN, HIDDEN)})
    state = {name: tensor for name, tensor in checkpoint["model_state"].items() if not name.startswith("similarity")}
    layers.load_state_dict(state)
    return layers


@pytest.fixture(scope="module")
def matrices(encoder: nn.ModuleDict) -> dict[str, np.ndarray]:
    """The same weights cut into gates by NumPy, in float64."""
    weights = {name: p.detach().numpy().astype(np.float64) for name, p in encoder.named_parameters() if p.dim() == 2}
    cut = {"linear.weight": weights.pop("linear.weight")}
    for name, weight in weights.items():
        for i, gate in enumerate(GATES):
            cut[f"{name}.{gate}"] = weight[i * HIDDEN : (i + 1) * HIDDEN]
    return cut


NAMES = ["linear.weight", *(f"lstm.weight_{i}_l{n}.{gate}" for n in range(3) for i in ("ih", "hh") for gate in GATES)]


def test_every_matrix_is_found(encoder: nn.ModuleDict) -> None:
    assert sorted(weight_matrices(encoder)) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_measures_agree_with_numpy(encoder: nn.ModuleDict, matrices: dict[str, np.ndarray], name: str) -> None:
    values = singular_values(weight_matrices(encoder, name)[name])
    expected = np.linalg.svd(matrices[name], compute_uv=False)
    share = expected / expected.sum()
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-9 * expected[0])
    np.testing.assert_allclose(stable_rank(values), (expected**2).sum() / expected[0] ** 2, rtol=1e-12)
    np.testing.assert_allclose(effective_rank(values), np.exp(-(share * np.log(share)).sum()), rtol=1e-9)
    assert numerical_rank(values, rtol=1e-3) == np.linalg.matrix_rank(matrices[name], tol=1e-3 * expected[0])


@pytest.mark.parametrize("name", NAMES)
def test_training_has_lowered_the_effective_rank(encoder: nn.ModuleDict, name: str) -> None:
    trained = weight_matrices(encoder, name)[name]
    random = torch.randn(trained.shape)
    assert effective_rank(singular_values(trained)) < effective_rank(singular_values(random))
