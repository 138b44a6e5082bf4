"""A look at a fixed set, in the midst of a training that must not notice."""

import random
from collections import UserDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot
from torch.utils.data import DataLoader, TensorDataset

from rank_callbacks import RankCollapseMonitor, log_spaced
from rank_callbacks.callbacks.probe import logits_of, outputs_of, undisturbed
from tests.callbacks.test_rank_collapse import (
    COLLAPSE,
    LAYERS,
    OF_SGD,
    SPECTRAL,
    Trained,
    assert_certified,
    convnet,
    made,
    mlp,
    naive,
    readings,
    transformer,
)
from tests.models import CLASSES, MODELS, Classifier
from tests.training import Recorder, Weights, assert_identical, fit, outcome

K = CLASSES
OF_PROBE = [measure for measure in OF_SGD if measure not in {"sgd_rank_bound", "norm_ratio"}]


def loader_of(model: Classifier, size: int = 10, **options: Any) -> DataLoader:
    inputs, classes = model.data.tensors
    return DataLoader(TensorDataset(inputs[:size].clone(), classes[:size]), **({"batch_size": 4} | options))


class Forward(Classifier):
    """With the ``forward`` that a probe needs."""

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)


def with_forward(model: Callable[[], Classifier]) -> Classifier:
    made = model()
    return made if isinstance(made, Trained) else Forward(made.network, made.data.tensors[0])


# Values.


@pytest.mark.parametrize("batch_size", [10, 4, 1])
def test_every_measure_by_definition_whatever_the_batches(batch_size: int) -> None:
    """At step s, of the weights after s steps; batches of unequal size count by their samples."""
    torch.manual_seed(0)
    model, weights, recorder = mlp(), Weights(), Recorder()
    loader = loader_of(model, batch_size=batch_size)
    monitor = RankCollapseMonitor(K, every_n_steps=2, data=loader)
    fit(model, weights, monitor, logger=recorder, precision="64-true", max_epochs=2)
    assert recorder.steps("rank_collapse") == [0, 2, 4, 6, 7]
    assert {tag.split("/")[1] for _, tag in recorder.readings("rank_collapse")} == set(OF_PROBE)
    assert_certified(recorder)
    inputs, classes = (tensor[:10] for tensor in model.data.tensors)
    torch.manual_seed(0)
    for name, (z, delta, gradient) in rows_of(mlp().network.double(), inputs.double(), classes).items():
        expected = naive(weights.at[0][name], gradient, z, delta, classes.numpy(), 1, 10, 5e-3)
        got = {measure: readings(recorder, measure)[0, name] for measure in expected}
        assert got == pytest.approx(expected, rel=1e-6)


def rows_of(network: nn.Sequential, inputs: Tensor, classes: Tensor) -> dict[str, Any]:
    """Inputs, output gradients of the mean loss and gradients of its linear layers."""
    kept, hidden = {}, inputs
    for place, layer in enumerate(network):
        before, hidden = hidden, layer(hidden)
        if isinstance(layer, nn.Linear):
            kept[f"network.{place}.weight"] = (before, hidden, layer.weight)
    loss = cross_entropy(hidden, classes)
    return {
        name: (z.detach().numpy(), *(g.numpy() for g in torch.autograd.grad(loss, [a, w], retain_graph=True)))
        for name, (z, a, w) in kept.items()
    }


@pytest.mark.parametrize("model", [mlp, convnet, transformer], ids=lambda model: model.__name__)
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "bf16-true"])
def test_certificates_hold(model: Callable[[], Trained], precision: str) -> None:
    recorder, training = Recorder(), model()
    monitor = RankCollapseMonitor(K, every_n_steps=2, data=loader_of(training))
    fit(training, monitor, logger=recorder, precision=precision, accumulate_grad_batches=2, max_epochs=2)
    assert recorder.steps("rank_collapse") == [0, 2, 3]
    assert_certified(recorder, loose="bf16" not in precision)


def test_exact_steps() -> None:
    for every_n_steps, steps in ((1, [0, 1, 2, 3, 4, 5, 6, 7]), (4, [0, 4, 7]), (log_spaced(3), [0, 1, 2, 5, 7])):
        recorder, model = Recorder(), mlp()
        fit(model, RankCollapseMonitor(K, every_n_steps=every_n_steps, data=loader_of(model)), logger=recorder, max_epochs=2)
        assert recorder.steps("rank_collapse") == recorder.steps("monitor") == steps


