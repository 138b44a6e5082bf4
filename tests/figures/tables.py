"""Long tables of made-up readings."""

from rank_callbacks.rows import Row
from rank_callbacks.tags import Tag


def readings(
    values: dict[int, dict[str, float]], run: str = "run", measure: str = "effective_rank", group: str = "feature_rank"
) -> list[Row]:
    """Of a run, from values by step and layer."""
    return [Row(run, step, Tag(group, measure, layer), value) for step, row in values.items() for layer, value in row.items()]


def depths(*layers: str, group: str = "feature_rank") -> list[Row]:
    """The order of layers, as another run has logged it."""
    return readings({0: {layer: float(place) for place, layer in enumerate(layers)}}, "another", "depth", group)


def reading(group: str, measure: str, layer: str, value: float, run: str = "run", step: int = 0) -> Row:
    return Row(run, step, Tag(group, measure, layer), value)
