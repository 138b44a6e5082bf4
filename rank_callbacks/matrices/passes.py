"""What passes through the layers of a network, pass by pass: inputs and output gradients, as each gradient comes back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle, unserializable_hook

from rank_callbacks.matrices.layout import is_transposed_linear
from rank_callbacks.matrices.parameters import TrainableWeight
from rank_callbacks.matrices.recomputation import is_checkpointed
from rank_callbacks.matrices.uncompiled import unless_compiled

__all__ = ["Pass", "PassHooks", "no_passes"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PRODUCTS_INSIDE = (nn.MultiheadAttention, nn.RNNCellBase)


class Pass(NamedTuple):
    """One pass through a layer: its gradient is the sum of the outer products of the rows of both tensors.

    Args:
        weight: The parameter that the layer multiplies by.
        module: The layer.
        inputs: Of a linear product ``(*, n)``; of a convolution ``(B, C_in, *sides)``.
        deltas: Gradient of the output, as autograd gives it: ``(*, m)``, or ``(B, C_out, *positions)``.
        batch_dim: The dimension of both in which samples lie; None if the sizes must tell.
        first_row: Of the parameter, the first row that this product is with: of a stack of projections it may be a part.
    """

    weight: TrainableWeight
    module: nn.Module
    inputs: Tensor
    deltas: Tensor
    batch_dim: int | None = None
    first_row: int = 0


class PassHooks:
    """Hooks on every layer that multiplies by one of the given weights, from construction until ``close``.

    Only passes with gradients on are seen, each when the gradient of its output arrives: nothing is kept for longer than
    autograd keeps it.

    Args:
        model: Any module.
        weights: Of the model.
        reduce: What to do with each pass.

    Example:
        >>> from rank_callbacks.matrices import trainable_weights
        >>> model = nn.Sequential(nn.Linear(3, 2))
        >>> hooks = PassHooks(model, trainable_weights(model), lambda one: print(one.inputs.shape, one.deltas.shape))
        >>> model(torch.ones(5, 3)).sum().backward()
        torch.Size([5, 3]) torch.Size([5, 2])
        >>> hooks.close()
    """

    def __init__(self, model: nn.Module, weights: Sequence[TrainableWeight], reduce: Callable[[Pass], None]) -> None:
        self._reduce = reduce
        self._handles: list[RemovableHandle] = []
        by_parameter = {id(weight.parameter): weight for weight in weights if no_passes(weight) is None}
        for module in model.modules():
            own = [by_parameter[id(p)] for p in module.parameters(recurse=False) if id(p) in by_parameter]
            if isinstance(module, nn.MultiheadAttention):
                own += [by_parameter[id(p)] for p in module.out_proj.parameters() if id(p) in by_parameter]
            if own and _is_known(module):
                hook = unless_compiled(partial(self._hook(module), own))
                self._handles.append(module.register_forward_hook(hook, with_kwargs=True))

    def close(self) -> None:
        """Remove every hook, also those that wait for a gradient."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, module: nn.Module) -> Callable[..., None]:
        if isinstance(module, nn.RNNBase):
            return self._on_recurrent
        return self._on_products if isinstance(module, _PRODUCTS_INSIDE) else self._on_forward

    def _on_forward(
        self,
        weights: list[TrainableWeight],
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
    ) -> None:
        if output.requires_grad:
            inputs = (args[0] if args else kwargs["input"]).detach()
            hook = partial(self._on_gradient, weights[0], module, inputs)
            self._handles.append(output.register_hook(unserializable_hook(hook)))

    @torch.no_grad()
    def _on_gradient(self, weight: TrainableWeight, module: nn.Module, inputs: Tensor, deltas: Tensor) -> None:
        self._reduce(Pass(weight, module, inputs, deltas))

    def _on_products(
        self,
        weights: list[TrainableWeight],
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,  # ruff: ignore[any-type]
    ) -> None:
        if is_checkpointed():
            return
        first = output[0] if isinstance(output, tuple) else output
        given = [tensor for value in (*args, *kwargs.values()) for tensor in (value if isinstance(value, tuple) else (value,))]
        tensors = [tensor for tensor in given if isinstance(tensor, Tensor)]
        stop = {tensor.grad_fn for tensor in tensors}
        self._handles += self._hook_products(weights, module, first.grad_fn, tensors[0], stop)

    def _hook_products(
        self,
        weights: list[TrainableWeight],
        module: nn.Module,
        start: Any,  # ruff: ignore[any-type] - a node of autograd's graph
        given: Tensor,
        stop: set[Any],
    ) -> list[RemovableHandle]:
        samples, handles = _samples(module, given), []
        for weight in weights:
            for node, part in _products(start, weight.parameter, stop):
                # Not the node itself: it would hold its own hook, and with it the graph, until Python looks for cycles.
                inputs = (node._saved_mat1 if node.name() == "AddmmBackward0" else node._saved_self).detach()
                handles.append(node.register_prehook(partial(self._on_product, weight, module, (inputs, part, samples))))
        return handles

    def _on_recurrent(
        self,
        weights: list[TrainableWeight],
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: tuple[Any, Any],
    ) -> None:
        by_name = dict(zip(("input", "hx"), args, strict=False)) | kwargs
        outputs = _recurrent_outputs(output)
        if isinstance(by_name["input"], Tensor) and any(tensor.requires_grad for tensor in outputs):
            given = [_detached(by_name.get(name)) for name in ("input", "hx")]
            handle: list[RemovableHandle] = []
            on_gradients = partial(self._on_recurrent_gradients, weights, module, given, handle)
            handle.append(torch.autograd.graph.register_multi_grad_hook(outputs, on_gradients))
            self._handles += handle

    def _on_recurrent_gradients(
        self,
        weights: list[TrainableWeight],
        module: nn.Module,
        given: list[Any],
        handle: list[RemovableHandle],
        gradients: Sequence[Tensor | None],
    ) -> None:
        """Run the layer again, step by step: the fused kernels of cuDNN and oneDNN do not show what passes."""
        handle[0].remove()  # a hook on several tensors holds the graph that holds it
        parameters = [weight.parameter for weight in weights]
        slow = torch.backends.cudnn.flags(enabled=False), torch.backends.mkldnn.flags(enabled=False)
        with warnings.catch_warnings(), slow[0], slow[1], torch.enable_grad():
            warnings.simplefilter("ignore")
            outputs = _recurrent_outputs(type(module).forward(module, *given))
            pairs = zip(outputs, gradients, strict=True)
            total = torch.stack(
                [(output * delta.to(output.dtype)).sum() for output, delta in pairs if delta is not None]
            ).sum()
            hooks = self._hook_products(weights, module, total.grad_fn, given[0], set())
            torch.autograd.grad(total, parameters, allow_unused=True)
        for hook in hooks:
            hook.remove()

    @torch.no_grad()
    def _on_product(
        self, weight: TrainableWeight, module: nn.Module, product: tuple[Tensor, int, int], deltas: tuple[Tensor, ...]
    ) -> None:
        inputs, part, samples = product
        # Torch lays the rows of attention out by token, then by sample.
        inputs, outputs = (rows.unflatten(0, (-1, samples)) for rows in (inputs, deltas[0].detach()))
        first_row = part * (weight.parameter.shape[0] // 3)
        self._reduce(Pass(weight, module, inputs, outputs, batch_dim=1, first_row=first_row))


def no_passes(weight: TrainableWeight) -> str | None:
    """Why it cannot be seen what passes through a layer; None if it can."""
    module = weight.module
    if _is_known(module):
        return None
    if isinstance(module, _CONVOLUTIONS):
        return "it is a convolution in groups, or with borders that are not zeros"
    if isinstance(module, nn.RNNBase):
        return "it has dropout between its layers, which cannot be drawn again"
    return f"what passes through a {type(module).__name__} cannot be seen"


def _is_known(module: nn.Module) -> bool:
    if isinstance(module, _CONVOLUTIONS):
        known = module.groups == 1 and module.padding_mode == "zeros"
        return known and type(module).forward in {kind.forward for kind in _CONVOLUTIONS}
    if isinstance(module, nn.Linear):
        # A subclass that computes something else, with a mask on its weight say, has another gradient.
        return type(module).forward is nn.Linear.forward
    if isinstance(module, nn.RNNBase):
        return module.num_layers == 1 or not module.dropout
    return isinstance(module, _PRODUCTS_INSIDE) or is_transposed_linear(module)


def _recurrent_outputs(output: tuple[Tensor, Any]) -> list[Tensor]:
    """The outputs of all steps, and the states after the last."""
    states = output[1] if isinstance(output[1], tuple) else (output[1],)
    return [output[0], *states]


def _detached(value: Any) -> Any:  # ruff: ignore[any-type] - a tensor, a pair of them or None
    if isinstance(value, tuple):
        return tuple(tensor.detach() for tensor in value)
    return value.detach() if isinstance(value, Tensor) else value


def _samples(module: nn.Module, inputs: Tensor) -> int:
    if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
        return inputs.shape[0 if module.batch_first else 1] if inputs.dim() == 3 else 1
    return inputs.shape[0] if inputs.dim() == 2 else 1


def _products(
    start: Any,  # ruff: ignore[any-type] - a node of autograd's graph
    parameter: nn.Parameter,
    stop: set[Any],
) -> Iterator[tuple[Any, int]]:
    """The matrix products behind ``start`` that have the parameter as a factor, and which part of it, if it was split."""
    waiting, seen = [start], set(stop)
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() in {"AddmmBackward0", "MmBackward0"}:
            leaves = (_leaf(factor) for factor, _ in node.next_functions)
            yield from ((node, part) for leaf, part in leaves if leaf is parameter)
        waiting += [edge for edge, _ in node.next_functions]


def _leaf(node: Any) -> tuple[Tensor | None, int]:  # ruff: ignore[any-type]
    """The parameter that a factor of a product is, transposed, cast or split; None for what is computed."""
    part = 0
    while node is not None and node.name() in {"TBackward0", "ToCopyBackward0", "SplitBackward0", "SplitWithSizesBackward0"}:
        node, index = node.next_functions[0]
        part = max(part, index)
    return getattr(node, "variable", None), part
