"""The ranks of a model's weights at a step: whole spectra, or of some layers leading singular values where time is short."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from rank_callbacks.callbacks.leading_readings import (
    LEADING,
    WITHOUT_SPECTRUM,
    LeadingReadings,
    is_worth_it,
    measures_among,
)
from rank_callbacks.callbacks.processes import of_first_process, process_count
from rank_callbacks.callbacks.readings import (
    Spectrum,
    check_scalars,
    listed,
    measured,
    shows_layers,
    spectra_by_tag,
    tagged,
    unreadable,
    warn_of_nan,
)
from rank_callbacks.callbacks.sharing import shared_singular_values
from rank_callbacks.callbacks.turns import Turns
from rank_callbacks.catalog import find_measure
from rank_callbacks.functional import spectrum_cost
from rank_callbacks.matrices import check_conv, weight_matrices
from rank_callbacks.matrices.sharded import like
from rank_callbacks.tags import Tag
from rank_callbacks.writers import MatrixSpectrum

__all__ = ["Method", "WeightReadings"]

Method = Literal["auto", "exact", "krylov"]
_METHODS = ("auto", "exact", "krylov")
# Seconds of whole spectra that nobody notices: before the first step, and of a layer at any.
_AT_START, _CHEAP = 0.25, 2e-3


class WeightReport(NamedTuple):
    """What is read at a step.

    Args:
        scalars: Numbers by tag.
        spectra: Singular values by tag.
        seconds: That whole spectra took where they were not for all layers.
    """

    scalars: dict[Tag, float]
    spectra: dict[Tag, MatrixSpectrum]
    seconds: float


class WeightReadings:
    """Reads the ranks of a model's weights, and remembers what the next reading needs.

    Args:
        measures: Names from the catalogue.
        layers: Which matrices.
        conv: How a convolution kernel is a matrix.
        change: Whether to read W − W₀ as well.
        scalars: ``"auto"`` or ``"all"``.
        method: ``"exact"``, ``"krylov"`` or ``"auto"``.
        group: First part of the tags.

    Raises:
        ValueError: If an argument is not one of these, or a measure has no leading reading and ``method`` is ``"krylov"``.
    """

    def __init__(
        self,
        measures: Sequence[str],
        layers: str | Sequence[str] | Callable[[str], bool] | None,
        conv: str,
        change: bool,
        scalars: str,
        method: Method,
        group: str = "weight_rank",
    ) -> None:
        for measure in listed(measures):
            find_measure(measure)
        check_conv(conv)
        check_scalars(scalars)
        if method not in _METHODS:
            raise ValueError(f"Expected method to be one of {', '.join(_METHODS)}, got {method!r}.")
        cheap = measures_among(measures, WITHOUT_SPECTRUM if method == "krylov" else LEADING)
        if method == "krylov" and (change or len(cheap) < len(measures)):
            what = "change=True" if change else ", ".join(measure for measure in measures if measure not in cheap)
            raise ValueError(f"method='krylov' cannot read {what}. It reads {', '.join(sorted(WITHOUT_SPECTRUM))}.")
        self.measures, self.layers, self.conv = list(measures), layers, conv
        self.change, self.scalars, self.method = change, scalars, method
        self.group = group
        self.change_group = group.replace("weight", "weight_change") if "weight" in group else f"{group}_change"
        self._cheap = cheap
        self.restart()

    def restart(self) -> None:
        """Another training starts."""
        self.initial: dict[str, Tensor] = {}
        self._turns, self._turns_took = Turns(), 0.0
        self._leading = LeadingReadings(self._cheap)
        self._latest: dict[str, dict[str, dict[str, Tensor]]] = {}
        self._warned: set[str] = set()

    def matrices(self, model: nn.Module) -> dict[str, Tensor]:
        """What is read, by name."""
        return weight_matrices(model, self.layers, self.conv)

    def read(self, model: nn.Module, step: int, seconds: float | None) -> WeightReport:
        """The readings of this step. A collective operation where there are several processes.

        Args:
            model: Any module.
            step: Optimizer steps that it has taken.
            seconds: For whole spectra that are not affordable at every report, the first process's counting; None for all.
        """
        return self.read_matrices(self.matrices(model), step, seconds)

    def read_matrices(self, matrices: Mapping[str, Tensor], step: int, seconds: float | None) -> WeightReport:
        """The readings of what ``matrices`` returned, or of copies."""
        whole = self._whole(matrices, seconds)
        rest = {name: matrix for name, matrix in matrices.items() if name not in whole}
        spectra = self._spectra({name: matrices[name] for name in whole}, step)
        values = measured(spectra, self.measures)
        leading = self._leading({name: matrix for name, matrix in rest.items() if is_worth_it(matrix)}, step)
        for measure, of_layers in leading.values.items():
            values[measure].update(of_layers)
        warn_of_nan([*unreadable(spectra), *leading.unreadable], step, self._warned)
        scalars, arrays = self._tagged(self.group, values, list(matrices)), spectra_by_tag(self.group, spectra)
        if self.change:
            changes = self._changes(matrices, spectra)
            scalars |= self._tagged(self.change_group, measured(changes, self.measures), _changeable(matrices))
            arrays |= spectra_by_tag(self.change_group, changes)
        return WeightReport(scalars | self._marks(seconds, rest, step), arrays, self._turns_took if rest else 0.0)

    def _whole(self, matrices: Mapping[str, Tensor], seconds: float | None) -> list[str]:
        """Names of the matrices of which the whole spectrum is read: those that cost nothing, and whose turn it is."""
        costs = {name: spectrum_cost(tuple(matrix.shape)) / process_count() for name, matrix in matrices.items()}
        dear = {name: cost for name, cost in costs.items() if cost > _CHEAP or is_worth_it(matrices[name])}
        if self.method == "krylov":
            dear = {name: cost for name, cost in dear.items() if is_worth_it(matrices[name])}
            due = set()
        elif seconds is None or (not self._latest and sum(costs.values()) <= _AT_START):
            due = set(dear)
        else:
            due = set(of_first_process(self._turns.due(dear, seconds)))  # each has a clock of its own
        return [name for name in matrices if name not in dear or name in due]

    def _spectra(self, matrices: Mapping[str, Tensor], step: int) -> dict[str, Spectrum]:
        began = time.perf_counter()
        values = shared_singular_values(matrices)
        spectra = {name: Spectrum.of(values[name], matrix) for name, matrix in matrices.items()}
        self._turns_took = time.perf_counter() - began
        expected = sum(spectrum_cost(tuple(matrix.shape)) for matrix in matrices.values()) / process_count()
        self._turns.measured(matrices, step, expected, self._turns_took)
        return spectra

    def _changes(self, matrices: Mapping[str, Tensor], now: Mapping[str, Spectrum]) -> dict[str, Spectrum]:
        if not self.initial:
            self.initial = {name: matrices[name].clone() for name in _changeable(matrices)}
        initial = {name: like(matrix, matrices[name]) for name, matrix in self.initial.items()}
        self.initial = initial  # of a checkpoint it may be whole where the weights are in parts
        changes = {name: _difference(matrices[name], initial[name]) for name in initial if name in now}
        values = shared_singular_values(changes)
        # Both ends of the difference were rounded, each to about as much as the weight is now.
        return {name: Spectrum(values[name], now[name].shape, 2 * now[name].noise) for name in changes}

    def _tagged(self, group: str, values: Mapping[str, Mapping[str, Tensor]], layers: Sequence[str]) -> dict[Tag, float]:
        """What is read now of each layer; and of all together, where some were read before, from the latest of each."""
        latest = self._latest.setdefault(group, {measure: {} for measure in values})
        for measure, of_layers in values.items():
            latest[measure].update(of_layers)
        complete = {measure: of_layers for measure, of_layers in latest.items() if of_layers.keys() >= set(layers)}
        scalars = tagged(group, complete, per_layer=False)
        if shows_layers(self.scalars, len(layers), group, self._warned):
            scalars |= {
                Tag(group, measure, name): float(of_layers[name])
                for measure, of_layers in values.items()
                for name in layers
                if name in of_layers
            }
        return scalars

    def _marks(self, seconds: float | None, rest: Mapping[str, Tensor], step: int) -> dict[Tag, float]:
        """How many layers were read from leading singular values alone, and how old the oldest whole spectrum is."""
        if self.method == "exact" or (self.method == "auto" and seconds is None):
            return {}
        approximate = sum(map(is_worth_it, rest.values())) if self._cheap else 0
        marks = {Tag("monitor", "approximate_layers", self.group): float(approximate)}
        if self.method == "auto":
            marks[Tag("monitor", "spectrum_age", self.group)] = float(self._turns.age(rest, step))
        return marks


def _changeable(matrices: Mapping[str, Tensor]) -> list[str]:
    """Of an adapter pair there is no change: it is one by itself, and its core is not linear in the weights."""
    return [name for name in matrices if "lora_" not in name]


def _difference(now: Tensor, before: Tensor) -> Tensor:
    wide = torch.promote_types(now.dtype, torch.float64)  # complex128 for the frequencies of a convolution
    return now.to(wide) - before.to(now.device, wide)
