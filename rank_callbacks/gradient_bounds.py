"""The rank that each layer's gradient can reach, and what binds it, in words."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from rank_callbacks import functional
from rank_callbacks.matrices import Layers, matrix_views, trainable_weights
from rank_callbacks.matrices.activations import LayerRows, RowCapture, has_known_bound
from rank_callbacks.matrices.parameters import WITHOUT_GRADIENT, computed_matrices
from rank_callbacks.matrices.sharded import check_whole, stand_in
from rank_callbacks.matrices.uncompiled import is_compiled, uncompiled

__all__ = [
    "BoundTable",
    "GradientBound",
    "bounds_of_layers",
    "gradient_rank_bounds",
    "outer_products_of_layers",
    "rows_without_gradient",
]

_LOSSES = ("cross_entropy", "mse")
# Rows beyond the rank that is looked for: a random sample of so many shows it.
_MORE_THAN_NEEDED = 8
# Softmax cross-entropy gives rows that sum to zero up to rounding; other losses do not.
_ZERO_SUM = 1e-3


class GradientBound(NamedTuple):
    """What bounds the rank of one matrix's gradient.

    Args:
        layer: Name of the matrix.
        shape: Its shape.
        bound: The rank that the gradient cannot exceed; None if no bound is known for this kind of layer.
        reason: What binds it.
        input_rank: Measured rank of the layer's inputs, up to min(m, n); None if not measured.
        delta_rank: Measured rank of the layer's output gradients, up to min(m, n); None if not measured.
    """

    layer: str
    shape: tuple[int, ...]
    bound: int | None
    reason: str
    input_rank: int | None = None
    delta_rank: int | None = None


class BoundTable(tuple[GradientBound, ...]):
    """A ``GradientBound`` a matrix; printed, a table."""

    __slots__ = ()

    def __str__(self) -> str:
        cells = [("layer", "shape", "bound", "bound by")]
        cells += [
            (row.layer, " x ".join(map(str, row.shape)), "-" if row.bound is None else str(row.bound), row.reason)
            for row in self
        ]
        widths = [max(len(line[column]) for line in cells) for column in range(3)]
        return "\n".join(
            f"{layer:<{widths[0]}}  {shape:<{widths[1]}}  {bound:>{widths[2]}}  {reason}"
            for layer, shape, bound, reason in cells
        )


def gradient_rank_bounds(
    model: nn.Module,
    example_input: Any,  # ruff: ignore[any-type]
    loss: str | Callable[[Any], Tensor] = "cross_entropy",
    layers: Layers = None,
) -> BoundTable:
    """The rank that the gradient of every weight can reach on a batch like ``example_input``, before paying for a run.

    A float64 copy of the model runs forward and backward once; the bound of a matrix is the least of its shape, the outer
    products that the batch adds, and the measured ranks of its inputs and of its output gradients. The model, its buffers,
    gradients and the global random state stay as they are.

    Args:
        model: Any module, called as ``model(example_input)``; a tuple is unpacked, a dict becomes keyword arguments.
        example_input: A batch of the size and kind that training will use. Gaussian noise does; zeros have rank 0.
        loss: ``"cross_entropy"`` with random labels, over the last dimension of the output, or the second of a
            four-dimensional one; ``"mse"`` to a random target; or a function of the model's output that gives a scalar.
        layers: Which matrices: see ``rank_callbacks.matrices.select``.

    Returns:
        A row a trainable weight matrix, in the order of the model. Layers of a kind with no known bound, and those that
        the model did not run, say so and have none; and so do, at the end, weights that are computed from other parameters.

    Raises:
        ValueError: If the model refuses the input or is sharded, the loss is not known or gives no scalar, or ``layers``
            matches nothing.

    Example:
        >>> model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> print(gradient_rank_bounds(model, torch.randn(16, 20)))
        layer     shape    bound  bound by
        0.weight  64 x 20     16  batch of 16
        2.weight  10 x 64      9  10 classes under cross-entropy
    """
    if not callable(loss) and loss not in _LOSSES:
        raise ValueError(f"Expected loss to be one of {', '.join(_LOSSES)} or a function of the output, got {loss!r}.")
    check_whole(model, "gradient_rank_bounds")
    twin = copy.deepcopy(model).double()
    capture = RowCapture(twin, torch.Generator().manual_seed(0))
    try:
        with torch.random.fork_rng(), torch.enable_grad(), uncompiled():
            _scalar(loss, _output(twin, example_input)).backward()
    finally:
        capture.close()
    return BoundTable([*bounds_of_layers(twin, capture.layers, layers), *rows_without_gradient(twin, layers)])


def rows_without_gradient(model: nn.Module, layers: Layers = None, conv: str = "filters") -> BoundTable:
    """A row a matrix that is computed from other parameters: it has no bound, and no gradient to be bound.

    Args:
        model: Any module.
        layers: Which matrices.
        conv: How a convolution kernel is a matrix.
    """
    matrices = computed_matrices(model, layers, conv)
    return BoundTable(GradientBound(name, tuple(matrix.shape), None, WITHOUT_GRADIENT) for name, matrix in matrices.items())


def bounds_of_layers(
    model: nn.Module,
    captured: Mapping[str, LayerRows],
    layers: Layers = None,
    conv: str = "filters",
    known: Mapping[str, tuple[int, int]] | None = None,
) -> BoundTable:
    """The bound of every trainable matrix from the rows that its layers were seen to pass.

    A parameter that several layers share, or a layer that runs several times, has the sum of their outer products.

    Args:
        model: The module that was captured.
        captured: ``RowCapture.layers``.
        layers: Which matrices.
        conv: How a convolution kernel is a matrix.
        known: Ranks of inputs and of output gradients that are known already, by matrix.
    """
    ranks = _Ranks(known or {})
    order = list(captured.values())
    unseen = "did not run, or is compiled" if is_compiled(model) else "did not run"
    rows = []
    for path, module, parameter, matrices in trainable_weights(model, layers, conv):
        users, unknown = _users(order, parameter), _unknown_owner(model, parameter)
        parts = list(matrix_views(path, module, stand_in(parameter), conv) or {})
        for matrix_name, matrix in matrices.items():
            part = _Part(matrix_name, tuple(matrix.shape), parts.index(matrix_name), len(parts))
            if unknown or not users:
                reason = f"no bound is known for {unknown}" if unknown else f"{type(module).__name__} {unseen}"
                rows.append(GradientBound(part.name, part.shape, None, reason))
            else:
                terms = [_bound(part, user, name, order, ranks) for user, name in users]
                rows.append(terms[0] if len(terms) == 1 else _sum(part, terms))
    return BoundTable(rows)


def outer_products_of_layers(
    model: nn.Module, captured: Mapping[str, LayerRows], layers: Layers = None, conv: str = "filters"
) -> dict[str, tuple[Tensor, Tensor]]:
    """The rows (X, Δ) that the gradient ΔᵀX of each linear layer is the sum of, where all of them were caught."""
    factors = {}
    for path, module, parameter, matrices in trainable_weights(model, layers, conv):
        users = _users(list(captured.values()), parameter)
        if len(users) == 1 and users[0][0].deltas and not users[0][0].sampled:
            inputs, deltas = users[0][0].outer_products
            names = list(matrix_views(path, module, parameter, conv) or {})
            parts = zip(names, deltas.chunk(len(names), dim=1), strict=True)
            factors.update({name: (inputs, part) for name, part in parts if name in matrices})
    return factors


def _users(order: list[LayerRows], parameter: nn.Parameter) -> list[tuple[LayerRows, str]]:
    """The captured layers that a parameter belongs to, and its name in each."""
    return [(user, name) for user in order for name, p in user.module.named_parameters() if p is parameter]


def _unknown_owner(model: nn.Module, parameter: nn.Parameter) -> str | None:
    """The kind of a module that has this parameter and adds to its gradient in a way that is not known."""
    owners = (module for module in model.modules() if any(p is parameter for p in module._parameters.values()))
    return next((type(owner).__name__ for owner in owners if not has_known_bound(owner)), None)


class _Part(NamedTuple):
    """One matrix of those stacked in a parameter."""

    name: str
    shape: tuple[int, ...]
    place: int
    parts: int


class _Limit(NamedTuple):
    """A number that the rank cannot exceed, and why."""

    rank: int
    reason: str


def _bound(part: _Part, layer: LayerRows, parameter: str, order: list[LayerRows], ranks: _Ranks) -> GradientBound:
    *blocks, rows, columns = part.shape
    whole = min(rows, columns)
    limits = [_Limit(whole, "its own shape"), _outer_products(part, layer, parameter)]
    input_rank = delta_rank = None
    if layer.deltas:
        deltas = layer.outer_products[1].chunk(part.parts, dim=1)[part.place]
        input_rank, delta_rank = ranks.of_factors(part, layer, deltas)
        limits += [] if delta_rank is None else [_Limit(delta_rank, _delta_in_words(delta_rank, deltas, layer, order))]
    elif layer.inputs and parameter.startswith("weight_ih_l0"):
        # Its output gradients are not seen, so only in float64 can its inputs be said to lack a direction.
        inputs = torch.cat(layer.inputs)
        input_rank = _rank(inputs, whole, layer.sampled) if inputs.dtype == torch.float64 else None
    limits += [] if input_rank is None else [_Limit(input_rank, _input_in_words(input_rank, layer, order))]
    least = min(limits, key=lambda limit: limit.rank)
    return GradientBound(part.name, part.shape, least.rank * math.prod(blocks), least.reason, input_rank, delta_rank)


def _sum(part: _Part, terms: list[GradientBound]) -> GradientBound:
    *blocks, rows, columns = part.shape
    whole = min(rows, columns) * math.prod(blocks)
    total = sum(term.bound or 0 for term in terms)
    reasons = " + ".join(term.reason for term in terms)
    return GradientBound(part.name, part.shape, min(whole, total), "its own shape" if total >= whole else reasons)


def _outer_products(part: _Part, layer: LayerRows, parameter: str) -> _Limit:
    """How many outer products the gradient is a sum of."""
    if layer.tokens:
        padding = cast("int | None", layer.module.padding_idx)
        distinct = functional.embedding_gradient_bound(torch.cat(layer.tokens), part.shape[-1], padding)
        return _Limit(distinct, f"{distinct} distinct tokens")
    if layer.queries:
        return _attention_limit(part, layer, parameter)
    if "_hh" in parameter and layer.rows_with_state < layer.rows:
        return _Limit(layer.rows_with_state, f"{_rows_in_words(layer)}, of which the first step meets no state")
    return _Limit(layer.rows, _rows_in_words(layer))


def _attention_limit(part: _Part, layer: LayerRows, parameter: str) -> _Limit:
    attention = cast("nn.MultiheadAttention", layer.module)
    keys = layer.keys + (attention.bias_k is not None) + bool(attention.add_zero_attn)
    bounds = functional.attention_gradient_bounds(
        attention.embed_dim, layer.samples, layer.queries, keys, heads=attention.num_heads
    )
    # in_proj_weight.q, q_proj_weight or out_proj.weight
    role = part.name[-1] if part.parts == 3 else parameter.partition("_")[0]
    length = f"sequence of {layer.keys if role in {'k', 'v'} else layer.queries}"
    length += ", less one that softmax does not see" if role == "k" else ""
    return _Limit(bounds[role], length if layer.samples == 1 else f"batch of {layer.samples} x {length}")


def _rows_in_words(layer: LayerRows) -> str:
    positions, uneven = divmod(layer.rows, max(layer.samples, 1))
    if uneven:
        return f"{layer.rows} rows of {layer.samples} samples"
    if isinstance(layer.module, nn.modules.conv._ConvNd):
        stride = max(layer.module.stride)
        each = f"stride {stride}: {positions} positions" if stride > 1 else f"{positions} positions"
    elif positions == 1:
        return f"batch of {layer.samples}"
    else:
        each = f"sequence of {positions}"
    return each if layer.samples == 1 else f"batch of {layer.samples} x {each}"


def _input_in_words(rank: int, layer: LayerRows, order: list[LayerRows]) -> str:
    return f"input of rank {rank}{_from_bottleneck(order[: order.index(layer)][::-1], rank)}"


def _delta_in_words(rank: int, deltas: Tensor, layer: LayerRows, order: list[LayerRows]) -> str:
    # Only the last layer can be the classifier: a LayerNorm sends back rows that sum to zero as well.
    is_last = layer is order[-1]
    if is_last and rank == deltas.shape[1] - 1 and deltas.double().sum(1).norm() < _ZERO_SUM * deltas.double().norm():
        return f"{deltas.shape[1]} classes under cross-entropy"
    return f"output gradient of rank {rank}{_from_bottleneck(order[order.index(layer) + 1 :], rank)}"


def _from_bottleneck(layers: list[LayerRows], rank: int) -> str:
    """The first linear layer whose output is so narrow that it explains a rank; biases on the way may have added one."""
    linear = [layer for layer in layers if isinstance(layer.module, nn.Linear)]
    names = [layer.name for layer in linear if rank - 1 <= cast("nn.Linear", layer.module).out_features <= rank]
    return f" from {names[0]}" if names and names[0] else ""


class _Ranks:
    """Ranks of factors as far as they can show in the gradient, each measured once for all matrices of a parameter."""

    def __init__(self, known: Mapping[str, tuple[int, int]]) -> None:
        self._known = known
        self._of_inputs: dict[tuple[str, int, int], int | None] = {}
        self._tolerances: dict[tuple[str, int], list[tuple[Tensor | None, Tensor | None]]] = {}

    def of_factors(self, part: _Part, layer: LayerRows, deltas: Tensor) -> tuple[int | None, int | None]:
        """Ranks of the layer's inputs and of ``deltas``, up to the smaller side of the matrix."""
        whole = min(part.shape[-2:])
        if part.name in self._known:
            input_rank, delta_rank = self._known[part.name]
            return min(input_rank, whole), min(delta_rank, whole)
        tolerances = self._tolerances_of(layer, part.parts)
        key = (layer.name, part.parts, whole)
        if key not in self._of_inputs:
            known = [of_inputs for _, of_inputs in tolerances if of_inputs is not None]
            self._of_inputs[key] = _rank(layer.outer_products[0], whole, layer.sampled, min(known) if known else None)
        return self._of_inputs[key], _rank(deltas, whole, layer.sampled, tolerances[part.place][0])

    def _tolerances_of(self, layer: LayerRows, parts: int) -> list[tuple[Tensor | None, Tensor | None]]:
        if (layer.name, parts) not in self._tolerances:
            inputs, deltas = layer.outer_products
            tolerances = [functional.factor_tolerances(delta, inputs) for delta in deltas.chunk(parts, dim=1)]
            self._tolerances[layer.name, parts] = tolerances
        return self._tolerances[layer.name, parts]


