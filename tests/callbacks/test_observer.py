import contextlib
import copy
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from lightning.fabric import Fabric
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rank_callbacks import GradientRankMonitor, RankObserver, WeightRankMonitor, log_spaced
from tests.models import Classifier, convnet, mlp
from tests.training import Recorder, assert_identical, fit

Rows = list[tuple[int, str, float]]


class Plain(Classifier):
    """Batches in order, so that two loops see the same."""

    shuffle = False


def plain(build: Callable[[], Classifier], epochs: int = 2, observe: Any = None, **loop: Any) -> dict[str, Any]:
    """Train in a loop of one's own; returns all that an observer must not change, and its rows."""
    pl.seed_everything(0, verbose=False)
    model = build()
    optimizer = loop.get("optimizer", torch.optim.Adam)(model.network.parameters(), lr=0.05)
    rows: Rows = []
    observer = observe(model, optimizer, lambda step, values: rows.extend((step, tag, v) for tag, v in values.items()))
    losses = []
    with observer:
        for inputs, classes in batches(model, epochs):
            loss = cross_entropy(model.network(inputs), classes)
            loss.backward()
            losses.append(loss.item())
            optimizer.step()
            optimizer.zero_grad()
    return {"outcome": outcome(model, optimizer, losses), "rows": rows, "model": model, "observer": observer}


def batches(model: Classifier, epochs: int) -> Iterator[list[Tensor]]:
    for _ in range(epochs):
        yield from model.train_dataloader()


def outcome(model: Classifier, optimizer: torch.optim.Optimizer, losses: list[float]) -> dict[str, Any]:
    return {
        "model": copy.deepcopy(model.state_dict()),
        "optimizer": copy.deepcopy(optimizer.state_dict()),
        "losses": losses,
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(legacy=True),  # ruff: ignore[numpy-legacy-random]
        "python": random.getstate(),
    }


class Nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def ordered(build: Callable[[], Classifier]) -> Callable[[], Classifier]:
    def built() -> Classifier:
        model = build()
        model.shuffle = False
        return model

    return built


def watching(**given: Any) -> Any:
    return lambda model, optimizer, log: RankObserver(model, optimizer, log, **({"every_n_steps": 2} | given))


def ranks(rows: Rows) -> dict[tuple[int, str], float]:
    found = {(step, tag): value for step, tag, value in rows if not tag.startswith("monitor/")}
    assert len(found) == sum(not tag.startswith("monitor/") for _, tag, _ in rows)
    return found


def convolutions() -> Classifier:
    network = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 4 * 4, 3))
    return Classifier(network, torch.randn(12, 2, 6, 6))


@pytest.mark.parametrize("build", [mlp, convolutions], ids=["mlp", "convolutions"])
@pytest.mark.parametrize("schedule", [1, 2, log_spaced(3)], ids=str)
def test_readings_are_those_of_the_callbacks(build: Any, schedule: Any) -> None:
    pl.seed_everything(0, verbose=False)
    recorder, model = Recorder(), ordered(build)()
    fit(
        model,
        *[kind(every_n_steps=schedule) for kind in (WeightRankMonitor, GradientRankMonitor)],
        logger=recorder,
        max_epochs=2,
    )
    rows = plain(ordered(build), observe=watching(every_n_steps=schedule))["rows"]
    expected = recorder.readings("weight_rank", "gradient_rank")
    assert len(expected) > 50
    assert ranks(rows) == pytest.approx(expected, rel=1e-9, abs=1e-12, nan_ok=True)
    costs = {tag for _, tag, _ in rows if tag.startswith("monitor/")}
    assert costs == {
        f"monitor/{cost}/{one}" for cost in ("seconds", "share_of_training") for one in ("weight_rank", "gradient_rank")
    }


@pytest.mark.parametrize("build", [mlp, convnet], ids=["mlp", "convnet"])
@pytest.mark.parametrize("given", [{"every_n_steps": 1}, {"every_n_steps": "auto", "max_overhead": 1.0}], ids=str)
def test_training_is_bit_identical(build: Any, given: dict[str, Any]) -> None:
    watched, unwatched = plain(build, observe=watching(**given)), plain(build, observe=lambda *_: Nothing())
    assert watched["rows"]
    assert_identical(watched["outcome"], unwatched["outcome"])


def test_fabric() -> None:
    rows: Rows = []
    fabric = Fabric(accelerator="cpu", devices=1)
    pl.seed_everything(0, verbose=False)
    module = ordered(mlp)()
    model, optimizer = fabric.setup(module.network, torch.optim.Adam(module.network.parameters(), lr=0.05))
    with RankObserver(
        model, optimizer, lambda step, values: rows.extend((step, *one) for one in values.items()), every_n_steps=2
    ):
        for inputs, classes in batches(module, 2):
            fabric.backward(cross_entropy(model(inputs), classes))
            optimizer.step()
            optimizer.zero_grad()
    expected = ranks(plain(ordered(mlp), observe=watching())["rows"])
    # There the network is a part of a module.
    assert ranks(rows) == pytest.approx({(s, tag.replace("network.", "")): v for (s, tag), v in expected.items()}, nan_ok=True)


