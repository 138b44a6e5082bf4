import sys
from pathlib import Path

import pytest
import torch

from examples import gradient_rank_bounds, gradient_ranks, mnist_weight_decay, neural_rank_collapse, sgd_weight_decay_rank
from examples.gradient_rank_bounds import Figures, Ranks, auto_encoder, leaky_auto_encoder, recurrent_auto_encoder, threshold
from examples.neural_rank_collapse import CLUSTERS, ROUNDING, Networks, Reading
from examples.sgd_weight_decay_rank import Setting
from rank_callbacks.functional import fully_connected_gradient_bounds, recurrent_gradient_bounds


def passed(rows: list[Ranks]) -> list[tuple[int, int, int]]:
    return [(row.activation, row.delta, row.gradient) for row in rows]


def bounds(rows: list[Ranks]) -> list[int]:
    return [row.bound for row in rows]


def call(main, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["example", *arguments])
    main()


@pytest.fixture(scope="module")
def figures() -> Figures:
    return gradient_rank_bounds.all_figures(steps=(1, 3, 5), slopes=(0.0, 0.05, 0.5, 0.95, 1.0))


# The figures of Baker et al.


def test_figure_1_without_a_bottleneck_has_full_rank_everywhere():
    rows = auto_encoder()
    assert passed(rows) == [(128, 128, 128)] * 4
    assert bounds(rows) == [128] * 4


def test_figure_1_with_a_bottleneck_has_its_rank_in_every_gradient():
    rows = auto_encoder(bottleneck=16)
    assert passed(rows) == [(128, 16, 16), (128, 16, 16), (16, 128, 16), (16, 128, 16)]
    assert bounds(rows) == fully_connected_gradient_bounds([128, 128, 16, 128, 128], batch=256, linear=True, bias=False)


def test_figure_s1_has_no_more_rank_than_the_data():
    rows = auto_encoder(rank_of_data=16)
    assert passed(rows) == [(16, 16, 16)] * 4
    assert bounds(rows) == [16] * 4


@pytest.mark.parametrize("steps", gradient_rank_bounds.STEPS)
def test_figure_2_gains_the_bottleneck_with_every_step(steps: int):
    rows = {row.layer: row for row in recurrent_auto_encoder(steps)}
    known = dict.fromkeys(("0.i2h", "3.i2h"), 2 * steps)
    known |= dict.fromkeys(("0.h2h", "2.h2h", "3.h2h"), 2 * (steps - 1))
    known |= {"1.i2h": 2, "2.i2h": 2, "1.h2h": min(2, 2 * (steps - 1))}
    assert {name: row.gradient for name, row in rows.items()} == known
    assert {name: row.bound for name, row in rows.items()} == known
    from_shapes = recurrent_gradient_bounds(128, 128, batch=256, steps=steps, output_rank=2, linear=True)
    assert (known["0.i2h"], known["0.h2h"]) == from_shapes


@pytest.mark.parametrize("slope", [0.0, 0.5, 0.99])
def test_figure_4_has_low_rank_only_at_the_bottleneck(slope: float):
    gradients = [row.gradient for row in leaky_auto_encoder(slope)]
    assert gradients[:4] == [128, 128, 2, 2]
    assert all(30 < rank <= 128 for rank in gradients[4:])


def test_figure_4_ends_in_the_rank_of_the_bottleneck():
    rows = leaky_auto_encoder(1.0)
    assert [row.gradient for row in rows] == [2] * 6
    assert bounds(rows) == [2] * 6


@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0])
def test_figure_3_estimates_the_threshold_from_above(slope: float):
    row = threshold(slope)
    assert 3 < row.estimate / row.true < 50
    assert row.estimate < 1e-12


def test_no_gradient_exceeds_its_bound(figures: Figures):
    sweeps = [*figures.recurrent.values(), *figures.leaky.values()]
    rows = [row for layers in (figures.wide, figures.bottleneck, figures.narrow_data, *sweeps) for row in layers]
    assert len(rows) == 3 * 4 + 3 * 8 + 5 * 6
    assert [row for row in rows if row.gradient > row.bound] == []


