"""Watch the rank of weights, gradients and features while a network trains."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rank_callbacks.callbacks.dashboard import RankDashboard
    from rank_callbacks.callbacks.feature_rank import FeatureRankMonitor
    from rank_callbacks.callbacks.gradient_rank import GradientRankMonitor
    from rank_callbacks.callbacks.network_rank import NetworkRankMonitor
    from rank_callbacks.callbacks.neural_collapse import NeuralCollapseMonitor
    from rank_callbacks.callbacks.observer import RankObserver
    from rank_callbacks.callbacks.rank_collapse import RankCollapseMonitor
    from rank_callbacks.callbacks.schedule import log_spaced
    from rank_callbacks.callbacks.truncation import TruncationMonitor
    from rank_callbacks.callbacks.weight_rank import WeightRankMonitor
    from rank_callbacks.gradient_bounds import gradient_rank_bounds
    from rank_callbacks.inspection import inspect_checkpoint
    from rank_callbacks.network_report import network_ranks
    from rank_callbacks.truncation import truncate
    from rank_callbacks.wandb_view import wandb_workspace

__version__ = "0.1.0"
__all__ = [
    "FeatureRankMonitor",
    "GradientRankMonitor",
    "NetworkRankMonitor",
    "NeuralCollapseMonitor",
    "RankCollapseMonitor",
    "RankDashboard",
    "RankObserver",
    "TruncationMonitor",
    "WeightRankMonitor",
    "gradient_rank_bounds",
    "inspect_checkpoint",
    "log_spaced",
    "network_ranks",
    "truncate",
    "wandb_workspace",
]

# Loaded on first use: TensorBoard imports the package to find its plugins, and must not wait for torch.
_HOMES = {
    "FeatureRankMonitor": "rank_callbacks.callbacks.feature_rank",
    "GradientRankMonitor": "rank_callbacks.callbacks.gradient_rank",
    "NetworkRankMonitor": "rank_callbacks.callbacks.network_rank",
    "NeuralCollapseMonitor": "rank_callbacks.callbacks.neural_collapse",
    "RankCollapseMonitor": "rank_callbacks.callbacks.rank_collapse",
    "RankDashboard": "rank_callbacks.callbacks.dashboard",
    "RankObserver": "rank_callbacks.callbacks.observer",
    "TruncationMonitor": "rank_callbacks.callbacks.truncation",
    "WeightRankMonitor": "rank_callbacks.callbacks.weight_rank",
    "gradient_rank_bounds": "rank_callbacks.gradient_bounds",
    "inspect_checkpoint": "rank_callbacks.inspection",
    "log_spaced": "rank_callbacks.callbacks.schedule",
    "network_ranks": "rank_callbacks.network_report",
    "truncate": "rank_callbacks.truncation",
    "wandb_workspace": "rank_callbacks.wandb_view",
}


def __getattr__(name: str) -> Any:  # ruff: ignore[any-type]
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
