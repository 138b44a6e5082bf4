"""The ranks of a checkpoint's matrices, from its tensors alone: no training code, no model."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rank_callbacks.functional.rank import effective_rank, numerical_rank, rounding_noise, stable_rank
from rank_callbacks.functional.spectrum import singular_values
from rank_callbacks.functional.truncation import factored_parameters
from rank_callbacks.matrices import Layers, matrix_views, select
from rank_callbacks.matrices.parameters import plain_name
from rank_callbacks.table import aligned

__all__ = ["InspectedMatrix", "InspectionTable", "add_arguments", "inspect_checkpoint", "run"]

# A hundredth of σ₁: what lies below changes the output of a layer little, and is what a truncation would drop.
_RTOL = 1e-2
# Under which name a checkpoint keeps the weights: Lightning's, and two that are common in training scripts.
_WEIGHTS = ("state_dict", "model_state_dict", "model")
# Under which names a layer of torch keeps what it multiplies by: as it is, without its length, before a mask or a norm.
_KERNELS = ("weight", "weight_v", "weight_orig")
_RECURRENT = re.compile(r"(?P<cell>(?:.*\.)?)weight_(?:ih|hh|hr)(?P<layer>(?:_l\d+)?(?:_reverse)?)")
# By the number of gates that are stacked.
_RECURRENT_KINDS = {4: nn.LSTM, 3: nn.GRU, 1: nn.RNN}


class InspectedMatrix(NamedTuple):
    """The ranks of one matrix of a checkpoint; NaN where it is not finite.

    Args:
        layer: Name of the matrix.
        shape: ``(m, n)``, or ``(blocks, m, n)`` of a block-diagonal matrix.
        effective_rank: Exponential of the entropy of its singular values.
        stable_rank: Squared Frobenius norm over squared spectral norm.
        numerical_rank: Number of singular values above the tolerance and above the rounding of its type.
        parameters: How many numbers it has.
        saved: How many fewer it would take as two factors of its numerical rank; 0 where that is no saving.
    """

    layer: str
    shape: tuple[int, ...]
    effective_rank: float
    stable_rank: float
    numerical_rank: float
    parameters: int
    saved: int


class InspectionTable(tuple[InspectedMatrix, ...]):
    """An ``InspectedMatrix`` a matrix; printed, a table with a total."""

    __slots__ = ()

    @property
    def parameters(self) -> int:
        """How many numbers the matrices have."""
        return sum(row.parameters for row in self)

    @property
    def saved(self) -> int:
        """How many of them truncation would save."""
        return sum(row.saved for row in self)

    def __str__(self) -> str:
        cells = [("layer", "shape", "effective", "stable", "numerical", "parameters", "saved")]
        cells += [
            (
                row.layer,
                " x ".join(map(str, row.shape)),
                f"{row.effective_rank:.1f}",
                f"{row.stable_rank:.1f}",
                f"{row.numerical_rank:.0f}",
                f"{row.parameters:,}",
                f"{row.saved:,}",
            )
            for row in self
        ]
        cells.append(("total", "", "", "", "", f"{self.parameters:,}", f"{self.saved:,}"))
        return aligned(cells, left=2)


@torch.no_grad()
def inspect_checkpoint(path: str | Path, rtol: float = _RTOL, layers: Layers = None) -> InspectionTable:
    """The ranks of every matrix in a checkpoint, and what truncating each to its numerical rank would save.

    Read are Lightning checkpoints, state dicts, dicts that keep one under ``model_state_dict`` or ``model``, and safetensors;
    nothing in the file is run, and optimizer states are passed over. What is a matrix is told by names and shapes: tensors
    of two dimensions; kernels called ``weight`` of three to five as C_out x C_in·k; ``in_proj_weight`` and fused
    projections by q, k and v; ``weight_ih_l0`` and the like by gate. A checkpoint does not tell that a convolution is grouped
    or transposed: its kernel is read as the one of a plain convolution. Tied tensors appear once, where the file kept them so.

    Args:
        path: A file of torch (``.ckpt``, ``.pt``, ``.pth``, ``.bin``) or ``.safetensors``.
        rtol: Relative tolerance of the numerical rank.
        layers: Which matrices: see ``rank_callbacks.matrices.select``.

    Returns:
        A row a matrix, in the order of the file.

    Raises:
        ImportError: If the file is of safetensors and the package is absent.
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read without running code in it, holds no weights or no matrix, or ``layers`` or
            ``rtol`` do not fit.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"head.weight": torch.eye(3, 4)}, f"{folder}/model.pt")
        ...     print(inspect_checkpoint(f"{folder}/model.pt"))
        layer        shape  effective  stable  numerical  parameters  saved
        head.weight  3 x 4        3.0     3.0          3          12      0
        total                                                     12      0
    """
    if not rtol >= 0:
        raise ValueError(f"Expected rtol to be a number from 0, got {rtol}.")
    tensors = _tensors(Path(path))
    matrices = {name: matrix for tensor in tensors for name, matrix in _matrices(tensor, tensors).items()}
    if not matrices:
        raise ValueError(f"Expected {path} to hold a tensor that is known to be a matrix, got {', '.join(tensors)}.")
    return InspectionTable([_row(name, matrix, rtol) for name, matrix in select(matrices, layers).items()])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Tell a parser the arguments of ``rank-callbacks inspect``."""
    parser.add_argument("checkpoint", type=Path, help="Lightning checkpoint, state dict or safetensors file")
    parser.add_argument("--rtol", type=float, default=_RTOL, help="tolerance of the numerical rank (%(default)s·σ₁)")
    parser.add_argument("--layers", nargs="+", help="names or patterns of matrices (default: all)")


