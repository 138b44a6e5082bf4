"""What a reader of the Ranks tab can choose from: views, runs, measures, layers, hyperparameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rank_callbacks.figures.selection import OVER_LAYERS
from rank_callbacks.tags import Tag
from rank_callbacks.tensorboard_plugin.listing import Listing, natural_order

__all__ = ["EMPTY", "choices"]

EMPTY = (
    "No rank has been logged here yet. Add WeightRankMonitor, GradientRankMonitor, FeatureRankMonitor, NeuralCollapseMonitor, "
    "RankCollapseMonitor or NetworkRankMonitor to the callbacks of your Trainer, with a TensorBoardLogger, and press reload."
)
# Seconds of the monitors themselves, and where layers stand: no ranks.
_NO_CHARTS = {"monitor"}
_NO_MEASURES = {"depth"}
# The first of these that was logged is what the tab opens with.
_GROUPS_FIRST = ("feature_rank", "weight_rank", "gradient_rank")
_MEASURES_FIRST = ("effective_rank", "nc1_pinv", "relative_distance_to_rank_k")


def choices(listing: Listing) -> dict[str, Any]:
    """All that there is to choose from, as plain data for the page.

    Args:
        listing: Names of what was logged.
    """
    runs = listing.runs
    groups = _groups(tag for tags in listing.scalars.values() for tag in tags)
    return {
        "runs": runs,
        "groups": groups,
        "spectra": _spectra(listing),
        "hyperparameters": sorted({name for values in listing.hyperparameters.values() for name in values}),
        "accuracies": _accuracies(listing),
        "defaults": _defaults(groups),
        "notes": listing.notes,
        "empty": None if runs else EMPTY,
    }


def _groups(tags: Iterable[Tag]) -> dict[str, dict[str, list[str]]]:
    """Measures and layers by group."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for tag in tags:
        if tag.group not in _NO_CHARTS and tag.measure not in _NO_MEASURES:
            measures, layers = found.setdefault(tag.group, (set(), set()))
            measures.add(tag.measure)
            layers |= {tag.layer} - OVER_LAYERS
    return {
        group: {
            "measures": sorted(measures, key=lambda name: (_rank_of(name, _MEASURES_FIRST), name)),
            "layers": sorted(layers, key=natural_order),
        }
        for group, (measures, layers) in sorted(found.items(), key=lambda item: (_rank_of(item[0], _GROUPS_FIRST), item[0]))
    }


def _spectra(listing: Listing) -> dict[str, dict[str, list[str]]]:
    """Layers by group and kind of spectrum, in the order of their reports."""
    orders: dict[str, dict[str, dict[str, int]]] = {}
    for tags in listing.spectra.values():
        for tag, entry in tags.items():
            orders.setdefault(tag.group, {}).setdefault(tag.measure, {}).setdefault(tag.layer, entry.order)
    return {
        group: {
            kind: sorted(layers, key=lambda layer: (layers[layer], natural_order(layer))) for kind, layers in kinds.items()
        }
        for group, kinds in sorted(orders.items(), key=lambda item: (_rank_of(item[0], _GROUPS_FIRST), item[0]))
    }


def _accuracies(listing: Listing) -> list[str]:
    """Scalars of the user, those that sound like an accuracy first; where none does, first an empty text for none."""
    names = {name for scalars in listing.others.values() for name in scalars}
    found = sorted(names, key=lambda name: ("acc" not in name.lower(), name))
    return ["", *found] if found and "acc" not in found[0].lower() else found


def _defaults(groups: dict[str, dict[str, list[str]]]) -> dict[str, str]:
    group = next(iter(groups), "")
    return {"group": group, "measure": groups[group]["measures"][0] if group else ""}


def _rank_of(name: str, first: tuple[str, ...]) -> int:
    return first.index(name) if name in first else len(first)
