"""A measure in the words of the catalogues, and how to read a chart of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from rank_callbacks.catalog import find_measure
from rank_callbacks.collapse_catalog import NEURAL_COLLAPSE, RANK_COLLAPSE, Reading
from rank_callbacks.feature_catalog import FEATURE_RANK, NETWORK_RANK, TRUNCATION
from rank_callbacks.figures.looks import plain

__all__ = ["Explanation", "explain", "hover_help", "how_to_read"]


class Explanation(NamedTuple):
    """What a measure is.

    Args:
        title: One sentence.
        formula: In the notation of docs/measures.md.
        bounds: The interval of its values.
        how_to_read: What a high or a falling value means.
    """

    title: str
    formula: str
    bounds: str
    how_to_read: str


# What GradientRankMonitor reads beside the measures of a spectrum.
_GRADIENT_RANK = {
    "bound": Explanation(
        "The rank that the gradient cannot exceed.",
        "min over what binds it: batch, widths, ranks of inputs and of output gradients",
        "[0, min(m, n)]",
        "Low because of the architecture or the batch, not of training.",
    ),
    "utilization": Explanation(
        "Share of its bound that the rank of the gradient reaches.",
        "#{i : s_i > max(m, n)·ε·s_1} / bound",
        "[0, 1]",
        "Near 1 early in training. Far below, training and not the architecture keeps directions out.",
    ),
    "input_rank": Explanation(
        "Rank of the layer's inputs.", "rank Z", "[0, min(m, n)]", "One of the two that bind a gradient."
    ),
    "delta_rank": Explanation(
        "Rank of the gradients with respect to the layer's output.", "rank Δ", "[0, min(m, n)]", "The other that binds it."
    ),
    "subspace_overlap": Explanation(
        "How much the leading singular vectors of the gradient are those of the last report.",
        "‖UᵀU'‖_F² / k",
        "[0, 1]",
        "1 if they span the same: a projection found then still serves. At k/m it is as between random subspaces.",
    ),
    "class_rank": Explanation(
        "Rank of the gradient of one class, mean over classes.",
        "mean_k rank G_k",
        "[0, min(m, n)]",
        "Low: samples of a class agree.",
    ),
}
# What each monitor says of its own reports.
_MONITOR = {
    "seconds": Explanation(
        "Wall time that a report took.", "seconds", "[0, ∞)", "High: read fewer layers or cheaper measures, or less often."
    ),
    "share_of_training": Explanation(
        "Wall time that the monitor has taken so far, over that since training began.",
        "seconds of the monitor / seconds",
        "[0, 1]",
        "Under 0.01 it costs next to nothing.",
    ),
    "every_n_steps": Explanation(
        "Steps between reports that the monitor has chosen.",
        "least of 50, 100, 200, 500, … that max_overhead affords",
        "[50, ∞)",
        "High: a report is dear beside a step. Gaps between readings are then meant.",
    ),
    "approximate_layers": Explanation(
        "Layers that the report read from leading singular values alone.",
        "#{layers without a whole spectrum}",
        "[0, layers]",
        "Of these layers stable rank and distance to rank K are upper bounds, spectral norm and energy at rank K lower ones.",
    ),
    "spectrum_age": Explanation(
        "Steps since the oldest whole spectrum that enters the means over layers was read.",
        "step − least step of a layer's last whole spectrum",
        "[0, steps]",
        "0: all is of this report. High: means of measures that need whole spectra, effective rank among them, lag behind.",
    ),
}
_TABLES: dict[str, Mapping[str, Explanation | Reading]] = {
    "neural_collapse": NEURAL_COLLAPSE,
    "rank_collapse": RANK_COLLAPSE,
    "feature_rank": FEATURE_RANK,
    "network_rank": NETWORK_RANK,
    "gradient_rank": _GRADIENT_RANK,
    "truncation": TRUNCATION,
    "monitor": _MONITOR,
}
_ANY = {name: row for table in _TABLES.values() for name, row in table.items()}
_OF_CLASSES = re.compile(r"_of_class_\d+$|_mean_over_classes$|_min_over_classes$")
_SUFFIX = re.compile(r"_[^_]+$")


def explain(group: str, measure: str) -> Explanation | None:
    """What a measure is; None for one that this version does not know.

    Args:
        group: First part of its tags. A name that no monitor has by default may hold a measure of any of them.
        measure: Its name, with a parameter or without.

    Example:
        >>> explain("weight_rank", "stable_rank").formula
        'Σ s_i² / s_1²'
    """
    name = _OF_CLASSES.sub("", measure)
    # A name may stand in several tables: the group's own row first, then the measure of any spectrum.
    return _row(_TABLES.get(group, {}), name) or _of_spectrum(name) or _row(_ANY, name)


def _row(table: Mapping[str, Explanation | Reading], name: str) -> Explanation | None:
    row = table.get(name) or table.get(_SUFFIX.sub("", name))
    return row and Explanation(row.title, row.formula, row.bounds, row.how_to_read)


def _of_spectrum(name: str) -> Explanation | None:
    centered = name.startswith("centered_")
    try:
        row, _ = find_measure(name.removeprefix("centered_"))
    except ValueError:
        return None
    of_what = " Of features about their mean." if centered else ""
    return Explanation(row.title + of_what, row.formula, row.bounds, row.how_to_read)


def hover_help(group: str, measure: str) -> str:
    """Title, formula and range of a measure in two lines of a hover text; nothing for one that is unknown."""
    about = explain(group, measure)
    return "" if about is None else f"<br><i>{plain(about.title)}</i><br>{plain(about.formula)}, in {plain(about.bounds)}"


_VIEWS = {
    "depth_profile": (
        "Each line is a run, layers from input to output; move the slider through training. A line drops where a "
        "layer, and those after it, hold fewer directions; it sinks with the steps where training gives directions up. A "
        "hollow mark was not read for its run's last report: hover tells when."
    ),
    "heatmap": (
        "A row is a layer, a column a report; colour is the value relative to the layer's largest. A row that turns dark has "
        "lost rank since its best, and the column where it turns tells when; rows that stay bright are healthy. A pale cell "
        "was not read for its report: it is the reading before."
    ),
    "spectrum": (
        "Singular values of one layer, now in bold and earlier ones faint. A knee at rank K that deepens is collapse to rank "
        "K; values above the Marchenko-Pastur edge are more than noise of that size; those below the tolerance do not count."
    ),
    "gradient_bound": (
        "A pale bar is the rank that the gradient could have, the full one what it has, the diamond its effective rank. A "
        "full bar that fills the pale one is healthy; far below it, training and not the architecture keeps directions out."
    ),
    "collapse": (
        "Each mark is a layer of a run; the further left and down, the more it has collapsed to rank K, and with weight decay "
        "marks should move there. Ticks above a mark are bounds that it cannot cross; above 1 a bound says nothing."
    ),
    "sweep": (
        "Each mark is the runs of one setting, its bar their range. Where the rank falls and the accuracy stays, the lost "
        "directions were not needed; where both fall, it is too much. NC1 near 0 is neural collapse. A hollow mark was not "
        "read for its run's last report."
    ),
    "layer_sweep": (
        "Each mark is the mean of the runs of one setting. Where the rank falls and the accuracy stays, the lost directions "
        "were not needed; where both fall, it is too much. NC1 near 0 is neural collapse. A hollow mark was not read for its "
        "run's last report."
    ),
    "findings": "What deserves a look, worst first: each once, with run, layer and step. An empty list is healthy.",
}
# Of the other charts the measures are fixed.
_OF_ANY_MEASURE = {"depth_profile", "heatmap", "sweep", "layer_sweep"}
_GROUPS = {
    "weight_rank": "With weight decay weights fall towards the number of classes; that is healthy while the accuracy stays.",
    "gradient_rank": "The rank of a gradient cannot exceed what batch and widths allow: compare it with its bound.",
    "feature_rank": (
        "Features lose rank with depth, in a classifier towards the number of classes; a sudden fall in time is not healthy."
    ),
    "network_rank": "The rank of the map from the input falls along any network.",
    "rank_collapse": "0 is a weight of rank K; it says nothing of accuracy, so read that beside it.",
    "truncation": "Near the accuracy of the network as trained, the directions below the tolerance are not needed.",
    "neural_collapse": "Layers nearest to the output collapse first, late in training.",
}


def how_to_read(view: str, group: str | None = None, measure: str | None = None) -> str:
    """How to read a chart: what a falling curve means, what is healthy and what is not.

    Args:
        view: Name of the chart.
        group: Of what it shows, for charts of any group.
        measure: Likewise; what has no row in the catalogues is passed over.

    Raises:
        ValueError: If there is no such chart.

    Example:
        >>> how_to_read("findings").split(":")[0]
        'What deserves a look, worst first'
    """
    if view not in _VIEWS:
        raise ValueError(f"Expected the name of a chart, got {view!r}. Choose from {', '.join(_VIEWS)}.")
    if view not in _OF_ANY_MEASURE:
        return _VIEWS[view]
    about = explain(group, measure) if group and measure else None
    parts = (_VIEWS[view], _GROUPS.get(group or ""), about.how_to_read if about else None)
    return " ".join(part for part in parts if part)
