"""What the monitor refuses, what it survives, and that training does not notice it."""

import copy
import importlib.util
import pickle
import random
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rank_callbacks import FeatureRankMonitor, NetworkRankMonitor, NeuralCollapseMonitor, RankCollapseMonitor
from rank_callbacks.callbacks import network_rank
from tests.callbacks.test_neural_collapse_misuse import NO_CLASSIFIER
from tests.models import CLASSES, MODELS, Classifier, Training, TwoOptimizers, mlp, two_layers, two_optimizers
from tests.training import Recorder, assert_identical, fit, outcome

OF_CLASSES = ["classification_dimension", "centered_classification_dimension", "independence_deficit"]


class Forward(Classifier):
    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)


def callable_model(model: Callable[[], Classifier]) -> Classifier:
    """With a ``forward``."""
    made = model()
    if type(made) in {Classifier, TwoOptimizers}:
        made.__class__ = type("Forward", (Forward, type(made)), {}) if type(made) is TwoOptimizers else Forward
    return made


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            {"measures": ["rank"]},
            r"a measure, got 'rank'\. Choose from jacobian_rank, feng_.*jacobian_rank_<rtol>",
            id="measure",
        ),
        pytest.param({"measures": ["jacobian_rank_1"]}, "name of a measure, got 'jacobian_rank_1'", id="tolerance of 1"),
        pytest.param({"measures": ["jacobian_rank_-1"]}, "name of a measure, got 'jacobian_rank_-1'", id="negative tolerance"),
        pytest.param({"measures": ["jacobian_rank_nan"]}, "name of a measure, got 'jacobian_rank_nan'", id="no tolerance"),
        pytest.param({"measures": ["jacobian_rank_"]}, "name of a measure, got 'jacobian_rank_'", id="empty tolerance"),
        pytest.param({"measures": ["jacobian_error"]}, "name of a measure, got 'jacobian_error'", id="what comes by itself"),
        *(pytest.param({"measures": [one]}, f"^Measure '{one}' needs num_classes=.$", id=one) for one in OF_CLASSES),
        pytest.param({"num_classes": 1}, "num_classes to be a whole number from 2, got 1", id="one class"),
        pytest.param({"num_classes": 2.5}, r"num_classes to be a whole number from 2, got 2\.5", id="half a class"),
        pytest.param({"inputs": 0}, "inputs to be a whole number from 1, got 0", id="no inputs"),
        pytest.param({"inputs": 2.5}, r"inputs to be a whole number from 1, got 2\.5", id="half an input"),
        pytest.param({"inputs": torch.ones(2, 3).long()}, r"inputs of floating type, got torch\.int64", id="integers"),
        pytest.param({"inputs": torch.ones(0, 3)}, r"at least one number, got shape \(0, 3\)", id="empty inputs"),
        pytest.param({"probes": 0}, "probes to be a whole number from 1, got 0", id="no probes"),
        pytest.param({"copies": 1}, "copies to be a whole number from 2, got 1", id="one copy"),
        pytest.param({"every_n_epochs": 0}, "every_n_epochs to be a whole number from 1, got 0", id="every 0"),
        pytest.param({"every_n_epochs": 1.5}, r"every_n_epochs to be a whole number from 1, got 1\.5", id="every 1.5"),
        pytest.param({"scalars": "none"}, "scalars to be 'auto' or 'all', got 'none'", id="scalars"),
    ],
)
def test_refused_at_construction(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NetworkRankMonitor(**arguments)


def test_deficit_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(network_rank, "find_spec", lambda name: None if name == "sklearn" else found(name))
    for measures in (None, ["independence_deficit"]):
        with pytest.raises(ImportError, match=r"needs scikit-learn: install it by `pip install 'rank-callbacks\[network\]'`"):
            NetworkRankMonitor(measures, num_classes=CLASSES)
    fit(callable_model(mlp), NetworkRankMonitor(["jacobian_rank", *OF_CLASSES[:2]], num_classes=CLASSES))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *NO_CLASSIFIER,
        pytest.param({"layers": "decoder"}, r"'decoder' in layers.*Choose from network, network\.0, network\.1", id="layer"),
        pytest.param({"layers": lambda name: False}, "layers to accept the name", id="function"),
    ],
)
def test_refused_when_fitting_starts(arguments: dict[str, Any], message: str) -> None:
    model, monitor = callable_model(mlp), NetworkRankMonitor(**({"num_classes": CLASSES} | arguments))
    with pytest.raises(ValueError, match=message):
        fit(model, monitor)
    assert model.losses == []
    with pytest.raises(ValueError, match=message):
        pl.Trainer(callbacks=[monitor], logger=False, enable_progress_bar=False, accelerator="cpu").validate(model)
    assert hooks(model) == 0


