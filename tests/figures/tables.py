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


def marks(layers: int, age: int, step: int, run: str = "run", group: str = "weight_rank") -> list[Row]:
    """What a run says of a report: how many layers are approximate, and how old the oldest spectrum is."""
    said = {"approximate_layers": layers, "spectrum_age": age}
    return [reading("monitor", measure, group, value, run, step) for measure, value in said.items()]


def in_turn(run: str = "run", measure: str = "effective_rank") -> list[Row]:
    """Three layers at four reports: all at first, one at each of the next, all with the last, which is marked as nothing."""
    values = {0: {"a": 9.0, "b": 6.0, "c": 3.0}, 50: {"a": 8.0}, 100: {"b": 5.0}, 150: {"a": 7.0, "b": 4.0, "c": 2.0}}
    rows = readings(values, run, measure, "weight_rank")
    rows += readings({step: {"mean_over_layers": 5.0} for step in values}, run, measure, "weight_rank")
    return rows + marks(0, 0, 0, run) + marks(2, 50, 50, run) + marks(2, 100, 100, run)
