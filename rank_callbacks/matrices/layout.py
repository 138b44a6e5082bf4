"""Which rows and columns a tensor means: what in a module's parameter, or in its gradient, is a matrix."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from rank_callbacks.matrices.sharded import filters_in_parts, is_sharded, settled, whole

__all__ = ["check_conv", "is_transposed_linear", "matrix_views"]

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
# The order in which torch stacks the gates of a recurrent layer.
_GATES = {
    nn.LSTM: ("input", "forget", "cell", "output"),
    nn.LSTMCell: ("input", "forget", "cell", "output"),
    nn.GRU: ("reset", "update", "new"),
    nn.GRUCell: ("reset", "update", "new"),
}
# Linear layers of these names whose output is three times their input: q, k and v one after the other, as in timm, nanoGPT,
# Hugging Face's GPT-2 and flash-attention. GPT-NeoX's query_key_value interleaves the heads and is left whole.
_FUSED_QKV = {"qkv", "c_attn", "Wqkv", "to_qkv"}


def matrix_views(path: str, module: nn.Module, tensor: Tensor, conv: str = "filters") -> dict[str, Tensor] | None:
    """The matrices that a parameter of ``module`` holds, each by its name.

    ==========================================  ====================================================================
    parameter                                   matrices
    ==========================================  ====================================================================
    ``Linear``, ``Embedding`` and any other of  the tensor itself; ``path.q``, ``path.k``, ``path.v`` where it is a
    two dimensions                              fused projection by its module's name and shape
    ``MultiheadAttention.in_proj_weight``       ``path.q``, ``path.k``, ``path.v``
    ``LSTM``, ``GRU``, ``RNN`` and cells        a matrix a gate: ``path.input``, ``.forget``, ``.cell``, ``.output``;
                                                ``path.reset``, ``.update``, ``.new``; ``path`` itself
    convolution, ``conv="filters"``             C_out x C_in·k, one row a filter, also where transposed
    convolution, ``conv="slices"``              ``path.slices``: a C_out x C_in block for each place in the kernel
    convolution, ``conv="circular_32x32"``      ``path.circular_32x32``: the linear map on images of 32 x 32 with
                                                periodic borders and stride 1, a block for each frequency
    three dimensions, none of them 1, as in     a block-diagonal matrix, a block for each slice of the first
    ``Bilinear`` and mixtures of experts        dimension
    biases, norm scales, integer tensors,       none
    vectors in modules that are not torch's
    ==========================================  ====================================================================

    The blocks of a grouped convolution, of slices and of frequencies are a leading dimension: a block-diagonal matrix.

    A parameter that is sharded over processes (DTensor) stays so where it is one matrix, cut along its rows or its columns.
    What is sliced, grouped, of three dimensions or cut along both is gathered, a collective operation: every process must
    view the same parameters in the same order.

    Args:
        path: Name of the parameter, as in ``named_parameters()``.
        module: The module that it is a parameter of.
        tensor: The parameter, or something of its shape such as its gradient.
        conv: How a convolution kernel is a matrix.

    Returns:
        Views of ``tensor`` of shape ``(m, n)`` or ``(blocks, m, n)`` by name; None if it is not known how to view it.

    Raises:
        ValueError: If ``conv`` is unknown, or names another number of dimensions than the kernel has, or a smaller size.

    Example:
        >>> lstm = nn.LSTM(input_size=3, hidden_size=5)
        >>> list(matrix_views("lstm.weight_ih_l0", lstm, lstm.weight_ih_l0))
        ['lstm.weight_ih_l0.input', 'lstm.weight_ih_l0.forget', 'lstm.weight_ih_l0.cell', 'lstm.weight_ih_l0.output']
    """
    check_conv(conv)
    is_bias = path.rpartition(".")[2].startswith("bias")
    is_number = tensor.is_floating_point() or tensor.is_complex()
    if tensor.dim() < 2 or not is_number or isinstance(module, _NORMS) or is_bias:
        return {}
    if isinstance(module, nn.modules.conv._ConvNd):
        return _kernel_views(path, module, settled(tensor), conv)
    if tensor.dim() > 3 or (min(tensor.shape) == 1 and not _is_of_torch(module)):
        return None
    if tensor.dim() == 3:
        return {path: whole(tensor)}
    tensor = settled(tensor)
    if is_transposed_linear(module):
        tensor = tensor.mT
    parts = _stacked_parts(path, module, tensor)
    if not parts:
        return {path: tensor}
    return {f"{path}.{part}": rows for part, rows in zip(parts, whole(tensor).chunk(len(parts)), strict=True)}


def _is_of_torch(module: nn.Module) -> bool:
    return any(kind.__module__.startswith("torch.nn.modules") for kind in type(module).__mro__ if kind is not nn.Module)


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether this is Hugging Face's ``Conv1D``, a linear layer that stores the transpose; parametrised, it is a subclass."""
    return any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)


