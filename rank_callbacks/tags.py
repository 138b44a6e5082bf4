"""The name of one reading: what was measured, how, and where."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Tag"]


class Tag(NamedTuple):
    """The name of one reading, written ``group/measure/layer`` in every logger.

    Args:
        group: What has the rank: ``weight_rank``, ``gradient_rank``, ...
        measure: How it was measured: ``effective_rank``, ``numerical_rank_1e-2``, ...
        layer: The qualified name of the layer's matrix, or ``mean_over_layers``, ``min_over_layers``, ``max_over_layers``.

    Example:
        >>> str(Tag("weight_rank", "effective_rank", "encoder.0.weight"))
        'weight_rank/effective_rank/encoder.0.weight'
        >>> Tag.parse("weight_rank/effective_rank/encoder.0.weight").measure
        'effective_rank'
    """

    group: str
    measure: str
    layer: str

    def __str__(self) -> str:
        return "/".join(self)

    @classmethod
    def parse(cls, text: str) -> Tag:
        """The tag that ``text`` is the writing of.

        Raises:
            ValueError: If ``text`` does not have three parts.
        """
        parts = text.split("/", maxsplit=2)
        if len(parts) != 3 or not all(parts):
            raise ValueError(f"Expected a tag of the form 'group/measure/layer', got {text!r}.")
        return cls(*parts)
