"""Readings in, plotly figures out."""

from rank_callbacks.figures.depth_profile import depth_profile

__all__ = ["depth_profile"]