def test_classifier_is_looked_for_only_where_it_is_measured() -> None:
    fit(callable_model(mlp), NetworkRankMonitor(["jacobian_rank"], num_classes=7))


def test_sharding_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # or the strategy sets another number, for all tests that follow

    class Sharded(Classifier):
        def configure_model(self) -> None:
            pass

    strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1, process_group_backend="gloo")
    model = Sharded(two_layers(), torch.randn(12, 6))
    try:
        with pytest.raises(ValueError, match=r"ModelParallelStrategy shards .* strategy='ddp'"):
            fit(model, NetworkRankMonitor(), strategy=strategy, devices=1)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    assert model.losses == []


def test_two_monitors_of_one_training_need_two_groups() -> None:
    with pytest.raises(ValueError, match=r"Expected each monitor to have a group= of its own, got 'network_rank'"):
        fit(callable_model(mlp), NetworkRankMonitor(), NetworkRankMonitor(["jacobian_rank"]))
    recorder = Recorder()
    fit(callable_model(mlp), NetworkRankMonitor(), NetworkRankMonitor(group="mine"), logger=recorder)
    assert recorder.steps("network_rank") == recorder.steps("mine") == [2]


class Collated(Forward):
    """Batches as a function makes them of inputs and labels, which the network sees after it."""

    made: Callable[[Tensor, Tensor], Any] = staticmethod(lambda inputs, labels: [inputs, labels])

    def val_dataloader(self) -> Any:
        inputs, labels = self.data.tensors
        return DataLoader([self.made(inputs[i : i + 4], labels[i : i + 4]) for i in range(0, 12, 4)], batch_size=None)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.network(self.data.tensors[0][:4])


@pytest.mark.parametrize(
    ("made", "message"),
    [
        pytest.param(lambda x, y: [x.long(), y], r"inputs of floating type, got torch\.int64\. Token ids", id="token ids"),
        pytest.param(
            lambda x, y: {"x": x, "y": y}, r"a tensor of inputs, got dict\. Give probe inputs .* by inputs=", id="dict"
        ),
        pytest.param(
            lambda x, y: [{"x": x}, y], "first item of a validation batch to be a tensor of inputs, got dict", id="dict inside"
        ),
        pytest.param(lambda x, y: [y.tolist(), y], "a tensor of inputs, got list", id="list"),
    ],
)
@pytest.mark.parametrize("sanity", [1, 0], ids=["sanity check", "no sanity check"])
def test_inputs_that_are_refused(made: Any, message: str, sanity: int) -> None:
    """By the sanity check; without it they end no training, and have no reading."""
    model, recorder = Collated(two_layers(), torch.randn(12, 6)), Recorder()
    model.made = made
    monitor = NetworkRankMonitor(num_classes=CLASSES, labels=lambda batch: model.data.tensors[1][:4])
    if sanity:
        with pytest.raises(ValueError, match=message):
            fit(model, monitor, num_sanity_val_steps=1)
        assert model.losses == []
    else:
        with pytest.warns(UserWarning, match=rf"network_rank has no reading: .*{message}") as told:
            fit(model, monitor, num_sanity_val_steps=0, max_epochs=2, logger=recorder)
        assert sum("network_rank" in str(one.message) for one in told) == 1
        measures = {tag.split("/")[1] for _, tag in recorder.readings("network_rank")}
        assert measures == {"classification_dimension", "independence_deficit", "predicted_logit_accuracy"}
    assert hooks(model) == 0


