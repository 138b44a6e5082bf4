"""What is refused, what is warned of, what is left out; and what is left behind."""

import gc
import warnings
import weakref
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, one_hot
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, TensorDataset

from rank_callbacks import RankCollapseMonitor
from tests.callbacks.test_rank_collapse import (
    CERTIFICATES,
    LAYERS,
    OF_SGD,
    Trained,
    assert_certified,
    convnet,
    made,
    mlp,
    readings,
    recurrent,
    transformer,
)
from tests.models import CLASSES, Classifier, Last, spectrally_normed
from tests.training import Recorder, fit

K = CLASSES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"num_classes": 1}, "num_classes to be a whole number from 2, got 1", id="one class"),
        pytest.param({"num_classes": 2.5}, r"num_classes to be a whole number from 2, got 2\.5", id="2.5 classes"),
        pytest.param({"every_n_steps": 0}, "every_n_steps to be a whole number from 1, got 0", id="every 0"),
        pytest.param({"every_n_steps": 1.5}, r"every_n_steps to be a whole number from 1, got 1\.5", id="every 1.5"),
        pytest.param({"window": 0}, "window to be a whole number of steps from 1 to every_n_steps, got 0", id="window 0"),
        pytest.param({"window": 1.5}, r"window to be a whole number .*, got 1\.5", id="window 1.5"),
        pytest.param({"window": 5, "every_n_steps": 4}, "from 1 to every_n_steps, got 5", id="windows that overlap"),
        pytest.param({"window": -1, "every_n_steps": lambda step: True}, "got -1", id="window of a function"),
        pytest.param({"data": "test"}, "data to be 'train' or a loader, got 'test'", id="data"),
        pytest.param({"scalars": "none"}, "scalars to be 'auto' or 'all', got 'none'", id="scalars"),
    ],
)
def test_refused_at_construction(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RankCollapseMonitor(**({"num_classes": K} | arguments))


def lstm() -> Trained:
    return made(nn.Sequential(Last(nn.LSTM(4, 5, 2, batch_first=True, dropout=0.1)), nn.Linear(5, K)), torch.randn(12, 6, 4))


def in_groups() -> Trained:
    return made(nn.Sequential(nn.Conv1d(4, 4, 1, groups=2), nn.Flatten(), nn.Linear(12, K)), torch.randn(12, 4, 3))


@pytest.mark.parametrize(
    ("model", "layers", "message"),
    [
        pytest.param(mlp, "decoder", r"'decoder'.*Choose from network\.0\.weight", id="pattern"),
        pytest.param(mlp, ["network.0", "network.1"], r"'network\.1'", id="one of two patterns"),
        pytest.param(mlp, [], "at least one pattern", id="no pattern"),
        pytest.param(mlp, lambda name: False, "accept the name of a matrix", id="function"),
        pytest.param(
            lstm,
            "network.0",
            r"got none\. network\.0\.recurrent\.weight_ih_l0, .* and network\.0\.recurrent\.weight_hh_l1: it has dropout",
            id="LSTM",
        ),
        pytest.param(in_groups, "network.0", r"0\.weight: it is a convolution in groups, or with borders", id="groups"),
        pytest.param(spectrally_normed, None, r"at least one weight matrix", id="computed weights"),
    ],
)
def test_refused_when_fitting_starts(model: Any, layers: Any, message: str) -> None:
    training, monitor = model(), RankCollapseMonitor(K, layers, every_n_steps=lambda step: False)
    with pytest.raises(ValueError, match=message):
        fit(training, monitor)
    assert training.losses == []


class Sharded(Classifier):
    def configure_model(self) -> None:
        pass


def test_sharding_is_refused() -> None:
    model = Sharded(mlp().network, torch.randn(12, 8))
    strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1, process_group_backend="gloo")
    try:
        with pytest.raises(ValueError, match=r"ModelParallelStrategy shards .* strategy='ddp'"):
            fit(model, RankCollapseMonitor(K), strategy=strategy, devices=1)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    assert model.losses == []


# Labels.


class Given(Trained):
    """Batches as they are collated, of labels that the loss does not look at."""

    def __init__(self, collate: Any) -> None:
        super().__init__(mlp().network, torch.randn(24, 8))
        self.collate = collate

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs = batch["x"] if isinstance(batch, dict) else batch[0]
        return cross_entropy(self(inputs), torch.arange(len(inputs)) % K)

    def train_dataloader(self) -> DataLoader:
        def collate(items: Any) -> Any:
            return self.collate(*map(torch.stack, zip(*items, strict=True)))

        return DataLoader(self.data, batch_size=6, collate_fn=collate)


