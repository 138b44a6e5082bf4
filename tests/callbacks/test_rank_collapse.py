"""The values of every measure against the definitions written out, and the steps at which they are read."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

from rank_callbacks import RankCollapseMonitor, log_spaced
from rank_callbacks.callbacks.lightning import step_axis
from tests.functional.test_patch_moments import patches
from tests.gradients import readings as readings_of
from tests.models import CLASSES, MODELS, Classifier, Last, two_optimizers
from tests.training import Recorder, assert_identical, fit, outcome

K = CLASSES
SGD = partial(torch.optim.SGD, lr=0.1, weight_decay=5e-3)
CERTIFICATES = ["certificate_joint", "certificate_sharp", "certificate_loose"]
SPECTRAL = ["distance_to_rank_k", "relative_distance_to_rank_k", "numerical_rank"]
COLLAPSE = ["tcv_input", "tcv_ratio_input", "tcv_adjoint", "class_mean_alignment", "alignment_bound"]
OF_SGD = [*SPECTRAL, *COLLAPSE, *CERTIFICATES, "stationarity_residual", "weight_decay", "sgd_rank_bound", "norm_ratio"]
Matrix = NDArray[np.float64]


class Trained(Classifier):
    """Batches of six in order, which processes take in turns, and an optimizer of one's choice."""

    shuffle = False
    batch_size = 6
    optimizer: Callable[..., torch.optim.Optimizer] = staticmethod(SGD)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    def train_dataloader(self) -> DataLoader:
        turns = torch.distributed.is_available() and torch.distributed.is_initialized()
        sampler = DistributedSampler(self.data, shuffle=False) if turns else None
        return DataLoader(self.data, batch_size=self.batch_size, sampler=sampler)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())


def made(network: nn.Module, inputs: Tensor, kind: type[Trained] = Trained, **attributes: Any) -> Trained:
    model = kind(network, inputs)
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


def mlp(batches: int = 4, activation: type[nn.Module] = nn.Tanh, **attributes: Any) -> Trained:
    network = nn.Sequential(nn.Linear(8, 7), activation(), nn.Linear(7, 7), activation(), nn.Linear(7, K))
    return made(network, torch.randn(6 * batches, 8), **attributes)


def convnet(batches: int = 4, **attributes: Any) -> Trained:
    convolutions = [nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)]
    convolutions += [nn.Conv2d(4, 5, (3, 2), stride=2, dilation=(1, 2), bias=False), nn.Tanh()]
    return made(nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(20, K)), torch.randn(6 * batches, 2, 5, 6), **attributes)


