"""The rank of a network at an input: of the Jacobian of an output, or of each layer's, by that input."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast, overload

import torch
from torch import Tensor, nn

from rank_callbacks.functional.evaluation import check_inputs, evaluated, unnamed
from rank_callbacks.functional.jacobian_products import NamedFunction, by_columns, by_rows, differentiable, pullback, pushed
from rank_callbacks.functional.krylov import spectral_norm_bounds
from rank_callbacks.functional.rank import numerical_rank
from rank_callbacks.functional.spectrum import singular_values

__all__ = ["JacobianSpectrum", "jacobian_rank", "jacobian_singular_values"]

# A bound on what a sketch misses, out of so many products with Gaussian vectors, fails with probability 2⁻²⁰.
_CHECKS = 20
_FACTOR = 2 * math.sqrt(2 / math.pi)


class JacobianSpectrum(NamedTuple):
    """Singular values of the Jacobians of one output, and how far they can be off.

    Args:
        singular_values: Shape ``(n, r)``, float64, descending, a row a sample. r is min(D, d), or the number of probes where
            that is less; the values of probes are none greater than the true ones.
        largest: Shape ``(n,)``, float64: what σ₁ does not exceed. σ₁ itself where all is known; of probes, a bound that fails
            with probability 1e-6.
        error: Shape ``(n,)``, float64: ε with σᵢ² ≤ trueᵢ² ≤ σᵢ² + ε². 0 where all is known; of probes, a bound that fails
            with probability 1e-6.
        captured: Shape ``(n,)``, float64: estimated share of the energy ‖J‖_F² that the values have; 1 where all is known.
        shape: Of each Jacobian, (D, d): numbers of the output, numbers of the input.
    """

    singular_values: Tensor
    largest: Tensor
    error: Tensor
    captured: Tensor
    shape: tuple[int, int]

    def rank(self, rtol: float = 1e-3) -> Tensor:
        """How many singular values exceed rtol·σ₁, of shape ``(n,)``, float64; of probes, no more than truly do.

        Of probes, rtol·``largest`` must be exceeded. A rank that equals their number may be any larger.

        Raises:
            ValueError: If ``rtol`` is not from 0 and below 1.
        """
        _check_rtol(rtol)
        return numerical_rank(self.singular_values, 0.0, rtol * self.largest)


@overload
def jacobian_singular_values(
    function: Callable[[Tensor], Tensor], inputs: Tensor, probes: int | None = None, seed: int = 0
) -> JacobianSpectrum: ...
@overload
def jacobian_singular_values(
    function: Callable[[Tensor], Mapping[str, Tensor]], inputs: Tensor, probes: int | None = None, seed: int = 0
) -> dict[str, JacobianSpectrum]: ...
def jacobian_singular_values(
    function: Callable[[Tensor], Any],
    inputs: Tensor,
    probes: int | None = None,
    seed: int = 0,
) -> JacobianSpectrum | dict[str, JacobianSpectrum]:
    """Singular values of J(x) = ∂f/∂x of shape (D, d), at each sample x by itself.

    ==========  ==========================================================================  ================================
    probes      products, on one sample                                                     error of a singular value σ
    ==========  ==========================================================================  ================================
    None        d with J (forward mode), all outputs at once; or one with Jᵀ (backward      1e-15·σ₁
                mode) a number of the outputs, where they have fewer than d together
    k           k + 20 with J for Y = JΩ, Ω Gaussian; k with Jᵀ an output for B = QᵀJ,      ``error``, from the 20
                Q an orthonormal basis of Y; 20 of each an output for σ₁
    ==========  ==========================================================================  ================================

    What is known of all of J is decomposed whole, not by a Gram matrix, which would lose all below 1e-7·σ₁. At most 1 GiB of
    Jacobians is held at a time, some three times that with what decomposes them: more of them, or a larger one, take more
    passes of d products. Backward mode and probes hold all that they multiply, at most min(ΣD, d)·d and (k + 20)·ΣD + k·d
    numbers.

    Attention runs without its fused kernels, which have no derivative in forward mode.

    Args:
        function: Takes inputs of shape ``(1, *sample)``; gives a tensor or a mapping of them, as
            ``rank_callbacks.matrices.layer_outputs`` does. It must be differentiable by ``torch.func``. A module runs in
            float64 and in eval mode on copies of its parameters and buffers, and is left as it was. Any other function is
            called as it is, in the type of ``inputs``: float64 is best.
        inputs: Shape ``(n, *sample)``, floating type.
        probes: k, or None for the whole spectrum; it is whole as well where k is d or more.
        seed: Of the private generator of Ω, which is the same for each sample.

    Returns:
        The spectrum, or that of each output. Not finite, a sample's values are NaN.

    Raises:
        ValueError: If ``inputs`` are integers or empty, ``probes`` is below 1, or the function gives no real tensors.

    Example:
        >>> model = nn.Linear(4, 3)
        >>> found = jacobian_singular_values(model, torch.zeros(1, 4)).singular_values
        >>> torch.allclose(found[0], torch.linalg.svdvals(model.weight.double()))
        True

    Reference:
        Rank diminishing in deep neural networks (Feng et al., 2022), https://arxiv.org/abs/2206.06072;
        Finding structure with randomness (Halko, Martinsson and Tropp, 2011), https://arxiv.org/abs/0909.4061
    """
    check_inputs(inputs)
    if probes is not None and probes < 1:
        raise ValueError(f"Expected probes to be from 1, or None for all singular values, got {probes}.")
    dtype = torch.float64 if isinstance(function, nn.Module) else inputs.dtype
    with differentiable(), evaluated(function, dtype) as outputs:
        samples = inputs.detach().to(dtype, copy=True).split(1)
        if probes is None or probes >= samples[0].numel():
            found = [_whole(outputs, sample) for sample in samples]
        else:
            found = [_sketched(outputs, sample, probes, seed) for sample in samples]
    return unnamed({name: _stacked([spectra[name] for spectra in found]) for name in found[0]})


@overload
def jacobian_rank(
    function: Callable[[Tensor], Tensor], inputs: Tensor, rtol: float = 1e-3, probes: int | None = None, seed: int = 0
) -> Tensor: ...
@overload
def jacobian_rank(
    function: Callable[[Tensor], Mapping[str, Tensor]],
    inputs: Tensor,
    rtol: float = 1e-3,
    probes: int | None = None,
    seed: int = 0,
) -> dict[str, Tensor]: ...
def jacobian_rank(
    function: Callable[[Tensor], Any],
    inputs: Tensor,
    rtol: float = 1e-3,
    probes: int | None = None,
    seed: int = 0,
) -> Tensor | dict[str, Tensor]:
    """Rank of the Jacobian at each sample, #{σ > rtol·σ₁}: in how many directions a step of the input moves the output.

    Between 0, of a function that is constant there, and min(D, d). NaN where the Jacobian is not finite.

    At an ``rtol`` of rounding, 1e-12 say, this is the exact rank, which no composition raises: rank J_{k+1}J_k ≤ rank J_k.
    At a larger one it can rise: diag(1e-6, 1)·diag(1, 1e-6) has rank 2 at 1e-3, its factors have rank 1.

    Args:
        function: As for ``jacobian_singular_values``.
        inputs: Shape ``(n, *sample)``, floating type.
        rtol: Relative to σ₁, from 0 and below 1.
        probes: Number of probes, of which the count is a lower bound and the number a cap; None for the exact count.
        seed: Of the probes.

    Returns:
        Shape ``(n,)``, float64, or that of each output.

    Raises:
        ValueError: As for ``jacobian_singular_values``, or if ``rtol`` is out of range.

    Example:
        >>> bottleneck = nn.Sequential(nn.Linear(8, 2), nn.Tanh(), nn.Linear(2, 8))
        >>> jacobian_rank(bottleneck, torch.zeros(3, 8), rtol=1e-12)
        tensor([2., 2., 2.], dtype=torch.float64)

    Reference:
        Rank diminishing in deep neural networks (Feng et al., 2022), https://arxiv.org/abs/2206.06072
    """
    _check_rtol(rtol)  # before the work
    spectra = jacobian_singular_values(function, inputs, probes, seed)
    if isinstance(spectra, JacobianSpectrum):
        return spectra.rank(rtol)
    return {name: spectrum.rank(rtol) for name, spectrum in cast("dict[str, JacobianSpectrum]", spectra).items()}


def _check_rtol(rtol: float) -> None:
    if not 0 <= rtol < 1:
        raise ValueError(f"Expected rtol to be from 0 and below 1, relative to the largest singular value, got {rtol}.")


def _whole(function: NamedFunction, sample: Tensor) -> dict[str | None, JacobianSpectrum]:
    sizes = {name: output.numel() for name, output in function(sample).items()}
    backward = sum(sizes.values()) < sample.numel()
    matrices = by_rows(function, sample, sizes) if backward else by_columns(function, sample, sizes)
    known = torch.zeros(2, dtype=torch.float64, device=sample.device)
    values = {name: singular_values(matrix) for name, matrix in matrices.items()}
    return {
        name: JacobianSpectrum(values[name], values[name][0], known[0], known[1] + 1, (size, sample.numel()))
        for name, size in sizes.items()
    }


class _Products:
    """Products with the Jacobian of one output at one sample."""

    def __init__(self, function: NamedFunction, sample: Tensor, name: str | None) -> None:
        self._output = lambda inputs: (function(inputs)[name].flatten(),)
        self._sample = sample
        self.pull_rows = pullback(function, sample, name)

    def push(self, vector: Tensor) -> Tensor:
        return pushed(self._output, self._sample, vector.to(self._sample.dtype)[None])[0][0]

    def pull(self, vector: Tensor) -> Tensor:
        return self.pull_rows(vector[None])[0]


def _sketched(function: NamedFunction, sample: Tensor, probes: int, seed: int) -> dict[str | None, JacobianSpectrum]:
    generator = torch.Generator(sample.device).manual_seed(seed)
    size = (probes + _CHECKS, sample.numel())
    gaussian = torch.randn(size, generator=generator, dtype=sample.dtype, device=sample.device)
    names = list(function(sample))

    def flat(inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(output.flatten() for output in function(inputs).values())

    products = zip(names, pushed(flat, sample, gaussian), strict=True)
    start = gaussian[0].double()
    return {name: _from_products(_Products(function, sample, name), product, probes, start) for name, product in products}


def _from_products(jacobian: _Products, products: Tensor, probes: int, start: Tensor) -> JacobianSpectrum:
    basis = torch.linalg.qr(products[:probes].mT).Q
    inside = jacobian.pull_rows(basis.mT)
    checks = products[probes:]
    missed = torch.linalg.vector_norm(checks - checks @ basis @ basis.mT, dim=1)
    error, energy = _FACTOR * missed.amax(), torch.linalg.vector_norm(inside).square()
    total = energy + missed.square().mean()
    lower, upper = spectral_norm_bounds(jacobian.push, jacobian.pull, start)
    values = singular_values(inside)
    values[0] = torch.maximum(values[0], lower)  # a sketch has some per cent too little
    largest = torch.minimum(upper, torch.hypot(values[0], error))
    captured = torch.where(total == 0, 1.0, energy / total)
    return JacobianSpectrum(values, largest, error, captured, (products.shape[1], len(start)))


def _stacked(spectra: list[JacobianSpectrum]) -> JacobianSpectrum:
    return JacobianSpectrum(
        torch.stack([spectrum.singular_values for spectrum in spectra]),
        torch.stack([spectrum.largest for spectrum in spectra]),
        torch.stack([spectrum.error for spectrum in spectra]),
        torch.stack([spectrum.captured for spectrum in spectra]),
        spectra[0].shape,
    )