def no_hooks(model: nn.Module) -> bool:
    return not any(module._forward_hooks or module._backward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("collate", "arguments", "message"),
    [
        pytest.param(lambda x, y: (x,), {}, r"second item of the batch, got NoneType\. .*tuple of Tensor\. Name", id="none"),
        pytest.param(lambda x, y: {"x": x, "y": y}, {}, r"keys 'x', 'y'\. Name the labels by labels='key'", id="dict"),
        pytest.param(lambda x, y: {"x": x, "y": y}, {"labels": "z"}, r"batch\['z'\], got NoneType.*keys 'x', 'y'", id="key"),
        pytest.param(lambda x, y: (x, y.tolist()), {}, "got list", id="list"),
        pytest.param(lambda x, y: (x, y.float()), {}, r"to be integers.*got torch\.float32 of shape \(6,\)", id="floats"),
        pytest.param(lambda x, y: (x, y + 1), {}, r"labels from 0 to 2, got 3\. If one of them means no label", id="too high"),
        pytest.param(lambda x, y: (x, y - 1), {}, r"labels from 0 to 2, got -1", id="too low"),
        pytest.param(lambda x, y: (x, y - 1), {"ignore_index": -2}, r"labels from 0 to 2, got -1\.$", id="another is ignored"),
        pytest.param(lambda x, y: (x, torch.ones(6, K)), {}, "sum to 1", id="soft"),
        pytest.param(lambda x, y: (x, torch.ones(6, 7) / 7), {}, r"of shape \(6, 3\), got shape \(6, 7\)", id="classes"),
    ],
)
def test_labels_that_are_refused(collate: Any, arguments: dict[str, Any], message: str) -> None:
    model = Given(collate)
    with pytest.raises(ValueError, match=message):
        fit(model, RankCollapseMonitor(K, every_n_steps=1, **arguments))
    assert no_hooks(model)


@pytest.mark.parametrize(
    ("collate", "arguments"),
    [
        pytest.param(lambda x, y: {"x": x, "y": y}, {"labels": "y"}, id="key"),
        pytest.param(lambda x, y: {"x": x, "y": y}, {"labels": lambda batch: batch["y"]}, id="function"),
        pytest.param(lambda x, y: [x, y, x], {}, id="three items"),
        pytest.param(lambda x, y: (x, y[:, None]), {"labels": lambda batch: batch[1][:, 0]}, id="a dimension more"),
        pytest.param(lambda x, y: (x, y.to(torch.uint8)), {}, id="bytes"),
        pytest.param(lambda x, y: (x, one_hot(y, K)), {}, id="one-hot"),
        pytest.param(lambda x, y: (x, one_hot(y, K).float()), {}, id="one-hot floats"),
        pytest.param(lambda x, y: (x, one_hot(y, K).bool()), {}, id="one-hot booleans"),
    ],
)
def test_labels_in_all_forms(collate: Any, arguments: dict[str, Any]) -> None:
    recorder, expected = Recorder(), Recorder()
    for run, monitor, how in ((recorder, arguments, collate), (expected, {}, lambda x, y: (x, y))):
        torch.manual_seed(0)
        fit(Given(how), RankCollapseMonitor(K, every_n_steps=1, **monitor), logger=run)
    assert len(readings(recorder, "tcv_adjoint")) == 12
    assert recorder.readings("rank_collapse") == pytest.approx(expected.readings("rank_collapse"))


# Warnings, each once.


