"""What passes through a layer: the rows of its input and of its output gradient, caught by hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle, unserializable_hook

from rank_callbacks.matrices.layout import is_transposed_linear
from rank_callbacks.matrices.parameters import plain_name
from rank_callbacks.matrices.recomputation import is_recomputed
from rank_callbacks.matrices.uncompiled import unless_compiled

__all__ = ["LayerRows", "RowCapture", "has_known_bound"]

# Rows are kept as they are up to this many numbers, 16 MiB of float32; of more, a random sample that can show full rank.
_MOST_NUMBERS = 2**22
_MORE_THAN_NEEDED = 8


@dataclass
class LayerRows:
    """What one layer saw in the passes that were captured.

    Args:
        name: Qualified name of the layer.
        module: The layer.
        samples: Samples that passed through, in all calls.
        rows: Outer products that its gradient is a sum of: samples times tokens, or times places of a kernel.
        rows_with_state: For a recurrent layer, those of ``rows`` that met a state other than the zeros at the start.
        queries: For attention, tokens of a sample that ask, in the longest call.
        keys: For attention, tokens of a sample that are asked, in the longest call.
        inputs: Of linear and recurrent layers, the inputs of each call, of shape ``(rows, n)``, or a sample of the rows.
        deltas: Of linear layers, the gradients of the outputs of a call, of shape ``(rows, m)``, with the number of the call.
            A call whose output took no part in the loss has none, one that two losses went back through has two.
        tokens: Of an embedding, what it looked up.
        sampled: Whether some call's rows are a sample.
    """

    name: str
    module: nn.Module
    samples: int = 0
    rows: int = 0
    rows_with_state: int = 0
    queries: int = 0
    keys: int = 0
    inputs: list[Tensor] = field(default_factory=list)
    deltas: list[tuple[int, Tensor]] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    sampled: bool = False

    @cached_property
    def outer_products(self) -> tuple[Tensor, Tensor]:
        """The pairs of rows (X, Δ) that add to the gradient ΔᵀX of a linear layer: those of which neither is zero.

        To be asked for once the passes are over.
        """
        inputs = _stacked([self.inputs[call] for call, _ in self.deltas])
        deltas = _stacked([rows for _, rows in self.deltas])
        counts = (inputs.abs().amax(1) > 0) & (deltas.abs().amax(1) > 0)
        return (inputs, deltas) if counts.all() else (inputs[counts], deltas[counts])

    def tensors(self) -> Iterator[Tensor]:
        """All that is kept."""
        yield from (*self.inputs, *(rows for _, rows in self.deltas), *self.tokens)

    def copied(self, copy: Callable[[Tensor], Tensor]) -> LayerRows:
        """The same with copies of all that is kept."""
        inputs, tokens = [copy(rows) for rows in self.inputs], [copy(tokens) for tokens in self.tokens]
        return replace(self, inputs=inputs, deltas=[(call, copy(rows)) for call, rows in self.deltas], tokens=tokens)


def _stacked(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]


class RowCapture:
    """Hooks on every layer whose gradient has a known bound, from construction until ``close``.

    Only passes with gradients on are captured. What is caught lies in ``layers``, by name in the order of the first call.

    Args:
        model: Any module.
        generator: Picks the rows of a sample; on the CPU.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2))
        >>> capture = RowCapture(model, torch.Generator())
        >>> model(torch.ones(5, 3)).sum().backward()
        >>> capture.close()
        >>> inputs, deltas = capture.layers["0"].outer_products
        >>> inputs.shape, deltas.shape
        (torch.Size([5, 3]), torch.Size([5, 2]))
    """

    def __init__(self, model: nn.Module, generator: torch.Generator) -> None:
        self.layers: dict[str, LayerRows] = {}
        self._generator = generator
        self._handles: list[RemovableHandle] = []
        for path, module in model.named_modules():
            record = _record_of(module)
            if record is not None:
                hook = partial(self._on_forward, LayerRows(plain_name(path), module), record)
                self._handles.append(module.register_forward_hook(unless_compiled(hook), with_kwargs=True))

    def close(self) -> None:
        """Remove every hook, also those that wait for a gradient."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @torch.no_grad()
    def _on_forward(
        self,
        layer: LayerRows,
        record: Callable[..., None],
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,  # ruff: ignore[any-type]
    ) -> None:
        if is_recomputed():
            return
        outputs = output if isinstance(output, tuple) else (output,)
        tensors = [tensor.data if isinstance(tensor, PackedSequence) else tensor for tensor in outputs]
        if any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in tensors):
            self.layers.setdefault(layer.name, layer)
            record(self, layer, tensors[0], *args, **kwargs)

    def keep(self, layer: LayerRows, inputs: Tensor, output: Tensor | None = None) -> None:
        """Keep the rows of ``inputs`` and, when it arrives, of the gradient of ``output``.

        All of them, or a random sample with more rows than columns, the same of both.
        """
        columns = max(inputs.shape[-1], 0 if output is None else output.shape[-1])
        rows = inputs.numel() // max(inputs.shape[-1], 1)
        chosen = None
        if rows * columns > _MOST_NUMBERS and rows > columns + _MORE_THAN_NEEDED:
            chosen = torch.randint(rows, (columns + _MORE_THAN_NEEDED,), generator=self._generator).to(inputs.device)
            layer.sampled = True
        layer.inputs.append(_rows(inputs, chosen))
        if output is not None and output.requires_grad:
            hook = partial(_on_gradient, layer, len(layer.inputs) - 1, chosen)
            self._handles.append(output.register_hook(unserializable_hook(hook)))


