"""Watch the rank of weights, gradients and features while a network trains."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rank_callbacks.callbacks.gradient_rank import GradientRankMonitor
    from rank_callbacks.callbacks.neural_collapse import NeuralCollapseMonitor
    from rank_callbacks.callbacks.rank_collapse import RankCollapseMonitor
    from rank_callbacks.callbacks.schedule import log_spaced
    from rank_callbacks.callbacks.weight_rank import WeightRankMonitor
    from rank_callbacks.gradient_bounds import gradient_rank_bounds

__version__ = "0.1.0"
__all__ = [
    "GradientRankMonitor",
    "NeuralCollapseMonitor",
    "RankCollapseMonitor",
    "WeightRankMonitor",
    "gradient_rank_bounds",
    "log_spaced",
]

# Loaded on first use: TensorBoard imports the package to find its plugins, and must not wait for torch.
_HOMES = {
    "GradientRankMonitor": "rank_callbacks.callbacks.gradient_rank",
    "NeuralCollapseMonitor": "rank_callbacks.callbacks.neural_collapse",
    "RankCollapseMonitor": "rank_callbacks.callbacks.rank_collapse",
    "WeightRankMonitor": "rank_callbacks.callbacks.weight_rank",
    "gradient_rank_bounds": "rank_callbacks.gradient_bounds",
    "log_spaced": "rank_callbacks.callbacks.schedule",
}


def __getattr__(name: str) -> Any:  # ruff: ignore[any-type]
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