def fit_and_collect(model: Trained, every_n_steps: Any = 1, **options: Any) -> tuple[Recorder, list[str]]:
    recorder, arguments = Recorder(), {"ignore_index": options.pop("ignore_index", None)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, RankCollapseMonitor(K, every_n_steps=every_n_steps, **arguments), logger=recorder, **options)
    return recorder, [str(one.message) for one in caught if str(one.message).startswith("network")]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite(value: float) -> None:
    """The layer's readings are NaN while they are, all but those of the weight alone."""

    class Spoilt(Trained):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            spoilt = batch[0].clone()
            spoilt[0, 0] = value if batch_idx in {1, 2} else 0
            return cross_entropy(self.network[2](batch[0]), batch[1]) + 0 * self.network[0](spoilt).sum()

    network = nn.Sequential(nn.Linear(8, 8), nn.Identity(), nn.Linear(8, K))
    recorder, warned = fit_and_collect(made(network, torch.randn(24, 8), kind=Spoilt, optimizer=partial(Frozen, lr=0.1)))
    assert warned == ["network.0.weight reads NaN at step 1: a NaN or infinity passed through it."]
    for measure in ("tcv_input", "tcv_ratio_input", "class_mean_alignment", "alignment_bound"):
        read = readings(recorder, measure)
        assert {key for key, got in read.items() if np.isnan(got)} >= {(1, LAYERS[0]), (2, LAYERS[0])}
        assert not any(np.isnan(got) for (_, layer), got in read.items() if layer != LAYERS[0])
    assert np.isfinite(list(readings(recorder, "distance_to_rank_k").values())).all()


class Frozen(torch.optim.SGD):
    """Does not step, so that NaN does not spread."""

    def step(self, closure: Any = None) -> Any:
        return closure() if closure else None


class Reshaped(nn.Module):
    """Folds tokens into the batch, before a layer that then has rows which no label fits."""

    def __init__(self) -> None:
        super().__init__()
        self.folded, self.head = nn.Linear(8, 7), nn.Linear(28, K)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.folded(inputs.flatten(0, 1)).unflatten(0, (-1, 4)).flatten(1))


def test_labels_that_do_not_fit_what_passed() -> None:
    recorder, warned = fit_and_collect(made(Reshaped(), torch.randn(24, 4, 8)))
    assert warned == ["network.folded.weight has no reading: labels do not fit what passed: rows (24,), labels (6,)."]
    assert {layer for _, layer in readings(recorder, "tcv_input")} == {"network.head.weight"}
    assert_certified(recorder)


