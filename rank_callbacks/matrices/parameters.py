"""A model in, its weight matrices out: tied, compiled, parametrised and adapter weights are handled here only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from rank_callbacks.matrices.layout import matrix_views
from rank_callbacks.matrices.selection import Layers, is_selected, select
from rank_callbacks.matrices.sharded import is_sharded, stand_in, whole

__all__ = [
    "WITHOUT_GRADIENT",
    "TrainableWeight",
    "computed_matrices",
    "gradient_matrices",
    "names_of",
    "plain_name",
    "trainable_weights",
    "weight_matrices",
]

WITHOUT_GRADIENT = "computed from other parameters, as by weight_norm, and so without a gradient of its own"
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
    - A parametrised weight (``weight_norm``, ``spectral_norm``, LoRA as a parametrisation) and a pruned one appear as what
      the layer multiplies by, computed in eval mode so that no buffer moves.
    - A pair of adapters ``lora_A`` (r x n), ``lora_B`` (m x r) appears as ``lora_BA``: an r x r matrix with the singular
      values of their product, its scale of alpha/r left out. The two themselves do not appear.
    - A parameter that is sharded over processes (DTensor) stays so where it is one matrix; what is computed from such
      parameters or is part of one is gathered, a collective operation that every process must take part in.
    - Parameters that are not known to be matrices, such as position embeddings of shape (1, length, width), are left out.

    Args:
        model: Any module.
        layers: Which matrices: see ``select``.
        conv: How a convolution kernel is a matrix: see ``matrix_views``.

    Returns:
        Shape ``(m, n)``, or ``(blocks, m, n)`` for a block-diagonal matrix; views of the parameters where possible,
        detached.

    Raises:
        ValueError: If nothing is selected, a pattern matches nothing, a parameter is not yet initialised, or
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
            left_out[path] = _not_a_matrix(module, tensor)
        matrices.update(views or {})
    return select(_with_adapter_products(matrices), layers, left_out)


def plain_name(path: str) -> str:
    """A module's or parameter's name without the prefixes of ``torch.compile`` and of activation checkpointing."""
    return _WRAPPERS.sub("", path).lstrip(".")


@torch.no_grad()
def gradient_matrices(
    model: nn.Module, layers: Layers = None, conv: str = "filters", optimizer: torch.optim.Optimizer | None = None
) -> dict[str, Tensor]:
    """The gradient of every weight matrix that has one, by the name of the parameter.

    ``matrix_views`` says which matrices a parameter's gradient holds. Trainable parameters alone; those inside a
    parametrisation are left out, and adapters appear as ``lora_A`` and ``lora_B``. Of a sparse gradient only the rows that
    are not zero are kept, which leaves its singular values.

    Args:
        model: Any module.
        layers: Which matrices: see ``select``.
        conv: How a convolution kernel is a matrix: see ``matrix_views``.
        optimizer: Take its parameters alone. Then nothing need be selected: all that ``layers`` means may be another's, and
            frozen while this one steps.

    Returns:
        Shape ``(m, n)``, or ``(blocks, m, n)`` for a block-diagonal matrix; views where possible. Layers without a gradient
        are absent.

    Raises:
        ValueError: Without an optimizer, if the model has no trainable matrix, or a pattern matches none.

    Example:
        >>> layer = nn.Linear(2, 3)
        >>> layer(torch.ones(1, 2)).sum().backward()
        >>> gradient_matrices(layer)["weight"].shape
        torch.Size([3, 2])
    """
    owned = None if optimizer is None else {id(p) for group in optimizer.param_groups for p in group["params"]}
    matrices: dict[str, Tensor] = {}
    for path, module, parameter, chosen in _chosen_weights(model, layers, conv, insists=optimizer is None):
        gradient = parameter.grad if owned is None or id(parameter) in owned else None
        if gradient is not None:
            dense = gradient.coalesce().values() if gradient.is_sparse else gradient
            views = matrix_views(path, module, dense, conv) or {}
            matrices.update({name: view for name, view in views.items() if name in chosen})
    return matrices


def names_of(model: nn.Module, parameter: nn.Parameter) -> list[str]:
    """All names of a parameter, of which ``weight_matrices`` takes the first: a tied one has several.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> names_of(nn.Sequential(layer, nn.ReLU(), layer), layer.weight)
        ['0.weight', '2.weight']
    """
    return [plain_name(name) for name, one in model.named_parameters(remove_duplicate=False) if one is parameter]


class TrainableWeight(NamedTuple):
    """A parameter that gets a gradient, and the matrices that it holds.

    Args:
        path: Its qualified name.
        module: What it is a parameter of.
        parameter: The parameter.
        matrices: Views of it by name, as ``gradient_matrices`` names them.
    """

    path: str
    module: nn.Module
    parameter: nn.Parameter
    matrices: dict[str, Tensor]


def trainable_weights(model: nn.Module, layers: Layers = None, conv: str = "filters") -> list[TrainableWeight]:
    """Every trainable parameter that holds a selected matrix.

    Raises:
        ValueError: As ``gradient_matrices``.
    """
    return [_read(weight, conv) if is_sharded(weight.parameter) else weight for weight in _chosen_weights(model, layers, conv)]


def computed_matrices(model: nn.Module, layers: Layers = None, conv: str = "filters") -> dict[str, Tensor]:
    """The selected matrices of ``weight_matrices`` that are no parameters, but computed from others in each pass.

    None of them is among ``trainable_weights``: ``WITHOUT_GRADIENT`` says why.
    """
    computed = [weight for weight in _weights(model) if not isinstance(weight.tensor, nn.Parameter)]
    views = {
        name: view
        for path, module, tensor in computed
        for name, view in (matrix_views(path, module, tensor.detach(), conv) or {}).items()
    }
    return {name: view for name, view in views.items() if is_selected(name, layers)}


def _chosen_weights(model: nn.Module, layers: Layers, conv: str, insists: bool = True) -> list[TrainableWeight]:
    """The parameters that hold a selected matrix; the matrices of a sharded one without their numbers."""
    weights = []
    left_out: dict[str, str] = {}
    for path, module, tensor in _weights(model):
        if isinstance(tensor, nn.Parameter) and tensor.requires_grad:
            views = matrix_views(path, module, stand_in(tensor.detach()), conv)
            weights.append(TrainableWeight(path, module, tensor, views or {}))
            if views is None:
                left_out[path] = _not_a_matrix(module, tensor)
        elif tensor.dim() > 1:
            left_out[path] = "frozen" if isinstance(tensor, nn.Parameter) else WITHOUT_GRADIENT
    names = {name: None for weight in weights for name in weight.matrices}
    chosen = select(names, layers, left_out) if insists else {name for name in names if is_selected(name, layers)}
    kept = [weight._replace(matrices={name: m for name, m in weight.matrices.items() if name in chosen}) for weight in weights]
    return [weight for weight in kept if weight.matrices]


def _read(weight: TrainableWeight, conv: str) -> TrainableWeight:
    views = matrix_views(weight.path, weight.module, weight.parameter.detach(), conv) or {}
    return weight._replace(matrices={name: views[name] for name in weight.matrices})


def _not_a_matrix(module: nn.Module, tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {type(module).__name__} is not known to be a matrix"


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
            path = plain_name(f"{prefix}.{name}")
            _check_shape(path, tensor)
            yield _Weight(path, module, tensor)


class _Gathered:
    """A module as the hooks of old parametrisations see it, with all of each sharded tensor."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __getattr__(self, name: str) -> object:
        value = getattr(self._module, name)
        return whole(value) if isinstance(value, Tensor) else value