HINT = r"Name the labels by labels='key' for a dict, or by labels=lambda batch: \.\.\."


@pytest.mark.parametrize(
    ("made", "arguments", "message"),
    [
        pytest.param(lambda x, y: x, {}, f"second item of the batch, got NoneType.*is a Tensor. {HINT}", id="inputs alone"),
        pytest.param(lambda x, y: [x, y.tolist()], {}, "second item of the batch, got list", id="a list of labels"),
        pytest.param(lambda x, y: [x, y], {"labels": "y"}, r"as batch\['y'\], got NoneType", id="a key"),
        pytest.param(lambda x, y: [x, y + 1], {}, r"labels from 0 to 2, got 3\. If one of them means no label", id="large"),
        pytest.param(lambda x, y: [x, y - 1], {"ignore_index": -2}, r"labels from 0 to 2, got -1\.$", id="not the ignored"),
        pytest.param(lambda x, y: [x, y.float()], {}, r"labels to be integers, .* got torch\.float32", id="floats"),
    ],
)
@pytest.mark.parametrize("sanity", [1, 0], ids=["sanity check", "no sanity check"])
def test_labels_that_are_refused(made: Any, arguments: dict[str, Any], message: str, sanity: int) -> None:
    """By the sanity check; without it they end no training, and have no reading."""
    model, recorder = Collated(two_layers(), torch.randn(12, 6)), Recorder()
    model.made = made
    monitor = NetworkRankMonitor(num_classes=CLASSES, copies=8, **arguments)
    if sanity:
        with pytest.raises(ValueError, match=message):
            fit(model, monitor, num_sanity_val_steps=1)
        assert model.losses == []
    else:
        with pytest.warns(UserWarning, match=rf"network_rank has no reading: .*{message}"):
            fit(model, monitor, num_sanity_val_steps=0, max_epochs=2, logger=recorder)
        assert {tag.split("/")[1] for _, tag in recorder.readings("network_rank")} == {*PROBES}
    assert hooks(model) == 0


def trained(model: Callable[[], Classifier], monitors: list[pl.Callback], **options: Any) -> dict[str, Any]:
    pl.seed_everything(0, verbose=False)
    module = callable_model(model)
    trainer = fit(module, *monitors, **({"max_epochs": 2} | options))
    measured = {tag.split("/")[1] for tag in trainer.callback_metrics if tag.startswith("network_rank")}
    return {"measured": measured, **outcome(trainer, module)}


def check_harmless(model: Callable[[], Classifier], **options: Any) -> None:
    monitor = NetworkRankMonitor(num_classes=CLASSES, probes=4, copies=8, inputs=2)
    without, watched = trained(model, [], **options), trained(model, [monitor], **options)
    measures = {"jacobian_rank", "jacobian_error", "perturbed_pca_dimension", "classification_dimension"}
    assert without.pop("measured") == set()
    assert watched.pop("measured") == measures | {"independence_deficit", "predicted_logit_accuracy"}
    assert_identical(watched, without)


