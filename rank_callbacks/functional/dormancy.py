"""How many features of a layer have stopped to answer to its input."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["dead_fraction", "dormant_ratio"]


def dead_fraction(features: Tensor) -> Tensor:
    """Share of the features that are 0 in every row, #{i : h_i = 0 for all rows} / D.

    In [0, 1]: 1 for a layer that is silent. After a ReLU a dead feature gets no gradient and stays dead on these inputs. With
    few rows, features that are rare look dead. NaN without rows, and where features are not finite.

    Args:
        features: Shape ``(*, D)``, any real type; ``*`` are rows.

    Returns:
        A scalar, float64.

    Example:
        >>> dead_fraction(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
        tensor(0.5000, dtype=torch.float64)

    Reference:
        Dying ReLU and initialization: theory and numerical examples (Lu et al., 2019), https://arxiv.org/abs/1903.06733
    """
    sizes = _mean_sizes(features)
    return _share(sizes == 0, sizes)


def dormant_ratio(features: Tensor, tau: float = 0.025) -> Tensor:
    """Share of the features that are tau-dormant: their mean size is at most tau times that of the layer.

    #{i : mean|h_i| ≤ tau · mean_j mean|h_j|} / D. In [0, 1]: 1 for a layer that is silent. With tau = 0 it is
    ``dead_fraction``. NaN without rows, and where features are not finite.

    Args:
        features: Shape ``(*, D)``, any real type; ``*`` are rows.
        tau: The threshold, from 0.

    Returns:
        A scalar, float64.

    Raises:
        ValueError: If ``tau`` is negative.

    Example:
        >>> dormant_ratio(torch.tensor([[0.01, -1.0], [0.01, 3.0]]))
        tensor(0.5000, dtype=torch.float64)

    Reference:
        The dormant neuron phenomenon in deep reinforcement learning (Sokar et al., 2023), https://arxiv.org/abs/2302.12902
    """
    if not tau >= 0:
        raise ValueError(f"Expected tau to be a number from 0, got {tau}.")
    sizes = _mean_sizes(features)
    return _share(sizes <= tau * sizes.mean(), sizes)


def _mean_sizes(features: Tensor) -> Tensor:
    """Mean absolute value of each feature; shape ``(D,)``."""
    rows = features.detach().reshape(-1, features.shape[-1])
    rows = rows if rows.is_floating_point() else rows.double()  # booleans have no size, and -128 of int8 a negative one
    return rows.abs().mean(0, dtype=torch.float64)


def _share(chosen: Tensor, sizes: Tensor) -> Tensor:
    return torch.where(sizes.isfinite().all(), chosen.double().mean(), torch.nan)
