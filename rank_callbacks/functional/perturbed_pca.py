"""How many dimensions the features of an input span when it is shaken a little."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, overload

import torch
from torch import Tensor

from rank_callbacks.functional.evaluation import check_inputs, evaluated, unnamed
from rank_callbacks.functional.spectrum import lower_gram, roots_of_eigenvalues

__all__ = ["perturbed_pca_dimension"]

# Of the tolerance, as in the authors' code, in whatever type the features are.
_EPS = torch.finfo(torch.float32).eps


@overload
def perturbed_pca_dimension(
    function: Callable[[Tensor], Tensor],
    inputs: Tensor,
    noise: float = 1e-3,
    copies: int = 5000,
    tolerance: float = 1.0,
    batch_size: int = 128,
    seed: int = 0,
) -> Tensor: ...
@overload
def perturbed_pca_dimension(
    function: Callable[[Tensor], Mapping[str, Tensor]],
    inputs: Tensor,
    noise: float = 1e-3,
    copies: int = 5000,
    tolerance: float = 1.0,
    batch_size: int = 128,
    seed: int = 0,
) -> dict[str, Tensor]: ...
def perturbed_pca_dimension(
    function: Callable[[Tensor], Any],
    inputs: Tensor,
    noise: float = 1e-3,
    copies: int = 5000,
    tolerance: float = 1.0,
    batch_size: int = 128,
    seed: int = 0,
) -> Tensor | dict[str, Tensor]:
    """Dimension of the features of x + ξ, ξ ~ N(0, noise²): #{λ ≥ tolerance·λ₁·min(copies, D)·ε₃₂}, λ of their covariance.

    To first order the covariance is noise²·JJᵀ, and this the rank of J at sqrt(tolerance·min(copies, D)·ε₃₂)·σ₁: 2.4e-2·σ₁ for
    5,000 copies and as many features, 7.8e-3·σ₁ for 512. Noise in float32 comes through: where the features' rounding, 1e-7 of
    them, is more than that share of their standard deviation it counts as dimensions.

    Between 0, where all copies have the same features, and min(copies − 1, D). NaN where features are not finite.

    Holds the features of all copies of an input, copies·D numbers, or D² moments in float64 where D is below ``copies``;
    of all outputs together.

    Args:
        function: Takes ``batch_size`` inputs, gives a tensor of shape ``(batch_size, ...)`` or a mapping of them. A module
            runs in the type of ``inputs`` and in eval mode on copies of its tensors, and is left as it was.
        inputs: Shape ``(n, *sample)``, floating type.
        noise: Standard deviation, in the units of ``inputs``: of normalised pixels in the paper.
        copies: Of each input, from 2.
        tolerance: Factor of the tolerance.
        batch_size: Copies that run at a time.
        seed: Of the private generator of ξ, which is the same for each input.

    Returns:
        Shape ``(n,)``, float64, or that of each output.

    Raises:
        ValueError: If an argument is out of range, ``inputs`` are integers or empty, or the function gives no real tensors
            with a row a copy.

    Example:
        >>> narrow = torch.nn.Sequential(torch.nn.Linear(8, 2), torch.nn.Linear(2, 8)).double()
        >>> perturbed_pca_dimension(narrow, torch.zeros(1, 8).double(), copies=50)
        tensor([2.], dtype=torch.float64)

    Reference:
        Rank diminishing in deep neural networks (Feng et al., 2022), https://arxiv.org/abs/2206.06072
    """
    check_inputs(inputs)
    for name, value, least in (("copies", copies, 2), ("batch_size", batch_size, 1)):
        if value < least:
            raise ValueError(f"Expected {name} to be from {least}, got {value}.")
    for name, number in (("noise", noise), ("tolerance", tolerance)):
        if not 0 < number < float("inf"):
            raise ValueError(f"Expected {name} to be above 0, got {number}.")
    with torch.no_grad(), evaluated(function, inputs.dtype) as outputs:
        found = []
        for sample in inputs.detach():
            clouds: dict[str | None, _Cloud] = {}
            for batch in _shaken(sample, noise, copies, batch_size, seed):
                for output, features in outputs(batch).items():
                    clouds.setdefault(output, _Cloud(copies)).add(_rows(features, len(batch)))
            found.append({output: cloud.dimension(tolerance) for output, cloud in clouds.items()})
    return unnamed({output: torch.stack([dimensions[output] for dimensions in found]) for output in found[0]})


def _shaken(sample: Tensor, noise: float, copies: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator(sample.device).manual_seed(seed)
    for start in range(0, copies, batch_size):
        # One by one, so that the noise does not depend on how many run at a time.
        drawn = [
            torch.randn(sample.shape, generator=generator, dtype=sample.dtype, device=sample.device)
            for _ in range(min(batch_size, copies - start))
        ]
        yield sample + noise * torch.stack(drawn)


def _rows(features: Tensor, copies: int) -> Tensor:
    if features.dim() == 0 or len(features) != copies:
        raise ValueError(f"Expected features of shape ({copies}, ...), a row an input, got shape {tuple(features.shape)}.")
    return features.reshape(copies, -1)


class _Cloud:
    """The features of the copies of one input, or their moments where these are less."""

    def __init__(self, copies: int) -> None:
        self._copies = copies
        self._origin: Tensor | None = None
        self._features: list[Tensor] = []
        self._sum = self._products = torch.zeros(())

    def add(self, features: Tensor) -> None:
        if self._origin is None:
            self._origin = features[0].clone()
        # Small differences of large numbers: taken first, they are exact, and sums of them lose nothing.
        moved = features - self._origin
        if moved.shape[1] >= self._copies:
            self._features.append(moved)
        else:
            moved = moved.double()
            self._sum = self._sum.to(moved) + moved.sum(0)
            self._products = self._products.to(moved) + moved.mT @ moved

    def dimension(self, tolerance: float) -> Tensor:
        values = roots_of_eigenvalues(self._gram())
        eigenvalues = (values / torch.where(values[0] > 0, values[0], 1)).square()
        least = tolerance * min(self._copies, values.shape[0] if not self._features else self._features[0].shape[1]) * _EPS
        count = (eigenvalues >= least).sum().double()
        return torch.where(values[0].isfinite(), count, torch.nan)

    def _gram(self) -> Tensor:
        """Of the centred features, on the smaller side."""
        if not self._features:
            return self._products - torch.outer(self._sum, self._sum) / self._copies
        moved = torch.cat(self._features)
        return lower_gram((moved - moved.mean(0)).mT)
