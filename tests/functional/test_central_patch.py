import math

import pytest
import torch
from torch import Tensor, nn

from rank_callbacks.functional.network import central_patch, feng_jacobian_rank, jacobian_singular_values
from rank_callbacks.matrices.layer_outputs import layer_outputs


def network() -> nn.Sequential:
    convolution = nn.Conv2d(3, 16, 3, stride=2, bias=False)
    return nn.Sequential(convolution, nn.ReLU(inplace=True), nn.Conv2d(16, 24, 3, stride=2), nn.Flatten())


def naive_rank(model: nn.Module, image: Tensor) -> int:
    """As in the authors' code: the central 16 x 16 of 32 x 32 in zeros, reverse mode, JᵀJ in float32, default tolerance."""
    patch = image[:, 8:24, 8:24].clone()

    def padded(values: Tensor) -> Tensor:
        around = torch.zeros(1, 3, 32, 32)
        around[0, :, 8:24, 8:24] = values
        return model(around)

    jacobian = torch.autograd.functional.jacobian(padded, patch).reshape(-1, patch.numel())
    return int(torch.linalg.matrix_rank(jacobian.mT @ jacobian))


def test_rank_is_that_of_the_authors_code() -> None:
    """Of 768 numbers, with values on either side of the tolerance."""
    model, images = network(), torch.randn(2, 3, 32, 32)
    model[0].weight.data *= torch.logspace(0, -3, 16)[:, None, None, None]
    outputs = layer_outputs(model, {"first": model[0], "features": model})
    found = feng_jacobian_rank(outputs, images)
    for place, image in enumerate(images):
        assert found["first"][place] == naive_rank(model[0], image)
        assert abs(found["features"][place] - naive_rank(model, image)) <= 1  # rounding of a float32 Gram matrix
    assert 0 < found["first"].max() < 768


def test_tolerance_is_a_hundredth_of_the_largest_value() -> None:
    """√(768·ε₃₂) = 9.57e-3."""
    for value, rank in ((9.5e-3, 767), (9.6e-3, 768)):
        scale = torch.ones(3, 16, 16)
        scale[0, 0, 0] = value
        assert feng_jacobian_rank(lambda images, scale=scale: images * scale, torch.zeros(1, 3, 16, 16)).item() == rank
    assert math.sqrt(768 * torch.finfo(torch.float32).eps) == pytest.approx(9.57e-3, rel=1e-3)


@pytest.mark.parametrize("size", [(8, 8), (7, 8), (8, 7), (9, 11)], ids=str)
@pytest.mark.parametrize("patch", [1, 2, 3, 7])
def test_patch_is_put_back_where_it_was_cut(size: tuple[int, int], patch: int) -> None:
    seen = []
    image = torch.arange(1.0, math.prod(size) + 1).view(1, 1, *size)
    feng_jacobian_rank(lambda inputs: seen.append(inputs[0, 0].clone()) or inputs.flatten(1), image, patch)
    top, left = (size[0] - patch) // 2, (size[1] - patch) // 2
    expected = torch.zeros(size)
    expected[top : top + patch, left : left + patch] = image[0, 0, top : top + patch, left : left + patch]
    assert torch.equal(seen[0], expected)


def test_a_module_in_the_middle_is_measured_in_float64() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 5)).train()
    found = jacobian_singular_values(central_patch(model, (6, 6)), torch.zeros(1, 1, 2, 2))
    columns = model[1].weight.double().view(5, 6, 6)[:, 2:4, 2:4].reshape(5, 4)
    torch.testing.assert_close(found.singular_values[0], torch.linalg.svdvals(columns.detach()), atol=1e-13, rtol=0)
    assert model.training


def test_default_image_is_224() -> None:
    assert central_patch(nn.Identity())(torch.ones(1, 3, 16, 16)).shape == (1, 3, 224, 224)


@pytest.mark.parametrize("images", [torch.zeros(1, 3, 16, 15), torch.zeros(3, 16, 16)])
def test_images_that_hold_no_patch(images: Tensor) -> None:
    with pytest.raises(ValueError, match="a patch of 16 x 16, got shape"):
        feng_jacobian_rank(nn.Identity(), images)


def test_patch_larger_than_the_image() -> None:
    with pytest.raises(ValueError, match=r"no larger than the image of \(4, 4\)"):
        central_patch(nn.Identity(), 4)(torch.zeros(1, 1, 4, 5))