def test_batches_that_accumulate_are_one_gradient() -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Linear(30, 40), torch.randn(4, 2, 30)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with RankObserver(layer, optimizer, every_n_steps=1, weights=()) as observer:
        for batch in inputs:
            layer(batch).square().sum().backward()
        expected = torch.linalg.matrix_rank(layer.weight.grad)
        optimizer.step()
    assert expected == 8
    assert observer.readings["gradient_rank/numerical_rank/weight"] == 8
    assert observer.readings["gradient_rank/bound/weight"] == 8


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_under_a_scaler_are_in_their_own_unit(fused: bool) -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Linear(6, 5), torch.randn(8, 6)
    optimizer = torch.optim.Adam(layer.parameters(), fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    expected = torch.autograd.grad(layer(inputs).square().sum(), layer.weight)[0].norm()
    with RankObserver(layer, optimizer, every_n_steps=1, gradients=["frobenius_norm"]) as observer:
        scaler.scale(layer(inputs).square().sum()).backward()
        scaler.step(optimizer)
    assert observer.readings["gradient_rank/frobenius_norm/weight"] == pytest.approx(float(expected), rel=1e-6)


def test_step_that_a_scaler_skips_does_not_count() -> None:
    layer = nn.Linear(6, 5)
    optimizer, scaler = torch.optim.SGD(layer.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    with RankObserver(layer, optimizer, every_n_steps=1) as observer:
        scaler.scale(layer(torch.full((2, 6), math.inf)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert observer.step == 0
        optimizer.zero_grad()
        scaler.scale(layer(torch.ones(2, 6)).sum()).backward()
        scaler.step(optimizer)
    assert observer.step == 1


def hooks(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    of_modules = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules())
    return of_modules + len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


def test_no_hook_stays() -> None:
    layer = nn.Linear(6, 5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    steps = []
    with RankObserver(layer, optimizer, lambda step, _: steps.append(step), every_n_steps=1):
        assert hooks(layer, optimizer) > 2
        layer(torch.ones(2, 6)).sum().backward()
        optimizer.step()
    assert hooks(layer, optimizer) == 0
    assert steps == [0, 0, 1]  # weights, gradients, weights


def test_no_hook_stays_after_a_crash_and_nothing_is_reported() -> None:
    layer = nn.Linear(6, 5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    steps = []
    with contextlib.suppress(KeyError), RankObserver(layer, optimizer, lambda step, _: steps.append(step), every_n_steps=1):
        layer(torch.ones(2, 6)).sum().backward()
        raise KeyError
    assert hooks(layer, optimizer) == 0
    assert steps == [0]


def test_goes_on_from_a_step() -> None:
    layer = nn.Linear(6, 5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    rows: Rows = []
    with RankObserver(
        layer, optimizer, lambda s, values: rows.extend((s, *v) for v in values.items()), step=7, every_n_steps=5
    ):
        for _ in range(4):
            layer(torch.ones(2, 6)).sum().backward()
            optimizer.step()
    assert {step for step, tag, _ in rows if tag.startswith("weight_rank/")} == {10, 11}
    assert {step for step, tag, _ in rows if tag.startswith("gradient_rank/")} == {10}


def test_loggers_of_lightning_get_spectra_and_tables(tmp_path: Path) -> None:
    loggers = [TensorBoardLogger(tmp_path, "", "board"), CSVLogger(tmp_path, "", "table")]
    plain(mlp, observe=lambda model, optimizer, _: RankObserver(model, optimizer, loggers, every_n_steps=2))
    for logger in loggers:
        logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "board"), size_guidance={"tensors": 0, "scalars": 0}).Reload()
    assert "weight_rank/spectrum/network.0.weight" in events.Tags()["tensors"]
    assert [one.step for one in events.Scalars("weight_rank/effective_rank/network.0.weight")] == [0, 2, 4, 6]
    assert "weight_rank/effective_rank/network.0.weight" in (tmp_path / "table" / "metrics.csv").read_text()


def test_log_that_fails_is_a_warning() -> None:
    def fails(step: int, values: dict[str, float]) -> None:
        raise OSError("no space left")

    with pytest.warns(UserWarning, match="no space left"):
        plain(mlp, observe=lambda model, optimizer, _: RankObserver(model, optimizer, fails, every_n_steps=2))


def test_one_part_alone() -> None:
    rows = plain(mlp, observe=watching(gradients=(), weights=["stable_rank"]))["rows"]
    assert {tag.split("/")[0] for _, tag, _ in rows} == {"weight_rank", "monitor"}
    rows = plain(mlp, observe=watching(weights=()))["rows"]
    assert {tag.split("/")[0] for _, tag, _ in rows} == {"gradient_rank", "monitor"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weights": ["rnak"]}, "Expected the name of a measure, got 'rnak'"),
        ({"gradients": ["rnak"]}, "Expected the name of a measure, got 'rnak'"),
        ({"layers": "nowhere"}, "nowhere"),
        ({"every_n_steps": 0}, "every_n_steps to be a whole number from 1, got 0"),
        ({"max_overhead": 0}, "max_overhead to be a share"),
        ({"conv": "rows"}, "Expected conv to be"),
        ({"method": "krylov"}, "method='krylov' cannot read effective_rank"),
    ],
)
def test_misuse(given: dict[str, Any], message: str) -> None:
    layer = nn.Linear(6, 5)
    with pytest.raises(ValueError, match=message):
        RankObserver(layer, torch.optim.SGD(layer.parameters(), lr=0.1), **given)


def test_model_without_a_matrix() -> None:
    norm = nn.LayerNorm(3)
    with pytest.raises(ValueError, match="matri"):
        RankObserver(norm, torch.optim.SGD(norm.parameters(), lr=0.1))


@pytest.mark.parametrize(("enabled", "bound"), [(True, 8), (False, 8)])
def test_rounding_of_autocast_is_no_rank(enabled: bool, bound: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with RankObserver(model, optimizer, weights=(), every_n_steps=1) as observer, torch.autocast("cpu", enabled=enabled):
        nn.functional.mse_loss(model(torch.randn(bound, 64)).float(), torch.randn(bound, 32)).backward()
        optimizer.step()
    ranks = {tag: rank for tag, rank in observer.readings.items() if "gradient_rank/numerical_rank/" in tag}
    assert len(ranks) == 3 + 3
    assert max(ranks.values()) <= bound