def _on_gradient(layer: LayerRows, call: int, chosen: Tensor | None, gradient: Tensor) -> None:
    layer.deltas.append((call, _rows(gradient, chosen)))


def _rows(tensor: Tensor, chosen: Tensor | None) -> Tensor:
    matrix = tensor.detach().reshape(-1, tensor.shape[-1])
    matrix = matrix.cpu() if matrix.device.type == "mps" else matrix  # has no float64
    return matrix if chosen is None else matrix[chosen]


def _linear(capture: RowCapture, layer: LayerRows, output: Tensor, input: Tensor) -> None:
    layer.samples += len(input) if input.dim() > 1 else 1
    layer.rows += output.numel() // output.shape[-1]
    capture.keep(layer, input, output)


def _convolution(capture: RowCapture, layer: LayerRows, output: Tensor, input: Tensor) -> None:
    convolution = cast("nn.Conv2d", layer.module)
    layer.samples += len(output) if output.dim() == convolution.weight.dim() else 1
    layer.rows += output.numel() // convolution.out_channels


def _embedding(capture: RowCapture, layer: LayerRows, output: Tensor, input: Tensor) -> None:
    layer.samples += len(input) if input.dim() > 1 else 1
    layer.rows += input.numel()
    layer.tokens.append(input.detach().flatten())


def _recurrent(
    capture: RowCapture,
    layer: LayerRows,
    output: Tensor,
    input: Tensor | PackedSequence,
    hx: object = None,
) -> None:
    if isinstance(input, PackedSequence):
        data, samples = input.data, int(input.batch_sizes[0])
    else:
        data = input
        samples = 1 if input.dim() == 2 else input.shape[0 if layer.module.batch_first else 1]
    layer.samples += samples
    layer.rows += data.numel() // data.shape[-1]
    layer.rows_with_state += data.numel() // data.shape[-1] - (samples if hx is None else 0)
    capture.keep(layer, data)


def _attention(
    capture: RowCapture,
    layer: LayerRows,
    output: Tensor,
    query: Tensor,
    key: Tensor,
    *_: object,
    **__: object,
) -> None:
    tokens = (-2 if layer.module.batch_first else 0) if query.dim() == 3 else 0
    layer.queries, layer.keys = max(layer.queries, query.shape[tokens]), max(layer.keys, key.shape[tokens])
    layer.samples += query.numel() // query.shape[-1] // query.shape[tokens]
    layer.rows += query.numel() // query.shape[-1]


_RECORDS: dict[type[nn.Module], Callable[..., None]] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.Embedding: _embedding,
    nn.RNN: _recurrent,
    nn.GRU: _recurrent,
    nn.LSTM: _recurrent,
    nn.MultiheadAttention: _attention,
}


def has_known_bound(module: nn.Module) -> bool:
    """Whether a bound of the gradient's rank is known for this kind of layer."""
    return _record_of(module) is not None


def _record_of(module: nn.Module) -> Callable[..., None] | None:
    if is_transposed_linear(module):
        return _linear
    # A subclass that computes something else, with a mask on its weight say, has another gradient.
    known = (kind for kind in _RECORDS if isinstance(module, kind) and type(module).forward is kind.forward)
    return next((_RECORDS[kind] for kind in known), None)
