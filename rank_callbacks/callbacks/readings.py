"""Spectra in, readings out: what a monitor's measures say of its layers."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor

from rank_callbacks import functional
from rank_callbacks.callbacks.gathering import shared_rounding_noise
from rank_callbacks.catalog import find_measure
from rank_callbacks.tags import Tag
from rank_callbacks.writers import MatrixSpectrum

__all__ = [
    "SUMMARIES",
    "Spectrum",
    "check_scalars",
    "listed",
    "measured",
    "shows_layers",
    "spectra_by_tag",
    "tagged",
    "unreadable",
    "warn_of_nan",
]

_Layer = TypeVar("_Layer", bound=Hashable)
SUMMARIES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean_over_layers": torch.mean,
    "min_over_layers": torch.amin,
    "max_over_layers": torch.amax,
}
# Beyond it layers are not told apart in a chart as wide as a page, and the reports of all monitors take 0.3 MB each time.
_MOST_LAYERS_SHOWN = 200
# No layer has such a name.
_LEFT_OUT = "layers left out"
# Elsewhere the function has the measure's name.
_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "distance_to_rank": partial(functional.distance_to_rank, relative=False),
    "relative_distance_to_rank": functional.distance_to_rank,
}


class Spectrum(NamedTuple):
    """What measures need to know of a matrix.

    Args:
        singular_values: Shape ``(r,)``, descending.
        shape: Shape of the matrix, ``(m, n)`` or ``(blocks, m, n)``.
        noise: Spectral norm of the rounding noise in it, in its own unit.
        rtol: Tolerance of a ``numerical_rank`` that does not say its own; the catalogue's if None.
    """

    singular_values: Tensor
    shape: tuple[int, ...]
    noise: Tensor
    rtol: float | None = None

    @classmethod
    def of(cls, singular_values: Tensor, matrix: Tensor, dtype: torch.dtype | None = None, exact: bool = False) -> Spectrum:
        """The spectrum of ``matrix``, last rounded to ``dtype``; ``exact`` counts rank at the tolerance of exact rank.

        A collective operation for a sharded matrix of two bytes a number.
        """
        shape, dtype = tuple(matrix.shape), dtype or matrix.dtype
        if dtype.itemsize > 2:  # No row or column is longer than σ₁, and of float32 this bound will do: it costs no reading.
            noise = 0.6 * torch.finfo(dtype).eps * functional.spectral_norm(singular_values)
        else:
            noise = shared_rounding_noise(matrix, dtype)
        return cls(singular_values, shape, noise, functional.rounding_rtol(shape, dtype) if exact else None)

    def is_finite(self) -> bool:
        """Whether the matrix could be measured."""
        return bool(self.singular_values.isfinite().all())


def measured(spectra: Mapping[_Layer, Spectrum], measures: Sequence[str]) -> dict[str, dict[_Layer, Tensor]]:
    """Every measure of every layer: by measure, then by layer.

    Raises:
        ValueError: If a measure is unknown.
    """
    return {name: {layer: _measure(spectrum, name) for layer, spectrum in spectra.items()} for name in measures}


def tagged(group: str, values: Mapping[str, Mapping[str, Tensor]], per_layer: bool) -> dict[Tag, float]:
    """Each measure's mean, minimum and maximum over its layers, and its value at each layer if asked for.

    A layer that reads NaN makes the three NaN as well. A measure of no layer has no reading.

    Args:
        group: First part of the tags.
        values: Scalars by measure, then by layer.
        per_layer: Whether to give the value at each layer.
    """
    tags: dict[Tag, Tensor] = {}
    for measure, of_layers in values.items():
        if of_layers:
            together = torch.stack(list(of_layers.values()))
            shown = {layer: summary(together) for layer, summary in SUMMARIES.items()}
            shown.update(of_layers if per_layer else {})
            tags.update({Tag(group, measure, layer): value for layer, value in shown.items()})
    return dict(zip(tags, torch.stack(list(tags.values())).tolist(), strict=True)) if tags else {}


def listed(measures: Sequence[str]) -> Sequence[str]:
    """The names of measures, but a single name is refused, whose letters would be taken for names.

    Raises:
        ValueError: If ``measures`` is a string.
    """
    if isinstance(measures, str):
        raise ValueError(f"Expected measures to be a list of names, got {measures!r}. Write [{measures!r}].")
    return measures


def check_scalars(scalars: str) -> None:
    """Refuse a ``scalars`` that ``shows_layers`` does not know.

    Raises:
        ValueError: If it is neither ``"auto"`` nor ``"all"``.
    """
    if scalars not in {"auto", "all"}:
        raise ValueError(f"Expected scalars to be 'auto' or 'all', got {scalars!r}.")


def shows_layers(scalars: str, layers: int, group: str = "", told: set[str] | None = None) -> bool:
    """Whether a scalar a layer is logged: with ``"all"`` always, with ``"auto"`` for up to 200 layers.

    Of 200 layers a report with default measures has 600 scalars of weights, 1,600 of gradients, 700 of features and 3,000 of
    rank collapse: with more, dashboards are slow to load, and the charts of layers are no longer legible.

    Args:
        scalars: ``"auto"`` or ``"all"``.
        layers: How many there are.
        group: First part of the tags, for the line that says so where they are left out.
        told: What the monitor has said in this fit: it says so once, and adds it. None for no line.
    """
    shown = scalars == "all" or layers <= _MOST_LAYERS_SHOWN
    if not shown and told is not None and _LEFT_OUT not in told:
        told.add(_LEFT_OUT)
        rank_zero_info(
            f"{group} has {layers} layers, of which it logs the mean, minimum and maximum alone: a monitor with "
            'scalars="all" logs each.'
        )
    return shown


def spectra_by_tag(group: str, spectra: Mapping[str, Spectrum], measure: str = "spectrum") -> dict[Tag, MatrixSpectrum]:
    """The singular values as writers take them."""
    return {
        Tag(group, measure, layer): MatrixSpectrum(spectrum.singular_values.numpy().astype(np.float32), spectrum.shape)
        for layer, spectrum in spectra.items()
    }


def unreadable(spectra: Mapping[str, Spectrum]) -> list[str]:
    """The layers that read NaN."""
    return [layer for layer, spectrum in spectra.items() if not spectrum.is_finite()]


def warn_of_nan(layers: Iterable[str], step: int, warned: set[str]) -> None:
    """Warn of every layer that reads NaN, once: those warned of are added to ``warned``."""
    for layer in layers:
        if layer not in warned:
            warned.add(layer)
            warnings.warn(
                f"{layer} reads NaN at step {step}: it holds a NaN or infinity, or its spectrum failed.", stacklevel=2
            )


def _measure(spectrum: Spectrum, name: str) -> Tensor:
    function, parameters = _function(name)
    known: dict[str, Any] = {"shape": spectrum.shape, "noise": spectrum.noise} | parameters
    if name == "numerical_rank" and spectrum.rtol is not None:
        known["rtol"] = spectrum.rtol
    return function(spectrum.singular_values, **{key: value for key, value in known.items() if key in _arguments(function)})


@cache
def _function(name: str) -> tuple[Callable[..., Tensor], dict[str, float | None]]:
    row, parameter = find_measure(name)
    return _FUNCTIONS.get(row.name) or getattr(functional, row.name), {row.parameter: parameter} if row.parameter else {}


@cache
def _arguments(function: Callable[..., Tensor]) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)
