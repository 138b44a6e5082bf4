"""The dimension of the manifold that features lie on, which a linear rank only bounds from above."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["two_nn"]

# Distances and differences are held so many at a time, 32 MiB in float64.
_NUMBERS_AT_ONCE = 2**22
# Logarithms of ratios that rounding to float32 makes of 1, where coordinates are ten times as large as their distances.
_ROUNDING = 1e-6
# Neighbours that are looked at again: two count, the others stand in where rounding has confused their order.
_CANDIDATES = 4


def two_nn(features: Tensor, discard: float = 0.1) -> Tensor:
    """Intrinsic dimension from the ratio of the distances to the two nearest neighbours, by the estimator two-NN.

    With μ = r₂/r₁ sorted ascending and F(μ_i) = i/N, the slope through the origin of −ln(1 − F(μ_i)) on ln μ_i over the first
    ⌊N (1 − discard)⌋ points, as in the paper and in scikit-dimension. Points with a duplicate have r₁ = 0 and no ratio: they
    are left out of the N, but stay neighbours of others. Above 0; a high dimension reads low unless N grows exponentially with
    it. NaN with fewer than 3 points or fewer than 2 that are kept, where all kept ratios are 1 to 1e-6 as on a grid, and with
    features that are not finite. Neighbours nearer than 1e-8 of the extent of all features may be missed.

    N²·D operations in float64. Distances are held in parts of 32 MiB beside a float64 copy of the features.

    Args:
        features: Shape ``(*, D)``, any real type; ``*`` are N points.
        discard: Share of the largest ratios that is left out, in (0, 1): they are of points at the edge.

    Returns:
        A scalar, float64.

    Raises:
        ValueError: If ``discard`` is not in (0, 1).

    Example:
        >>> turn = torch.arange(2000).double() ** 2
        >>> two_nn(torch.stack([turn.cos(), turn.sin(), 5 + 0 * turn], dim=1)).round()
        tensor(1., dtype=torch.float64)

    Reference:
        Estimating the intrinsic dimension of datasets by a minimal neighborhood information (Facco et al., 2017),
        https://doi.org/10.1038/s41598-017-11873-y
    """
    if not 0 < discard < 1:
        raise ValueError(f"Expected discard to be in (0, 1), got {discard}.")
    points = features.detach().reshape(-1, features.shape[-1])
    points = points - points.mean(0, dtype=torch.float64)  # products of long vectors would drown their differences
    if len(points) < 3:
        return points.new_tensor(torch.nan)
    nearest, second = _neighbour_distances(points).unbind(1)
    return _slope_through_origin((second / nearest)[nearest > 0].sort().values, discard)


def _neighbour_distances(points: Tensor) -> Tensor:
    """Distances to the two nearest neighbours of each point; shape ``(N, 2)``.

    Neighbours are found by products, of which small differences lose digits, and measured by differences.
    """
    squares = torch.linalg.vector_norm(points, dim=1).square()
    distances = []
    for part in torch.arange(len(points), device=points.device).split(max(1, _NUMBERS_AT_ONCE // max(points.shape))):
        apart = torch.addmm(squares, points[part], points.mT, alpha=-2)
        apart[torch.arange(len(part), device=part.device), part] = torch.inf  # no point is its own neighbour
        candidates = apart.topk(min(_CANDIDATES, len(points) - 1), largest=False).indices
        exact = [torch.linalg.vector_norm(points[part] - points[column], dim=1) for column in candidates.unbind(1)]
        distances.append(torch.stack(exact, dim=1).sort(1).values[:, :2])
    return torch.cat(distances)


def _slope_through_origin(ratios: Tensor, discard: float) -> Tensor:
    """The two-NN fit to ascending ratios."""
    kept = int(len(ratios) * (1 - discard))
    if kept < 2:
        return ratios.new_tensor(torch.nan)
    logs = ratios[:kept].log()
    share = torch.arange(1, kept + 1, dtype=logs.dtype, device=logs.device) / len(ratios)
    return torch.where(logs[-1] > _ROUNDING, -(logs @ torch.log1p(-share)) / (logs @ logs), torch.nan)
