"""What a network would be with matrices of lower rank: each replaced by its best approximation, for a while."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rank_callbacks.functional.rank import distance_to_rank, rounding_noise
from rank_callbacks.functional.spectrum import singular_values
from rank_callbacks.functional.truncation import check_truncation, factored_parameters, kept_rank, truncated
from rank_callbacks.matrices import Layers, check_conv, matrix_views, weight_matrices
from rank_callbacks.matrices.parameters import plain_name
from rank_callbacks.matrices.sharded import check_whole
from rank_callbacks.table import aligned

__all__ = ["TruncatedMatrix", "TruncationTable", "check_truncatable", "truncate"]


class TruncatedMatrix(NamedTuple):
    """What truncation makes of one matrix.

    Args:
        layer: Name of the matrix.
        shape: ``(m, n)``, or ``(blocks, m, n)`` of a block-diagonal matrix.
        rank: How many singular values are kept, of all blocks together.
        error: Distance to the original over its norm, ‖A − A_k‖_F / ‖A‖_F in [0, 1]; NaN for a matrix that is not finite,
            which is left as it is.
        parameters: How many numbers the matrix has.
        factored: How many it takes as two factors, where they are fewer; otherwise ``parameters``.
    """

    layer: str
    shape: tuple[int, ...]
    rank: int
    error: float
    parameters: int
    factored: int


class TruncationTable(tuple[TruncatedMatrix, ...]):
    """A ``TruncatedMatrix`` a matrix; printed, a table with a total."""

    __slots__ = ()

    @property
    def parameters(self) -> int:
        """How many numbers the matrices have."""
        return sum(row.parameters for row in self)

    @property
    def factored(self) -> int:
        """How many numbers they take with those in two factors that get smaller by it."""
        return sum(row.factored for row in self)

    def __str__(self) -> str:
        cells = [("layer", "shape", "rank", "error", "parameters", "factored")]
        cells += [
            (layer, " x ".join(map(str, shape)), str(rank), f"{error:.4f}", f"{parameters:,}", f"{factored:,}")
            for layer, shape, rank, error, parameters, factored in self
        ]
        cells.append(("total", "", "", "", f"{self.parameters:,}", f"{self.factored:,}"))
        return aligned(cells, left=2)


@contextmanager
def truncate(
    model: nn.Module,
    *,
    rtol: float | None = None,
    energy: float | None = None,
    rank: int | None = None,
    layers: Layers = None,
    conv: str = "filters",
) -> Generator[TruncationTable, None, None]:
    """Replace every weight matrix by its best approximation of lower rank, and put the weights back at the end of the block.

    At the end the parameters are what they were before, bit for bit, also after an exception and whatever the block did to
    them. Biases, norms and buffers stay; a parameter that several layers share is truncated once, for all of them. A pair of
    adapters (``lora_A``, ``lora_B``) stays: it has its rank already. The weights change in place: autograd refuses to go
    back through an output computed on the other side of the border.

    Costs: a spectrum and a singular value decomposition in float64 of every matrix, and a copy of the weights.

    Args:
        model: Any module.
        rtol: Keep the singular values above ``rtol``·σ₁ of the matrix, and above the rounding of its type.
        energy: Keep the fewest that hold this share of the squared Frobenius norm, in (0, 1].
        rank: Keep so many, from 0.
        layers: Which matrices: see ``rank_callbacks.matrices.select``.
        conv: How a convolution kernel is a matrix: ``"filters"``, C_out x C_in·k, or ``"slices"``, a C_out x C_in block for
            each place in the kernel.

    Yields:
        A row a matrix, in the order of the model: rank kept, error, and what storing it in two factors saves.

    Raises:
        ValueError: If not exactly one of ``rtol``, ``energy`` and ``rank`` is given or it is out of its range; if ``layers``
            matches nothing, or a weight that is computed from others by a parametrization, a norm or a mask; or if ``conv``
            is unknown or gives matrices that are not parts of the kernel; or if the model is sharded.

    Example:
        >>> model = nn.Linear(20, 10, bias=False)
        >>> with truncate(model, rank=2) as table:
        ...     print(torch.linalg.matrix_rank(model.weight).item(), table.parameters, table.factored)
        2 200 60
        >>> torch.linalg.matrix_rank(model.weight).item()
        10

    Reference:
        The approximation of one matrix by another of lower rank (Eckart and Young, 1936), https://doi.org/10.1007/BF02288367
    """
    check_truncation(rtol, energy, rank)
    check_whole(model, "truncate")
    keep = partial(kept_rank, rtol=rtol, energy=energy, rank=rank)
    weights = _weights(model, layers, conv)
    # All are copied before any is written: two parameters may share memory.
    saved = [_copied(weight.parameter) for weight in weights]
    try:
        pairs = zip(weights, saved, strict=True)
        yield TruncationTable([row for weight, before in pairs for row in _truncate_one(weight, before, keep)])
    finally:
        for weight, before in zip(weights, saved, strict=True):
            _write(weight.parameter, before)


def check_truncatable(model: nn.Module, layers: Layers = None, conv: str = "filters") -> None:
    """Refuse a model that ``truncate`` would refuse.

    Args:
        model: Any module.
        layers: As for ``truncate``.
        conv: As for ``truncate``.

    Raises:
        ValueError: See ``truncate``.
    """
    check_whole(model, "truncate")
    _weights(model, layers, conv)


class _Weight(NamedTuple):
    parameter: nn.Parameter
    views: Callable[[Tensor], dict[str, Tensor]]
    chosen: frozenset[str]


def _weights(model: nn.Module, layers: Layers, conv: str) -> list[_Weight]:
    """The parameters that hold a chosen matrix."""
    check_conv(conv)
    if conv.startswith("circular"):
        raise ValueError(f"Expected conv to be 'filters' or 'slices', whose matrices are parts of the kernel, got {conv!r}.")
    chosen = {name for name in weight_matrices(model, layers, conv) if "lora_" not in name}
    weights: list[_Weight] = []
    writable: set[str] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            views = partial(_views, plain_name(f"{prefix}.{name}"), module, conv)
            names = frozenset(views(parameter.detach())) & chosen
            weights += [_Weight(parameter, views, names)] if names else []
            writable |= names
    _check_writable(chosen, writable)
    return weights


def _views(path: str, module: nn.Module, conv: str, tensor: Tensor) -> dict[str, Tensor]:
    return matrix_views(path, module, tensor, conv) or {}


def _check_writable(chosen: set[str], writable: set[str]) -> None:
    if chosen - writable:
        raise ValueError(
            f"Expected weights that can be written, but {', '.join(sorted(chosen - writable))} is computed from other "
            "parameters. Remove the parametrization, norm or mask first (torch.nn.utils.parametrize.remove_parametrizations), "
            f"or choose others with layers: {', '.join(sorted(writable)) or 'there are none'}."
        )
    if not chosen:
        raise ValueError("Expected a matrix to truncate, got adapters alone, which have a low rank already.")


def _truncate_one(weight: _Weight, before: Tensor, keep: Callable[..., Tensor]) -> list[TruncatedMatrix]:
    rows = []
    with torch.inference_mode(False), torch.enable_grad():
        leaf = before.detach().requires_grad_()
        views = weight.views(leaf)
        matrices = {name: view.detach() for name, view in views.items()}
        for name in (name for name in views if name in weight.chosen):
            row = _row(name, matrices[name], keep)
            matrices[name] = truncated(matrices[name], row.rank)
            rows.append(row)
        # Views hold each entry of the parameter once, so going back through them puts every entry where it was.
        (filled,) = torch.autograd.grad(list(views.values()), leaf, list(matrices.values()))
    _write(weight.parameter, filled)
    return rows


def _row(name: str, matrix: Tensor, keep: Callable[..., Tensor]) -> TruncatedMatrix:
    values = singular_values(matrix)
    spectrum = values.flatten().sort(descending=True).values
    count = keep(spectrum, noise=_noise(matrix)).item()
    rank = len(spectrum) if math.isnan(count) else int(count)
    error = distance_to_rank(spectrum, rank).item()
    return TruncatedMatrix(
        name, tuple(matrix.shape), rank, error, matrix.numel(), factored_parameters(values, matrix.shape, rank)
    )


def _noise(matrix: Tensor) -> Tensor:
    return rounding_noise(matrix.cpu() if matrix.device.type == "mps" else matrix).max()  # MPS has no float64


@torch.inference_mode(False)
@torch.no_grad()
def _copied(parameter: nn.Parameter) -> Tensor:
    return parameter.detach().clone()


@torch.no_grad()
def _write(parameter: nn.Parameter, values: Tensor) -> None:
    parameter.copy_(values)
