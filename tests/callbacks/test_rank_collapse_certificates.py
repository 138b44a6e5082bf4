"""Certificates hold in every way that Lightning trains: no proof is better than its premises."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rank_callbacks import RankCollapseMonitor
from tests.callbacks.test_rank_collapse import (
    CERTIFICATES,
    LAYERS,
    OF_SGD,
    SGD,
    Trained,
    assert_certified,
    convnet,
    made,
    mlp,
    readings,
    recurrent,
    transformer,
)
from tests.models import CLASSES, Training
from tests.training import Recorder, Weights, fit

K = CLASSES
relu = partial(mlp, activation=nn.ReLU)
relu.__name__ = "relu"
mlp.__name__ = "tanh"


def watched(model: Trained, every_n_steps: Any = 1, window: int | None = None, **options: Any) -> Recorder:
    recorder = Recorder()
    arguments = {name: options.pop(name) for name in ("layers", "ignore_index") if name in options}
    monitor = RankCollapseMonitor(K, every_n_steps=every_n_steps, window=window, **arguments)
    fit(model, monitor, logger=recorder, **options)
    return recorder


@pytest.mark.parametrize("window", [1, 8, "epoch"])
@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("weight_decay", [1e-4, 5e-3, 5e-2])
@pytest.mark.parametrize("model", [mlp, relu, convnet, transformer], ids=lambda model: model.__name__)
def test_certificates_hold_in_every_cell(
    model: Callable[..., Trained], weight_decay: float, accumulate: int, window: Any
) -> None:
    steps = 12 // accumulate if window == "epoch" else window
    optimizer = partial(torch.optim.SGD, lr=0.1, weight_decay=weight_decay)
    epochs = {1: 1, 8: 1 + 8 * accumulate // 12, "epoch": 2}[window]
    recorder = watched(
        model(12, optimizer=optimizer),
        every_n_steps=steps if steps > 1 else 3,
        window=steps,
        accumulate_grad_batches=accumulate,
        max_epochs=epochs + (window != 1),
    )
    assert_certified(recorder)
    for measure in OF_SGD:
        values = readings(recorder, measure)
        assert values.keys() == readings(recorder, "tcv_input").keys()
        assert np.isfinite(list(values.values())).all()
    assert set(readings(recorder, "weight_decay").values()) == {weight_decay}


def test_certificates_close_in_where_training_has_come_to_rest() -> None:
    """On the whole data in a batch: the residual vanishes, and the bounds come within a small factor of one another."""
    torch.manual_seed(0)
    layers = [nn.Linear(8, 16, bias=False), nn.Tanh(), nn.Linear(16, 16, bias=False), nn.Tanh(), nn.Linear(16, K)]
    inputs = torch.randn(K, 8).repeat(6, 1) * 2 + 0.3 * torch.randn(18, 8)
    model = made(
        nn.Sequential(*layers), inputs, batch_size=18, optimizer=partial(SGD, lr=0.5, momentum=0.9, weight_decay=1e-2)
    )
    recorder = watched(model, every_n_steps=lambda step: step in {10, 399}, window=1, max_epochs=400, precision="64-true")
    assert_certified(recorder)
    for layer in LAYERS[1:]:
        assert readings(recorder, "stationarity_residual")[399, layer] < 1e-2
        assert readings(recorder, "class_mean_alignment")[399, layer] > 0.99
        assert readings(recorder, "norm_ratio")[399, layer] == pytest.approx(1, abs=1e-5)
        joint = readings(recorder, "certificate_joint")
        assert joint[399, layer] < 0.1 * joint[10, layer]


# Precision. The gradient and the rows are rounded apart from one another; what bounds the distance does not rely on either.


def scaled_by(**options: Any) -> dict[str, Any]:
    """float16 with a scaler of losses, on the CPU."""
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", **options))]}


PRECISIONS = {name: partial(dict, precision=name) for name in ("32-true", "64-true", "bf16-mixed", "bf16-true")}
PRECISIONS["16-mixed"] = partial(scaled_by, init_scale=2.0**12, growth_interval=2)


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("model", [mlp, convnet, transformer, recurrent], ids=lambda model: model.__name__)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_certificates_hold_in(precision: str, model: Callable[..., Trained], window: int) -> None:
    if model is recurrent and precision == "16-mixed":
        pytest.skip("oneDNN has no LSTM in float16 on every processor")
    recorder = watched(model(7), every_n_steps=window, window=window, **PRECISIONS[precision]())
    assert_certified(recorder)
    assert recorder.steps("rank_collapse") == ([*range(7)] if window == 1 else [3, 6])


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("model", [mlp, convnet], ids=lambda model: model.__name__)
def test_scaled_loss_is_read_unscaled(model: Callable[..., Trained], fused: bool, window: int) -> None:
    """The scale doubles within the window; a fused optimizer leaves the gradients scaled at its hook."""
    optimizer = partial(torch.optim.Adam, lr=0.0, weight_decay=5e-3, fused=fused)
    schedule = partial(lambda last, step: step == last, window - 1)
    scaled = watched(model(optimizer=optimizer), schedule, window, **scaled_by(init_scale=2.0**8, growth_interval=1))
    torch.manual_seed(0)
    plain = watched(model(optimizer=partial(optimizer, fused=False)), schedule, window)
    for measure in [measure for measure in OF_SGD if measure not in {"sgd_rank_bound"}]:
        assert readings(plain, measure)
        assert readings(scaled, measure) == pytest.approx(readings(plain, measure), rel=2e-2), measure


@pytest.mark.filterwarnings("ignore:network.*reads NaN")
@pytest.mark.parametrize("fused", [False, True])
def test_overflow_reads_nan_and_training_goes_on(fused: bool) -> None:
    model = mlp(optimizer=partial(torch.optim.Adam, lr=0.01, weight_decay=5e-3, fused=fused))
    recorder = watched(model, **scaled_by(init_scale=2.0**60, backoff_factor=2.0**-50))
    joint = readings(recorder, "certificate_joint")
    assert {step for (step, _), value in joint.items() if np.isnan(value)} == {0}
    assert len(joint) == 12
    assert np.isfinite(list(readings(recorder, "distance_to_rank_k").values())).all()
    assert np.isfinite(list(readings(recorder, "norm_ratio").values())).all()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


# Ways to train.


OPTIMIZERS = {
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-3),
    "Adam": partial(torch.optim.Adam, lr=0.01, weight_decay=5e-3),
    "Adagrad": partial(torch.optim.Adagrad, lr=0.01, weight_decay=5e-3),
    "RMSprop": partial(torch.optim.RMSprop, lr=0.01, weight_decay=5e-3),
    "NAdam": partial(torch.optim.NAdam, lr=0.01, weight_decay=5e-3),
}


@pytest.mark.parametrize("model", [mlp, convnet], ids=lambda model: model.__name__)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_certificates_hold_with(optimizer: str, model: Callable[..., Trained]) -> None:
    recorder = watched(model(optimizer=OPTIMIZERS[optimizer]), window=1)
    assert_certified(recorder)
    assert len(readings(recorder, "certificate_loose")) == 12
    assert bool(readings(recorder, "sgd_rank_bound")) == (optimizer == "momentum")


def test_clipping_does_not_change_readings_at_its_first_step() -> None:
    plain = watched(mlp())
    torch.manual_seed(0)
    clipped = watched(mlp(), gradient_clip_val=1e-3)
    for measure in [measure for measure in OF_SGD if measure != "norm_ratio"]:
        first = [{layer: value for (s, layer), value in readings(run, measure).items() if s == 0} for run in (plain, clipped)]
        assert first[0] == first[1]
    assert_certified(clipped)


class ByHand(Trained):
    automatic_optimization = False
    clip: float | None = None

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        if self.clip:
            self.clip_gradients(optimizer, self.clip, "norm")
        optimizer.step()


def test_by_hand_is_as_by_lightning() -> None:
    automatic = watched(mlp(), every_n_steps=3)
    torch.manual_seed(0)
    model = mlp()
    by_hand = watched(made(model.network, model.data.tensors[0], kind=ByHand), every_n_steps=3)
    assert by_hand.readings("rank_collapse") == pytest.approx(automatic.readings("rank_collapse"))
    assert by_hand.steps("rank_collapse") == [3]


def test_clipping_by_hand_keeps_the_certificates() -> None:
    """The gradient is seen clipped, the rows not; only the loose bound relies on both."""
    model = mlp()
    assert_certified(watched(made(model.network, model.data.tensors[0], kind=ByHand, clip=1e-3)), loose=False)


class Alternating(Trained):
    """Two optimizers, each with a loss of its own and half of the layers; one also fills the gradients of the other."""

    automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(Training.training_step(self, batch, batch_idx))
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [
            torch.optim.SGD(self.network[:2].parameters(), lr=0.1, weight_decay=5e-3),
            torch.optim.Adam(self.network[2:].parameters(), lr=0.01, weight_decay=1e-2),
        ]


@pytest.mark.parametrize("window", [1, 3])
def test_two_optimizers(window: int) -> None:
    model = mlp()
    recorder = watched(made(model.network, model.data.tensors[0], kind=Alternating), every_n_steps=window, window=window)
    assert recorder.steps("rank_collapse") == ([0, 1, 2, 3] if window == 1 else [3])
    step = recorder.steps("rank_collapse")[-1]
    decays = {layer: value for (s, layer), value in readings(recorder, "weight_decay").items() if s == step}
    assert decays == pytest.approx({LAYERS[0]: 5e-3, LAYERS[1]: 1e-2, LAYERS[2]: 1e-2})
    assert {layer for _, layer in readings(recorder, "sgd_rank_bound")} == {LAYERS[0]}
    assert {layer for _, layer in readings(recorder, "norm_ratio")} == set(LAYERS)
    assert_certified(recorder, loose=False)


@pytest.mark.parametrize("window", [1, 2])
def test_lbfgs_is_measured_once_a_step_at_its_first_evaluation(window: int) -> None:
    model = mlp(optimizer=partial(torch.optim.LBFGS, lr=0.1, max_iter=4))
    recorder, weights = Recorder(), Weights()
    fit(model, weights, RankCollapseMonitor(K, every_n_steps=window, window=window), logger=recorder)
    assert len(model.losses) > 4
    for (step, layer), distance in readings(recorder, "distance_to_rank_k").items():
        s = np.linalg.svd(weights.at[step][layer], compute_uv=False)
        assert distance == pytest.approx(np.sqrt((s[K:] ** 2).sum()), rel=1e-6)
    assert recorder.steps("rank_collapse") == ([0, 1, 2, 3] if window == 1 else [2])
    assert not any(readings(recorder, measure) for measure in CERTIFICATES)
    assert set(readings(recorder, "weight_decay").values()) == {0.0}
    assert_certified(recorder, certificates=False)


class Skipping(Trained):
    """Leaves out the batches that it is told to."""

    skipped = (1,)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        return None if batch_idx in self.skipped else super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_batch_that_is_left_out_is_no_step_of_the_window() -> None:
    """The mean gradient is over the steps that had one, so that of a window with nothing else is the same."""
    options = {"every_n_steps": lambda step: step == 2, "limit_train_batches": 3, "precision": "64-true"}
    model = mlp()
    skipping = made(model.network, model.data.tensors[0], kind=Skipping)
    recorder = watched(skipping, window=2, **options)
    assert recorder.steps("rank_collapse") == [2]
    assert_certified(recorder)
    torch.manual_seed(0)
    model = mlp()
    skipping = made(model.network, model.data.tensors[0], kind=Skipping)
    alone = watched(skipping, window=1, **options)
    assert alone.steps("rank_collapse") == [2]
    for measure in CERTIFICATES:
        assert readings(recorder, measure) == pytest.approx(readings(alone, measure))


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`", "ignore:.*has no reading")
def test_window_that_ends_with_a_batch_that_is_left_out() -> None:
    model = mlp()
    recorder = watched(made(model.network, model.data.tensors[0], kind=Skipping), window=1)
    assert recorder.steps("rank_collapse") == [0, 2, 3]


class Penalised(Trained):
    """Something besides the layer adds to the gradient of its weight."""

    strength = 1.0

    def training_step(self, *args: Any) -> Tensor:
        return super().training_step(*args) + self.strength * self.network[0].weight.square().sum()


@pytest.mark.parametrize("strength", [10.0, 0.1, 1e-5])
@pytest.mark.parametrize("window", [1, 3])
def test_penalty_in_the_loss_leaves_joint_and_sharp(strength: float, window: int) -> None:
    model = mlp()
    penalised = made(model.network, model.data.tensors[0], kind=Penalised, strength=strength, optimizer=partial(SGD, lr=0.01))
    recorder = watched(penalised, every_n_steps=window, window=window, precision="64-true")
    assert_certified(recorder, loose=False)
    loose, sharp = readings(recorder, "certificate_loose"), readings(recorder, "certificate_sharp")
    for key, value in loose.items():
        assert value >= sharp[key] or np.isnan(value)
        assert np.isfinite(value) or key[1] == LAYERS[0]
    if strength == 10:
        assert np.isnan([value for (_, layer), value in loose.items() if layer == LAYERS[0]]).all()


class Norm(Trained):
    """A loss that is a sum, and smoothes the labels: certificates ask for neither mean nor cross-entropy."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        target = 0.9 * nn.functional.one_hot(batch[1], K) + 0.1 / K
        return (self(batch[0]) - target).square().sum()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_any_loss(accumulate: int) -> None:
    model = mlp()
    summed = made(model.network, model.data.tensors[0], kind=Norm, optimizer=partial(SGD, lr=1e-3))
    assert_certified(watched(summed, every_n_steps=2, window=1, accumulate_grad_batches=accumulate))


