"""Spectra in, readings out: what a monitor's measures say of its layers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from rank_callbacks import functional
from rank_callbacks.catalog import find_measure
from rank_callbacks.tags import Tag

__all__ = ["SUMMARIES", "Spectrum", "readings"]

SUMMARIES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean_over_layers": torch.mean,
    "min_over_layers": torch.amin,
    "max_over_layers": torch.amax,
}
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
    """

    singular_values: Tensor
    shape: tuple[int, ...]
    noise: Tensor


def readings(spectra: Mapping[str, Spectrum], measures: Sequence[str], group: str, per_layer: bool) -> dict[Tag, float]:
    """Every measure's mean, minimum and maximum over the layers, and its value at each layer if asked for.

    A layer that reads NaN makes the three NaN as well.

    Args:
        spectra: By the layer's name; at least one.
        measures: Names from the catalogue.
        group: First part of the tags.
        per_layer: Whether to give the value at each layer.

    Raises:
        ValueError: If a measure is unknown.
    """
    values: dict[Tag, Tensor] = {}
    for name in measures:
        of_layers = {layer: _measured(spectrum, name) for layer, spectrum in spectra.items()}
        together = torch.stack(list(of_layers.values()))
        of_summaries = {layer: summary(together) for layer, summary in SUMMARIES.items()}
        shown = of_summaries | of_layers if per_layer else of_summaries
        values.update({Tag(group, name, layer): value for layer, value in shown.items()})
    return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))


def _measured(spectrum: Spectrum, name: str) -> Tensor:
    row, parameter = find_measure(name)
    function = _FUNCTIONS.get(row.name) or getattr(functional, row.name)
    known = {row.parameter or "": parameter, "shape": spectrum.shape, "noise": spectrum.noise}
    wanted = inspect.signature(function).parameters
    return function(spectrum.singular_values, **{key: value for key, value in known.items() if key in wanted})
