from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torchmetrics.classification import MulticlassAccuracy

from rank_callbacks.matrices.features import (
    FeatureCapture,
    OutputHooks,
    classifiers,
    depth_layers,
    feature_layers,
    feature_rows,
    find_classifier,
)


def test_a_row_a_sample() -> None:
    assert feature_rows(torch.arange(3.0), 3, "mean").tolist() == [[0], [1], [2]]
    matrix = torch.randn(3, 5)
    for maps in ("mean", "positions", "projection", "flat"):
        assert torch.equal(feature_rows(matrix, 3, maps), matrix)


@pytest.mark.parametrize("sides", [(4,), (2, 3), (2, 3, 2)], ids=str)
def test_feature_maps(sides: tuple[int, ...]) -> None:
    """(B, C, *sides); of three dimensions, tokens (B, T, D)."""
    features = torch.randn(3, 5, *sides)
    rows = features if len(sides) == 1 else features.flatten(2).transpose(1, 2)
    assert torch.equal(feature_rows(features, 3, "positions"), rows)
    torch.testing.assert_close(feature_rows(features, 3, "mean"), rows.mean(1))
    assert torch.equal(feature_rows(features, 3, "projection"), features.flatten(1))
    assert torch.equal(feature_rows(features, 3, "flat"), features.flatten(1))


def test_flat_is_never_projected() -> None:
    features = torch.randn(3, 2, 300)
    assert torch.equal(feature_rows(features, 3, "flat"), features.flatten(1))


@pytest.mark.parametrize("maps", ["mean", "positions", "projection", "flat"])
def test_tokens_before_samples(maps: str) -> None:
    features = torch.randn(4, 3, 5)
    assert torch.equal(feature_rows(features, 3, maps), feature_rows(features.transpose(0, 1), 3, maps))
    square = torch.randn(3, 3, 5)
    assert torch.equal(feature_rows(square, 3, "positions"), square)


def test_projection_is_a_fixed_linear_map_that_keeps_distances() -> None:
    features = torch.randn(40, 30, 50, dtype=torch.float64)
    rows = feature_rows(features, 40, "projection")
    assert rows.shape == (40, 512)
    assert torch.equal(rows, feature_rows(features, 40, "projection"))
    torch.testing.assert_close(
        feature_rows(2 * features + 1, 40, "projection"), 2 * rows + feature_rows(features * 0 + 1, 40, "projection")
    )
    ratios = torch.pdist(rows).square() / torch.pdist(features.flatten(1)).square()
    assert ratios.mean() == pytest.approx(1, abs=0.02)
    assert 0.7 < ratios.min() < ratios.max() < 1.4


def test_projection_starts_beyond_512_numbers() -> None:
    features = torch.randn(3, 2, 256)
    assert torch.equal(feature_rows(features, 3, "projection"), features.flatten(1))
    assert not torch.equal(feature_rows(torch.randn(3, 1, 513), 3, "projection")[:, 0], features[:, 0, 0])
    assert feature_rows(torch.randn(3, 1, 513), 3, "projection").shape == (3, 512)


def test_projection_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    feature_rows(torch.randn(3, 2, 300, generator=torch.Generator().manual_seed(0)), 3, "projection")
    assert torch.equal(torch.get_rng_state(), before)


def test_projection_keeps_the_type() -> None:
    assert feature_rows(torch.randn(3, 2, 300).bfloat16(), 3, "projection").dtype == torch.bfloat16


def model() -> nn.ModuleDict:
    block = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    return nn.ModuleDict({"encoder": block, "head": nn.Linear(3, 3), "aside": nn.Linear(3, 2)})


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (None, []),
        ([], []),
        ("encoder", ["encoder"]),
        (["head", "encoder.0"], ["head", "encoder.0"]),
        ("encoder.*", ["encoder.0", "encoder.1", "encoder.2"]),
        (["encoder", "encoder.[02]"], ["encoder", "encoder.0", "encoder.2"]),
        (lambda name: name.endswith("d") or name.endswith("e"), ["head", "aside"]),
    ],
)
def test_layers(layers: Any, names: list[str]) -> None:
    network = model()
    got = feature_layers(network, layers)
    assert list(got) == names
    assert all(module is network.get_submodule(name) for name, module in got.items())