class Attending(nn.Module):
    """Attention of whose weights dropout takes some."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.2, batch_first=True)
        self.head = nn.Linear(40, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.attention(tokens, tokens, tokens)[0].flatten(1))


def attending() -> Classifier:
    return Classifier(Attending(), torch.randn(12, 5, 8))


@pytest.mark.parametrize("model", [*MODELS, attending, two_optimizers], ids=lambda model: model.__name__)
def test_training_is_bit_identical(model: Callable[[], Classifier]) -> None:
    """With the buffers of batch and spectral norm, dropout and a shuffled loader."""
    check_harmless(model)


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"accumulate_grad_batches": 2},
        {"val_check_interval": 2},
        {"num_sanity_val_steps": 2},
    ],
    ids=str,
)
def test_training_is_bit_identical_with(options: dict[str, Any]) -> None:
    check_harmless(MODELS[1], **options)


def test_random_and_grad_state_are_left() -> None:
    """Of a forward that draws from every generator, in a fit and in validation alone, which is in inference mode."""

    class Drawing(Forward):
        def forward(self, inputs: Tensor) -> Tensor:
            drawn = torch.rand(1), np.random.rand(), random.random()  # ruff: ignore[numpy-legacy-random]
            return self.network(inputs) + sum(drawn)

    class State(pl.Callback):
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def on_validation_end(self, *args: Any) -> None:
            state = torch.get_rng_state(), np.random.get_state(), random.getstate()  # ruff: ignore[numpy-legacy-random]
            self.seen.append([*state, torch.is_grad_enabled(), torch.is_inference_mode_enabled()])

    before, after, recorder = State(), State(), Recorder()
    monitor = NetworkRankMonitor(["perturbed_pca_dimension", *OF_CLASSES], num_classes=CLASSES)
    model = Drawing(two_layers(), torch.randn(12, 6))
    trainer = fit(model, before, monitor, after, logger=recorder)
    trainer.validate(model, verbose=False)
    assert_identical(before.seen, after.seen)
    assert [state[3:] for state in before.seen] == [[False, False], [False, False], [False, True]]
    assert len(recorder.rows) > 2
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled()


def test_readings_in_inference_mode_are_the_same() -> None:
    """In which tensors are made that autograd refuses."""
    model, monitor, rows = callable_model(MODELS[1]), NetworkRankMonitor(num_classes=CLASSES, copies=8), []
    for inference_mode in (True, False):
        recorder = Recorder()
        options = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        trainer = pl.Trainer(callbacks=[monitor], logger=recorder, inference_mode=inference_mode, **options)
        trainer.validate(model, verbose=False)
        rows.append(recorder.readings("network_rank"))
    assert rows[0] == pytest.approx(rows[1], rel=0, abs=0)
    fit(model)


def hooks(model: nn.Module) -> int:
    """On modules, of every kind."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_forward_hooks_with_kwargs")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


class Crashing(Forward):
    """Counts its hooks in each validation step, and crashes in one of them."""

    def __init__(self, crash: int, error: type[BaseException] = RuntimeError) -> None:
        super().__init__(two_layers(), torch.randn(12, 6))
        self.crash, self.error = crash, error
        self.hooks: list[int] = []

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.hooks.append(hooks(self))
        if len(self.hooks) == self.crash:
            raise self.error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_no_hook_is_left_by_a_crash(error: type[BaseException]) -> None:
    model, monitor, recorder = Crashing(2, error), NetworkRankMonitor(num_classes=CLASSES), Recorder()
    with pytest.raises((error, SystemExit)):
        fit(model, monitor, num_sanity_val_steps=0)
    assert model.hooks == [1, 1]
    assert hooks(model) == 0
    fit(callable_model(mlp), monitor, logger=recorder)
    assert recorder.steps("network_rank") == [2]


@pytest.mark.parametrize("measures", [None, ["jacobian_rank"]], ids=["of classes", "of the network"])
def test_hooks_are_there_in_validation_that_is_looked_at(measures: list[str] | None) -> None:
    model, monitor = Crashing(0), NetworkRankMonitor(measures, num_classes=CLASSES, every_n_epochs=2)
    fit(model, monitor, max_epochs=4, num_sanity_val_steps=2)
    looked = 3 * [0 if measures else 1]
    assert model.hooks == [0, 0, *looked, 0, 0, 0, *looked, *looked]
    assert hooks(model) == 0
    model.hooks.clear()
    options = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu", "enable_model_summary": False}
    pl.Trainer(callbacks=[monitor], **options).validate(model)
    assert model.hooks == looked
    assert hooks(model) == 0


