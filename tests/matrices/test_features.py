from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from rank_callbacks.matrices.features import FeatureCapture, feature_layers, feature_rows, find_classifier


def test_a_row_a_sample() -> None:
    assert feature_rows(torch.arange(3.0), 3, "mean").tolist() == [[0], [1], [2]]
    matrix = torch.randn(3, 5)
    for maps in ("mean", "positions", "projection"):
        assert torch.equal(feature_rows(matrix, 3, maps), matrix)


@pytest.mark.parametrize("sides", [(4,), (2, 3), (2, 3, 2)], ids=str)
def test_feature_maps(sides: tuple[int, ...]) -> None:
    """(B, C, *sides); of three dimensions, tokens (B, T, D)."""
    features = torch.randn(3, 5, *sides)
    rows = features if len(sides) == 1 else features.flatten(2).transpose(1, 2)
    assert torch.equal(feature_rows(features, 3, "positions"), rows)
    torch.testing.assert_close(feature_rows(features, 3, "mean"), rows.mean(1))
    assert torch.equal(feature_rows(features, 3, "projection"), features.flatten(1))


@pytest.mark.parametrize("maps", ["mean", "positions", "projection"])
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


@pytest.mark.parametrize("name", [None, "encoder.1", "aside", "nothing"])
def test_no_classifier(name: str | None) -> None:
    sizes = r"encoder\.0 \(5\), encoder\.2 \(3\), head \(3\), aside \(2\)"
    what = "a linear layer" if name is None else f"classifier='{name}' to be a linear layer"
    with pytest.raises(ValueError, match=f"Expected {what} with num_classes=4 outputs, .*{sizes}"):
        find_classifier(model(), 4, name)


class TestCapture:
    def test_what_a_batch_leaves(self) -> None:
        network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))
        capture, inputs = FeatureCapture({"first": network[0]}, network[2]), torch.randn(6, 4)
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
        capture, (first, second) = FeatureCapture({"head": head}, head), torch.randn(2, 6, 4)
        head(first)
        head(second)
        features, _ = capture.take()
        assert torch.equal(features["penultimate"], second)
        assert torch.equal(features["head"], head(second))

    def test_input_by_keyword(self) -> None:
        head, inputs = nn.Linear(4, 3), torch.randn(6, 4)
        capture = FeatureCapture({}, head)
        head(input=inputs)
        assert torch.equal(capture.take()[0]["penultimate"], inputs)

    @pytest.mark.parametrize(
        ("output", "found"),
        [
            pytest.param(lambda x: (x, x + 1), True, id="tuple"),
            pytest.param(lambda x: [None, x], True, id="list that begins with something else"),
            pytest.param(lambda x: {"loss": 1.0, "hidden": x}, True, id="dict"),
            pytest.param(lambda x: ("a", 1), False, id="tuple without a tensor"),
            pytest.param(lambda x: ((x,),), False, id="tensors deeper inside"),
            pytest.param(lambda x: None, False, id="nothing"),
        ],
    )
    def test_outputs(self, output: Any, found: bool) -> None:
        class Layer(nn.Module):
            def forward(self, inputs: Tensor) -> Any:
                return output(inputs)

        layer, inputs = Layer(), torch.randn(6, 4)
        capture = FeatureCapture({"layer": layer}, nn.Linear(4, 3))
        layer(inputs)
        features, predictions = capture.take()
        assert predictions is None
        assert list(features) == ["layer"] * found
        assert all(torch.equal(tensor, inputs) for tensor in features.values())

    def test_close_removes_hooks(self) -> None:
        network = model()
        capture = FeatureCapture(dict(network["encoder"].named_children()), network["head"])
        count = [sum(len(module._forward_hooks) for module in network.modules())]
        capture.close()
        count.append(sum(len(module._forward_hooks) for module in network.modules()))
        assert count == [4, 0]