@pytest.mark.parametrize(("layers", "message"), [("decoder", "'decoder'"), (["head", "enc?"], r"'enc\?'")])
def test_pattern_that_matches_nothing(layers: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"{message} in layers .*Choose from encoder, encoder\.0"):
        feature_layers(model(), layers)


class Residual(nn.Module):
    """Parts that are no part of the depth: a block counts as one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm, self.shortcut = nn.Conv2d(width, width, 3), nn.BatchNorm2d(width), nn.Sequential(nn.ReLU())


class ResNet(nn.Module):
    """A stem, two stages of two blocks, pooling and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        self.layer1, self.layer2 = (nn.Sequential(Residual(4), Residual(4)) for _ in range(2))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 2)


class ViT(nn.Module):
    """An embedding that is a module of parts, blocks in an encoder, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, 8, 4), "norm": nn.Identity()})
        self.pos_drop = nn.Dropout(0.1)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2), 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 2)


class Wrapped(nn.Module):
    """As a Lightning module holds a network, with a loss and a metric."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.net, self.loss, self.accuracy = network, nn.CrossEntropyLoss(), MulticlassAccuracy(3)


RESNET = ["conv1", "bn1", "relu", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "avgpool", "fc"]
VIT = ["patch_embed.proj", "encoder.layers.0", "encoder.layers.1", "norm", "head"]


@pytest.mark.parametrize(
    ("model", "names"),
    [
        pytest.param(ResNet, RESNET, id="residual network"),
        pytest.param(ViT, VIT, id="vision transformer"),
        pytest.param(lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), ["0", "1", "2"], id="perceptron"),
        pytest.param(lambda: nn.Sequential(nn.Conv1d(1, 1, 1), nn.Dropout1d(), nn.Identity()), ["0"], id="dropout"),
        pytest.param(lambda: nn.Sequential(nn.Sequential(nn.ModuleList([nn.Linear(1, 1)]))), ["0.0.0"], id="nested lists"),
        pytest.param(lambda: nn.ModuleDict({"a": Residual(2), "b": nn.LSTM(2, 2)}), ["a", "b"], id="dictionary"),
        pytest.param(lambda: nn.Linear(2, 2), [], id="a single layer"),
        pytest.param(lambda: Wrapped(ResNet()), [f"net.{name}" for name in RESNET] + ["loss", "accuracy"], id="wrapped"),
    ],
)
def test_layers_along_the_depth(model: Any, names: list[str]) -> None:
    network = model()
    got = depth_layers(network)
    assert list(got) == names
    assert all(module is network.get_submodule(name) for name, module in got.items())


def test_depth_of_a_compiled_model() -> None:
    """Names are those of the model that was compiled."""
    assert list(depth_layers(Wrapped(torch.compile(ResNet()))))[:-2] == [f"net.{name}" for name in RESNET]


@pytest.mark.parametrize(
    ("classes", "name", "found"),
    [(3, None, "head"), (2, None, "aside"), (5, None, "encoder.0"), (3, "encoder.2", "encoder.2"), (3, "head", "head")],
)
def test_classifier(classes: int, name: str | None, found: str) -> None:
    network = model()
    assert find_classifier(network, classes, name) is network.get_submodule(found)


def test_classifier_with_a_parametrised_weight() -> None:
    network = nn.Sequential(nn.Linear(4, 3), spectral_norm(nn.Linear(3, 3)))
    assert find_classifier(network, 3) is network[1]


def test_classifier_is_trained_if_any_is() -> None:
    """A teacher is none, wherever it stands; without others it is."""
    network = nn.ModuleDict({"student": nn.Linear(4, 3), "teacher": nn.Linear(4, 3).requires_grad_(False)})
    assert find_classifier(network, 3) is network["student"]
    assert list(classifiers(network, 3)) == ["teacher", "student"]
    assert find_classifier(network, 3, "teacher") is network["teacher"]
    assert find_classifier(network.requires_grad_(False), 3) is network["teacher"]


def test_a_single_logit_is_no_classifier_of_two_classes() -> None:
    network = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 1))
    with pytest.raises(ValueError, match=r"1 \(1\)\. A single logit has one row of weights, .* two\.$"):
        find_classifier(network, 2)
    with pytest.raises(ValueError, match=r"1 \(1\)\. Check num_classes=; what is no nn\.Linear is not read\.$"):
        find_classifier(network, 3)
    with pytest.raises(ValueError, match="Check num_classes="):
        find_classifier(network[0], 2)