class ClassToken(nn.Module):
    """A transformer that reads the class from a token of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.token = nn.Linear(5, 8), nn.Parameter(torch.randn(1, 1, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, K)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = torch.cat([self.token.expand(len(inputs), -1, -1), self.embed(inputs)], 1)
        return self.head(self.encoder(tokens)[:, 0])


def transformer(batches: int = 4, **attributes: Any) -> Trained:
    return made(ClassToken(), torch.randn(6 * batches, 4, 5), **attributes)


def recurrent(batches: int = 4, **attributes: Any) -> Trained:
    network = nn.Sequential(Last(nn.LSTM(4, 5, num_layers=2, batch_first=True)), nn.Linear(5, K))
    return made(network, torch.randn(6 * batches, 3, 4), **attributes)


def readings(recorder: Recorder, measure: str) -> dict[tuple[int, str], float]:
    """By step and layer, without the summaries."""
    return readings_of(recorder, measure, "rank_collapse")


def assert_certified(recorder: Recorder, rtol: float = 1e-6, certificates: bool = True, loose: bool = True) -> None:
    """distance <= joint <= sharp <= loose, and distance <= alignment bound, at every report of every layer."""
    order = ["distance_to_rank_k", *(CERTIFICATES[: 3 if loose else 2] if certificates else [])]
    found = {measure: readings(recorder, measure) for measure in [*order, "alignment_bound", "relative_distance_to_rank_k"]}
    assert found["distance_to_rank_k"]
    for key, distance in found["distance_to_rank_k"].items():
        relative = found["relative_distance_to_rank_k"][key]
        # No singular value is above the norm.
        rounding = 1e-7 * (distance / relative if relative > 0 else 1.0)
        chain = [found[measure][key] for measure in order]
        assert np.isfinite(chain).all(), (key, chain)
        for below, above in [*pairwise(chain), (distance, found["alignment_bound"][key])]:
            assert below <= above * (1 + rtol) + rounding, (key, chain)


# What a report should say, from rows that are kept one by one.


class Rows(pl.Callback):
    """Keeps what passes through each linear layer and convolution, its gradients and weights, by step."""

    def __init__(self) -> None:
        self.inputs: dict[int, dict[str, list[Tensor]]] = {}
        self.deltas: dict[int, dict[str, list[Tensor]]] = {}
        self.labels: dict[int, dict[str, list[Tensor]]] = {}
        self.samples: dict[int, int] = {}
        self.gradients: dict[int, dict[str, Matrix]] = {}
        self.weights: dict[int, dict[str, Matrix]] = {}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.hooks = [
            module.register_forward_hook(partial(self.on_forward, trainer, f"{name}.weight"))
            for name, module in pl_module.named_modules()
            if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
        ]

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.classes = batch[1]
        self.samples[step_axis(trainer)] = self.samples.get(step_axis(trainer), 0) + len(batch[1])
        self.weights[step_axis(trainer)] = self.matrices(pl_module)

    def on_forward(self, trainer: pl.Trainer, name: str, module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(partial(self.on_gradient, step_axis(trainer), name, module, args[0].detach().clone()))

    def on_gradient(self, step: int, name: str, module: nn.Module, inputs: Tensor, deltas: Tensor) -> None:
        if isinstance(module, nn.modules.conv._ConvNd):
            inputs, deltas = patches(inputs, module), deltas.flatten(2).mT
        classes = self.classes.reshape(-1, *[1] * (inputs.dim() - 2)).expand(inputs.shape[:-1])
        for kept, tensor in ((self.inputs, inputs), (self.deltas, deltas)):
            kept.setdefault(step, {}).setdefault(name, []).append(tensor.flatten(0, -2).double())
        self.labels.setdefault(step, {}).setdefault(name, []).append(classes.flatten())

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.gradients[step_axis(trainer)] = {
            name: p.grad.double().flatten(1).numpy().copy() for name, p in pl_module.named_parameters() if p.dim() > 1
        }

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.weights[len(self.gradients)] = self.matrices(pl_module)
        for hook in self.hooks:
            hook.remove()

    @staticmethod
    def matrices(model: nn.Module) -> dict[str, Matrix]:
        return {name: p.detach().double().flatten(1).numpy().copy() for name, p in model.named_parameters() if p.dim() > 1}

    def report(self, name: str, step: int, window: int, lr: float, decay: float) -> dict[str, float]:
        """Of the window that ends at a step, by definition."""
        steps = range(step - window + 1, step + 1)
        z, delta, labels = (
            torch.cat([part for s in steps for part in kept[s][name]]).numpy()
            for kept in (self.inputs, self.deltas, self.labels)
        )
        weight = self.weights[step][name]
        gradient = sum(self.gradients[s][name] for s in steps) / window
        samples = sum(self.samples[s] for s in steps)
        return naive(weight, gradient, z, delta, labels, window, samples, decay) | {
            "weight_decay": decay,
            "norm_ratio": np.linalg.norm(weight) / np.linalg.norm(self.weights[step + 1][name]),
            "sgd_rank_bound": min(len(z) / window * np.log(2 / 1e-3) / (lr * decay), *weight.shape),
        }


def naive(
    weight: Matrix, gradient: Matrix, z: Matrix, delta: Matrix, labels: Any, steps: int, samples: int, decay: float
) -> dict[str, float]:
    """Science 1.3, sum by sum."""
    means, between, within, within_delta, tcv_z = np.zeros_like(weight), 0.0, np.zeros_like(weight), 0.0, 0.0
    for k in range(K):
        mine = [i for i in range(len(z)) if labels[i] == k]
        if not mine:
            continue
        z_mean, delta_mean = sum(z[i] for i in mine) / len(mine), sum(delta[i] for i in mine) / len(mine)
        means += len(mine) * np.outer(delta_mean, z_mean) / steps
        between += len(mine) * np.sum((z_mean - z.mean(0)) ** 2)
        for i in mine:
            within += np.outer(delta[i] - delta_mean, z[i] - z_mean) / steps
            within_delta += np.sum((delta[i] - delta_mean) ** 2)
            tcv_z += np.sum((z[i] - z_mean) ** 2)
    residual = gradient + decay * weight
    s = np.linalg.svd(weight, compute_uv=False)
    alignment = -np.sum(weight * means) / np.linalg.norm(weight) / np.linalg.norm(means)
    return {
        "distance_to_rank_k": np.sqrt(np.sum(s[K:] ** 2)),
        "relative_distance_to_rank_k": np.sqrt(np.sum(s[K:] ** 2) / np.sum(s**2)),
        "numerical_rank": np.sum(s > 1e-3 * s[0]),
        "tcv_input": tcv_z / len(z),
        "tcv_ratio_input": tcv_z / (tcv_z + between),
        # The gradient of a sample's own loss: the loss is a mean over all samples, at each of the steps.
        "tcv_adjoint": within_delta / len(z) * (samples / steps) ** 2,
        "class_mean_alignment": alignment,
        "alignment_bound": np.linalg.norm(weight) * np.sqrt(1 - alignment**2),
        "certificate_joint": np.linalg.norm(residual - within) / decay,
        "certificate_sharp": (np.linalg.norm(within) + np.linalg.norm(residual)) / decay,
        "certificate_loose": (np.sqrt(within_delta * tcv_z) / steps + np.linalg.norm(residual)) / decay,
        "stationarity_residual": np.linalg.norm(residual) / np.linalg.norm(decay * weight),
    }


def check_values(recorder: Recorder, rows: Rows, names: list[str], steps: list[int], window: int, rtol: float = 1e-8) -> None:
    assert recorder.steps("rank_collapse") == steps
    for step in steps:
        for name in names:
            expected = rows.report(name, step, window, lr=0.1, decay=5e-3)
            got = {measure: readings(recorder, measure)[step, name] for measure in expected}
            assert got == pytest.approx(expected, rel=rtol, abs=1e-12), (step, name)


LAYERS = ["network.0.weight", "network.2.weight", "network.4.weight"]


@pytest.mark.parametrize(
    ("every_n_steps", "window", "options", "steps"),
    [
        pytest.param(1, 1, {}, [0, 1, 2, 3], id="window of one"),
        pytest.param(3, 3, {"max_epochs": 2}, [3, 6], id="window of three"),
        pytest.param(1, 1, {"accumulate_grad_batches": 2}, [0, 1], id="accumulation"),
        pytest.param(3, 3, {"accumulate_grad_batches": 2, "max_epochs": 3}, [3], id="accumulation, window of three"),
        pytest.param(1, 1, {"gradient_clip_val": 1e-3}, [0, 1, 2, 3], id="before clipping"),
        pytest.param(1, 1, {"max_epochs": 2, "accumulate_grad_batches": 3}, [0, 1, 2, 3], id="uneven accumulation"),
    ],
)
def test_every_measure_by_definition(every_n_steps: int, window: int, options: dict[str, Any], steps: list[int]) -> None:
    recorder, rows = Recorder(), Rows()
    monitor = RankCollapseMonitor(K, every_n_steps=every_n_steps, window=window)
    fit(mlp(), rows, monitor, logger=recorder, precision="64-true", **options)
    assert {tag.split("/")[1] for _, tag in recorder.readings("rank_collapse")} == set(OF_SGD)
    check_values(recorder, rows, LAYERS, steps, window)
    assert_certified(recorder)


@pytest.mark.parametrize(
    ("every_n_steps", "window", "options", "steps", "seen"),
    [
        pytest.param(2500, None, {}, [3], 4, id="shorter than the default window"),
        pytest.param(9, 5, {}, [3], 4, id="a step shorter than a window"),
        pytest.param(9, 4, {}, [3], 4, id="as long as a window"),
        pytest.param(9, 8, {"max_epochs": 3, "accumulate_grad_batches": 2}, [5], 6, id="shorter, with accumulation"),
        pytest.param(9, 8, {"max_epochs": -1, "max_steps": 2}, [1], 2, id="shorter, by max_steps"),
        pytest.param(lambda step: False, 3, {"max_epochs": 2}, [7], 3, id="nothing scheduled"),
        pytest.param(4, 3, {"max_epochs": 2}, [4, 7], 3, id="last step not scheduled, one window right after another"),
        pytest.param(6, 4, {"max_epochs": 3}, [6, 11], 4, id="last step not scheduled, a scheduled window would not fit"),
        pytest.param(
            7, 3, {"max_epochs": 3, "accumulate_grad_batches": 3}, [5], 3, id="last step not scheduled, accumulation"
        ),
    ],
)
def test_last_report_by_definition(
    every_n_steps: Any, window: int | None, options: dict[str, Any], steps: list[int], seen: int
) -> None:
    """Of a full window that ends with training, or of all of a training that is shorter."""
    recorder, rows = Recorder(), Rows()
    monitor = RankCollapseMonitor(K, every_n_steps=every_n_steps, window=window)
    fit(mlp(), rows, monitor, logger=recorder, precision="64-true", **options)
    assert max(rows.gradients) == steps[-1]
    check_values(recorder, rows, LAYERS, steps, seen)
    assert_certified(recorder)


@pytest.mark.parametrize(("window", "accumulate", "steps"), [(1, 1, [0, 1, 2, 3]), (2, 2, [1])])
def test_every_measure_of_a_convolution_by_definition(window: int, accumulate: int, steps: list[int]) -> None:
    """Its patches are the samples of its input, cut out one by one; a sample's loss is that of its image."""
    recorder, rows = Recorder(), Rows()
    schedule = (lambda step: step == 1) if window == 2 else 1
    monitor = RankCollapseMonitor(K, every_n_steps=schedule, window=window)
    options = {"precision": "64-true", "accumulate_grad_batches": accumulate}
    fit(convnet(), rows, monitor, logger=recorder, **options)
    check_values(recorder, rows, ["network.0.weight", "network.3.weight", "network.6.weight"], steps, window)
    assert_certified(recorder)


