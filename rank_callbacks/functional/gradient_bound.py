"""Layer and batch shapes in, the rank that a gradient can reach out.

The gradient of a matrix is a sum of outer products, ∇W = Σ δ zᵀ over the rows that pass through the layer, so its rank is at
most the smaller of the ranks of the inputs Z and of the output gradients Δ. These functions bound both from shapes alone, for
exact ranks in exact arithmetic. Statements are those of *Low-rank learning by design: the role of network architecture and
activation linearity in gradient rank collapse* (Baker, Pearlmutter, Miller, Calhoun and Plis, 2024),
https://arxiv.org/abs/2402.06751, corrected where noted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

__all__ = [
    "attention_gradient_bounds",
    "convolution_gradient_bound",
    "convolution_positions",
    "embedding_gradient_bound",
    "fully_connected_gradient_bounds",
    "leaky_relu_threshold",
    "loss_gradient_bound",
    "recurrent_gradient_bounds",
]


def loss_gradient_bound(loss: str, rows: int, outputs: int) -> int:
    """Largest rank of the gradient that a loss sends into its ``rows`` x ``outputs`` input.

    ``cross_entropy`` over K outputs: min(rows, K − 1), since the rows of softmax(Z) − Y sum to zero. ``mse``:
    min(rows, outputs).

    Raises:
        ValueError: If the loss is neither.

    Example:
        >>> loss_gradient_bound("cross_entropy", rows=32, outputs=10)
        9
    """
    if loss not in {"cross_entropy", "mse"}:
        raise ValueError(f"Expected loss to be 'cross_entropy' or 'mse', got {loss!r}.")
    return min(rows, outputs - (loss == "cross_entropy"))


def fully_connected_gradient_bounds(
    widths: Sequence[int],
    batch: int,
    *,
    linear: bool = False,
    bias: bool = True,
    weight_ranks: Sequence[int] | None = None,
    input_rank: int | None = None,
    output_rank: int | None = None,
) -> list[int]:
    """Bound of each weight's gradient in a fully connected network: equation (1).

    rank ∇W_i ≤ min(rank Z_{i−1}, rank Δ_i). With linear activations rank Z_{i−1} ≤ min(rank X, rank W_j for j < i) and
    rank Δ_i ≤ min(rank ∂L/∂Z_L, rank W_j for j > i). The printed equation takes the minimum over all j, the layer's own
    weight among them, which is wrong: of three 32 x 32 linear layers whose second has rank 2, the second has a gradient of
    rank 32. Biases add the same to every row: however many, one to the rank of what follows. With other activations only the
    batch and the widths bind, and the loss at the last layer.

    Args:
        widths: Of the input, of every hidden layer and of the output: L + 1 for L weights.
        batch: Rows that pass through, N.
        linear: Whether the activations are linear.
        bias: Whether the layers have biases.
        weight_ranks: Rank of each of the L weights; full ranks if not given.
        input_rank: Rank of the input X; min(N, its width) if not given.
        output_rank: Rank of ∂L/∂Z_L, such as ``loss_gradient_bound`` gives; min(N, its width) if not given.

    Returns:
        L bounds, from the input to the output.

    Raises:
        ValueError: If there are fewer than two widths or the number of ranks does not fit.

    Example:
        >>> fully_connected_gradient_bounds([128, 128, 16, 128, 128], batch=256, linear=True, bias=False)
        [16, 16, 16, 16]
    """
    if len(widths) < 2 or (weight_ranks is not None and len(weight_ranks) != len(widths) - 1):
        raise ValueError(f"Expected two or more widths and a rank for each weight, got {widths} and {weight_ranks}.")
    caps = [min(batch, width) for width in widths]
    ranks = weight_ranks or [min(pair) for pair in pairwise(widths)]
    first = min(caps[0], caps[0] if input_rank is None else input_rank)
    last = min(caps[-1], caps[-1] if output_rank is None else output_rank)
    if not linear:
        return [min(z, d) for z, d in zip([first, *caps[1:-1]], [*caps[1:-1], last], strict=True)]
    products = accumulate(zip(ranks, caps[1:], strict=True), lambda z, layer: min(z, *layer), initial=first)
    deltas = accumulate(zip(ranks[::-1], caps[-2::-1], strict=True), lambda d, layer: min(d, *layer), initial=last)
    inputs = [min(z + (bias and place > 0), cap) for place, (z, cap) in enumerate(zip(products, caps, strict=True))]
    return [min(z, d) for z, d in zip(inputs[:-1], list(deltas)[-2::-1], strict=True)]


def recurrent_gradient_bounds(
    input_size: int,
    hidden_size: int,
    batch: int,
    steps: int,
    *,
    input_rank: int | None = None,
    output_rank: int | None = None,
    linear: bool = False,
    bias: bool = True,
    carried_state: bool = False,
) -> tuple[int, int]:
    """Bounds of the input-to-hidden and the hidden-to-hidden gradient of a recurrent layer: equations (2) and (3).

    ∇U = Σ_t Δ_tᵀX_t has a term for each of T steps, each of at most the rank that a layer without time could have; a single
    sequence can reach rank T. ∇V = Σ_t Δ_tᵀH_{t−1} has one term fewer where the first state is zero. In a linear cell a
    bottleneck before or after it limits each term; a bias adds a direction to the state, and a state carried over has as many
    as it likes. For gated cells the bounds are those of each gate's matrix.

    Args:
        input_size: Width of the input.
        hidden_size: Width of the state.
        batch: Sequences, N.
        steps: Steps T that the gradient flows through: the length of the sequence, or of the window where it is truncated.
        input_rank: Rank of the layer's input at one step, where a linear bottleneck before it limits that.
        output_rank: Rank of the gradient that arrives at one step, where a linear bottleneck after it limits that.
        linear: Whether the cell is linear: only then do the two ranks limit the recurrence.
        bias: Whether the cell has a bias.
        carried_state: Whether the first state is that of an earlier window instead of zero.

    Returns:
        The two bounds.

    Example:
        >>> recurrent_gradient_bounds(128, 128, batch=64, steps=8, output_rank=2, linear=True)
        (16, 14)
    """
    of_inputs = input_size if input_rank is None else input_rank
    of_deltas = output_rank if linear and output_rank is not None else hidden_size
    of_states = of_inputs + bias if linear and not carried_state else hidden_size
    terms = steps if carried_state else steps - 1
    of_input_weight, of_state_weight = (min(batch, of_deltas, rank) for rank in (of_inputs, of_states))
    return min(input_size, hidden_size, steps * of_input_weight), min(hidden_size, terms * of_state_weight)


def convolution_positions(
    size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> int:
    """Positions that a kernel takes on an image, Π ⌊(w + 2p − d(k − 1) − 1)/s + 1⌋; none on an image that is smaller.

    Args:
        size: Of the image, one number a dimension; so for the rest.
        kernel_size: Of the kernel.
        stride: Between positions.
        padding: On each side.
        dilation: Between the kernel's elements.

    Example:
        >>> convolution_positions((28, 28), (3, 3), stride=(4, 4), padding=(1, 1), dilation=(1, 1))
        49
    """
    sides = zip(size, kernel_size, stride, padding, dilation, strict=True)
    return math.prod(max(0, (w + 2 * p - d * (k - 1) - 1) // s + 1) for w, k, s, p, d in sides)


def convolution_gradient_bound(
    in_channels: int,
    out_channels: int,
    kernel_size: Sequence[int],
    positions: int,
    batch: int,
    *,
    groups: int = 1,
    rank_of_a_position: int = 1,
) -> int:
    """Bound of the gradient of a convolution, as a C_out x C_in·k matrix: equation (12).

    Each position of each sample adds an outer product, so batch · positions bounds the rank, beside the matrix's own shape.
    The gradient of a grouped convolution is block-diagonal, and its rank the sum over groups.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        kernel_size: One number a dimension.
        positions: Such as ``convolution_positions`` gives.
        batch: Images, N.
        groups: Groups of channels.
        rank_of_a_position: What a position adds: 1, or B/N for a bound B of the whole batch at one position.

    Example:
        >>> convolution_gradient_bound(64, 128, (3, 3), positions=49, batch=1)
        49
    """
    block = min(out_channels // groups, in_channels // groups * math.prod(kernel_size))
    return groups * min(block, batch * positions * rank_of_a_position)


def attention_gradient_bounds(
    width: int, batch: int, queries: int, keys: int, *, heads: int = 1, causal: bool = False
) -> dict[str, int]:
    """Bounds of the gradients of an attention layer's four projections.

    Every token adds an outer product: batch · queries for ``q`` and ``out``, batch · keys for ``k`` and ``v``. The gradient
    dS of the scores has rows that sum to zero, for softmax does not see a constant: with one key ``q`` and ``k`` get no
    gradient, and ``k`` at most batch · (keys − 1). A causal mask leaves the first query a single key: one query fewer.

    Args:
        width: Of the tokens and the projections.
        batch: Sequences, N.
        queries: Tokens that ask.
        keys: Tokens that are asked; as many as queries in self-attention.
        heads: Heads that the width is divided into.
        causal: Whether a query sees only keys up to its own place.

    Returns:
        Bounds by ``q``, ``k``, ``v`` and ``out``.

    Example:
        >>> attention_gradient_bounds(64, batch=1, queries=8, keys=8)
        {'q': 7, 'k': 7, 'v': 8, 'out': 8}
    """
    asking = min(queries - causal, heads * min(keys - 1, width // heads))
    asked = min(keys - 1, heads * min(queries - causal, width // heads))
    seen = min(keys, heads * min(queries, width // heads))
    return {name: min(width, batch * rank) for name, rank in {"q": asking, "k": asked, "v": seen, "out": queries}.items()}


def embedding_gradient_bound(tokens: Tensor, embedding_dim: int, padding_idx: int | None = None) -> int:
    """Bound of the gradient of an embedding: its rows are zero but for the tokens that the batch holds.

    Args:
        tokens: Integers of any shape.
        embedding_dim: Columns of the embedding.
        padding_idx: The token that gets no gradient.

    Example:
        >>> embedding_gradient_bound(torch.tensor([[1, 2, 2], [1, 0, 0]]), embedding_dim=16, padding_idx=0)
        2
    """
    distinct = tokens.unique()
    return min(embedding_dim, int((distinct != padding_idx).sum()) if padding_idx is not None else len(distinct))


def leaky_relu_threshold(pre_activations: Tensor, negative_slope: float) -> Tensor:
    """Threshold below which a singular value of Z surely rounds away in leaky-ReLU(Z) = D ⊙ Z: equation (9).

    ε·min(c₁, r₁)·σ₁(Z), with ε the machine epsilon of Z's type and c₁, r₁ the largest 2-norm of a column and of a row of D,
    whose entries are 1 and the slope. Since σ₁(D ⊙ Z) ≤ min(c₁, r₁)·σ₁(Z), it overestimates the threshold ε·σ₁(D ⊙ Z) that
    floating point itself sets: a value that counts no longer by it may still count, so a rank counted with it is a lower
    bound. It grows with the slope, from ReLU at 0 to a linear activation at 1.

    Args:
        pre_activations: Z of shape ``(N, m)``, float32 or float64.
        negative_slope: α in [0, 1].

    Returns:
        A scalar in the unit of Z, in its type.

    Raises:
        ValueError: If ``negative_slope`` is outside [0, 1].

    Example:
        >>> bool(leaky_relu_threshold(torch.eye(4), 0.5) > torch.finfo(torch.float32).eps)
        True
    """
    if not 0 <= negative_slope <= 1:
        raise ValueError(f"Expected negative_slope to be in [0, 1], got {negative_slope}.")
    slopes = torch.where(pre_activations > 0, 1.0, negative_slope).to(pre_activations.dtype)
    largest = min(torch.linalg.vector_norm(slopes, dim=dim).max() for dim in (0, 1))
    return torch.finfo(pre_activations.dtype).eps * largest * torch.linalg.matrix_norm(pre_activations, 2)
