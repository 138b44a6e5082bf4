import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning import seed_everything
from torch import nn
from torch.nn.functional import pad
from tqdm import tqdm

from examples import image_models, rank_diminishing, ssl_collapse
from examples.mnist_weight_decay import images
from examples.rank_diminishing import MODELS, Model, Run
from examples.ssl_collapse import Pair, Reading, Siamese, Warned, first_below, warned


def call(main, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["example", *arguments])
    main()


# Collapse of self-supervised learning


def reading(rank: float, accuracy: float) -> Reading:
    ranks = {f"{measure}/{layer}": rank for measure in ssl_collapse.MEASURES for layer in ssl_collapse.LAYERS}
    return Reading(ranks, dict.fromkeys(ssl_collapse.LAYERS, accuracy))


def shift_and_hole(image: torch.Tensor, view: torch.Tensor) -> tuple[tuple[int, int], torch.Tensor]:
    """The shift that explains a view best, and the pixels that it does not explain."""
    padded = pad(image, (3, 3, 3, 3))
    shifts = [(down, right) for down in range(-3, 4) for right in range(-3, 4)]
    unexplained = [(padded[3 - down : 31 - down, 3 - right : 31 - right] != view).nonzero() for down, right in shifts]
    best = min(range(len(shifts)), key=lambda place: len(unexplained[place]))
    return shifts[best], unexplained[best]


def test_an_augmented_image_is_the_image_shifted_with_a_hole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ssl_collapse, "NOISE", 0.0)
    pictures = torch.rand(20, 28, 28) + 1
    found = set()
    for image, view in zip(pictures, ssl_collapse.augmented(pictures.flatten(1)).view(-1, 28, 28), strict=True):
        shift, hole = shift_and_hole(image, view)
        found.add(shift)
        assert 0 < len(hole) <= 8 * 8
        assert (hole.amax(0) - hole.amin(0)).max() < 8
        assert (view[hole[:, 0], hole[:, 1]] == 0).all()
    assert len(found) > 7  # down and to the right are drawn apart


def test_each_image_has_a_shift_and_a_hole_of_its_own():
    views = ssl_collapse.augmented(torch.ones(50, 784))
    assert views.shape == (50, 784)
    assert len({tuple(row) for row in (views > 0.5).int().tolist()}) == 50


def test_the_probe_is_ridge_regression_on_standardised_features():
    sklearn = pytest.importorskip("sklearn.linear_model")
    generator = torch.Generator().manual_seed(0)
    labels, classes = (torch.arange(count) % 10 for count in (300, 200))
    centres = torch.randn(10, 20, generator=generator, dtype=torch.float64)
    mixing = torch.randn(20, 20, generator=generator, dtype=torch.float64)
    features, others = (
        (centres[known] + torch.randn(len(known), 20, generator=generator)) @ mixing for known in (labels, classes)
    )
    mean, scale = features.mean(0), features.std(0)
    ridge = sklearn.Ridge(alpha=ssl_collapse.RIDGE * 300).fit((features - mean) / scale, np.eye(10)[labels])
    known = float((ridge.predict((others - mean) / scale).argmax(1) == classes.numpy()).mean())
    assert 0.5 < known < 1
    assert ssl_collapse.probe_accuracy(features, labels, others, classes) == pytest.approx(known)
    assert ssl_collapse.probe_accuracy(1e-9 * features + 5, labels, 1e-9 * others + 5, classes) == pytest.approx(known)


def test_the_stop_gradient_is_the_only_difference():
    images_of_a_batch = torch.rand(8, 784)
    gradients = {}
    for safe in (True, False):
        torch.manual_seed(0)
        module = Siamese(stop_gradient=safe)
        loss = module.training_step([images_of_a_batch], 0)
        loss.backward()
        gradients[safe] = (loss.item(), module.predictor[-1].weight.grad, module.encoder[0].weight.grad)
    assert gradients[True][0] == gradients[False][0]
    torch.testing.assert_close(gradients[True][1], gradients[False][1])
    assert not torch.allclose(gradients[True][2], gradients[False][2])


def test_warnings_are_counted_from_the_highest_and_from_the_other_run():
    safe = [reading(10, 0.8), reading(20, 0.8), reading(9, 0.81), reading(20, 0.9)]
    free = [reading(10, 0.8), reading(8, 0.84), reading(4.9, 0.78), reading(4, 0.7)]
    assert warned("RankMe of the projector", Pair(safe, free)) == Warned(alone=2, beside=1, falsely=2)
    assert warned("probe on the encoder", Pair(safe, free)) == Warned(alone=2, beside=3, falsely=None)
    assert first_below([2.0, 1.0], [2.0, 1.0]) is None