@pytest.mark.parametrize("first", [True, False], ids=["before the others", "after them"])
@pytest.mark.filterwarnings("ignore:neural_collapse of")
def test_other_monitors_read_as_without(first: bool) -> None:
    """In whose windows validation falls, with their hooks on layers through which our probe runs."""

    def others() -> list[pl.Callback]:
        return [
            FeatureRankMonitor(every_n_steps=4, window=4),
            FeatureRankMonitor(data="val", group="feature_rank_val"),
            NeuralCollapseMonitor(CLASSES, "network.*", every_n_steps=4, window=4),
            NeuralCollapseMonitor(CLASSES, "network.*", data="val", group="neural_collapse_val"),
            RankCollapseMonitor(CLASSES, every_n_steps=4, window=4),
        ]

    ours = NetworkRankMonitor(num_classes=CLASSES, copies=8)
    rows = []
    for monitors in (others(), [ours, *others()] if first else [*others(), ours], [ours]):
        pl.seed_everything(0, verbose=False)
        recorder = Recorder()
        model = callable_model(lambda: mlp(batches=6))
        fit(model, *monitors, logger=recorder, max_epochs=2, val_check_interval=1)
        assert hooks(model) == 0
        rows.append({key: value for key, value in recorder.readings(*GROUPS).items() if not key[1].startswith("monitor/")})
    without, together, alone = rows
    assert {tag.split("/")[0] for _, tag in without} == set(GROUPS[:-1])
    assert together == pytest.approx(without | alone, rel=0, abs=0, nan_ok=True)


GROUPS = ["feature_rank", "feature_rank_val", "neural_collapse", "neural_collapse_val", "rank_collapse", "network_rank"]


class WithoutTangent(torch.autograd.Function):
    """A function with a derivative in backward mode alone."""

    @staticmethod
    def forward(context: Any, inputs: Tensor) -> Tensor:
        return inputs * 2

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


