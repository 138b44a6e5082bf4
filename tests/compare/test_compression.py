import math

import pytest
import torch
from torch import nn

from rank_callbacks import truncate
from rank_callbacks.compare.compression import compression
from rank_callbacks.compare.run import Run, Spectra
from rank_callbacks.tags import Tag


def run_of(spectra: dict[str, Spectra], group: str = "weight_rank") -> Run:
    return Run("a", "tensorboard", {}, [], {}, {Tag(group, "spectrum", layer): found for layer, found in spectra.items()})


def low_rank(rows: int, columns: int, decay: float, seed: int) -> nn.Linear:
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(columns, rows)
    left, values, right = torch.linalg.svd(torch.randn(rows, columns, generator=generator), full_matrices=False)
    with torch.no_grad():
        layer.weight.copy_(left * decay ** torch.arange(len(values)) @ right)
    return layer


def test_sizes_are_those_of_the_truncated_model() -> None:
    model = nn.Sequential(low_rank(30, 20, 0.5, 0), low_rank(10, 30, 0.8, 1))
    spectra = {
        name: Spectra({0: [9.0], 7: torch.linalg.svdvals(weight.detach()).tolist()}, tuple(weight.shape))
        for name, weight in model.named_parameters()
        if weight.dim() == 2
    }
    found = compression(run_of(spectra))
    assert len({one.share for one in found}) > 3
    for rtol, accuracy, share in found:
        with truncate(model, rtol=rtol) as table:
            assert share == pytest.approx(table.factored / table.parameters)
        assert math.isnan(accuracy)


def test_a_zero_matrix_takes_nothing() -> None:
    assert {one.share for one in compression(run_of({"a": Spectra({0: [0.0, 0.0]}, (2, 5))}))} == {0}


@pytest.mark.parametrize(
    "spectra",
    [
        {},
        {"a": Spectra({}, (2, 2))},
        {"a": Spectra({0: [2.0, 1.0]}, ())},
        {"a": Spectra({0: [2.0]}, (2, 2))},
        {"a": Spectra({0: [2.0, math.nan]}, (2, 2))},
        {"a": Spectra({0: [2.0, 1.0]}, (3, 2, 2))},
        {"a": Spectra({0: [2.0, 1.0]}, (2, 2)), "b": Spectra({0: [2.0, 1.0]}, ())},
    ],
    ids=["none", "no step", "no shape", "leading alone", "NaN", "blocks", "one of two"],
)
def test_what_does_not_tell_of_all_weights_tells_nothing(spectra: dict[str, Spectra]) -> None:
    assert compression(run_of(spectra)) == []


def test_spectra_of_gradients_are_none_of_weights() -> None:
    assert compression(run_of({"a": Spectra({0: [2.0, 1.0]}, (2, 2))}, "gradient_rank")) == []