@pytest.mark.parametrize("form", ["list", "generator of a class"])
def test_anything_that_can_be_gone_through_again_is_a_loader(form: str) -> None:
    class Batches:
        def __iter__(self) -> Iterator[Any]:
            return iter(batches)

    model, recorder, expected = mlp(), Recorder(), Recorder()
    batches = list(loader_of(model))
    fit(model, RankCollapseMonitor(K, every_n_steps=3, data=batches if form == "list" else Batches()), logger=recorder)
    torch.manual_seed(0)
    model = mlp()
    fit(model, RankCollapseMonitor(K, every_n_steps=3, data=loader_of(model)), logger=expected)
    assert recorder.readings("rank_collapse") == expected.readings("rank_collapse")


def test_loss_and_labels_of_ones_choice() -> None:
    """Squares of one-hot labels, in the third item of a batch."""
    model, recorder = mlp(), Recorder()
    inputs, classes = model.data.tensors
    dataset = TensorDataset(inputs, inputs, classes)
    monitor = RankCollapseMonitor(
        K,
        every_n_steps=2,
        data=DataLoader(dataset, batch_size=8),
        loss=lambda outputs, labels: mse_loss(outputs, one_hot(labels, K).to(outputs)),
        labels=lambda batch: batch[2] if len(batch) > 2 else batch[1],
    )
    fit(model, monitor, logger=recorder)
    assert len(readings(recorder, "certificate_loose")) == 9
    assert_certified(recorder)


def test_eval_mode_is_what_is_looked_at() -> None:
    """Without dropout, two probes of the same weights read the same."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, K))
    model = made(network, torch.randn(12, 8), optimizer=partial(torch.optim.SGD, lr=0.0, weight_decay=5e-3))
    model.network[1].momentum = 0.0
    recorder = Recorder()
    fit(model, RankCollapseMonitor(K, every_n_steps=1, data=loader_of(model, shuffle=True)), logger=recorder, max_epochs=2)
    for measure in [*COLLAPSE, *SPECTRAL]:
        of_steps = [{layer: v for (s, layer), v in readings(recorder, measure).items() if s == step} for step in range(4)]
        assert all(one == pytest.approx(of_steps[0], rel=1e-5, abs=1e-7) for one in of_steps)


# Nothing is disturbed.


def trained(model: Callable[[], Classifier], monitor: Callable[[Classifier], pl.Callback] | None, **options: Any) -> Any:
    pl.seed_everything(0, verbose=False)
    module = with_forward(model)
    trainer = fit(module, *([monitor(module)] if monitor else []), max_epochs=2, **options)
    measured = any(tag.startswith("rank_collapse") for tag in trainer.callback_metrics)
    return {"measured": measured, **outcome(trainer, module)}


def check_harmless(model: Callable[[], Classifier], monitor: Callable[[Classifier], pl.Callback], **options: Any) -> None:
    without, watched = trained(model, None, **options), trained(model, monitor, **options)
    assert (without.pop("measured"), watched.pop("measured")) == (False, True)
    assert_identical(watched, without)


def probing(model: Classifier, **options: Any) -> RankCollapseMonitor:
    return RankCollapseMonitor(K, every_n_steps=2, data=loader_of(model, **options))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("model", [*MODELS[:4], mlp, convnet, transformer], ids=lambda model: model.__name__)
def test_training_is_bit_identical(model: Callable[[], Classifier], shuffle: bool) -> None:
    check_harmless(model, partial(probing, shuffle=shuffle))


@pytest.mark.parametrize(
    "options",
    [{"precision": "bf16-mixed"}, {"precision": "64-true"}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.01}],
    ids=str,
)
def test_training_is_bit_identical_with(options: dict[str, Any]) -> None:
    check_harmless(convnet, partial(probing, shuffle=True), **options)


class Careless(Forward):
    """Draws numbers of every kind in its forward, and counts in a buffer."""

    def __init__(self, network: nn.Module, inputs: Tensor) -> None:
        super().__init__(network, inputs)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        noise = random.random() + np.random.rand() + torch.rand(())  # ruff: ignore[numpy-legacy-random]
        return self.network(inputs + 0.01 * noise)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = cross_entropy(self(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss


def careless() -> Classifier:
    model = MODELS[1]()
    return Careless(model.network, model.data.tensors[0])


def test_numbers_drawn_and_buffers_written_in_a_forward_are_undone() -> None:
    without, watched = (trained_as_is(monitor) for monitor in (None, partial(probing, shuffle=True, num_workers=0)))
    assert without.pop("measured") != watched.pop("measured")
    assert watched["model"]["calls"] == 6
    assert_identical(watched, without)


def trained_as_is(monitor: Any) -> Any:
    pl.seed_everything(0, verbose=False)
    module = careless()
    trainer = fit(module, *([monitor(module)] if monitor else []), max_epochs=2)
    return {"measured": "rank_collapse/tcv_input/mean_over_layers" in trainer.callback_metrics, **outcome(trainer, module)}


class Gradients(pl.Callback):
    """Those at the start of each batch."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        self.seen.append([None if p.grad is None else p.grad.clone() for p in pl_module.parameters()])


