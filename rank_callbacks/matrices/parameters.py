"""A model in, its weight matrices out: tied, compiled, parametrised and adapter weights are handled here only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from rank_callbacks.matrices.layout import matrix_views
from rank_callbacks.matrices.selection import Layers, select

__all__ = ["weight_matrices"]

_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_checkpoint_wrapped_module)(?=\.)")
_ADAPTER_A = re.compile(r"\blora_(embedding_|)A\b")


class _Weight(NamedTuple):
    path: str
    module: nn.Module
    tensor: Tensor


@torch.no_grad()
def weight_matrices(model: nn.Module, layers: Layers = None, conv: str = "filters") -> dict[str, Tensor]:
    """Every weight matrix of a model, by the name that ``named_parameters()`` gives it.

    ``matrix_views`` says which matrices a parameter holds. Beyond it:

    - The prefix that ``torch.compile`` adds is removed from names.
    - A parameter that several modules share appears once, under its first name.
    - A parametrised weight (``weight_norm``, ``spectral_norm``, LoRA as a parametrisation) appears as what the layer
      multiplies by, computed in eval mode so that no buffer moves.
    - A pair of adapters ``lora_A`` (r x n), ``lora_B`` (m x r) appears as ``lora_BA``: an r x r matrix with the singular
      values of their product, its scale of alpha/r left out. The two themselves do not appear.
    - Parameters of three and more dimensions that belong to no known module, such as position embeddings, are left out.

    Args:
        model: Any module.
        layers: Which matrices: see ``select``.
        conv: How a convolution kernel is a matrix: see ``matrix_views``.

    Returns:
        Shape ``(m, n)``, or ``(blocks, m, n)`` for a block-diagonal matrix; views of the parameters where possible,
        detached.

    Raises:
        ValueError: If nothing is selected, a pattern matches nothing, a parameter is not yet initialised or is sharded, or
            ``conv`` does not fit a kernel.

    Example:
        >>> list(weight_matrices(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))))
        ['0.weight', '2.weight']
    """
    matrices: dict[str, Tensor] = {}
    left_out: dict[str, str] = {}
    for path, module, tensor in _weights(model):
        views = matrix_views(path, module, tensor.detach(), conv)
        if views is None:
            left_out[path] = f"{tuple(tensor.shape)} of {type(module).__name__} is not known to be a matrix"
        matrices.update(views or {})
    return select(_with_adapter_products(matrices), layers, left_out)


def _weights(model: nn.Module) -> Iterator[_Weight]:
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        if ".parametrizations." in f".{prefix}.":
            continue
        computed = _computed_weights(module)
        raw = {f"{name}{suffix}" for name in computed for suffix in ("_g", "_v", "_orig")}
        own = {name: p for name, p in module.named_parameters(recurse=False) if name not in raw and id(p) not in seen}
        seen.update(map(id, own.values()))
        for name, tensor in (own | computed).items():
            path = _WRAPPERS.sub("", f"{prefix}.{name}").lstrip(".")
            _check_whole(path, tensor)
            yield _Weight(path, module, tensor)


def _computed_weights(module: nn.Module) -> dict[str, Tensor]:
    """The weights that a module computes from its parameters before it multiplies by them."""
    weights = {}
    if parametrize.is_parametrized(module):
        weights = {name: _in_eval_mode(module, name) for name in module.parametrizations}  # type: ignore[union-attr]
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            weights[hook.name] = hook.compute_weight(module)
        elif isinstance(hook, SpectralNorm):
            weights[hook.name] = hook.compute_weight(module, do_power_iteration=False)
    return weights


def _in_eval_mode(module: nn.Module, name: str) -> Tensor:
    """The parametrised weight, without the power iteration or the dropout of training mode."""
    modes = [(part, part.training) for part in module.parametrizations[name].modules()]  # type: ignore[index, union-attr]
    try:
        for part, _ in modes:
            part.training = False
        return getattr(module, name)
    finally:
        for part, training in modes:
            part.training = training


def _check_whole(path: str, tensor: Tensor) -> None:
    if nn.parameter.is_lazy(tensor):
        raise ValueError(f"{path} has no shape yet: run one batch through the model before training, in configure_model().")
    if hasattr(tensor, "full_tensor"):  # a DTensor
        raise ValueError(
            f"{path} is sharded over processes, which is not supported yet. Train with one device or strategy='ddp'."
        )


def _with_adapter_products(matrices: dict[str, Tensor]) -> dict[str, Tensor]:
    result = dict(matrices)
    for name, down in matrices.items():
        partner, product = (_ADAPTER_A.sub(rf"lora_\g<1>{letters}", name) for letters in ("B", "BA"))
        up = matrices.get(partner) if partner != name else None
        if up is not None and up.dim() == down.dim() == 2 and up.shape[1] == down.shape[0]:
            del result[name], result[partner]
            result[product] = _product_core(up, down)
    return result


def _product_core(up: Tensor, down: Tensor) -> Tensor:
    """A small matrix with the singular values of ``up @ down``: the triangular factors of both, multiplied."""
    if not (up.isfinite().all() and down.isfinite().all()):  # QR makes finite numbers of a NaN
        return torch.full((len(down), len(down)), torch.nan, dtype=torch.float64, device=up.device)
    return torch.linalg.qr(up.double(), mode="r").R @ torch.linalg.qr(down.double().mT, mode="r").R.mT
