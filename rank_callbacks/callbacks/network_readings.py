"""What is read of a network at a few inputs: ranks of its Jacobians, and of its features when the inputs are shaken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from rank_callbacks.callbacks.feature_sample import SampledRows
from rank_callbacks.functional.central_patch import feng_jacobian_rank
from rank_callbacks.functional.classification_dimension import classification_dimension
from rank_callbacks.functional.independence_deficit import DeficitTable, independence_deficit
from rank_callbacks.functional.jacobian import JacobianSpectrum, jacobian_singular_values
from rank_callbacks.functional.perturbed_pca import perturbed_pca_dimension
from rank_callbacks.matrices.features import PENULTIMATE
from rank_callbacks.writers import Table

__all__ = [
    "OF_CLASSES",
    "check_measure",
    "deficit_table",
    "is_of_one",
    "measured_together",
    "probe_readings",
    "readings_of_classes",
]

OF_CLASSES = ("classification_dimension", "centered_classification_dimension", "independence_deficit")
_MEASURES = ("jacobian_rank", "feng_jacobian_rank", "perturbed_pca_dimension", *OF_CLASSES)

# Beyond so many numbers of an input, the whole Jacobian takes too long to be looked at in training.
_MOST_COLUMNS = 1024
_PROBES = 128
_RTOL = 1e-3
_CLASS = "class_"


def check_measure(name: str) -> None:
    """Refuse what is no measure of a network.

    Raises:
        ValueError: If it is none of these, nor ``jacobian_rank`` with a tolerance below 1.
    """
    if name not in _MEASURES and tolerance(name) is None:
        raise ValueError(
            f"Expected the name of a measure, got {name!r}. Choose from {', '.join(_MEASURES)}, or jacobian_rank_<rtol>."
        )


def tolerance(name: str) -> float | None:
    """The relative tolerance of a ``jacobian_rank``; None for any other measure."""
    if name == "jacobian_rank":
        return _RTOL
    stem, _, suffix = name.rpartition("_")
    try:
        rtol = float(suffix) if stem == "jacobian_rank" else -1.0
    except ValueError:
        return None
    return rtol if 0 <= rtol < 1 else None


def measured_together(measures: Sequence[str]) -> list[list[str]]:
    """Measures of a probe, those in a list that come from the same Jacobians: where one list fails, others may not."""
    of_jacobians = [name for name in measures if tolerance(name) is not None]
    return [names for names in (of_jacobians, *([name] for name in measures if name not in of_jacobians)) if names]


def probe_readings(
    outputs: nn.Module, inputs: Tensor, measures: Sequence[str], probes: int | None, copies: int
) -> dict[str, dict[str, Tensor]]:
    """Those of ``measures`` that a few inputs show: by measure, then by layer, a value an input.

    Args:
        outputs: Of layers, by name.
        inputs: Shape ``(n, *sample)``.
        measures: Names.
        probes: Of Jacobians; None for whole ones up to 1,024 numbers of an input, and 128 beyond.
        copies: Of each input, that are shaken.
    """
    readings = _of_jacobians(outputs, inputs, measures, probes)
    if "feng_jacobian_rank" in measures:
        readings["feng_jacobian_rank"] = cast("dict[str, Tensor]", feng_jacobian_rank(outputs, inputs))
    if "perturbed_pca_dimension" in measures:
        shaken = perturbed_pca_dimension(outputs, inputs, copies=copies)
        readings["perturbed_pca_dimension"] = cast("dict[str, Tensor]", shaken)
    return readings


def readings_of_classes(
    rows: SampledRows, classifier: nn.Linear, measures: Sequence[str]
) -> tuple[dict[tuple[str, str], float], DeficitTable | None]:
    """Those of ``measures`` that labelled inputs of the classifier show, by measure and place; and the deficit's table."""
    features, labels = rows.features.double(), rows.labels.to(rows.features.device)
    weight = classifier.weight.detach().double()
    bias = None if classifier.bias is None else classifier.bias.detach().double()
    readings = {}
    for name in ("classification_dimension", "centered_classification_dimension"):
        if name in measures:
            centered = name.startswith("centered")
            dimension = classification_dimension(features, labels, weight, bias, centered=centered)
            readings[name, PENULTIMATE] = dimension.item()
    if "independence_deficit" not in measures:
        return readings, None
    table = independence_deficit(nn.functional.linear(features, weight, bias), labels)
    for name, values in {
        "independence_deficit": {row.label: row.relative_error for row in table},
        "predicted_logit_accuracy": {row.label: row.accuracy_predicted for row in table},
    }.items():
        readings |= {(name, f"{_CLASS}{label}"): value for label, value in values.items()}
        readings[name, "mean_over_classes"] = sum(values.values()) / len(values)
    return readings, table


def is_of_one(name: tuple[str, str]) -> bool:
    """Whether a reading is of one class."""
    return name[1].startswith(_CLASS)


def deficit_table(table: DeficitTable) -> Table:
    """The table of the deficit as loggers take it."""
    columns = ("class", "samples", "deciders", "weights", "relative error", "accuracy", "accuracy of the predicted logit")
    rows = [
        (
            row.label,
            row.samples,
            ", ".join(map(str, row.deciders)),
            ", ".join(f"{weight:.3g}" for weight in row.weights),
            row.relative_error,
            row.accuracy,
            row.accuracy_predicted,
        )
        for row in table
    ]
    return Table(columns, rows)


def _of_jacobians(
    outputs: nn.Module, inputs: Tensor, measures: Sequence[str], probes: int | None
) -> dict[str, dict[str, Tensor]]:
    tolerances = {name: rtol for name in measures if (rtol := tolerance(name)) is not None}
    if not tolerances:
        return {}
    number = probes or (None if inputs[0].numel() <= _MOST_COLUMNS else _PROBES)
    spectra = cast("dict[str, JacobianSpectrum]", jacobian_singular_values(outputs, inputs, number))
    readings = {name: {layer: spectrum.rank(rtol) for layer, spectrum in spectra.items()} for name, rtol in tolerances.items()}
    if number is not None:
        largest = {layer: one.singular_values[:, 0] for layer, one in spectra.items()}
        readings["jacobian_error"] = {
            layer: torch.where(largest[layer] == 0, 0.0, one.error / largest[layer]) for layer, one in spectra.items()
        }
    return readings
