"""Readings in, charts out: pure functions from the long table to plotly figures as plain data.

A figure is a dict of ``"data"``, ``"layout"`` and, where it moves, ``"frames"`` that is valid JSON as it is, and that
``plotly.graph_objects.Figure`` takes. Nothing here imports plotly.
"""

from collections.abc import Callable
from typing import Any

from rank_callbacks.figures.cadence import Cadence, cadences
from rank_callbacks.figures.collapse import collapse
from rank_callbacks.figures.depth_profile import depth_profile
from rank_callbacks.figures.explanation import explain, how_to_read
from rank_callbacks.figures.gradient_bound import gradient_bound
from rank_callbacks.figures.health import Finding, findings
from rank_callbacks.figures.heatmap import heatmap
from rank_callbacks.figures.looks import Figure
from rank_callbacks.figures.spectrum import spectrum
from rank_callbacks.figures.sweep import sweep

__all__ = [
    "CHARTS",
    "Cadence",
    "Figure",
    "Finding",
    "cadences",
    "collapse",
    "depth_profile",
    "explain",
    "findings",
    "gradient_bound",
    "heatmap",
    "how_to_read",
    "spectrum",
    "sweep",
]

# By name: each is a view of the Ranks tab, and has a sentence in ``how_to_read``.
CHARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "depth_profile": depth_profile,
    "heatmap": heatmap,
    "spectrum": spectrum,
    "gradient_bound": gradient_bound,
    "collapse": collapse,
    "sweep": sweep,
}