def _rank(rows: Tensor, most: int, sampled: bool, tolerance: Tensor | None = None) -> int | None:
    """The exact rank of rows, up to ``most``; None if they are a sample that cannot tell."""
    enough = most + _MORE_THAN_NEEDED
    if len(rows) > enough and functional.exact_rank(rows[:: len(rows) // enough][:enough], tolerance) >= most:
        return most
    rank = min(functional.exact_rank(rows, tolerance), most)
    return None if sampled and rank < most else rank


def _output(model: nn.Module, example_input: Any) -> Any:  # ruff: ignore[any-type]
    prepared = _in_double(example_input)
    try:
        if isinstance(prepared, dict):
            return model(**prepared)
        unpacked = isinstance(prepared, tuple) and not isinstance(prepared, PackedSequence)
        return model(*prepared) if unpacked else model(prepared)
    except Exception as error:
        raise ValueError(f"Expected an example_input that the model takes, but it refuses: {error}") from error


def _in_double(value: Any) -> Any:  # ruff: ignore[any-type]
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _in_double(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named one
        return type(value)(*map(_in_double, value))
    return type(value)(map(_in_double, value)) if isinstance(value, (tuple, list)) else value


def _scalar(loss: str | Callable[[Any], Tensor], output: Any) -> Tensor:  # ruff: ignore[any-type]
    if callable(loss):
        value = loss(output)
    else:
        output = output[0] if isinstance(output, tuple) else output
        if not isinstance(output, Tensor):
            kind = type(output).__name__
            raise ValueError(f"Expected a tensor from the model for loss={loss!r}, got {kind}: give a function of it as loss.")
        value = _mse(output) if loss == "mse" else _cross_entropy(output)
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        raise ValueError("Expected loss to give a scalar that depends on the model's trainable parameters.")
    return value


def _mse(output: Tensor) -> Tensor:
    return nn.functional.mse_loss(output, torch.randn_like(output))


def _cross_entropy(output: Tensor) -> Tensor:
    logits = output.movedim(1, -1) if output.dim() == 4 else output
    logits = logits.reshape(-1, logits.shape[-1])
    return nn.functional.cross_entropy(logits, torch.randint(logits.shape[1], (len(logits),), device=logits.device))