def test_gradients_are_left_alone() -> None:
    """A probe between two batches would otherwise add to what is there."""
    model, before, after = mlp(), Gradients(), Gradients()
    fit(model, before, RankCollapseMonitor(K, every_n_steps=1, data=loader_of(model)), after, accumulate_grad_batches=2)
    assert before.seen[0] == [None] * 6
    assert before.seen[2][0].abs().max() > 0
    assert_identical(after.seen, before.seen)


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


class Broken(Exception):
    pass


@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["loss", "loader"])
def test_a_probe_that_fails_leaves_nothing(error: type[BaseException], place: str) -> None:
    model = convnet()
    model.network[1].eval()
    before, state = modes(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        if place == "loss":
            raise error
        return cross_entropy(outputs, labels)

    class Batches:
        def __iter__(self) -> Iterator[Any]:
            yield next(iter(loader_of(model)))
            raise error

    monitor = RankCollapseMonitor(K, every_n_steps=1, data=Batches(), loss=loss)
    with pytest.raises((Broken, SystemExit)):  # Lightning leaves the process at an interrupt
        fit(model, monitor)
    assert not any(module._forward_hooks for module in model.modules())
    assert modes(model) == before
    assert_identical(dict(model.state_dict()), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_undisturbed() -> None:
    model = convnet()
    model.network[0].eval()
    model.network[1].weight.requires_grad_(False)
    before, state = modes(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generators = [torch.get_rng_state(), np.random.get_state(), random.getstate()]  # ruff: ignore[numpy-legacy-random]
    pointers = [buffer.data_ptr() for buffer in model.buffers()]

    @undisturbed(model)
    def disturb() -> None:
        assert not any(modes(model))
        model.network[1].running_mean.add_(1)
        model.network[1].num_batches_tracked += 1
        model.network[4].train()
        torch.rand(3), np.random.rand(3), random.random()  # ruff: ignore[numpy-legacy-random]
        raise Broken

    with pytest.raises(Broken):
        disturb()
    assert modes(model) == before
    assert_identical(dict(model.state_dict()), state)
    assert [buffer.data_ptr() for buffer in model.buffers()] == pointers
    now = [torch.get_rng_state(), np.random.get_state(), random.getstate()]  # ruff: ignore[numpy-legacy-random]
    assert_identical(now, generators)


def test_buffers_that_hold_nan_are_restored() -> None:
    model = convnet()
    model.network[1].running_mean[0] = torch.nan
    with undisturbed(model):
        model.network[1].running_mean.zero_()
    assert model.network[1].running_mean.isnan().tolist() == [True, False, False, False]


def test_buffer_that_is_replaced_is_restored() -> None:
    model = convnet()
    before = model.network[1].running_mean.clone()
    with undisturbed(model):
        model.network[1].running_mean = model.network[1].running_mean + 1
    assert torch.equal(model.network[1].running_mean, before)


# Batches of every kind.


class Called(pl.LightningModule):
    """Keeps what its ``forward`` was given."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.forward = MethodType(forward, self)


def of_batch(self: Any, batch: Any) -> Any:
    return batch


def of_names(self: Any, tokens: Any, mask: Any = None) -> Any:
    return tokens, mask


def of_all(self: Any, **batch: Any) -> Any:
    return batch


def of_batch_and_more(self: Any, batch: Any, **options: Any) -> Any:
    return batch, options


def of_anything(self: Any, *args: Any, **kwargs: Any) -> Any:
    return args, kwargs


BATCH = {"tokens": 1, "mask": 2, "labels": 3}


@pytest.mark.parametrize(
    ("forward", "batch", "given"),
    [
        pytest.param(of_batch, (1, 2), 1, id="tuple"),
        pytest.param(of_batch, [1], 1, id="list"),
        pytest.param(of_batch, 1, 1, id="no tuple"),
        pytest.param(of_batch, BATCH, BATCH, id="dict"),
        pytest.param(of_batch, UserDict(BATCH), UserDict(BATCH), id="mapping"),
        pytest.param(of_batch, (BATCH, 4), BATCH, id="dict inside"),
        pytest.param(of_names, BATCH, (1, 2), id="dict by name"),
        pytest.param(of_names, UserDict(BATCH), (1, 2), id="mapping by name"),
        pytest.param(of_names, (BATCH, 4), (1, 2), id="dict inside by name"),
        pytest.param(of_names, {"mask": 2}, ({"mask": 2}, None), id="dict without what must be there"),
        pytest.param(of_names, {"pixels": 2}, ({"pixels": 2}, None), id="dict of other names"),
        pytest.param(of_names, (1, 2), (1, None), id="tuple for names"),
        pytest.param(of_all, BATCH, BATCH, id="dict for any name"),
        pytest.param(of_batch_and_more, BATCH, (BATCH, {}), id="dict and options"),
        pytest.param(of_anything, BATCH, ((), BATCH), id="dict for anything"),
        pytest.param(of_anything, {3: 1}, (({3: 1},), {}), id="keys that are no names"),
    ],
)
def test_forward_is_given_what_it_takes(forward: Callable[..., Any], batch: Any, given: Any) -> None:
    assert outputs_of(Called(forward), batch) == given


@pytest.mark.parametrize(
    ("forward", "batch", "message"),
    [
        pytest.param(of_all, (1, 2), r"got one int for forward\(\*\*batch", id="no names"),
        pytest.param(
            lambda self, x, y: x, {"x": 1}, r"got a dict with the keys 'x' for forward\(x, y\)\. Give batches", id="dict"
        ),
        pytest.param(lambda self: 1, torch.ones(1), r"got one Tensor for forward\(\)", id="nothing"),
    ],
)
def test_forward_that_does_not_take_a_batch(forward: Callable[..., Any], batch: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"Expected forward to take the inputs of a batch, {message}"):
        outputs_of(Called(forward), batch)


def test_module_without_forward() -> None:
    for model in (Classifier(nn.Linear(2, 2), torch.ones(1, 2)), pl.LightningModule()):
        with pytest.raises(ValueError, match=f"Expected {type(model).__name__} to define forward"):
            outputs_of(model, torch.ones(1, 2))


@dataclass
class Outputs:
    loss: Tensor | None
    logits: Tensor | None


LOGITS = torch.ones(2, 3)


@pytest.mark.parametrize(
    "outputs",
    [LOGITS, Outputs(None, LOGITS), {"loss": 1, "logits": LOGITS}, UserDict(logits=LOGITS)],
    ids=["tensor", "dataclass", "dict", "mapping"],
)
def test_logits(outputs: Any) -> None:
    assert logits_of(outputs) is LOGITS


@pytest.mark.parametrize("outputs", [Outputs(LOGITS, None), {"output": LOGITS}, (LOGITS,), None], ids=str)
def test_outputs_without_logits_stay(outputs: Any) -> None:
    assert logits_of(outputs) is outputs


# Misuse.


def test_loader_without_labels() -> None:
    model = mlp()
    with pytest.raises(ValueError, match=r"as the second item of the batch, got NoneType\. The batch is a list of Tensor"):
        fit(model, RankCollapseMonitor(K, data=DataLoader(TensorDataset(torch.randn(4, 8)), batch_size=2)))


def test_probe_of_nothing() -> None:
    recorder = Recorder()
    with pytest.warns(UserWarning, match=r"network\.0\.weight has no reading"):
        fit(mlp(), RankCollapseMonitor(K, every_n_steps=2, data=[]), logger=recorder)
    assert not recorder.readings("rank_collapse")


@pytest.mark.parametrize("layers", [LAYERS[0], LAYERS[2]])
def test_selected_layers(layers: str) -> None:
    model, recorder = mlp(), Recorder()
    fit(model, RankCollapseMonitor(K, layers, every_n_steps=2, data=loader_of(model)), logger=recorder)
    assert {layer for _, layer in readings(recorder, "tcv_input")} == {layers}