class Recomputed(nn.Module):
    """Computes its hidden layers again in the backward pass."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.layers, self.use_reentrant = mlp().network, use_reentrant

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers[4](checkpoint(self.layers[:4], inputs.requires_grad_(), use_reentrant=self.use_reentrant))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_layers_are_read_as_others(use_reentrant: bool) -> None:
    torch.manual_seed(0)
    network, inputs = Recomputed(use_reentrant), torch.randn(18, 8)
    checkpointed = watched(made(network, inputs))
    torch.manual_seed(0)
    plain = watched(made(Recomputed(use_reentrant).layers, inputs))
    for measure in OF_SGD:
        expected = {(s, name.replace("network", "network.layers")): v for (s, name), v in readings(plain, measure).items()}
        assert readings(checkpointed, measure) == pytest.approx(expected, rel=1e-6)
    assert_certified(checkpointed)


@pytest.mark.parametrize("kind", ["twice", "tied"])
@pytest.mark.parametrize("window", [1, 2])
def test_layer_of_several_uses_adds_them_up(kind: str, window: int) -> None:
    layers = [nn.Linear(8, 8), nn.Linear(8, 8)]
    layers[1].weight = layers[0].weight
    second = layers[0] if kind == "twice" else layers[1]
    model = made(nn.Sequential(layers[0], nn.ReLU(), second, nn.ReLU(), nn.Linear(8, K)), torch.randn(24, 8))
    recorder = watched(model, every_n_steps=window, window=window)
    assert {name for _, name in readings(recorder, "tcv_input")} == {"network.0.weight", "network.4.weight"}
    assert_certified(recorder)
    assert readings(recorder, "sgd_rank_bound")


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_with_keys_and_values_of_their_own(batch_first: bool) -> None:
    class Cross(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.queries = nn.Parameter(torch.randn(2, 8))
            self.attention = nn.MultiheadAttention(8, 2, kdim=5, vdim=5, batch_first=batch_first)
            self.head = nn.Linear(8, K)

        def forward(self, inputs: Tensor) -> Tensor:
            queries = self.queries.expand(len(inputs), -1, -1)
            given = [x if batch_first else x.transpose(0, 1) for x in (queries, inputs, inputs)]
            return self.head(self.attention(*given)[0].mean(1 if batch_first else 0))

    recorder = watched(made(Cross(), torch.randn(24, 4, 5)), precision="64-true")
    names = {name for _, name in readings(recorder, "tcv_input")}
    assert names == {f"network.attention.{x}_proj_weight" for x in "qkv"} | {
        "network.attention.out_proj.weight",
        "network.head.weight",
    }
    assert_certified(recorder)
