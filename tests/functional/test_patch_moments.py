from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rank_callbacks.functional import ClassMoments, class_moments, merged_moments
from rank_callbacks.functional.patch_moments import Places, map_moments, patch_moments

K = 3
KINDS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def patches(images: Tensor, module: nn.Module) -> Tensor:
    """What a convolution multiplies each filter by, ``(B, positions, C·k)``: cut out one element of the kernel at a time."""
    padding = module._reversed_padding_repeated_twice
    padded = F.pad(images, padding)
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    positions = [(side - r) // s + 1 for side, r, s in zip(padded.shape[2:], reach, stride, strict=True)]
    elements = []
    for offset in product(*map(range, kernel)):
        cut = [
            slice(o * d, o * d + (p - 1) * s + 1, s) for o, d, p, s in zip(offset, dilation, positions, stride, strict=True)
        ]
        elements.append(padded[(slice(None), slice(None), *cut)].flatten(2))
    return torch.stack(elements, 2).flatten(1, 2).mT


def places_of(module: nn.Module, images: Tensor) -> list[Places]:
    before = list(reversed(module._reversed_padding_repeated_twice[::2]))
    positions = module(images).shape[2:]
    sides = zip(positions, module.kernel_size, module.stride, before, module.dilation, strict=True)
    return [Places(*side) for side in sides]


CONVOLUTIONS = {
    "plain": (2, {"kernel_size": 3}),
    "of one": (2, {"kernel_size": 1}),
    "stride": (2, {"kernel_size": 3, "stride": 2}),
    "stride past the kernel": (2, {"kernel_size": 2, "stride": 3}),
    "padding": (2, {"kernel_size": 3, "padding": 1}),
    "more padding than image": (2, {"kernel_size": 3, "padding": 7}),
    "uneven everything": (2, {"kernel_size": (3, 2), "stride": (1, 2), "padding": (2, 1), "dilation": (2, 3)}),
    "dilation": (2, {"kernel_size": 2, "dilation": 3}),
    "same": (2, {"kernel_size": 3, "padding": "same"}),
    "same, even kernel": (2, {"kernel_size": (2, 4), "padding": "same"}),
    "same, dilation": (2, {"kernel_size": (2, 3), "padding": "same", "dilation": (3, 2)}),
    "valid": (2, {"kernel_size": 3, "padding": "valid"}),
    "1-D": (1, {"kernel_size": 3, "stride": 2, "padding": 2}),
    "1-D same": (1, {"kernel_size": 4, "padding": "same", "dilation": 2}),
    "3-D": (3, {"kernel_size": (2, 1, 3), "stride": (2, 1, 1), "padding": (1, 0, 1)}),
    "3-D same": (3, {"kernel_size": (2, 1, 3), "padding": "same"}),
}


def convolution(name: str, channels: int = 2) -> tuple[nn.Module, Tensor]:
    dims, options = CONVOLUTIONS[name]
    module = KINDS[dims](channels, 4, bias=False, **options).double()
    return module, torch.randn(5, channels, *(7, 6, 5)[:dims], dtype=torch.float64) + 1


def check(moments: ClassMoments, rows: Tensor, labels: Tensor, rtol: float = 1e-10, **options: Any) -> None:
    """Sums over classes and rows, written out; ``rows`` is ``(groups, size, D)``, and each group has a label."""
    for k in range(K):
        mine = rows[labels == k].flatten(0, 1)
        assert moments.counts[k] == len(mine)
        mean = mine.mean(0) if len(mine) else torch.zeros(rows.shape[2], dtype=torch.float64)
        torch.testing.assert_close(moments.means[k], mean, rtol=rtol, atol=rtol, **options)
        variation = sum(((row - mean) ** 2).sum() for row in mine) if len(mine) else torch.zeros(()).double()
        torch.testing.assert_close(moments.variations[k], variation, rtol=rtol, atol=rtol, **options)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_naive_patches_are_what_the_convolution_multiplies(name: str) -> None:
    """Of the reference itself."""
    module, images = convolution(name)
    outputs = patches(images, module) @ module.weight.flatten(1).mT
    torch.testing.assert_close(outputs.mT, module(images).flatten(2))
    if CONVOLUTIONS[name][0] == 2 and not isinstance(module.padding, str):
        unfolded = F.unfold(images, module.kernel_size, module.dilation, module.padding, module.stride).mT
        assert torch.equal(patches(images, module), unfolded)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_moments_are_those_of_all_patches(name: str) -> None:
    module, images = convolution(name)
    labels = torch.tensor([2, 0, 2, 2, 0])
    check(patch_moments(images, labels, K, places_of(module, images)), patches(images, module).detach(), labels)


@pytest.mark.parametrize("name", ["plain", "same, even kernel", "1-D", "3-D"])
def test_soft_labels_weigh_patches(name: str) -> None:
    module, images = convolution(name)
    labels = torch.rand(5, K, dtype=torch.float64).softmax(1)
    labels[0] = torch.tensor([0.0, 1.0, 0.0])
    rows = patches(images, module)
    expected = class_moments(rows, labels[:, None].expand(-1, rows.shape[1], -1), K)
    for mine, theirs in zip(patch_moments(images, labels, K, places_of(module, images))[:3], expected[:3], strict=True):
        torch.testing.assert_close(mine, theirs)


def test_ignored_images_do_not_count() -> None:
    module, images = convolution("padding")
    images[1] = torch.nan
    labels = torch.tensor([2, -1, 0, 2, 0])
    moments = patch_moments(images, labels, K, places_of(module, images), ignore_index=-1)
    check(moments, patches(images, module), labels)
    assert not patch_moments(images, torch.full((5,), -1), K, places_of(module, images), -1).counts.any()


@pytest.mark.parametrize("shape", [(5, 4, 6), (5, 4, 3, 2), (5, 4, 3, 2, 2), (5, 4, 1, 1)], ids=str)
def test_moments_of_maps_are_those_of_all_positions(shape: tuple[int, ...]) -> None:
    maps, labels = torch.randn(shape, dtype=torch.float64), torch.tensor([1, 0, 1, 1, 0])
    check(map_moments(maps, labels, K), maps.flatten(2).mT, labels)
    labels[3] = 7
    check(map_moments(maps, labels, K, ignore_index=7), maps.flatten(2).mT, labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_types_keep_their_digits(dtype: torch.dtype) -> None:
    """Sums are not of that type: with so many positions its own would lose them."""
    images = torch.randn(5, 2, 40, 40).to(dtype)
    module, labels = nn.Conv2d(2, 4, 3).double(), torch.tensor([0, 1, 2, 0, 1])
    wide = images.double()
    check(patch_moments(images, labels, K, places_of(module, wide)), patches(wide, module).detach(), labels, rtol=3e-6)
    check(map_moments(images, labels, K), wide.flatten(2).mT, labels, rtol=3e-6)


@pytest.mark.parametrize("offset", [1e2, 1e4])
def test_a_large_mean_costs_no_digits(offset: float) -> None:
    images = torch.randn(5, 2, 20, 20) + offset * torch.tensor([1.0, -3.0])[:, None, None]
    module, labels = nn.Conv2d(2, 4, 3, stride=2).double(), torch.tensor([0, 1, 2, 0, 1])
    wide = images.double()
    check(patch_moments(images, labels, K, places_of(module, wide)), patches(wide, module).detach(), labels, rtol=1e-5)
    check(map_moments(images, labels, K), wide.flatten(2).mT, labels, rtol=1e-5)


def test_maps_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    module, images = convolution("padding")
    labels = torch.tensor([2, 0, 2, 2, 0])
    monkeypatch.setattr("rank_callbacks.functional.patch_moments._NUMBERS_AT_ONCE", 2 * images[0].numel())
    check(patch_moments(images, labels, K, places_of(module, images)), patches(images, module).detach(), labels)
    check(map_moments(images, labels, K), images.flatten(2).mT, labels)


def test_rounding_leaves_no_negative_variation() -> None:
    images = torch.full((4, 1, 5, 5), 0.1)
    places = [Places(positions=3, kernel=3)] * 2
    moments = patch_moments(images, torch.tensor([0, 1, 1, 0]), K, places)
    assert (moments.variations >= 0).all()
    assert moments.variations.max() <= 1e-5 * moments.counts.max() * 0.01 * 9


def test_batches_merge_to_the_whole() -> None:
    module, images = convolution("uneven everything")
    labels = torch.tensor([2, 0, 2, 2, 0])
    places = places_of(module, images)
    one, other = (patch_moments(images[part], labels[part], K, places) for part in (slice(2), slice(2, None)))
    for mine, theirs in zip(merged_moments(one, other)[:3], patch_moments(images, labels, K, places)[:3], strict=True):
        torch.testing.assert_close(mine, theirs)


def test_nan_stays() -> None:
    images = torch.ones(2, 1, 4)
    images[1, 0, 2] = torch.nan
    moments = patch_moments(images, torch.tensor([0, 1]), K, [Places(positions=3, kernel=2)])
    assert moments.variations.isnan().tolist() == [False, True, False]
    assert map_moments(images, torch.tensor([0, 1]), K).variations.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("labels", "num_classes", "message"),
    [
        (torch.zeros(2).long(), 1, "num_classes to be a whole number from 2, got 1"),
        (torch.zeros(3).long(), 2, r"a label for each of 2 rows, or labels of shape \(2, 2\), got shape \(3,\)"),
        (torch.zeros(2), 2, r"Expected labels to be integers"),
        (torch.tensor([0, 2]), 2, "labels from 0 to 1, got 2"),
        (torch.ones(2, 2), 2, "sum to 1"),
    ],
)
def test_refused(labels: Tensor, num_classes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        patch_moments(torch.ones(2, 1, 4), labels, num_classes, [Places(positions=3, kernel=2)])
    with pytest.raises(ValueError, match=message):
        map_moments(torch.ones(2, 1, 4), labels, num_classes)
