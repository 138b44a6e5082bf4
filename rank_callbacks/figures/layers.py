"""Layers in the order of the network, under names that fit an axis."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rank_callbacks.figures.looks import plain
from rank_callbacks.figures.thinning import thinned
from rank_callbacks.rows import Row

__all__ = ["in_order", "layer_ticks", "short_names", "shortened"]

_DEPTH = "depth"
# More labels than these run into one another on a screen.
_MOST_TICKS = 30
_LONGEST = 28


def in_order(layers: Iterable[str], rows: Iterable[Row], group: str, places: Mapping[str, float] | None = None) -> list[str]:
    """Layers from input to output.

    They stand where readings ``<group>/depth/<layer>`` place them, which ``FeatureRankMonitor`` and ``NetworkRankMonitor``
    log, of the module for a parameter; where these do not know all of the layers, by the depths of another group, then by
    ``places``. If none knows them all, whichever knows most decides, and the rest follow by name: ``block.2`` before
    ``block.10``.

    Args:
        layers: Their names, in any order.
        rows: The long table, with readings of depth or without.
        group: Whose depths come first.
        places: Where each stands, if that is known from elsewhere.
    """
    names = list(dict.fromkeys(layers))
    depths = _depths(rows)
    own = depths.pop(group, {})
    sources = [{name: _depth(name, source) for name in names} for source in (own, *depths.values())]
    sources.append({name: (places or {}).get(name) for name in names})
    best = max(sources, key=lambda source: sum(place is not None for place in source.values()))
    return sorted(names, key=lambda name: (best[name] is None, best[name] or 0, _natural(name)))


def _depths(rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """Depth by group, then by layer; of the first run that has it."""
    depths: dict[str, dict[str, float]] = {}
    for _, _, tag, value in rows:
        if tag.measure == _DEPTH:
            depths.setdefault(tag.group, {}).setdefault(tag.layer, value)
    return depths


def _depth(name: str, depths: Mapping[str, float]) -> float | None:
    """That of the layer, or of the innermost module that holds it."""
    while name not in depths and "." in name:
        name = name.rpartition(".")[0]
    return depths.get(name)


def _natural(name: str) -> list[tuple[bool, int, str]]:
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", name)]


def short_names(layers: Sequence[str]) -> list[str]:
    """The names without the parts that all begin and end with, and without the middle of what is still long.

    Example:
        >>> short_names(["net.encoder.0.weight", "net.encoder.1.weight", "net.head.weight"])
        ['encoder.0', 'encoder.1', 'head']
    """
    parts = [layer.split(".") for layer in layers]
    fewest = min(map(len, parts), default=1) - 1  # something is left of each
    start = next((i for i in range(fewest) if len({name[i] for name in parts}) > 1), fewest) if len(parts) > 1 else 0
    rest = fewest - start
    end = next((i for i in range(rest) if len({name[-1 - i] for name in parts}) > 1), rest) if len(parts) > 1 else 0
    return [shortened(".".join(name[start : len(name) - end])) for name in parts]


def shortened(name: str) -> str:
    """A name without its middle where it is long."""
    half = _LONGEST // 2
    return name if len(name) <= _LONGEST else f"{name[:half]}…{name[-half:]}"


def layer_ticks(layers: Sequence[str]) -> dict[str, Any]:
    """Labels of an axis on which layers stand at 0, 1, 2, …: all of them, or some where there are many."""
    labels = [plain(name) for name in short_names(layers)]
    shown = thinned(range(len(layers)), _MOST_TICKS)
    return {"tickmode": "array", "tickvals": shown, "ticktext": [labels[place] for place in shown]}