def check_conv(conv: str) -> None:
    """Refuse a ``conv`` that ``matrix_views`` does not know.

    Raises:
        ValueError: If ``conv`` is neither ``filters``, ``slices`` nor ``circular_`` with sizes.
    """
    if conv not in {"filters", "slices"} and not re.fullmatch(r"circular_[1-9]\d*(x[1-9]\d*){0,2}", conv):
        raise ValueError(f"Expected conv to be 'filters', 'slices' or a size such as 'circular_32x32', got {conv!r}.")


def _stacked_parts(path: str, module: nn.Module, matrix: Tensor) -> tuple[str, ...]:
    """Names of the equal parts that are stacked in the rows; empty where the matrix is one."""
    rows, columns = matrix.shape
    *_, owner, name = ["", *path.split(".")]
    if name == "in_proj_weight" or (owner in _FUSED_QKV and name == "weight"):
        return ("q", "k", "v") if rows == 3 * columns else ()
    gates = next((gates for kind, gates in _GATES.items() if isinstance(module, kind)), ())
    return () if name.startswith("weight_hr") else gates  # the projection of an LSTM's output has no gates


def _kernel_views(path: str, module: nn.modules.conv._ConvNd, kernel: Tensor, conv: str) -> dict[str, Tensor]:
    if is_sharded(kernel):
        parts = filters_in_parts(kernel, module.transposed) if conv == "filters" and module.groups == 1 else None
        if parts is not None:
            return {path: parts}
        kernel = whole(kernel)
    blocks = _in_groups(kernel, module.groups, module.transposed)
    if conv == "slices":
        blocks, path = blocks.flatten(3).movedim(-1, 0), f"{path}.slices"
    elif conv.startswith("circular"):
        blocks, path = _frequencies(path, blocks, conv, module.dilation), f"{path}.{conv}"
    else:
        blocks = blocks.flatten(2)
    blocks = blocks.flatten(0, -3)
    return {path: blocks[0] if len(blocks) == 1 else blocks}


def _in_groups(kernel: Tensor, groups: int, transposed: bool) -> Tensor:
    """The kernel as (groups, C_out / groups, C_in / groups, *k)."""
    blocks = kernel.unflatten(0, (groups, -1))
    return blocks.transpose(1, 2) if transposed else blocks


def _frequencies(path: str, blocks: Tensor, conv: str, dilation: tuple[int, ...]) -> Tensor:
    """The kernel's discrete Fourier transform, (frequencies, groups, C_out / groups, C_in / groups)."""
    size = [int(side) for side in conv.removeprefix("circular_").split("x")]
    kernel_size = blocks.shape[3:]
    if len(size) != len(kernel_size) or any(side < k for side, k in zip(size, kernel_size, strict=True)):
        raise ValueError(
            f"Expected conv={conv!r} to name a size of {len(kernel_size)} dimensions, each at least that of the kernel of "
            f"{path}, {tuple(kernel_size)}."
        )
    wide = blocks if blocks.dtype == torch.float64 or blocks.is_complex() else blocks.float()
    transform = torch.fft.fftn(wide, s=size, dim=list(range(3, 3 + len(size))))
    for dim, (side, step) in enumerate(zip(size, dilation, strict=True), start=3):
        if step > 1:  # a dilated kernel has at frequency f what the kernel has at step·f
            transform = transform.index_select(dim, torch.arange(side, device=blocks.device) * step % side)
    return transform.flatten(3).movedim(-1, 0)
