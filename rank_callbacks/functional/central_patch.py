"""Networks of images by their central patch alone: the setting in which Feng et al. rank Jacobians."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rank_callbacks.functional.jacobian import jacobian_rank

__all__ = ["central_patch", "feng_jacobian_rank"]


def central_patch(function: Callable[[Tensor], Any], side: int | tuple[int, int] = 224) -> nn.Module:
    """The function of a patch alone, that stands in the centre of an image of zeros.

    So Feng et al. measure networks whose Jacobian by the whole image would be too large. What surrounds the patch in a true
    image is not there.

    Args:
        function: Takes images of shape ``(n, channels, height, width)``; a module or any other.
        side: Height and width of the image, or one number for both.

    Returns:
        A module that takes patches of shape ``(n, channels, h, w)``, for any function of this package that takes one.

    Example:
        >>> central_patch(nn.Identity(), 5)(torch.ones(1, 1, 1, 1))[0, 0, 2]
        tensor([0., 0., 1., 0., 0.])
    """
    return _Padded(function, (side, side) if isinstance(side, int) else side)


def feng_jacobian_rank(
    function: Callable[[Tensor], Any],
    images: Tensor,
    patch: int = 16,
) -> Tensor | dict[str, Tensor]:
    """Rank by the central patch of an image as Feng et al. count it: of JᵀJ in float32, at PyTorch's default tolerance.

    That tolerance is d·ε₃₂ on σ², so √(d·ε₃₂) on σ: 9.6e-3·σ₁ for the d = 768 numbers of a patch of 3 x 16 x 16. They
    report the mean over 10 images.

    Args:
        function: As for ``jacobian_singular_values``, of whole images.
        images: Shape ``(n, channels, height, width)``; all but the patch is replaced by zeros.
        patch: Side of the patch.

    Returns:
        Shape ``(n,)``, float64, or that of each output; at most d.

    Raises:
        ValueError: As for ``jacobian_singular_values``, or if the patch is no part of the images.

    Example:
        >>> feng_jacobian_rank(nn.Flatten(), torch.rand(2, 1, 8, 8), patch=3)
        tensor([9., 9.], dtype=torch.float64)

    Reference:
        Rank diminishing in deep neural networks (Feng et al., 2022), https://arxiv.org/abs/2206.06072
    """
    if images.dim() != 4 or not 1 <= patch <= min(images.shape[2:]):
        raise ValueError(
            f"Expected images of shape (n, channels, height, width) that hold a patch of {patch} x {patch}, "
            f"got shape {tuple(images.shape)}."
        )
    height, width = images.shape[2:]
    top, left = (height - patch) // 2, (width - patch) // 2
    patches = images[..., top : top + patch, left : left + patch]
    rtol = math.sqrt(patches[0].numel() * torch.finfo(torch.float32).eps)
    return jacobian_rank(central_patch(function, (height, width)), patches, rtol)


class _Padded(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any], sides: tuple[int, int]) -> None:
        super().__init__()
        self.function = function
        self._sides = sides

    def forward(self, patches: Tensor) -> Any:  # ruff: ignore[any-type]
        rows, columns = (whole - part for whole, part in zip(self._sides, patches.shape[-2:], strict=True))
        if rows < 0 or columns < 0:
            raise ValueError(
                f"Expected a patch no larger than the image of {self._sides}, got one of {tuple(patches.shape[-2:])}."
            )
        around = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
        return self.function(nn.functional.pad(patches, around))