@pytest.mark.parametrize("name", [None, "encoder.1", "aside", "nothing"])
def test_no_classifier(name: str | None) -> None:
    sizes = r"encoder\.0 \(5\), encoder\.2 \(3\), head \(3\), aside \(2\)"
    what = "a linear layer" if name is None else f"classifier='{name}' to be a linear layer"
    with pytest.raises(ValueError, match=f"Expected {what} with num_classes=4 outputs, .*{sizes}"):
        find_classifier(model(), 4, name)


class TestOutputHooks:
    def test_every_output_as_it_is(self) -> None:
        received: list[tuple[str, Any]] = []
        network = nn.Sequential(nn.Linear(4, 5), nn.LSTM(5, 3))
        hooks = OutputHooks({"a": network[0], "b": network[1]}, lambda name, output: received.append((name, output)))
        output = network(torch.randn(6, 4))
        network[0](torch.randn(2, 4))
        assert [name for name, _ in received] == ["a", "b", "a"]
        assert received[1][1] is output
        assert [tuple(received[place][1].shape) for place in (0, 2)] == [(6, 5), (2, 5)]
        hooks.close()
        network(torch.randn(6, 4))
        assert len(received) == 3
        assert not any(module._forward_hooks for module in network.modules())

    def test_what_it_is_given_back_changes_nothing(self) -> None:
        layer, inputs = nn.Linear(4, 5), torch.randn(6, 4)
        hooks = OutputHooks({"layer": layer}, lambda name, output: torch.zeros(1))
        watched = layer(inputs)
        hooks.close()
        assert torch.equal(watched, layer(inputs))


class TestCapture:
    def test_what_a_batch_leaves(self) -> None:
        network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))
        capture, inputs = FeatureCapture(network, {"first": network[0]}, network[2]), torch.randn(6, 4)
        outputs = network(inputs)
        features, predictions = capture.take()
        assert list(features) == ["first", "penultimate"]
        assert torch.equal(features["first"], nn.functional.linear(inputs, network[0].weight, network[0].bias))
        assert torch.equal(features["penultimate"], features["first"].relu())
        assert not any(tensor.requires_grad for tensor in features.values())
        assert torch.equal(predictions, outputs.argmax(1))
        assert capture.take() == ({}, None)

    def test_last_run_counts(self) -> None:
        head = nn.Linear(4, 3)
        capture, (first, second) = FeatureCapture(head, {"head": head}, head), torch.randn(2, 6, 4)
        head(first)
        head(second)
        features, _ = capture.take()
        assert torch.equal(features["penultimate"], second)
        assert torch.equal(features["head"], head(second))

    def test_input_by_keyword(self) -> None:
        head, inputs = nn.Linear(4, 3), torch.randn(6, 4)
        capture = FeatureCapture(head, {}, head)
        head(input=inputs)
        assert torch.equal(capture.take()[0]["penultimate"], inputs)

    @pytest.mark.parametrize(
        ("output", "found"),
        [
            pytest.param(lambda x: (x, x + 1), True, id="tuple"),
            pytest.param(lambda x: [None, x], True, id="list that begins with something else"),
            pytest.param(lambda x: {"loss": 1.0, "hidden": x}, True, id="dict"),
            pytest.param(lambda x: ("a", 1), False, id="tuple without a tensor"),
            pytest.param(lambda x: (None, {"hidden": (x,)}), True, id="tensors deeper inside"),
            pytest.param(lambda x: None, False, id="nothing"),
        ],
    )
    def test_outputs(self, output: Any, found: bool) -> None:
        class Layer(nn.Module):
            def forward(self, inputs: Tensor) -> Any:
                return output(inputs)

        layer, inputs = Layer(), torch.randn(6, 4)
        capture = FeatureCapture(layer, {"layer": layer}, nn.Linear(4, 3))
        layer(inputs)
        features, predictions = capture.take()
        assert predictions is None
        assert list(features) == ["layer"] * found
        assert all(torch.equal(tensor, inputs) for tensor in features.values())

    def test_close_removes_hooks(self) -> None:
        network = model()
        capture = FeatureCapture(network, dict(network["encoder"].named_children()), network["head"])
        count = [sum(len(module._forward_hooks) for module in network.modules())]
        capture.close()
        count.append(sum(len(module._forward_hooks) for module in network.modules()))
        assert count == [4, 0]
