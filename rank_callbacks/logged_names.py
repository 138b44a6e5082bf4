"""Names as logs hold them: a tag with its logger's prefix, and their order."""

from __future__ import annotations

import re
from functools import lru_cache

from rank_callbacks.catalog import find_measure
from rank_callbacks.collapse_catalog import NEURAL_COLLAPSE, RANK_COLLAPSE
from rank_callbacks.feature_catalog import FEATURE_RANK, NETWORK_RANK
from rank_callbacks.tags import Tag

__all__ = ["natural_order", "prefix_and_tag"]

_GROUPS = (
    "weight_rank",
    "weight_change_rank",
    "gradient_rank",
    "update_rank",
    "moment_rank",
    "feature_rank",
    "network_rank",
    "neural_collapse",
    "rank_collapse",
    "truncation",
    "monitor",
)
_OF_GRADIENTS = {"bound", "utilization", "input_rank", "delta_rank", "class_rank"}
_OF_GROUPS_BY_ANY_NAME = {*NEURAL_COLLAPSE, *RANK_COLLAPSE, *FEATURE_RANK, *NETWORK_RANK, *_OF_GRADIENTS}


def natural_order(text: str) -> list[tuple[int, float, str]]:
    """A key that sorts names as people do: ``layer.2`` before ``layer.10``, ``lr=0.05`` before ``lr=0.5``.

    Example:
        >>> sorted(["wd=1e-2", "wd=5e-4", "wd=0"], key=natural_order)
        ['wd=0', 'wd=5e-4', 'wd=1e-2']
    """
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", text)
    return [(1, float(part), "") if place % 2 else (0, 0.0, part) for place, part in enumerate(parts)]


# A sweep has the same names in each of its runs.
@lru_cache(maxsize=200_000)
def prefix_and_tag(name: str) -> tuple[str, Tag | None]:
    """A logger's prefix, with its hyphen, and our tag; no tag where ``name`` is not of a monitor.

    Monitors let their user name the group, so that the measure must tell.

    Example:
        >>> prefix_and_tag("mine-weight_rank/stable_rank/head.weight")
        ('mine-', Tag(group='weight_rank', measure='stable_rank', layer='head.weight'))
        >>> prefix_and_tag("validation/accuracy/top1")
        ('', None)
    """
    try:
        tag = Tag.parse(name)
    except ValueError:
        return "", None
    for group in _GROUPS:
        if tag.group == group:
            return "", tag
        if tag.group.endswith(f"-{group}"):
            return tag.group.removesuffix(group), tag._replace(group=group)
    return "", tag if _is_measure(tag.measure) else None


def _is_measure(name: str) -> bool:
    if name in _OF_GROUPS_BY_ANY_NAME or name.startswith("subspace_overlap_"):
        return True
    try:
        return bool(find_measure(name.removeprefix("centered_")))
    except ValueError:
        return False