def _computed_weights(module: nn.Module) -> dict[str, Tensor]:
    """The weights that a module computes from its parameters before it multiplies by them."""
    weights = {}
    if parametrize.is_parametrized(module):
        weights = {name: _in_eval_mode(module, name) for name in module.parametrizations}  # type: ignore[union-attr]
    gathered = cast("nn.Module", _Gathered(module))
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            weights[hook.name] = hook.compute_weight(gathered)
        elif isinstance(hook, SpectralNorm):
            weights[hook.name] = hook.compute_weight(gathered, do_power_iteration=False)
        elif isinstance(hook, BasePruningMethod):
            weights[hook._tensor_name] = hook.apply_mask(gathered)
    return weights


def _in_eval_mode(module: nn.Module, name: str) -> Tensor:
    """The parametrised weight, without the power iteration or the dropout of training mode."""
    parametrizations: nn.Module = module.parametrizations[name]  # type: ignore[index, assignment]
    modes = [(part, part.training) for part in parametrizations.modules()]
    try:
        for part, _ in modes:
            part.training = False
        tensors = {path: whole(tensor) for path, tensor in parametrizations.named_parameters() if is_sharded(tensor)}
        return functional_call(parametrizations, tensors, ()) if tensors else getattr(module, name)
    finally:
        for part, training in modes:
            part.training = training


def _check_shape(path: str, tensor: Tensor) -> None:
    if nn.parameter.is_lazy(tensor):
        raise ValueError(f"{path} has no shape yet: run one batch through the model before training, in configure_model().")


def _with_adapter_products(matrices: dict[str, Tensor]) -> dict[str, Tensor]:
    result = dict(matrices)
    for name, down in matrices.items():
        partner, product = (_ADAPTER_A.sub(rf"lora_\g<1>{letters}", name) for letters in ("B", "BA"))
        up = matrices.get(partner) if partner != name else None
        if up is not None and up.dim() == down.dim() == 2 and up.shape[1] == down.shape[0]:
            del result[name], result[partner]
            result[product] = _product_core(whole(up), whole(down))
    return result


def _product_core(up: Tensor, down: Tensor) -> Tensor:
    """A small matrix with the singular values of ``up @ down``: the triangular factors of both, multiplied."""
    wide = torch.complex128 if up.is_complex() else torch.float64
    up, down = (factor.cpu().to(wide) if factor.device.type == "mps" else factor.to(wide) for factor in (up, down))
    core = torch.linalg.qr(up, mode="r").R @ torch.linalg.qr(down.mT, mode="r").R.mT
    return core + 0 * (up.sum() + down.sum())  # QR makes finite numbers of a NaN