class Doubling(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return WithoutTangent.apply(inputs)


class Counting(nn.Module):
    """Remembers a tensor of its inputs, in place and in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(6))

    def forward(self, inputs: Tensor) -> Tensor:
        self.last.copy_(inputs[0])
        return inputs


class Refusing(Forward):
    """Validates batches of four alone."""

    def forward(self, inputs: Tensor) -> Tensor:
        if len(inputs) == 1:
            raise KeyError("a lone sample")
        return self.network(inputs)


def refusing() -> Classifier:
    return Refusing(two_layers(), torch.randn(12, 6))


def starting_with(module: type[nn.Module]) -> Callable[[], Classifier]:
    return lambda: Forward(nn.Sequential(module(), *two_layers()), torch.randn(12, 6))


PROBES = ("jacobian_rank", "perturbed_pca_dimension")
FAILURES = pytest.mark.parametrize(
    ("model", "error", "broken"),
    [
        pytest.param(
            starting_with(Doubling), "RuntimeError: In order to use an autograd.Function", PROBES[:1], id="no derivative"
        ),
        pytest.param(starting_with(Counting), "RuntimeError: .*in-place", PROBES[:1], id="buffers in place"),
        pytest.param(refusing, "KeyError: 'a lone sample'", PROBES[:1], id="forward that fails"),
    ],
)


def test_module_without_forward_is_refused_where_it_is_run() -> None:
    model = mlp()
    with pytest.raises(ValueError, match=r"Expected Classifier to define forward, .* Monitors with data='train' need none"):
        fit(model, NetworkRankMonitor(num_classes=CLASSES))
    assert model.losses == []
    recorder = Recorder()
    fit(model, NetworkRankMonitor(OF_CLASSES[:1], num_classes=CLASSES), logger=recorder)
    assert recorder.steps("network_rank") == [2]


@FAILURES
def test_probe_that_fails(model: Callable[[], Classifier], error: str, broken: tuple[str, ...]) -> None:
    """Reads NaN where it fails, with one warning a measure; the other measures are read."""
    made, recorder = model(), Recorder()
    with pytest.warns(UserWarning, match=f"network_rank has no reading: jacobian_rank failed with {error}") as told:
        fit(made, NetworkRankMonitor(num_classes=CLASSES, copies=8), logger=recorder, max_epochs=3)
    assert sum("network_rank" in str(one.message) for one in told) == len(broken)
    assert recorder.steps("network_rank") == [2, 5, 8]
    values = {tag: value for (_, tag), value in recorder.readings("network_rank").items()}
    assert {tag.split("/")[1] for tag, value in values.items() if np.isnan(value)} == {*broken}
    assert {f"network_rank/jacobian_rank/{name}" for name in ("network.0", "network.2", "mean_over_layers")} < values.keys()
    assert np.isfinite([values[f"network_rank/{one}/penultimate"] for one in OF_CLASSES[:1]]).all()
    assert hooks(made) == 0


@FAILURES
@pytest.mark.filterwarnings("ignore:network_rank has no reading")
def test_probe_that_fails_is_harmless(model: Callable[[], Classifier], error: str, broken: tuple[str, ...]) -> None:
    def made() -> Classifier:
        return model()

    rows = []
    for monitors in ([], [NetworkRankMonitor(num_classes=CLASSES, copies=8)]):
        pl.seed_everything(0, verbose=False)
        module = made()
        trainer = fit(module, *monitors, max_epochs=2)
        rows.append(outcome(trainer, module))
    assert_identical(rows[1], rows[0])


def test_images_too_small_for_the_patch_of_the_paper_are_told() -> None:
    with pytest.warns(
        UserWarning, match="feng_jacobian_rank failed with ValueError: Expected images .* hold a patch of 16 x 16"
    ):
        fit(callable_model(mlp), NetworkRankMonitor(["feng_jacobian_rank"]))


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda monitor: pickle.loads(pickle.dumps(monitor))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("used", [False, True], ids=["new", "after a fit"])
def test_copies_measure_alike(duplicate: Callable[[Any], Any], used: bool) -> None:
    original = NetworkRankMonitor(num_classes=CLASSES, every_n_epochs=2, copies=8)
    if used:
        fit(callable_model(mlp), original)
    rows = []
    for monitor in (original, duplicate(original)):
        torch.manual_seed(0)
        recorder = Recorder()
        fit(callable_model(mlp), monitor, logger=recorder, max_epochs=2)
        rows.append(recorder.readings("network_rank"))
    assert rows[0] == rows[1]
    assert {step for step, _ in rows[0]} == {2, 5}


@pytest.mark.parametrize("namespace", ["pytorch_lightning", "lightning.pytorch"])
def test_command_line(namespace: str, tmp_path: Path) -> None:
    class Model(Training, import_module(namespace).LightningModule):
        def __init__(self) -> None:
            super().__init__(two_layers(), torch.randn(12, 6))

        def forward(self, inputs: Tensor) -> Tensor:
            return self.network(inputs)

    config = """
    trainer:
      callbacks:
        - class_path: rank_callbacks.NetworkRankMonitor
          init_args: {measures: [jacobian_rank_1e-2, classification_dimension], layers: [network.0], every_n_epochs: 3,
                      inputs: 2, probes: 4, copies: 16, num_classes: 3, classifier: network.2,
                      ignore_index: -100, scalars: all}
        - class_path: rank_callbacks.NetworkRankMonitor
          init_args: {group: mine}
    """
    (tmp_path / "config.yaml").write_text(config)
    quiet = [f"--trainer.{name}=false" for name in ("logger", "enable_checkpointing", "enable_progress_bar")]
    arguments = [f"--config={tmp_path / 'config.yaml'}", "--trainer.max_epochs=1", "--trainer.accelerator=cpu", *quiet]
    cli = import_module(f"{namespace}.cli").LightningCLI(Model, args=["fit", *arguments], save_config_callback=None)
    tags = {tuple(tag.split("/")) for tag in cli.trainer.callback_metrics if tag.count("/") == 2}
    ours = {measure for group, measure, _ in tags if group == "network_rank"}
    assert ours == {"jacobian_rank_1e-2", "jacobian_error", "classification_dimension"}
    assert {measure for group, measure, _ in tags if group == "mine"} == {"jacobian_rank", "perturbed_pca_dimension"}
    first, second = (callback for callback in cli.trainer.callbacks if isinstance(callback, NetworkRankMonitor))
    assert (first.every_n_epochs, first.inputs, first.probes, first.copies, first.scalars) == (3, 2, 4, 16, "all")
    assert (second.every_n_epochs, second.inputs, second.probes) == (1, 4, None)