def test_tokens_have_the_label_of_their_sample() -> None:
    network = nn.Sequential(nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 7), nn.Tanh(), nn.Flatten(), nn.Linear(28, K))
    recorder, rows = Recorder(), Rows()
    monitor = RankCollapseMonitor(K, every_n_steps=1)
    fit(made(network, torch.randn(18, 4, 8)), rows, monitor, logger=recorder, precision="64-true")
    check_values(recorder, rows, [*LAYERS[:2], "network.5.weight"], [0, 1, 2], 1)
    assert {len(rows.inputs[step][LAYERS[1]][0]) for step in range(3)} == {24}


# Labels in all forms, on layers of all shapes.


class Tokens(nn.Module):
    """Reads (B, T, 8) with layers that see the batch first, the tokens first, and in the end a sample or a token a row."""

    def __init__(self, per_token: bool) -> None:
        super().__init__()
        self.first, self.turned, self.head = nn.Linear(8, 7), nn.Linear(7, 6), nn.Linear(6, K)
        self.per_token = per_token

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.turned(self.first(inputs).tanh().transpose(0, 1)).tanh().transpose(0, 1)
        return self.head(hidden if self.per_token else hidden.mean(1))


class Labelled(Trained):
    """Of any labels that cross-entropy takes."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        labels = batch[1].flatten(0, -2) if batch[1].is_floating_point() else batch[1].flatten()
        return cross_entropy(self(batch[0]).flatten(0, -2), labels, ignore_index=-100)


def labelled(labels: Tensor, per_token: bool = False, **arguments: Any) -> Recorder:
    torch.manual_seed(1)
    model = made(Tokens(per_token), torch.randn(12, 4, 8), kind=Labelled)
    model.data = TensorDataset(model.data.tensors[0], labels)
    recorder = Recorder()
    fit(model, RankCollapseMonitor(K, every_n_steps=1, **arguments), logger=recorder, precision="64-true")
    return recorder


def test_labels_of_samples_hold_for_all_of_their_tokens() -> None:
    """Also with soft labels that are one class each."""
    classes = torch.arange(12) % K
    hard, soft = labelled(classes), labelled(one_hot(classes, K).double())
    assert {layer for _, layer in readings(hard, "tcv_input")} == {f"network.{n}.weight" for n in ("first", "turned", "head")}
    assert_certified(hard)
    for measure in OF_SGD:
        assert readings(soft, measure) == pytest.approx(readings(hard, measure), rel=1e-9, abs=1e-12)


def test_soft_labels_hold_certificates() -> None:
    recorder = labelled(torch.rand(12, K, dtype=torch.float64).mul(3).softmax(1))
    assert len(readings(recorder, "tcv_input")) == 6
    assert_certified(recorder)


def test_tokens_with_labels_of_their_own() -> None:
    """On a layer that sees tokens first, they are turned with it."""
    torch.manual_seed(2)
    labels = torch.randint(K, (12, 4))
    recorder = labelled(labels, per_token=True)
    assert len(readings(recorder, "tcv_input")) == 6
    assert_certified(recorder)
    torch.manual_seed(1)
    network, inputs = Tokens(per_token=True).double(), torch.randn(12, 4, 8)[:6].double()
    for name, rows in (("first", inputs), ("turned", network.first(inputs).tanh())):
        tcv = (
            sum(((rows[labels[:6] == k] - rows[labels[:6] == k].mean(0)) ** 2).sum().item() for k in range(K))
            / labels[:6].numel()
        )
        assert readings(recorder, "tcv_input")[0, f"network.{name}.weight"] == pytest.approx(tcv, rel=1e-6)


def test_tokens_with_soft_labels_of_their_own() -> None:
    """Which are one class each."""
    labels = torch.randint(K, (12, 4))
    hard, soft = labelled(labels, per_token=True), labelled(one_hot(labels, K).double(), per_token=True)
    for measure in OF_SGD:
        assert readings(soft, measure) == pytest.approx(readings(hard, measure), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("per_token", [False, True])
def test_ignored_labels(per_token: bool) -> None:
    """They have no part in class means; gradients may have passed them, so the loose bound is not always one."""
    labels = torch.arange(48).reshape(12, 4) % K if per_token else torch.arange(12) % K
    labels[::4] = -100
    recorder = labelled(labels, per_token, ignore_index=-100)
    assert len(readings(recorder, "tcv_input")) == 6
    assert_certified(recorder, loose=False)


def test_ignored_labels_are_not_told_from_others_by_themselves() -> None:
    labels = torch.arange(12) % K
    labels[0] = -100
    with pytest.raises(ValueError, match=r"from 0 to 2, got -100\. If one of them means no label, give it as ignore_index"):
        labelled(labels)


# Steps.


@pytest.mark.parametrize(
    ("every_n_steps", "window", "options", "steps"),
    [
        pytest.param(1, None, {}, [0, 1, 2, 3], id="every step"),
        pytest.param(4, None, {}, [3], id="every fourth of four: no window ends at step 0, one ends with training"),
        pytest.param(4, None, {"max_epochs": 3}, [4, 8], id="every fourth: the last step is in a window that does not fit"),
        pytest.param(4, 1, {"max_epochs": 3}, [0, 4, 8, 11], id="every fourth, window of one"),
        pytest.param(4, 3, {"max_epochs": 3}, [4, 8, 11], id="every fourth, window of three"),
        pytest.param(4, 3, {"max_epochs": -1, "max_steps": 9}, [4, 8], id="the last step is scheduled"),
        pytest.param(4, 1, {"max_epochs": -1, "max_steps": 9}, [0, 4, 8], id="the last step is scheduled, window of one"),
        pytest.param(9, None, {}, [3], id="shorter than a window"),
        pytest.param(4, 2, {"max_epochs": 5, "accumulate_grad_batches": 2}, [4, 8], id="accumulation"),
        pytest.param(2, 2, {"max_epochs": 2, "accumulate_grad_batches": 3}, [2], id="uneven accumulation"),
        pytest.param(4, 3, {"max_epochs": -1, "max_steps": 8}, [4, 7], id="max_steps"),
        pytest.param(1, 1, {"val_check_interval": 1, "limit_val_batches": 1}, [0, 1, 2, 3], id="validation in between"),
        pytest.param(10, None, {"max_epochs": 6}, [10, 20], id="default window of eight"),
        pytest.param(log_spaced(per_decade=3), None, {"max_epochs": 6}, [10, 22], id="log-spaced, window of eight"),
        pytest.param(log_spaced(per_decade=3), 1, {"max_epochs": 3}, [0, 1, 2, 5, 10, 11], id="log-spaced, window of one"),
        pytest.param(lambda step: step in {2, 3, 6}, 2, {"max_epochs": 2}, [2, 6], id="windows do not overlap"),
    ],
)
def test_exact_steps(every_n_steps: Any, window: int | None, options: dict[str, Any], steps: list[int]) -> None:
    recorder = Recorder()
    monitor = RankCollapseMonitor(K, every_n_steps=every_n_steps, window=window)
    fit(mlp(), monitor, logger=recorder, **({"num_sanity_val_steps": 1} | options))
    assert recorder.steps("rank_collapse") == recorder.steps("monitor") == steps


class Stream(IterableDataset):
    """The batches of a model, of which Lightning cannot know how many there are."""

    def __init__(self, loader: DataLoader) -> None:
        self.batches = list(loader)

    def __iter__(self) -> Any:
        return iter(self.batches)


class Streamed(Trained):
    def train_dataloader(self) -> DataLoader:
        return DataLoader(Stream(super().train_dataloader()), batch_size=None)


@pytest.mark.parametrize(
    ("window", "options", "steps"),
    [
        pytest.param(1, {"max_epochs": 2}, [0, 4], id="unknown"),
        pytest.param(3, {"max_epochs": 2}, [4], id="unknown, window of three"),
        pytest.param(3, {"max_epochs": -1, "max_steps": 8}, [4, 7], id="max_steps"),
    ],
)
def test_exact_steps_of_a_stream(window: int, options: dict[str, Any], steps: list[int]) -> None:
    """What is not known to be the last step is not measured as one."""
    recorder, model = Recorder(), mlp()
    streamed = made(model.network, model.data.tensors[0], kind=Streamed)
    fit(streamed, RankCollapseMonitor(K, every_n_steps=4, window=window), logger=recorder, **options)
    assert recorder.steps("rank_collapse") == steps


def test_training_that_something_stops_early_has_no_last_report() -> None:
    recorder = Recorder()
    monitor = RankCollapseMonitor(K, every_n_steps=3, window=2)
    fit(mlp(), stops_after_an_epoch(), monitor, max_epochs=2, logger=recorder)
    assert recorder.steps("rank_collapse") == [3]


def stops_after_an_epoch() -> pl.Callback:
    return pl.callbacks.LambdaCallback(on_train_epoch_end=lambda trainer, module: setattr(trainer, "should_stop", True))


def test_exact_tags() -> None:
    recorder = Recorder()
    trainer = fit(mlp(), RankCollapseMonitor(K, every_n_steps=4, window=1), logger=recorder, max_epochs=2)
    layers = [*LAYERS, "mean_over_layers", "min_over_layers", "max_over_layers"]
    tags = {f"rank_collapse/{measure}/{layer}" for measure in OF_SGD for layer in layers}
    assert recorder.readings("rank_collapse").keys() == {(step, tag) for step in (0, 4, 7) for tag in tags}
    cost = {"monitor/seconds/rank_collapse", "monitor/share_of_training/rank_collapse"}
    costs = {(step, tag) for step in (4, 7) for tag in cost} | {(0, "monitor/seconds/rank_collapse")}
    assert recorder.readings("monitor").keys() == costs
    assert all(0 < value < 1 for (_, tag), value in recorder.readings("monitor").items() if "share" in tag)
    last = {tag: value for (step, tag), value in recorder.readings("rank_collapse").items() if step == 7}
    told = {tag: value.item() for tag, value in trainer.callback_metrics.items() if tag.startswith("rank_collapse/")}
    assert told == pytest.approx(last)
    for measure in ("tcv_input", "norm_ratio"):
        of_layers = [last[f"rank_collapse/{measure}/{layer}"] for layer in LAYERS]
        summaries = [last[f"rank_collapse/{measure}/{layer}"] for layer in layers[3:]]
        assert summaries == pytest.approx([np.mean(of_layers), min(of_layers), max(of_layers)])


@pytest.mark.parametrize(("scalars", "shown"), [("auto", False), ("all", True)])
def test_many_layers_have_a_scalar_each_only_if_asked_for(scalars: Any, shown: bool) -> None:
    network = nn.Sequential(*(nn.Linear(8, 8) for _ in range(200)), nn.Linear(8, K))
    recorder = Recorder()
    fit(made(network, torch.randn(6, 8)), RankCollapseMonitor(K, every_n_steps=1, scalars=scalars), logger=recorder)
    assert bool(readings(recorder, "tcv_input")) == shown
    assert (0, "rank_collapse/tcv_input/mean_over_layers") in recorder.readings("rank_collapse")


@pytest.mark.parametrize("layers", ["network.2", ["network.2*"], lambda name: "2" in name])
def test_selected_layers(layers: Any) -> None:
    recorder = Recorder()
    fit(mlp(), RankCollapseMonitor(K, layers, every_n_steps=1), logger=recorder)
    assert {layer for _, layer in readings(recorder, "tcv_input")} == {"network.2.weight"}


def test_steps_and_values_go_on_after_a_resume(tmp_path: Path) -> None:
    """From the second epoch, in the midst of a window of the first: the next is whole."""
    whole, after = Recorder(), Recorder()
    monitor = partial(RankCollapseMonitor, K, every_n_steps=3, window=3)
    fit(mlp(), monitor(), logger=whole, max_epochs=3)
    assert whole.steps("rank_collapse") == [3, 6, 9]
    torch.manual_seed(0)
    path = str(tmp_path / "four.ckpt")
    fit(mlp(), monitor()).save_checkpoint(path)
    torch.manual_seed(0)
    fit(mlp(), monitor(), logger=after, max_epochs=3, ckpt_path=path)
    assert after.steps("rank_collapse") == [6, 9]
    for measure in OF_SGD:
        before = {key: value for key, value in readings(whole, measure).items() if key[0] > 3}
        assert readings(after, measure) == pytest.approx(before, rel=1e-6)


def test_checkpoint_within_a_window_leaves_that_report_out(tmp_path: Path) -> None:
    path, before, after = str(tmp_path / "four.ckpt"), Recorder(), Recorder()
    monitor = partial(RankCollapseMonitor, K, every_n_steps=5, window=3)
    fit(mlp(), monitor(), stops_after_an_epoch(), logger=before, max_epochs=3).save_checkpoint(path)
    fit(mlp(), monitor(), logger=after, max_epochs=3, ckpt_path=path)
    assert (before.steps("rank_collapse"), after.steps("rank_collapse")) == ([], [10])


def test_checkpoint_within_the_last_window_leaves_that_report_out(tmp_path: Path) -> None:
    path, after = str(tmp_path / "four.ckpt"), Recorder()
    monitor = partial(RankCollapseMonitor, K, every_n_steps=20, window=5)
    fit(mlp(), monitor(), stops_after_an_epoch(), max_epochs=2).save_checkpoint(path)
    fit(mlp(), monitor(), logger=after, max_epochs=2, ckpt_path=path)
    assert after.steps("rank_collapse") == []


def test_last_report_after_a_resume_is_of_the_longer_training(tmp_path: Path) -> None:
    """A checkpoint of a training that was over: what was its last step is one in between."""
    path, before, after = str(tmp_path / "four.ckpt"), Recorder(), Recorder()
    monitor = RankCollapseMonitor(K, every_n_steps=20, window=3)
    fit(mlp(), monitor, logger=before).save_checkpoint(path)
    fit(mlp(), monitor, logger=after, max_epochs=2, ckpt_path=path)
    assert (before.steps("rank_collapse"), after.steps("rank_collapse")) == ([3], [7])


def test_monitor_can_be_used_again() -> None:
    """For a training of another length."""
    monitor, first, second = RankCollapseMonitor(K, every_n_steps=4, window=3), Recorder(), Recorder()
    fit(mlp(), monitor, max_epochs=2, logger=first)
    fit(mlp(), monitor, max_epochs=3, logger=second)
    assert (first.steps("rank_collapse"), second.steps("rank_collapse")) == ([4, 7], [4, 8, 11])


# Nothing is disturbed, and nothing left.


def trained(model: Callable[[], Classifier], *callbacks: pl.Callback, **options: Any) -> dict[str, Any]:
    pl.seed_everything(0, verbose=False)
    module = model()
    trainer = fit(module, *callbacks, max_epochs=2, **options)
    measured = any(tag.startswith("rank_collapse") for tag in trainer.callback_metrics)
    return {"measured": measured, **outcome(trainer, module)}


def check_harmless(model: Callable[[], Classifier], monitor: RankCollapseMonitor, **options: Any) -> None:
    without, watched = trained(model, **options), trained(model, monitor, **options)
    assert (without.pop("measured"), watched.pop("measured")) == (False, True)
    assert_identical(watched, without)


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize(
    "model", [*MODELS[:4], two_optimizers, mlp, convnet, transformer, recurrent], ids=lambda model: model.__name__
)
def test_training_is_bit_identical(model: Callable[[], Classifier], window: int) -> None:
    check_harmless(model, RankCollapseMonitor(K, every_n_steps=window, window=window))


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"precision": "64-true"},
        {"accumulate_grad_batches": 2},
        {"gradient_clip_val": 0.01},
    ],
    ids=str,
)
@pytest.mark.parametrize("model", [mlp, transformer], ids=lambda model: model.__name__)
def test_training_is_bit_identical_with(model: Callable[[], Trained], options: dict[str, Any]) -> None:
    check_harmless(model, RankCollapseMonitor(K, every_n_steps=2), **options)


def test_recurrent_cell_in_training() -> None:
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTMCell(5, 6)

        def forward(self, sequence: Tensor) -> tuple[Tensor, None]:
            state = None
            for item in sequence.unbind(1):
                state = self.cell(item, state)
            return state[0][:, None], None

    recorder, model = Recorder(), made(nn.Sequential(Last(Cell()), nn.Linear(6, K)), torch.randn(18, 4, 5))
    fit(model, RankCollapseMonitor(K, every_n_steps=1), logger=recorder, precision="64-true")
    cell = "network.0.recurrent.cell.weight"
    gates = {f"{cell}_{kind}.{gate}" for kind in ("ih", "hh") for gate in ("input", "forget", "cell", "output")}
    assert {layer for _, layer in readings(recorder, "tcv_input")} == gates | {"network.1.weight"}
    assert_certified(recorder)
