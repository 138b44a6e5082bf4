"""What is read of the features of a layer: of their spectrum, raw or centred, of their rows, and of several views of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from rank_callbacks import functional
from rank_callbacks.callbacks.readings import Spectrum, measured
from rank_callbacks.catalog import find_measure

__all__ = [
    "Part",
    "check_measure",
    "is_of_spectrum",
    "needs_centered",
    "readings_of_classes",
    "readings_of_layers",
    "readings_of_rows",
    "readings_of_spectra",
]

# A layer, and one of its classes or None for all.
Part: TypeAlias = "tuple[str, int | None]"
_CENTERED = "centered_"

# By definition of centred features: of their singular values and the shape (N, D) of the matrix.
_OF_CENTERED: dict[str, Callable[[Tensor, tuple[int, ...]], Tensor]] = {
    "alpha_req": lambda values, shape: functional.alpha_req(values),
    "saturation": lambda values, shape: functional.saturation(values, shape[1]),
    "corrected_participation_ratio": lambda values, shape: functional.corrected_participation_ratio(values, shape[0]),
}
_OF_ROWS: dict[str, Callable[[Tensor], Tensor]] = {
    "two_nn": functional.two_nn,
    "dead_fraction": functional.dead_fraction,
    "dormant_ratio": functional.dormant_ratio,
}


def check_measure(name: str) -> None:
    """Refuse what is no measure of features.

    Raises:
        ValueError: If it is neither of the catalogue, with ``centered_`` before it or not, nor one of features alone.
    """
    if name in _OF_CENTERED or name == "lidar" or _of_rows(name):
        return
    try:
        find_measure(name.removeprefix(_CENTERED))
    except ValueError as error:
        own = ", ".join([*_OF_CENTERED, *_OF_ROWS, "lidar"])
        raise ValueError(f"{error} Or, of features alone: {own}. {_CENTERED!r} before a name centres the features.") from None


def is_of_spectrum(name: str) -> bool:
    """Whether a measure is a function of singular values, and so one of a class alone as well."""
    return name != "lidar" and _of_rows(name) is None


def needs_centered(name: str) -> bool:
    """Whether that spectrum is of centred features."""
    return name in _OF_CENTERED or name.startswith(_CENTERED)


def readings_of_spectra(
    raw: Mapping[Part, Spectrum], centered: Mapping[Part, Spectrum], measures: Sequence[str]
) -> dict[str, dict[Part, Tensor]]:
    """Those of ``measures`` that are of a spectrum: by measure, then by layer."""
    readings: dict[str, dict[Part, Tensor]] = {}
    for name in filter(is_of_spectrum, measures):
        if name in _OF_CENTERED:
            readings[name] = {key: _OF_CENTERED[name](one.singular_values, one.shape) for key, one in centered.items()}
        else:
            stem = name.removeprefix(_CENTERED)
            readings[name] = measured(centered if needs_centered(name) else raw, [stem])[stem]
    return readings


def readings_of_layers(of_parts: Mapping[Part, Tensor]) -> dict[str, Tensor]:
    """A measure of all classes together, by layer."""
    return {layer: value for (layer, label), value in of_parts.items() if label is None}


def readings_of_classes(
    measure: str, of_parts: Mapping[Part, Tensor], each: bool
) -> tuple[dict[str, dict[str, Tensor]], dict[str, int]]:
    """A measure of each class alone: mean and minimum over classes, each if asked for; and by layer the class of the minimum.

    A class that reads NaN makes all of these NaN but its name, which is left out.
    """
    of_layers: dict[str, dict[int, Tensor]] = {}
    readings: dict[str, dict[str, Tensor]] = {}
    for (layer, label), value in of_parts.items():
        if label is not None:
            of_layers.setdefault(layer, {})[label] = value
            if each:
                readings.setdefault(f"{measure}_of_class_{label}", {})[layer] = value
    together = {layer: torch.stack(list(values.values())) for layer, values in of_layers.items()}
    readings[f"{measure}_mean_over_classes"] = {layer: values.mean() for layer, values in together.items()}
    readings[f"{measure}_min_over_classes"] = {layer: values.amin() for layer, values in together.items()}
    finite = [layer for layer, values in together.items() if not values.isnan().any()]
    return readings, {layer: list(of_layers[layer])[int(together[layer].argmin())] for layer in finite}


def readings_of_rows(features: Tensor, measures: Sequence[str]) -> dict[str, Tensor]:
    """Those of ``measures`` that are of the rows themselves, NaN for fewer than two."""
    functions = {name: function for name in measures if (function := _of_rows(name))}
    if len(features) < 2:
        return dict.fromkeys(functions, torch.tensor(torch.nan, dtype=torch.float64))
    return {name: function(features).cpu() for name, function in functions.items()}


def _of_rows(name: str) -> Callable[[Tensor], Tensor] | None:
    stem, _, tau = name.rpartition("_")
    if stem == "dormant_ratio" and tau:
        return partial(functional.dormant_ratio, tau=_share(name, tau))
    return _OF_ROWS.get(name)


def _share(name: str, tau: str) -> float:
    try:
        share = float(tau)
    except ValueError:
        share = -1.0
    if not 0 <= share < float("inf"):
        raise ValueError(f"Expected a number from 0 for tau at the end of {name!r}, got {tau!r}.")
    return share
