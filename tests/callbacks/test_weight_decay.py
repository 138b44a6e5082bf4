"""What an optimizer's ``weight_decay`` means, told by what its step does; and what the monitor makes of it."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn, optim

from rank_callbacks import RankCollapseMonitor
from rank_callbacks.callbacks.weight_decay import Decay, decay_of
from tests.callbacks.test_rank_collapse import CERTIFICATES, LAYERS, SGD, K, Trained, assert_certified, made, mlp, readings
from tests.training import Recorder, Weights, fit

LR, DECAY = 0.1, 0.02
OPTIMIZERS = {name: kind for name, kind in vars(optim).items() if isinstance(kind, type) and issubclass(kind, optim.Optimizer)}
del OPTIMIZERS["Optimizer"]
WITHOUT_DECAY = {"LBFGS", "Rprop", "SparseAdam"}
DECOUPLED = {"AdamW", "Adafactor", "Muon"}
# A decay of its own beside weight_decay.
EXTRA = {"ASGD": {"lambd": 0.0}}


def optimizer_of(name: str, parameter: nn.Parameter, **options: Any) -> optim.Optimizer:
    options = ({} if name in WITHOUT_DECAY else {"weight_decay": DECAY}) | EXTRA.get(name, {}) | options
    return OPTIMIZERS[name]([parameter], lr=LR, **options)


def moved(optimizer: optim.Optimizer, parameter: nn.Parameter) -> bool:
    """Whether it moves the parameter from a critical point of the loss with its penalty."""
    before = parameter.detach().clone()
    for _ in range(10):
        parameter.grad = -DECAY * parameter.detach()
        optimizer.step()
    return not torch.allclose(parameter.detach(), before, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_is_a_penalty_where_its_critical_points_are_at_rest(name: str) -> None:
    parameter = nn.Parameter(torch.randn(3, 4, dtype=torch.float64))
    decay = decay_of(parameter, [optimizer_of(name, parameter)])
    assert decay is not None
    assert decay.weight_decay == (0.0 if name in WITHOUT_DECAY else DECAY)
    assert decay.learning_rate == LR
    assert decay.is_sgd == (name == "SGD")
    if name not in WITHOUT_DECAY:
        assert decay.is_penalty == (name not in DECOUPLED)
        assert moved(optimizer_of(name, parameter), parameter) != decay.is_penalty


@pytest.mark.parametrize("name", ["Adam", "NAdam", "RAdam", "AdamW"])
@pytest.mark.parametrize("decoupled", [True, False])
def test_flag_that_decouples_the_decay(name: str, decoupled: bool) -> None:
    parameter = nn.Parameter(torch.randn(3, 4, dtype=torch.float64))
    if name == "AdamW":
        optimizer = optimizer_of(name, parameter)
        optimizer.param_groups[0].pop("decoupled_weight_decay", None) if not decoupled else None
        assert not decay_of(parameter, [optimizer]).is_penalty
        return
    try:
        optimizer = optimizer_of(name, parameter, decoupled_weight_decay=decoupled)
    except TypeError:
        pytest.skip("this torch has no such flag")
    assert decay_of(parameter, [optimizer]).is_penalty == (not decoupled)
    assert moved(optimizer, parameter) == decoupled


def test_unknown_optimizer_is_no_penalty_and_a_subclass_is_as_its_base() -> None:
    class Mine(optim.Optimizer):
        pass

    class Momentum(optim.SGD):
        pass

    parameter = nn.Parameter(torch.ones(2, 2))
    assert decay_of(parameter, [Mine([parameter], {})]) == Decay(0.0, False, 0.0, False)
    assert decay_of(parameter, [Mine([parameter], {"lr": 1, "weight_decay": 2})]) == Decay(2.0, False, 1.0, False)
    assert decay_of(parameter, [Momentum([parameter], lr=0.1, weight_decay=0.2)]) == Decay(0.2, True, 0.1, True)


def test_decay_is_that_of_the_group_now() -> None:
    one, other, neither = (nn.Parameter(torch.ones(2, 2)) for _ in range(3))
    optimizer = optim.SGD([{"params": [one]}, {"params": [other], "weight_decay": 0.5, "lr": 2.0}], lr=1.0, weight_decay=0.1)
    second = optim.Adam([nn.Parameter(torch.ones(1))], lr=torch.tensor(0.25))
    assert decay_of(one, [second, optimizer]) == Decay(0.1, True, 1.0, True)
    assert decay_of(other, [second, optimizer]) == Decay(0.5, True, 2.0, True)
    assert decay_of(neither, [second, optimizer]) is None
    assert decay_of(one, []) is None
    assert decay_of(second.param_groups[0]["params"][0], [second]) == Decay(0.0, True, 0.25, False)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    assert decay_of(one, [optimizer]) == Decay(0.0, True, 1.0, True)


# In training.


def watched(model: Trained, *callbacks: pl.Callback, **options: Any) -> Recorder:
    recorder = Recorder()
    monitor = RankCollapseMonitor(K, every_n_steps=1)
    fit(model, *callbacks, monitor, logger=recorder, precision="64-true", **options)
    return recorder


BY_PENALTY = [*CERTIFICATES, "stationarity_residual"]
CASES = {
    "SGD": (SGD, 5e-3, True, True),
    "SGD without": (partial(optim.SGD, lr=0.1), 0.0, False, False),
    "SGD at rest": (partial(optim.SGD, lr=0.0, weight_decay=5e-3), 5e-3, True, False),
    "Adam": (partial(optim.Adam, lr=0.01, weight_decay=5e-3), 5e-3, True, False),
    "Adam without": (partial(optim.Adam, lr=0.01), 0.0, False, False),
    "AdamW": (partial(optim.AdamW, lr=0.01, weight_decay=5e-3), 5e-3, False, False),
    "Rprop": (partial(optim.Rprop, lr=0.01), 0.0, False, False),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_read_of_each(name: str) -> None:
    optimizer, decay, certified, bounded = CASES[name]
    recorder = watched(mlp(optimizer=optimizer))
    assert set(readings(recorder, "weight_decay").values()) == {decay}
    for measure in ("distance_to_rank_k", "class_mean_alignment", "alignment_bound", "tcv_adjoint", "norm_ratio"):
        assert len(readings(recorder, measure)) == 12
    for measure in BY_PENALTY:
        assert len(readings(recorder, measure)) == (12 if certified else 0)
    assert len(readings(recorder, "sgd_rank_bound")) == (12 if bounded else 0)
    assert_certified(recorder, certificates=certified)


def test_rank_bound_and_norm_ratio_by_definition() -> None:
    weights = Weights()
    recorder = watched(mlp(optimizer=partial(optim.SGD, lr=2.0, weight_decay=15.0)), weights, accumulate_grad_batches=2)
    bound = 2 * 6 * math.log(2 / 1e-3) / (2.0 * 15.0)
    assert 3 < bound < 7
    shapes = {LAYERS[0]: (7, 8), LAYERS[1]: (7, 7), LAYERS[2]: (3, 7)}
    expected = {(step, layer): min(bound, *shapes[layer]) for step in range(2) for layer in LAYERS}
    assert readings(recorder, "sgd_rank_bound") == pytest.approx(expected)
    for (step, layer), ratio in readings(recorder, "norm_ratio").items():
        before, after = (((weights.at[s][layer]) ** 2).sum() ** 0.5 for s in (step, step + 1))
        assert ratio == pytest.approx(before / after, rel=1e-6)
        assert abs(ratio - 1) > 1e-3


class Groups(Trained):
    """A decay a layer, none for the last; or a layer that no optimizer has."""

    forgotten = False

    def configure_optimizers(self) -> optim.Optimizer:
        decays = {0: 1e-2, 2: 1e-3} if self.forgotten else {0: 1e-2, 2: 1e-3, 4: 0.0}
        return optim.SGD([{"params": self.network[i].parameters(), "weight_decay": d} for i, d in decays.items()], lr=0.1)


def grouped(**attributes: Any) -> Trained:
    model = mlp()
    return made(model.network, model.data.tensors[0], kind=Groups, **attributes)


def test_groups_have_decays_of_their_own() -> None:
    recorder = watched(grouped())
    decays = {layer: value for (_, layer), value in readings(recorder, "weight_decay").items()}
    assert decays == dict(zip(LAYERS, (1e-2, 1e-3, 0.0), strict=True))
    for measure in [*BY_PENALTY, "sgd_rank_bound"]:
        assert {layer for _, layer in readings(recorder, measure)} == set(LAYERS[:2])
    assert {layer for _, layer in readings(recorder, "alignment_bound")} == set(LAYERS)
    assert_order(recorder)


def assert_order(recorder: Recorder) -> None:
    joint, sharp, loose = (readings(recorder, measure) for measure in CERTIFICATES)
    distances = readings(recorder, "distance_to_rank_k")
    assert all(distances[key] <= joint[key] <= sharp[key] * (1 + 1e-9) <= loose[key] * (1 + 1e-9) for key in joint)


def test_layer_that_no_optimizer_has_is_not_read() -> None:
    recorder = watched(grouped(forgotten=True))
    assert {layer for _, layer in readings(recorder, "alignment_bound")} == set(LAYERS[:2])


class Scheduled(Trained):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        for group in self.optimizers().param_groups:
            group["weight_decay"] = 1e-2 / 2**batch_idx


def test_decay_that_changes_is_read_as_it_is() -> None:
    model = mlp()
    recorder = watched(made(model.network, model.data.tensors[0], kind=Scheduled))
    assert readings(recorder, "weight_decay") == {(s, layer): 1e-2 / 2**s for s in range(4) for layer in LAYERS}
    assert_certified(recorder)


def test_biases_do_not_matter() -> None:
    """Certificates of a weight do not know of its bias's decay."""

    def without_biases(parameters: Any) -> optim.Optimizer:
        parameters = list(parameters)
        groups = [{"params": [p for p in parameters if p.dim() > 1]}, {"params": [p for p in parameters if p.dim() == 1]}]
        groups[1]["weight_decay"] = 0.0
        return SGD(groups)

    recorder = watched(mlp(optimizer=without_biases))
    assert set(readings(recorder, "weight_decay").values()) == {5e-3}
    assert_certified(recorder)


@pytest.mark.parametrize("optimizer", [partial(optim.AdamW, lr=0.01), SGD])
def test_probe_reads_decay_and_nothing_of_a_step(optimizer: Callable[..., optim.Optimizer]) -> None:
    model, recorder = mlp(optimizer=optimizer), Recorder()
    fit(model, RankCollapseMonitor(K, every_n_steps=1, data=model.train_dataloader()), logger=recorder)
    assert set(readings(recorder, "weight_decay").values()) == {1e-2 if optimizer is not SGD else 5e-3}
    assert bool(readings(recorder, "certificate_joint")) == (optimizer is SGD)
    assert not readings(recorder, "sgd_rank_bound")
    assert not readings(recorder, "norm_ratio")