def test_all_figures_are_printed_and_drawn(
    figures: Figures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(gradient_rank_bounds, "all_figures", lambda: figures)
    call(gradient_rank_bounds.main, monkeypatch, "--folder", str(tmp_path))
    printed = capsys.readouterr().out
    assert [title for title in ("1, with", "2", "3", "4", "S1") if f"Figure {title}" not in printed] == []
    assert "10 ≤ 10" in printed  # five steps, a bottleneck of two
    assert (tmp_path / "gradient_rank_bounds.html").stat().st_size > 100_000


# The examples that train


def test_the_batch_binds_every_gradient_of_a_perceptron():
    rows = gradient_ranks.of_batch_size(4, steps=2)
    assert [(row.layer, row.rank, row.bound) for row in rows] == [("hidden1", 4, 4), ("hidden2", 4, 4), ("head", 4, 4)]


def test_the_sequence_binds_every_gradient_of_a_transformer():
    rows = {row.layer: row for row in gradient_ranks.of_sequence_length(16, steps=2)}
    assert len(rows) == 2 + 2 * 6 + 1
    assert [row for row in rows.values() if not 0 < row.rank <= row.bound <= 16] == []
    assert rows["blocks.1.up"].rank == 16
    assert rows["blocks.1.qkv.k"].rank == 15  # softmax does not see a constant


def test_the_transformer_sees_no_future():
    transformer = gradient_ranks.Transformer(characters=5, length=6)
    text = torch.tensor([[0, 1, 2, 3, 4, 0]])
    changed = torch.tensor([[0, 1, 2, 3, 3, 1]])
    same = torch.isclose(transformer(text), transformer(changed)).all(-1)
    assert same.tolist() == [[True] * 4 + [False] * 2]


def test_gradient_ranks_trains_prints_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(gradient_ranks, "BATCH_SIZES", (4, 16))
    monkeypatch.setattr(gradient_ranks, "SEQUENCE_LENGTHS", (4,))
    call(gradient_ranks.main, monkeypatch, "--steps", "2", "--folder", str(tmp_path))
    printed = capsys.readouterr().out
    assert "hidden1" in printed
    assert "16 ≤ 16" in printed
    assert (tmp_path / "gradient_ranks.html").stat().st_size > 100_000


def test_the_demo_trains_prints_and_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(mnist_weight_decay, "WEIGHT_DECAYS", (0.0, 1e-2))
    call(mnist_weight_decay.main, monkeypatch, "--epochs", "1", "--folder", str(tmp_path / "runs"))
    printed = capsys.readouterr().out
    assert "After training, by weight decay" in printed
    assert "hidden4" in printed
    assert len(list((tmp_path / "runs").glob("weight_decay=*/events*"))) == 2


# Rank collapse


@pytest.fixture(scope="module")
def networks() -> Networks:
    networks = Networks()
    for _ in range(50):
        networks.step()
    return networks


def test_the_passes_by_hand_are_those_of_autograd(networks: Networks):
    weights = [weight.clone().requires_grad_() for weight in networks.weights]
    features = networks.points.expand(len(weights[0]), -1, -1)
    for weight, bias in zip(weights, networks.biases, strict=True):
        outputs = features @ weight.mT + bias
        features = outputs.tanh()
    labels = networks.labels.expand(len(outputs), -1)
    torch.nn.functional.cross_entropy(outputs.flatten(0, 1), labels.flatten(), reduction="sum").backward()
    for weight, passed in zip(weights, networks.passes(), strict=True):
        torch.testing.assert_close(passed.deltas.mT @ passed.inputs, weight.grad)


def test_no_network_on_the_clusters_breaks_a_bound(networks: Networks):
    readings = networks.readings()
    assert len(readings) == 6 * 4
    assert [reading for reading in readings if reading.broken(ROUNDING["clusters"])] == []
    weight = networks.weights[1][0]
    assert readings[1].distance == pytest.approx(float(torch.linalg.svdvals(weight)[CLUSTERS:].square().sum().sqrt()))


@pytest.mark.slow
def test_the_clusters_bring_every_layer_to_their_number():
    readings = neural_rank_collapse.clusters()
    assert [reading for reading in readings if reading.broken(ROUNDING["clusters"])] == []
    ranks = [reading.rank for reading in readings]
    assert ranks[:4] == [10, 16, 16, 3]
    assert max(ranks[-4:]) <= CLUSTERS
    assert max(reading.distance for reading in readings[-4:]) < 1e-9


def test_a_distance_beyond_a_bound_is_found():
    sound = Reading(0.1, "1", 3, 1.0, 0.5, 1.0, 0.5, aligned=1.0, joint=1.0, sharp=2.0, loose=3.0, residual=0.1)
    broken = [sound._replace(aligned=0.9), sound._replace(joint=0.9), sound._replace(sharp=0.9), sound._replace(loose=1.9)]
    assert not sound.broken(1e-12)
    assert [reading.broken(1e-12) for reading in broken] == [True] * 4


def test_ties_share_their_place_in_a_rank_correlation():
    assert neural_rank_collapse.rank_correlation([1, 2, 3], [4, 5, 60]) == pytest.approx(1)
    assert neural_rank_collapse.rank_correlation([1, 2, 3, 4], [0, 0, -1, -1]) == pytest.approx(-2 / 5**0.5)


def test_neural_rank_collapse_trains_prints_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(neural_rank_collapse, "WEIGHT_DECAYS", (0.0, 1e-2))
    call(neural_rank_collapse.main, monkeypatch, "--quick", "--folder", str(tmp_path))
    printed = capsys.readouterr().out
    assert "in 24 of 24 rows" in printed
    assert "in 10 of 10 rows" in printed
    assert (tmp_path / "neural_rank_collapse.html").stat().st_size > 100_000
    assert len(list(tmp_path.glob("weight_decay=*/metrics.csv"))) == 2


def test_sgd_weight_decay_rank_trains_prints_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sgd_weight_decay_rank, "LEARNING_RATES", (0.2,))
    monkeypatch.setattr(sgd_weight_decay_rank, "WEIGHT_DECAYS", (0.0, 4e-3))
    monkeypatch.setattr(sgd_weight_decay_rank, "BATCH_SIZES", (16, 128))
    call(sgd_weight_decay_rank.main, monkeypatch, "--quick", "--folder", str(tmp_path))
    printed = capsys.readouterr().out
    assert printed.count("By ") == 4
    assert (tmp_path / "sgd_weight_decay_rank.html").stat().st_size > 100_000


@pytest.mark.slow
def test_learning_rate_weight_decay_and_more_steps_lower_the_rank():
    steps = sgd_weight_decay_rank.steps_of(20, batch_size=16)
    middle = sgd_weight_decay_rank.train(Setting(learning_rate=0.4, steps=steps))
    slower = sgd_weight_decay_rank.train(middle.setting._replace(learning_rate=0.05))
    free = sgd_weight_decay_rank.train(middle.setting._replace(weight_decay=0.0))
    larger = middle.setting._replace(batch_size=128, steps=sgd_weight_decay_rank.steps_of(20, batch_size=128))
    assert middle.accuracy > 0.9
    assert middle.rank < 90 < min(slower.rank, free.rank, sgd_weight_decay_rank.train(larger).rank)
    assert middle.rank <= middle.bound
