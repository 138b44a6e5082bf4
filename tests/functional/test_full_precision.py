import pytest
import torch

from rank_callbacks.functional import full_precision


@pytest.fixture
def medium():
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


def error(matrix: torch.Tensor) -> float:
    exact = matrix.double() @ matrix.double()
    return ((matrix @ matrix - exact).norm() / exact.norm()).item()


@pytest.mark.usefixtures("medium")
def test_within_it_float32_is_multiplied_as_float32() -> None:
    matrix = torch.randn(128, 128)
    with torch.autocast("cpu", torch.bfloat16):
        assert error(matrix) > 1e-3
        with full_precision():
            assert error(matrix) < 1e-6
            assert (matrix @ matrix).dtype == torch.float32
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.usefixtures("medium")
def test_an_exception_leaves_all_as_it_was() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(ZeroDivisionError), full_precision():
            _ = 1 / 0
        assert torch.is_autocast_enabled("cpu")
    assert torch.get_float32_matmul_precision() == "medium"
    assert not torch.is_autocast_enabled("cpu")