def run(options: argparse.Namespace) -> None:
    """Print what ``inspect_checkpoint`` finds, as ``rank-callbacks inspect`` does.

    Raises:
        ImportError: As ``inspect_checkpoint``.
        FileNotFoundError: As ``inspect_checkpoint``.
        ValueError: As ``inspect_checkpoint``.
    """
    table = inspect_checkpoint(options.checkpoint, options.rtol, options.layers)
    print(table)
    share = table.saved / max(1, table.parameters)
    print(f"Truncation to the singular values above {options.rtol:g}·σ₁ would save {share:.1%} of these parameters.")


def _tensors(path: Path) -> dict[str, Tensor]:
    """The weights in a file by their plain names, each tied one once."""
    loaded = _safetensors(path) if path.suffix == ".safetensors" else _torch_file(path)
    weights = _state_dict(loaded)
    if not weights:
        raise ValueError(
            f"Expected {path} to be a state dict, or to hold one under {', '.join(_WEIGHTS)}; got {_contents(loaded)}."
        )
    seen: set[tuple[object, ...]] = set()
    tensors = {}
    for name, tensor in weights.items():
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
        if place not in seen:
            tensors[plain_name(name)] = tensor.detach()
        seen.add(place)
    return tensors


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(
            "Reading a .safetensors file needs the package safetensors: pip install 'rank-callbacks[safetensors]'."
        ) from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"Expected {path} to be a whole safetensors file, but it cannot be read: {error}.") from error


def _torch_file(path: Path) -> Any:  # ruff: ignore[any-type]
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(
            f"Expected {path} to be a checkpoint of torch that holds tensors and plain values alone, but torch.load "
            "refuses it. If it pickles other objects and you trust it, load it with torch.load(..., weights_only=False) and "
            "save its state dict with torch.save."
        ) from error


def _state_dict(loaded: Any) -> dict[str, Tensor]:  # ruff: ignore[any-type]
    """The tensors of a state dict, wherever the file keeps it; empty if nowhere."""
    if not isinstance(loaded, Mapping):
        return {}
    inner = next((loaded[key] for key in _WEIGHTS if isinstance(loaded.get(key), Mapping)), loaded)
    return {name: value for name, value in inner.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _contents(loaded: Any) -> str:  # ruff: ignore[any-type]
    kind = type(loaded).__name__
    return f"{kind} of {', '.join(map(str, loaded)) or 'nothing'}" if isinstance(loaded, Mapping) else kind


def _matrices(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensor = tensors[name]
    if tensor.layout != torch.strided:
        return {}
    return matrix_views(name, _stand_in(name, tensors), tensor) or {}


def _stand_in(name: str, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A module of the kind that a tensor seems to be of, by its name and shape: as much as ``matrix_views`` looks at."""
    tensor = tensors[name]
    gates = _gates(name, tensors)
    if gates:
        return _RECURRENT_KINDS[gates](1, 1)
    if name.rpartition(".")[2] not in _KERNELS:
        return nn.Module()
    kinds: dict[int, nn.Module] = {3: nn.Conv1d(1, 1, 1), 4: nn.Conv2d(1, 1, 1), 5: nn.Conv3d(1, 1, 1)}
    return kinds.get(tensor.dim(), nn.Linear(1, 1))


def _gates(name: str, tensors: Mapping[str, Tensor]) -> int:
    """How many gates are stacked in the recurrent layer that a tensor is of; 0 if it is of none."""
    match = _RECURRENT.fullmatch(name)
    if match is None:
        return 0
    state, projection = (tensors.get(f"{match['cell']}weight_{kind}{match['layer']}") for kind in ("hh", "hr"))
    if state is None or state.dim() != 2:
        return 0
    gates, rest = divmod(state.shape[0], state.shape[1] if projection is None else projection.shape[1])
    return gates if gates in _RECURRENT_KINDS and not rest else 0


def _row(name: str, matrix: Tensor, rtol: float) -> InspectedMatrix:
    values = singular_values(matrix)
    spectrum = values.flatten().sort(descending=True).values
    rank = numerical_rank(spectrum, rtol, rounding_noise(matrix).max()).item()
    factored = factored_parameters(values, matrix.shape, int(rank)) if spectrum.isfinite().all() else matrix.numel()
    ranks = effective_rank(spectrum).item(), stable_rank(spectrum).item(), rank
    return InspectedMatrix(name, tuple(matrix.shape), *ranks, matrix.numel(), matrix.numel() - factored)
