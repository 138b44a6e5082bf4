"""Runs as a loader gives them, made of numbers."""

from collections.abc import Mapping, Sequence

from rank_callbacks.compare.run import Run, Spectra
from rank_callbacks.rows import Row
from rank_callbacks.tags import Tag

LAYERS = ("net.a.weight", "net.b.weight")


def made_run(
    name: str,
    decay: float,
    readings: Mapping[tuple[str, str, str], float],
    accuracy: float | None = 0.9,
    notes: Sequence[str] = (),
) -> Run:
    """A run with one report, at step 9."""
    rows = [Row(name, 9, Tag(*tag), value) for tag, value in readings.items()]
    metrics = {} if accuracy is None else {"val_accuracy": [(0, 0.1), (9, accuracy)]}
    spectra = {Tag("weight_rank", "spectrum", LAYERS[0]): Spectra({0: [3.0, 2.0], 9: [3.0, 1.0]}, (2, 2))}
    return Run(name, "csv", {"weight_decay": decay}, rows, metrics, spectra, notes)


def ranks(*of_layers: float, layers: Sequence[str] = LAYERS) -> dict[tuple[str, str, str], float]:
    """Effective ranks and their mean over layers."""
    readings = {("weight_rank", "effective_rank", layer): value for layer, value in zip(layers, of_layers, strict=True)}
    return readings | {("weight_rank", "effective_rank", "mean_over_layers"): sum(of_layers) / len(of_layers)}


def distances(
    decay: float, variations: Sequence[float], far: Sequence[float], layers: Sequence[str] = LAYERS
) -> dict[tuple[str, str, str], float]:
    """What RankCollapseMonitor reads of each layer, of norm 2."""
    readings: dict[tuple[str, str, str], float] = {}
    for layer, variation, distance in zip(layers, variations, far, strict=True):
        values = {"tcv_ratio_input": variation, "relative_distance_to_rank_k": distance, "weight_decay": decay}
        values |= {"distance_to_rank_k": 2 * distance, "certificate_joint": 2 * distance + 1}
        readings |= {("rank_collapse", measure, layer): value for measure, value in values.items()}
    return readings


def sweep_of(decays: Sequence[float] = (0.0, 0.001, 0.01)) -> list[Run]:
    """A sweep in which rank falls with weight decay, the distance in proportion to TCV/λ, and accuracy a little."""
    runs = []
    for place, decay in enumerate(decays):
        far = [0.9, 0.8] if decay == 0 else [0.0005 * 0.5 / decay, 0.0005 * 0.2 / decay]
        readings = ranks(40.0 / (place + 1), 20.0 / (place + 1)) | distances(decay, (0.5, 0.2), far)
        runs.append(made_run(f"wd={decay:g}", decay, readings, 0.95 - 0.004 * place))
    return runs
