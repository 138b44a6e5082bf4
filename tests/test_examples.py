import sys
from pathlib import Path

import pytest
import torch

from examples import gradient_rank_bounds, gradient_ranks, mnist_weight_decay
from examples.gradient_rank_bounds import Figures, Ranks, auto_encoder, leaky_auto_encoder, recurrent_auto_encoder, threshold
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
    assert "Weights after training" in printed
    assert "hidden4" in printed
    assert len(list((tmp_path / "runs").glob("weight_decay=*/events*"))) == 2