def test_a_lead_is_told_also_where_the_accuracy_never_warns():
    assert [ssl_collapse.in_epochs(*epochs, 20) for epochs in ((2, 6), (2, None), (None, 6))] == [
        "4",
        "at least 18",
        "no warning",
    ]


def test_the_rank_of_the_projector_warns_before_the_probe():
    (pair,) = ssl_collapse.pairs(seeds=(0,), epochs=8).values()
    rank, probe = warned("RankMe of the projector", pair), warned("probe on the encoder", pair)
    assert rank.alone < probe.alone <= 8
    assert rank.beside < probe.beside
    assert rank.falsely is None
    assert probe.falsely is None
    assert len(pair.free) == 9
    assert pair.free[-1].ranks["rankme/projector"] < 0.3 * pair.safe[-1].ranks["rankme/projector"]


def test_ssl_collapse_trains_prints_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    call(ssl_collapse.main, monkeypatch, "--epochs", "1", "--seeds", "1", "--folder", str(tmp_path))
    printed = capsys.readouterr().out
    assert [sign for sign in ssl_collapse.SIGNS if sign not in printed] == []
    assert "Lead of the projector's RankMe" in printed
    assert (tmp_path / "ssl_collapse.html").stat().st_size > 100_000


# Rank against depth


@pytest.mark.parametrize("name", list(MODELS))
def test_each_model_gives_logits_of_flat_images(name: str):
    net = MODELS[name].build()
    names = [path for path, _ in net.named_children() if path != "image"]
    assert len(names) == 9
    assert names[-1] == "head"
    assert net(torch.rand(5, 784)).shape == (5, 10)


def test_the_transformer_sees_patches_in_their_places():
    net = image_models.vision_transformer().eval()
    pixels = torch.rand(1, 1, 28, 28)
    swapped = torch.cat([pixels[..., 7:14], pixels[..., :7], pixels[..., 14:]], -1)
    assert not torch.allclose(net(pixels.flatten(1)), net(swapped.flatten(1)))
    nn.init.zeros_(net.patches.positions)
    torch.testing.assert_close(net(pixels.flatten(1)), net(swapped.flatten(1)))


def narrow() -> nn.Sequential:
    layers = {"wide": nn.Linear(784, 12), "narrow": nn.Linear(12, 3), "again": nn.Linear(3, 12), "head": nn.Linear(12, 10)}
    net = nn.Sequential()
    for name, layer in layers.items():
        net.add_module(name, layer)
    return net


@pytest.fixture
def one_narrow_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_diminishing, "MODELS", {"narrow": Model(narrow, 1, "black", "circle")})
    monkeypatch.setattr(rank_diminishing, "COPIES", 40)


@pytest.fixture
def narrow_run(one_narrow_network: None) -> Run:
    return rank_diminishing.sweep(epochs=1)["narrow"]


def test_every_rank_of_a_linear_network_is_that_of_its_bottleneck(narrow_run: Run):
    for rows in (narrow_run.initial, narrow_run.trained):
        assert [(row.layer, row.numbers) for row in rows] == [("wide", 12), ("narrow", 3), ("again", 12), ("head", 10)]
        assert [row.jacobian for row in rows] == [12, 3, 3, 3]
        assert [row.shaken for row in rows] == [12, 3, 3, 3]
        assert max(row.features for row in rows[1:]) <= 3 + 1e-3
    assert narrow_run.trained[0].features != narrow_run.initial[0].features


def test_the_effective_rank_is_of_the_centred_features_of_the_test_images(narrow_run: Run):
    seed_everything(0, verbose=False)
    pixels, _ = images()[1].tensors
    features = narrow().wide(pixels).detach().double().numpy()
    shares = np.linalg.svd(features - features.mean(0), compute_uv=False)
    shares /= shares.sum()
    assert narrow_run.initial[0].features == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)


def test_rank_diminishing_trains_prints_and_draws(
    one_narrow_network: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    call(rank_diminishing.main, monkeypatch, "--epochs", "1", "--folder", str(tmp_path))
    printed = capsys.readouterr().out
    assert "Narrow, accuracy" in printed
    assert "give 0.95 of the accuracy" in printed
    assert (tmp_path / "rank_diminishing.html").stat().st_size > 100_000


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("perceptron", 0.92), ("residual network", 0.95), ("vision transformer", 0.88)])
def test_a_trained_network_classifies_and_no_layer_raises_the_exact_rank(name: str, least: float):
    run = rank_diminishing.train(name, MODELS[name].epochs, tqdm(disable=True))
    assert run.accuracy > least
    for rows in (run.initial, run.trained):
        ranks = [row.jacobian for row in rows]
        assert ranks == sorted(ranks, reverse=True)
        assert ranks[-1] == 10
    assert run.trained[-2].features < run.initial[-2].features
    assert run.ranks.classifier.dimension <= 10