class Borrowed(nn.Module):
    """Multiplies by the weight of a layer that it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.lender, self.head = nn.Linear(8, 7), nn.Linear(7, K)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(linear(inputs, self.lender.weight))


def test_layer_that_got_a_gradient_but_saw_nothing() -> None:
    recorder, warned = fit_and_collect(made(Borrowed(), torch.randn(24, 8)))
    assert warned == ["network.lender.weight has no reading: no labelled sample passed through it."]
    assert {layer for _, layer in readings(recorder, "distance_to_rank_k")} == {"network.head.weight"}


def test_checkpointed_attention_has_no_reading_and_trains() -> None:
    class Recomputed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, K)

        def forward(self, inputs: Tensor) -> Tensor:
            attended = torch.utils.checkpoint.checkpoint(self.attention, inputs, inputs, inputs, use_reentrant=False)[0]
            return self.head(attended.mean(1))

    recorder, warned = fit_and_collect(made(Recomputed(), torch.randn(24, 4, 8)))
    assert len(warned) == 4
    assert {layer for _, layer in readings(recorder, "tcv_input")} == {"network.head.weight"}


def test_all_labels_ignored() -> None:
    model = mlp()
    model.data = TensorDataset(model.data.tensors[0], torch.full((24,), -100))
    recorder, _ = fit_and_collect(model, ignore_index=-100)
    assert len(readings(recorder, "distance_to_rank_k")) in {0, 12}


# What is left out.


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.middle, self.head = nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.middle(self.embedding(tokens.abs().long() % 9)).mean(1))


LEFT_OUT = {
    "groups": (
        lambda: [nn.Conv1d(4, 4, 1, groups=2), nn.Conv1d(4, 4, 1, groups=4)],
        (4, 3),
        "network.0.weight and network.1.weight: it is a convolution in groups, or with borders that are not zeros.",
    ),
    "borders": (
        lambda: [nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular")],
        (4, 3),
        "network.0.weight: it is a convolution in groups, or with borders that are not zeros.",
    ),
    "transposed": (
        lambda: [nn.ConvTranspose1d(4, 4, 1)],
        (4, 3),
        "network.0.weight: what passes through a ConvTranspose1d cannot be seen.",
    ),
    "computed": (
        lambda: [parametrizations.weight_norm(nn.Linear(4, 4)), parametrizations.spectral_norm(nn.Linear(4, 4))],
        (3, 4),
        "network.0.weight and network.1.weight: computed from other parameters, as by weight_norm, and so without a gradient "
        "of its own.",
    ),
    "dropout": (
        lambda: [Last(nn.LSTM(4, 12, 2, batch_first=True, dropout=0.1))],
        (3, 4),
        "network.0.recurrent.weight_ih_l0, network.0.recurrent.weight_hh_l0, network.0.recurrent.weight_ih_l1 and "
        "network.0.recurrent.weight_hh_l1: it has dropout between its layers, which cannot be drawn again.",
    ),
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_layers_that_cannot_be_seen_are_told_at_the_start(kind: str, told: pytest.LogCaptureFixture) -> None:
    layers, shape, message = LEFT_OUT[kind]
    network = nn.Sequential(*layers(), nn.Flatten(), nn.Linear(12, K))
    recorder, warned = fit_and_collect(made(network, torch.randn(12, *shape)))
    assert told.messages.count(f"RankCollapseMonitor cannot read all weights. {message}") == 1
    assert warned == []
    assert {layer for _, layer in readings(recorder, "tcv_input")} == {f"network.{len(network) - 1}.weight"}


def test_a_head_that_is_tied_to_an_embedding_is_told_by_both_names(told: pytest.LogCaptureFixture) -> None:
    fit(made(Tied(), torch.randn(12, 5) * 9), RankCollapseMonitor(K, every_n_steps=1))
    names = "network.embedding.weight = network.head.weight"
    assert f"RankCollapseMonitor cannot read all weights. {names}: what passes through a Embedding" in "".join(told.messages)


def test_nothing_is_told_where_all_can_be_read(told: pytest.LogCaptureFixture) -> None:
    fit(mlp(), RankCollapseMonitor(K, every_n_steps=1))
    fit(made(Tied(), torch.randn(12, 5) * 9), RankCollapseMonitor(K, "network.middle", every_n_steps=1))
    assert "cannot read" not in "".join(told.messages)


class Routed(nn.Module):
    """Two experts, of which a router takes the better: its own choice has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts, self.head = (
            nn.Linear(8, 2),
            nn.ModuleList(nn.Linear(8, 7) for _ in range(2)),
            nn.Linear(7, K),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        chosen = self.router(inputs).argmax(1, keepdim=True)
        return self.head(torch.where(chosen == 0, self.experts[0](inputs), self.experts[1](inputs)))


def test_layer_without_a_gradient_is_said_to_have_none() -> None:
    recorder, warned = fit_and_collect(made(Routed(), torch.randn(24, 8)))
    why = "it got no gradient: it did not run, or the loss does not depend on it"
    assert warned == [f"network.router.weight has no reading: {why}."]
    assert "network.router.weight" not in {layer for _, layer in readings(recorder, "distance_to_rank_k")}
    assert len({layer for _, layer in readings(recorder, "distance_to_rank_k")}) == 3


def test_a_layer_whose_gradient_is_zero_has_no_alignment_and_leaves_the_mean_to_others() -> None:
    """Where the way back through a sequence has seen one item alone, there was nothing to forget."""
    recurrent = nn.LSTM(4, 5, batch_first=True, bidirectional=True)
    recorder, warned = fit_and_collect(made(nn.Sequential(Last(recurrent), nn.Linear(10, K)), torch.randn(12, 3, 4)))
    aligned, bounds = readings(recorder, "class_mean_alignment"), readings(recorder, "alignment_bound")
    gates = [f"network.0.recurrent.weight_{kind}_l0_reverse.forget" for kind in ("ih", "hh")]
    without = {(step, gate) for step in (0, 1) for gate in gates}
    assert bounds.keys() - aligned.keys() == without
    assert all(-1 <= value <= 1 for value in aligned.values())
    rows = recorder.readings("rank_collapse")
    for step in (0, 1):
        of_step = [value for (at, _), value in aligned.items() if at == step]
        mean = rows[step, "rank_collapse/class_mean_alignment/mean_over_layers"]
        assert mean == pytest.approx(np.mean(of_step), rel=1e-12)
    assert {key: bounds[key] for key in without} == pytest.approx({key: norm_at(rows, *key) for key in without}, rel=1e-6)
    assert warned == []


def norm_at(rows: dict[tuple[int, str], float], step: int, layer: str) -> float:
    """‖W‖_F, from two readings of the distance to rank K."""
    distance, relative = (rows[step, f"rank_collapse/{kind}distance_to_rank_k/{layer}"] for kind in ("", "relative_"))
    return distance / relative


def test_frozen_layer_has_no_reading() -> None:
    model = mlp()
    model.network[2].requires_grad_(False)
    recorder, warned = fit_and_collect(model)
    assert warned == []
    assert {layer for _, layer in readings(recorder, "tcv_input")} == {LAYERS[0], LAYERS[2]}
    assert_certified(recorder)


def test_layer_that_is_thawed_later_is_read_from_then_on() -> None:
    class Thawing(Trained):
        def on_train_epoch_start(self) -> None:
            self.network[2].requires_grad_(self.current_epoch > 0)

    model = mlp()
    recorder, _ = fit_and_collect(made(model.network, model.data.tensors[0], kind=Thawing), max_epochs=2)
    assert {step for step, layer in readings(recorder, "tcv_input") if layer == LAYERS[2]} == set(range(8))
    assert {step for step, layer in readings(recorder, "tcv_input") if layer == LAYERS[1]} == set(range(4, 8))


def test_layer_that_never_runs_has_no_reading() -> None:
    model = mlp()
    model.network.spare = nn.Identity()
    model.spare = nn.Linear(4, 4)
    recorder, _ = fit_and_collect(model)
    assert {layer for _, layer in readings(recorder, "tcv_input")} == set(LAYERS)


def test_layer_that_runs_in_some_steps_is_averaged_over_them() -> None:
    class Sometimes(Trained):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            self.network[2:4].requires_grad_(True)
            hidden = self.network[:2](batch[0])
            return cross_entropy(self.network[4](self.network[2:4](hidden) if batch_idx % 2 else hidden), batch[1])

    model = mlp()
    recorder, _ = fit_and_collect(made(model.network, model.data.tensors[0], kind=Sometimes), every_n_steps=3)
    assert {layer for _, layer in readings(recorder, "tcv_input")} == set(LAYERS)
    assert_certified(recorder)


def test_batch_of_one() -> None:
    """No spread within a class: certificates are those of the residual alone."""
    recorder, warned = fit_and_collect(mlp(batch_size=1), precision="64-true", limit_train_batches=3)
    assert warned == []
    assert_certified(recorder)
    assert set(readings(recorder, "tcv_input").values()) == set(readings(recorder, "tcv_adjoint").values()) == {0.0}
    sharp, loose = readings(recorder, "certificate_sharp"), readings(recorder, "certificate_loose")
    for key, joint in readings(recorder, "certificate_joint").items():
        assert joint == pytest.approx(sharp[key]) == pytest.approx(loose[key])


@pytest.mark.parametrize("model", [mlp, convnet, transformer], ids=lambda model: model.__name__)
@pytest.mark.parametrize("window", [1, 3])
def test_class_that_the_window_does_not_see(model: Any, window: int) -> None:
    training = model()
    training.data = TensorDataset(training.data.tensors[0], torch.arange(24) % 2 * 2)
    recorder, warned = fit_and_collect(training, every_n_steps=window)
    assert warned == []
    assert_certified(recorder)
    for measure in OF_SGD:
        assert np.isfinite(list(readings(recorder, measure).values())).all()


def test_one_class_alone() -> None:
    """All variability is within it."""
    training = mlp()
    training.data = TensorDataset(training.data.tensors[0], torch.ones(24).long())
    recorder, _ = fit_and_collect(training)
    assert_certified(recorder)
    assert set(readings(recorder, "tcv_ratio_input").values()) == {1.0}


def test_more_classes_than_rows_of_a_weight() -> None:
    model, recorder = mlp(), Recorder()
    fit(model, RankCollapseMonitor(100, every_n_steps=1), logger=recorder)
    assert set(readings(recorder, "distance_to_rank_k").values()) == {0.0}
    assert_certified(recorder)
    assert np.isfinite(list(readings(recorder, CERTIFICATES[2]).values())).all()


# What is left behind.


class Crashing(Trained):
    """Keeps count of the hooks, and fails in the midst of a window."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.hooked: list[bool] = []
        self.error: BaseException | None = None
        self.place = "training_step"

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.hooked.append(not no_hooks(self))
        loss = super().training_step(batch, batch_idx)
        self.fail("training_step", batch_idx)
        return loss

    def on_after_backward(self) -> None:
        self.fail("backward", len(self.hooked) - 1)

    def fail(self, place: str, batch_idx: int) -> None:
        if self.error and place == self.place and batch_idx == 2:
            raise self.error


def crashing(**attributes: Any) -> Crashing:
    model = transformer(8)
    return made(model.network, model.data.tensors[0], kind=Crashing, **attributes)


def test_hooks_are_there_in_windows_alone() -> None:
    model = crashing()
    fit(model, RankCollapseMonitor(K, every_n_steps=4, window=2))
    assert model.hooked == [False, False, False, True, True, False, True, True]
    assert no_hooks(model)


def test_hooks_are_there_for_every_batch_that_accumulates() -> None:
    model = crashing()
    fit(model, RankCollapseMonitor(K, every_n_steps=2, window=1), accumulate_grad_batches=2)
    assert model.hooked == [True, True, False, False, True, True, True, True]


def test_training_that_ends_within_a_window_leaves_no_hook() -> None:
    """A scheduled window that does not fit, since another was open where one that does must begin."""
    model, recorder = crashing(), Recorder()
    fit(model, RankCollapseMonitor(K, every_n_steps=4, window=4), logger=recorder)
    assert model.hooked == [False] + 7 * [True]
    assert recorder.steps("rank_collapse") == [4]
    assert no_hooks(model)


def test_training_that_is_stopped_within_its_last_window_leaves_no_hook() -> None:
    class Stopped(Crashing):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.trainer.should_stop = batch_idx == 5

    model, recorder = transformer(8), Recorder()
    model = made(model.network, model.data.tensors[0], kind=Stopped)
    fit(model, RankCollapseMonitor(K, every_n_steps=20, window=4), logger=recorder)
    assert model.hooked == [False] * 4 + [True] * 2
    assert recorder.steps("rank_collapse") == []
    assert no_hooks(model)


@pytest.mark.parametrize("place", ["training_step", "backward"])
@pytest.mark.parametrize("error", [RuntimeError("on purpose"), KeyboardInterrupt()], ids=lambda error: type(error).__name__)
def test_crash_within_a_window_leaves_no_hook_and_the_monitor_can_be_used_again(error: BaseException, place: str) -> None:
    monitor, model = RankCollapseMonitor(K, every_n_steps=4, window=4), crashing(error=error, place=place)
    recorder = Recorder()
    with pytest.raises((RuntimeError, SystemExit)):
        fit(model, monitor)
    assert model.hooked == [False, True, True]
    assert no_hooks(model)
    fit(mlp(10), monitor, logger=recorder)
    assert recorder.steps("rank_collapse") == [4, 8]


def test_crash_within_the_last_window_leaves_no_hook_and_the_monitor_can_be_used_again() -> None:
    """For a training of another length."""
    monitor, model, recorder = RankCollapseMonitor(K), crashing(error=RuntimeError("on purpose")), Recorder()
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(model, monitor)
    assert model.hooked == [True, True, True]
    assert no_hooks(model)
    fit(mlp(10), monitor, logger=recorder)
    assert recorder.steps("rank_collapse") == [9]


def test_validation_is_not_seen() -> None:
    """Its batches are not those whose labels are known."""
    recorder, plain = Recorder(), Recorder()
    for run, options in ((recorder, {"val_check_interval": 1}), (plain, {"limit_val_batches": 0})):
        torch.manual_seed(0)
        fit(mlp(), RankCollapseMonitor(K, every_n_steps=3), logger=run, **options)
    assert recorder.readings("rank_collapse") == plain.readings("rank_collapse")


def alive_at_each_batch(model: Any, *monitors: RankCollapseMonitor) -> list[int]:
    """How many of the activations of earlier batches are, without the help of the garbage collector."""
    kept: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def on_forward(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        if output.requires_grad:
            kept.extend([weakref.ref(output), weakref.ref(args[0].untyped_storage())])

    class Watched(Trained):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            alive.append(sum(one() is not None for one in kept))

    training = model(8)
    training = made(training.network, training.data.tensors[0], kind=Watched)
    for module in training.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(on_forward)
    gc.disable()
    try:
        fit(training, *monitors)
    finally:
        gc.enable()
    assert len(kept) >= 16
    return alive


@pytest.mark.parametrize("model", [mlp, convnet, transformer, recurrent], ids=lambda model: model.__name__)
def test_no_graph_and_no_activation_is_kept(model: Any) -> None:
    """Neither after a window nor within one."""
    assert alive_at_each_batch(model, RankCollapseMonitor(K, every_n_steps=4)) == alive_at_each_batch(model)


def test_data_that_is_gone_after_one_look() -> None:
    with pytest.raises(ValueError, match=r"Expected data to be a loader that can be gone through again, got a generator\."):
        RankCollapseMonitor(3, data=(batch for batch in ()))
