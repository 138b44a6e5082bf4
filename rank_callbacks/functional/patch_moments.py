"""Class moments of what a convolution multiplies its kernel by, without unfolding it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from rank_callbacks.functional.class_moments import ClassMoments, check_classes
from rank_callbacks.functional.labels import labelled_rows

__all__ = ["Places", "map_moments", "patch_moments"]

# What is taken from maps makes a copy, of so many numbers at a time.
_NUMBERS_AT_ONCE = 2**20


class Places(NamedTuple):
    """Where a kernel is laid along one dimension of an image, zeros around it.

    Args:
        positions: How many times.
        kernel: Its size.
        stride: From one position to the next.
        padding: Zeros before the image.
        dilation: From one element of the kernel to the next.
    """

    positions: int
    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1

    def is_inside(self, side: int) -> bool:
        """Whether no element of the kernel is ever laid on the zeros around a side of this length."""
        last = (self.positions - 1) * self.stride + (self.kernel - 1) * self.dilation - self.padding
        return self.padding <= 0 and last < side

    def coverage(self, side: int, like: Tensor) -> Tensor:
        """Whether element j of the kernel is ever laid on pixel p; shape ``(side, kernel)``, zeros and ones."""
        first = torch.arange(self.positions, device=like.device)[:, None] * self.stride - self.padding
        pixels = first + torch.arange(self.kernel, device=like.device) * self.dilation
        inside = (pixels >= 0) & (pixels < side)
        elements = torch.arange(self.kernel, device=like.device).expand_as(pixels)
        covered = like.new_zeros(side, self.kernel)
        covered[pixels[inside], elements[inside]] = 1
        return covered


def patch_moments(
    images: Tensor, labels: Tensor, num_classes: int, places: Sequence[Places], ignore_index: int | None = None
) -> ClassMoments:
    """The moments of all patches of labelled images, each patch a row with the label of its image.

    Sums over positions are products with zeros and ones, so the cost is that of reading the images, a C_out-th of the
    convolution: no patch is ever made.

    Args:
        images: Shape ``(B, C, *sides)``, any real floating type.
        labels: Of shape ``(B,)`` or ``(B, K)``: see ``labelled_rows``.
        num_classes: K, from 2.
        places: Where the kernel is laid, along each of the sides.
        ignore_index: A label that means none.

    Returns:
        Moments of B·P rows of C·k features, in the order in which ``weight.flatten(1)`` has them; without scatter.

    Raises:
        ValueError: If ``num_classes`` is below 2 or the labels do not fit: see ``labelled_rows``.

    Example:
        >>> images = torch.tensor([[[1.0, 2.0, 3.0]], [[5.0, 5.0, 5.0]]])
        >>> patch_moments(images, torch.tensor([0, 1]), num_classes=2, places=[Places(positions=2, kernel=2)]).means
        tensor([[1.5000, 2.5000],
                [5.0000, 5.0000]], dtype=torch.float64)
    """
    # Zeros around an image lie as far from the rest as its mean is large, whatever is taken from both.
    is_inside = all(place.is_inside(side) for place, side in zip(places, images.shape[2:], strict=True))
    origin = _origin(images) * is_inside
    sums, energies = _over_parts(images, origin, partial(_sums_over_patches, places))
    positions = torch.Size([place.positions for place in places]).numel()
    return _moments_of_groups(sums, energies, origin, positions, labels, num_classes, ignore_index)


def map_moments(maps: Tensor, labels: Tensor, num_classes: int, ignore_index: int | None = None) -> ClassMoments:
    """The moments of all positions of labelled feature maps, each position a row with the label of its map.

    Args:
        maps: Shape ``(B, C, *sides)``.
        labels: As in ``patch_moments``.
        num_classes: K, from 2.
        ignore_index: A label that means none.

    Raises:
        ValueError: As ``patch_moments``.
    """
    origin = _origin(maps)
    sums, energies = _over_parts(maps, origin, _sums_over_positions)
    return _moments_of_groups(sums, energies, origin, maps.shape[2:].numel(), labels, num_classes, ignore_index)


def _origin(maps: Tensor) -> Tensor:
    """About what the channels have in common: squares of what is left lose no digits to a mean, however large."""
    corner = maps.detach().flatten(2)[:, :, :1]
    return _at_least_single(corner).mean((0, 2)).nan_to_num(0.0, 0.0, 0.0)


def _over_parts(maps: Tensor, origin: Tensor, sums_of: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Sums and energies of maps less their origin, some maps at a time."""
    origin = origin.view(-1, *[1] * (maps.dim() - 2))
    parts = maps.detach().split(max(1, _NUMBERS_AT_ONCE // max(1, maps[:1].numel())))
    found = [sums_of(_at_least_single(part) - origin) for part in parts]
    return torch.cat([sums for sums, _ in found]), torch.cat([energies for _, energies in found])


def _at_least_single(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in {torch.float32, torch.float64} else tensor.float()


def _sums_over_patches(places: Sequence[Places], images: Tensor) -> tuple[Tensor, Tensor]:
    """Of each image, the sum of its patches and of their squares."""
    sums, energies = images, images.square().sum(1)
    # The last side first: it is the contiguous one, and leaves little of the others.
    for dim, place in zip(range(-1, -len(places) - 1, -1), reversed(places), strict=True):
        covered = place.coverage(images.shape[dim], sums)
        sums = (sums.movedim(dim, -1) @ covered).movedim(-1, dim).double()
        energies = (energies @ covered.sum(1).to(energies.dtype)).double()
    return sums.flatten(1), energies


def _sums_over_positions(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Of each map, the sum of its positions and of their squares."""
    flat = maps.flatten(2)
    return flat.sum(2).double(), torch.linalg.vector_norm(flat, dim=(1, 2)).double().square()


def _moments_of_groups(
    sums: Tensor,
    energies: Tensor,
    origin: Tensor,
    size: int,
    labels: Tensor,
    num_classes: int,
    ignore_index: int | None,
) -> ClassMoments:
    """Moments of rows that come in groups of one label, from the sum and the sum of squares in each group.

    Args:
        sums: Shape ``(groups, C·k)``.
        energies: Shape ``(groups,)``.
        origin: What was taken from each of the C channels before.
        size: Of a group.
        labels: Of the groups.
        num_classes: K.
        ignore_index: A label that means none.
    """
    check_classes(num_classes)
    pairs = labelled_rows(labels, num_classes, len(sums), ignore_index)
    sums, energies = pairs.of(sums), pairs.of(energies)
    weights = torch.ones_like(energies) if pairs.weights is None else pairs.weights
    counts = sums.new_zeros(num_classes).index_add_(0, pairs.classes, weights * size)
    means = sums.new_zeros(num_classes, sums.shape[1]).index_add_(0, pairs.classes, sums * weights[:, None])
    means /= counts.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
    total = torch.zeros_like(counts).index_add_(0, pairs.classes, energies * weights)
    variations = (total - counts * means.square().sum(1)).clamp_min(0)
    common = origin.double().repeat_interleave(sums.shape[1] // max(1, len(origin)))
    return ClassMoments(counts, torch.where(counts[:, None] > 0, means + common, 0), variations)
