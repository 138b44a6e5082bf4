"""How the rank of a trained network falls with depth, in one table."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from rank_callbacks.functional.evaluation import check_inputs, evaluated
from rank_callbacks.functional.jacobian import JacobianSpectrum, jacobian_singular_values
from rank_callbacks.functional.network import (
    DeficitTable,
    classification_dimension,
    independence_deficit,
    perturbed_pca_dimension,
)
from rank_callbacks.matrices import Layers
from rank_callbacks.matrices.features import PENULTIMATE, FeatureCapture, depth_layers, feature_layers, find_classifier
from rank_callbacks.matrices.layer_outputs import layer_outputs
from rank_callbacks.matrices.sharded import check_whole

__all__ = ["ClassifierRank", "LayerRank", "NetworkRanks", "network_ranks"]

# Inputs of so many numbers have their whole Jacobian computed; larger ones are probed.
_WHOLE_UP_TO = 1024
_PROBES = 64
_BATCH = 128
_SHARE = 0.95


class LayerRank(NamedTuple):
    """Ranks of the map from the input to the output of a layer, means over inputs.

    Args:
        layer: Name of the layer.
        numbers: How many numbers it gives of one input, D.
        jacobian_rank: Number of singular values of the Jacobian above rtol·σ₁.
        is_lower_bound: Whether the Jacobian was probed, and its rank may be greater.
        perturbed_pca_dimension: Dimensions that the features of a shaken input have.
    """

    layer: str
    numbers: int
    jacobian_rank: float
    is_lower_bound: bool
    perturbed_pca_dimension: float


class ClassifierRank(NamedTuple):
    """How many directions of its inputs a classifier needs.

    Args:
        dimension: Principal components with which it is right 0.95 times as often as with all.
        features: How many numbers it is given, D.
        accuracy: Share of the inputs on which it is right with all.
    """

    dimension: float
    features: int
    accuracy: float


class NetworkRanks(NamedTuple):
    """What ``network_ranks`` found; printed, tables.

    Args:
        layers: A row a layer, in the order of the model.
        inputs: On how many inputs they were measured.
        rtol: Tolerance of the Jacobian's rank.
        classifier: Of the classifier; None without labels.
        deficit: How well a few logits tell each class's own; None without labels.
    """

    layers: tuple[LayerRank, ...]
    inputs: int
    rtol: float
    classifier: ClassifierRank | None
    deficit: DeficitTable | None

    def __str__(self) -> str:
        parts = [_table(self.layers), f"Means over {self.inputs} inputs; rank counts singular values above {self.rtol:g}·σ₁."]
        if self.classifier is not None:
            dimension, features, accuracy = self.classifier
            parts += ["", f"{dimension:g} of {features} dimensions give {_SHARE:g} of the accuracy {accuracy:.3f}."]
        return "\n".join(parts if self.deficit is None else [*parts, "", str(self.deficit)])


def network_ranks(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor | None = None,
    layers: Layers = None,
    *,
    samples: int = 4,
    rtol: float = 1e-3,
    probes: int | None = None,
    noise: float = 1e-3,
    copies: int = 256,
    num_classes: int | None = None,
    classifier: str | None = None,
) -> NetworkRanks:
    """The four quantities of Feng et al. for a trained network: two of each layer, and with labels two of the classifier.

    The Jacobian's rank and the perturbed PCA dimension are measured at the first few inputs, in float64 and in the type of the
    inputs; classification dimension and independence deficit on all of them. The model runs in eval mode on copies of its
    parameters and buffers: these, its modes, gradients and the global random state stay as they are.

    Costs: as many products with the Jacobian as an input has numbers, each some two forward passes, or with probes some 200
    and a layer; and ``copies`` forward passes, at a time of all features of which are held.

    Args:
        model: Any module, called as ``model(inputs)``.
        inputs: Shape ``(n, ...)``, of floating type, on the model's device.
        labels: Classes 0..K−1 of the inputs, of shape ``(n,)``; needs scikit-learn.
        layers: Whose outputs: names of modules or patterns, see ``rank_callbacks.matrices.select``. By default all along the
            depth of the model, blocks whole.
        samples: How many inputs the two of each layer are measured at.
        rtol: Tolerance of the Jacobian's rank, relative to its largest singular value.
        probes: How many directions of the Jacobian are probed, for a lower bound of its rank. By default all are known of an
            input of up to 1,024 numbers, and 64 of a larger one.
        noise: Standard deviation of the perturbation, in the units of the inputs.
        copies: Of each input that is perturbed; one more than the largest dimension that can be found.
        num_classes: K; by default one more than the largest label.
        classifier: Name of the linear layer that gives the logits; by default the last with K outputs.

    Returns:
        The report.

    Raises:
        ImportError: If there are labels and scikit-learn is absent.
        ValueError: If a number is out of range, ``inputs`` are empty or integers, ``layers`` matches nothing or a layer that
            does not run, no classifier is found, or the model is sharded.

    Example:
        >>> model = nn.Sequential(nn.Linear(20, 64), nn.Linear(64, 6), nn.Linear(6, 64))
        >>> print(network_ranks(model, torch.randn(8, 20)))
        layer  numbers  Jacobian rank  PCA dimension
        0           64           20.0           20.0
        1            6            6.0            6.0
        2           64            6.0            6.0
        Means over 4 inputs; rank counts singular values above 0.001·σ₁.

    Reference:
        Rank diminishing in deep neural networks (Feng et al., 2022), https://arxiv.org/abs/2206.06072
    """
    check_inputs(inputs)
    check_whole(model, "network_ranks")
    if samples < 1:
        raise ValueError(f"Expected samples to be from 1, got {samples}.")
    first = inputs[:samples]
    if probes is None and first[0].numel() > _WHOLE_UP_TO:
        probes = _PROBES
    devices = [inputs.device] if inputs.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        outputs = _outputs(model, first[:1], layers)
        spectra = cast("dict[str, JacobianSpectrum]", jacobian_singular_values(outputs, first, probes))
        dimensions = cast("dict[str, Tensor]", perturbed_pca_dimension(outputs, first, noise, copies))
        rows = tuple(_row(name, spectrum, dimensions[name], rtol) for name, spectrum in spectra.items())
        if labels is None:
            return NetworkRanks(rows, len(first), rtol, None, None)
        head = find_classifier(model, int(labels.max()) + 1 if num_classes is None else num_classes, classifier)
        return NetworkRanks(rows, len(first), rtol, *_of_classifier(model, head, inputs, labels.flatten()))


def _outputs(model: nn.Module, example: Tensor, layers: Layers) -> nn.Module:
    chosen = depth_layers(model) if layers is None else feature_layers(model, layers)
    with torch.no_grad(), evaluated(layer_outputs(model, chosen), example.dtype) as outputs:
        running = outputs(example)
    idle = [name for name in chosen if name not in running]
    if idle and layers is not None:
        raise ValueError(
            f"Expected layers that run and give a tensor, got {', '.join(idle)}. Choose from {', '.join(map(str, running))}."
        )
    return layer_outputs(model, {name: module for name, module in chosen.items() if name in running})


def _row(name: str, spectrum: JacobianSpectrum, dimensions: Tensor, rtol: float) -> LayerRank:
    probed = spectrum.singular_values.shape[1] < min(spectrum.shape)
    rank = spectrum.rank(rtol).mean().item()
    return LayerRank(name, spectrum.shape[0], rank, probed, dimensions.mean().item())


def _of_classifier(model: nn.Module, head: nn.Linear, inputs: Tensor, labels: Tensor) -> tuple[ClassifierRank, DeficitTable]:
    features, weight, bias = _classified(model, head, inputs)
    logits = nn.functional.linear(features, weight, bias)
    dimension = classification_dimension(features, labels, weight, bias, _SHARE).item()
    accuracy = (logits.argmax(1) == labels.to(logits.device)).double().mean().item()
    return ClassifierRank(dimension, features.shape[1], accuracy), independence_deficit(logits, labels)


def _classified(model: nn.Module, head: nn.Linear, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Inputs of the classifier, a row a label, its weight and its bias, float64."""
    capture = FeatureCapture(model, {}, head)
    features = []
    try:
        with torch.no_grad(), evaluated(layer_outputs(model, {"logits": head}), inputs.dtype) as outputs:
            for batch in inputs.split(_BATCH):
                outputs(batch)
                features.append(capture.take()[0][PENULTIMATE].double().flatten(0, -2))
            # In eval mode: in training, reading a spectrally normalised weight changes it.
            weight, bias = head.weight.double(), None if head.bias is None else head.bias.double()
    finally:
        capture.close()
    return torch.cat(features), weight, bias


def _table(rows: tuple[LayerRank, ...]) -> str:
    cells = [("layer", "numbers", "Jacobian rank", "PCA dimension")]
    cells += [
        (
            row.layer,
            str(row.numbers),
            f"{'≥ ' if row.is_lower_bound else ''}{row.jacobian_rank:.1f}",
            f"{row.perturbed_pca_dimension:.1f}",
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    return "\n".join(
        f"{layer:<{widths[0]}}  {numbers:>{widths[1]}}  {rank:>{widths[2]}}  {dimension:>{widths[3]}}"
        for layer, numbers, rank, dimension in cells
    )
