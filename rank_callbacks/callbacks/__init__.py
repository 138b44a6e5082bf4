"""Monitors: Lightning callbacks that measure ranks while a network trains."""

from rank_callbacks.callbacks.gradient_rank import GradientRankMonitor
from rank_callbacks.callbacks.schedule import Schedule, every, log_spaced
from rank_callbacks.callbacks.weight_rank import WeightRankMonitor

__all__ = ["GradientRankMonitor", "Schedule", "WeightRankMonitor", "every", "log_spaced"]
