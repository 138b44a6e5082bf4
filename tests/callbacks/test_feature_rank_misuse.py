"""What the monitor refuses, and that training does not notice it."""

import copy
import gc
import pickle
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rank_callbacks import FeatureRankMonitor, log_spaced
from tests.models import CLASSES, MODELS, Classifier, Training, mlp, two_layers, two_optimizers
from tests.training import QUIET, Recorder, assert_identical, fit, outcome

MODES = pytest.mark.parametrize("data", ["train", "val", "loader"])


class Forward(Classifier):
    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)


def callable_model(model: Callable[[], Classifier]) -> Classifier:
    """With a ``forward``."""
    made = model()
    if type(made) is Classifier:
        made.__class__ = Forward
    return made


def shuffled(model: Classifier) -> DataLoader:
    return DataLoader(model.data, batch_size=6, shuffle=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"measures": ["rank"]}, "name of a measure, got 'rank'.* Or, of features alone: alpha_req", id="measure"),
        pytest.param({"measures": ["centered_two_nn"]}, "'centered_' before a name centres the features", id="centred"),
        pytest.param({"measures": ["dormant_ratio_-1"]}, "number from 0 for tau .* got '-1'", id="tau"),
        pytest.param({"measures": ["lidar"]}, "Measure 'lidar' needs views=: how many views of each sample", id="no views"),
        pytest.param({"data": "test"}, "data to be 'train', 'val' or a loader, got 'test'", id="data"),
        pytest.param({"data": iter([1])}, "a loader that can be gone through again, got a list_iterator", id="iterator"),
        pytest.param({"maps": "max"}, "maps to be one of positions, mean, flat, got 'max'", id="maps"),
        pytest.param({"maps": "projection"}, "maps to be one of positions, mean, flat, got 'projection'", id="projection"),
        pytest.param({"samples": 1}, "samples to be a whole number from 2, got 1", id="one sample"),
        pytest.param({"samples": 2.5}, r"samples to be a whole number from 2, got 2\.5", id="half a sample"),
        pytest.param({"views": 1}, "views to be a whole number from 2, got 1", id="one view"),
        pytest.param({"num_classes": 1}, "num_classes to be a whole number from 2, got 1", id="one class"),
        pytest.param({"num_classes": 2.5}, r"num_classes to be a whole number from 2, got 2\.5", id="half a class"),
        pytest.param({"scalars": "none"}, "scalars to be 'auto' or 'all', got 'none'", id="scalars"),
        pytest.param({"every_n_steps": 0}, "every_n_steps to be a whole number from 1, got 0", id="every 0"),
        pytest.param({"window": 0, "data": "train"}, "window to be a whole number of steps .*, got 0", id="no window"),
        pytest.param({"window": 5, "every_n_steps": 4, "data": "train"}, "to every_n_steps, got 5", id="long window"),
    ],
)
def test_refused_at_construction(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureRankMonitor(**arguments)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        pytest.param("decoder", r"'decoder' in layers.*Choose from network, network\.0, network\.1", id="name"),
        pytest.param(["network.0", "encoder.*"], r"'encoder\.\*'", id="one of two patterns"),
        pytest.param(lambda name: False, "layers to accept the name", id="function"),
    ],
)
@MODES
def test_pattern_that_matches_nothing(layers: Any, message: str, data: str) -> None:
    """Told before any training is paid for; and, of validation data, where there is no training."""
    model = callable_model(mlp)
    given = shuffled(model) if data == "loader" else data
    with pytest.raises(ValueError, match=message):
        fit(model, FeatureRankMonitor(layers=layers, data=given))
    assert model.losses == []
    if data == "val":
        with pytest.raises(ValueError, match=message):
            pl.Trainer(callbacks=[FeatureRankMonitor(layers=layers)], **QUIET).validate(mlp())


@pytest.mark.parametrize("data", ["train", "val"])
def test_sharding_is_refused(data: Any) -> None:
    class FSDPStrategy(SingleDeviceStrategy):
        """Stands for the first FSDP, which needs a GPU."""

    strategy = FSDPStrategy(device="cpu")
    model = mlp()
    with pytest.raises(ValueError, match=r"FSDPStrategy flattens .* strategy='ddp'"):
        fit(model, FeatureRankMonitor(data=data), strategy=strategy, devices=1)
    assert model.losses == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"mask": "mask"}, r"tensor of mask as batch\['mask'\], got NoneType.*is a list of Tensor", id="no mask"),
        pytest.param({"mask": lambda batch: None}, "tensor of mask as what mask= returns, got NoneType", id="mask function"),
        pytest.param({"num_classes": 3, "labels": "y"}, r"labels as batch\['y'\], got NoneType", id="no labels"),
        pytest.param({"num_classes": 2}, r"labels from 0 to 1, got 2\. If one of them means no label", id="large label"),
        pytest.param({"num_classes": 2, "ignore_index": 5}, r"labels from 0 to 1, got 2\.$", id="not the ignored"),
        pytest.param({"num_classes": 3, "labels": lambda batch: batch[1] / 2}, "labels to be integers", id="floats"),
    ],
)
@MODES
def test_batches_that_are_refused(arguments: dict[str, Any], message: str, data: str) -> None:
    """At the first batch of training, however late the first window, or of the sanity check."""
    model = callable_model(mlp)
    given = shuffled(model) if data == "loader" else data
    with pytest.raises(ValueError, match=message):
        fit(model, FeatureRankMonitor(data=given, every_n_steps=1000, **arguments))
    assert model.losses == []
    assert hooks(model) == 0


def test_two_monitors_of_one_training_need_two_groups() -> None:
    monitors = [FeatureRankMonitor(), FeatureRankMonitor(data="train")]
    with pytest.raises(ValueError, match=r"Expected each monitor to have a group= of its own, got 'feature_rank'"):
        fit(mlp(), *monitors)


def test_training_and_validation_side_by_side() -> None:
    recorder = Recorder()
    fit(mlp(), FeatureRankMonitor(data="train"), FeatureRankMonitor(group="of_validation"), logger=recorder)
    assert recorder.steps("feature_rank") == recorder.steps("of_validation") == [2]


def trained(model: Callable[[], Classifier], arguments: dict[str, Any] | None, **options: Any) -> dict[str, Any]:
    pl.seed_everything(0, verbose=False)
    module = callable_model(model)
    monitors = []
    if arguments is not None:
        given = arguments | ({"data": shuffled(module)} if arguments["data"] == "loader" else {})
        measures = ["effective_rank", "centered_stable_rank", "two_nn", "dead_fraction", "lidar"]
        monitors = [FeatureRankMonitor(measures, **({"every_n_steps": 2, "views": 2, "samples": 7} | given))]
    trainer = fit(module, *monitors, **({"max_epochs": 2} | options))
    measured = any(tag.startswith("feature_rank/effective_rank") for tag in trainer.callback_metrics)
    return {"measured": measured, **outcome(trainer, module)}


def check_harmless(model: Callable[[], Classifier], data: str, options: dict[str, Any], **arguments: Any) -> None:
    without, watched = trained(model, None, **options), trained(model, {"data": data, **arguments}, **options)
    assert (without.pop("measured"), watched.pop("measured")) == (False, True)
    assert len(without["losses"]) >= 6
    assert_identical(watched, without)


@MODES
@pytest.mark.parametrize("model", [MODELS[1], *MODELS[3:]], ids=lambda model: model.__name__)
def test_training_is_bit_identical(model: Callable[[], Classifier], data: str) -> None:
    """With the buffers of batch and spectral norm, dropout and a shuffled loader."""
    check_harmless(model, data, {}, num_classes=CLASSES)


@pytest.mark.parametrize(
    "options",
    [{"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2}, {"val_check_interval": 1, "num_sanity_val_steps": 2}],
    ids=str,
)
@MODES
def test_training_is_bit_identical_with(options: dict[str, Any], data: str) -> None:
    check_harmless(MODELS[1], data, options, maps="flat")


@pytest.mark.parametrize(("precision", "data"), [("bf16-true", "train"), ("bf16-true", "val"), ("64-true", "train")])
def test_training_is_bit_identical_in_precision(precision: str, data: str) -> None:
    check_harmless(MODELS[1], data, {"precision": precision}, maps="mean")


@pytest.mark.parametrize("data", ["train", "val"])
def test_training_by_hand_is_bit_identical(data: str) -> None:
    check_harmless(two_optimizers, data, {})


def hooks(model: nn.Module) -> int:
    """On modules, of every kind."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_forward_hooks_with_kwargs")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


class Crashing(Forward):
    """Counts its hooks where it may crash, and crashes where it is told to, the second time."""

    crash = ""
    error: type[BaseException] = RuntimeError

    def __init__(self, network: nn.Module, inputs: Tensor) -> None:
        super().__init__(network, inputs)
        self.hooks: dict[str, list[int]] = {"training_step": [], "validation_step": [], "forward": []}

    def passes(self, place: str) -> None:
        self.hooks[place].append(hooks(self))
        if self.crash == place and len(self.hooks[place]) == 2:
            raise self.error(place)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.passes("training_step")
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.passes("validation_step")

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = super().forward(inputs)
        self.passes("forward")
        return outputs


def crashing(crash: str = "", error: type[BaseException] = RuntimeError) -> Crashing:
    model = Crashing(two_layers(), torch.randn(24, 6))
    model.crash, model.error = crash, error
    return model


PLACES = {"train": "training_step", "val": "validation_step", "loader": "forward"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, None], ids=lambda error: error and error.__name__)
@MODES
def test_no_hook_is_left(data: str, error: type[BaseException] | None) -> None:
    """And the monitor can be used again."""
    model = crashing(PLACES[data] if error else "", error or RuntimeError)
    given = shuffled(model) if data == "loader" else data
    every = {"train": 2, "val": 4, "loader": 4}[data]
    monitor, recorder = FeatureRankMonitor(["stable_rank"], every_n_steps=every, data=given), Recorder()
    if error:
        with pytest.raises((error, SystemExit)):
            fit(model, monitor, num_sanity_val_steps=0)
    else:
        fit(model, monitor, num_sanity_val_steps=0, max_steps=3)
    inside = {"train": [0, 3], "val": [3, 3], "loader": [3, 3]}[data]
    if not (data == "val" and error is None):
        assert model.hooks[PLACES[data]][:2] == inside
    assert hooks(model) == 0
    assert monitor._hooks is None
    again = crashing()
    if data == "loader":
        monitor.data = shuffled(again)
    fit(again, monitor, logger=recorder, max_epochs=2)
    assert recorder.steps("feature_rank") == {"train": [2, 4, 6, 8, 10], "val": [5, 11], "loader": [0, 4, 8, 11]}[data]


def test_validation_alone_leaves_no_hook() -> None:
    model, recorder = crashing(), Recorder()
    pl.Trainer(callbacks=[FeatureRankMonitor(["stable_rank"])], **(QUIET | {"logger": recorder})).validate(
        model, verbose=False
    )
    assert recorder.steps("feature_rank") == [0]
    assert model.hooks["validation_step"] == [3] * 6
    assert hooks(model) == 0


@pytest.mark.parametrize("data", ["train", "loader"])
def test_validation_alone_is_no_matter_of_training_data(data: str) -> None:
    model, recorder = crashing(), Recorder()
    monitor = FeatureRankMonitor(["stable_rank"], data=shuffled(model) if data == "loader" else data)
    pl.Trainer(callbacks=[monitor], **(QUIET | {"logger": recorder})).validate(model, verbose=False)
    assert recorder.readings("feature_rank") == {}
    assert model.hooks["validation_step"] == [0] * 6


def test_sanity_checking_is_not_looked_at() -> None:
    model, recorder = crashing(), Recorder()
    fit(model, FeatureRankMonitor(["stable_rank"]), logger=recorder, num_sanity_val_steps=2)
    assert model.hooks["validation_step"] == [0] * 2 + [3] * 6
    assert recorder.steps("feature_rank") == [5]


class Kept(pl.Callback):
    """The rows that the monitor holds after each batch."""

    def __init__(self, monitor: FeatureRankMonitor) -> None:
        self.monitor, self.rows = monitor, []

    def look(self, *args: Any) -> None:
        if self.monitor._hooks is not None:
            self.rows += [rows for sample in self.monitor._hooks.samples.values() for rows in sample._rows]

    on_train_batch_end = on_validation_batch_end = look


@pytest.mark.parametrize("inference_mode", [True, False])
@pytest.mark.parametrize("data", ["train", "val"])
def test_graph_is_not_kept(data: Any, inference_mode: bool) -> None:
    monitor = FeatureRankMonitor(["lidar"], every_n_steps=3, data=data, views=2)
    kept = Kept(monitor)
    model = mlp()
    model.validation_step = lambda batch, batch_idx: torch.enable_grad()(model.network)(batch[0])
    fit(model, kept, monitor, inference_mode=inference_mode)
    assert len(kept.rows) >= 3
    assert not any(rows.requires_grad or rows.grad_fn is not None for rows in kept.rows)


@MODES
def test_features_are_not_kept_alive_after_a_report(data: str) -> None:
    alive = []

    class Count(pl.Callback):
        """Tensors of the shape of hidden features of a batch."""

        def on_train_batch_start(self, *args: Any) -> None:
            gc.collect()
            shapes = {(4, 5), (7, 5)}
            alive.append(sum(type(item) is Tensor and tuple(item.shape) in shapes for item in gc.get_objects()))

    model = crashing()
    given = DataLoader(model.data, batch_size=7, shuffle=True) if data == "loader" else data
    monitor = FeatureRankMonitor(["stable_rank"], "network.*", 4, 2 if data == "train" else None, given)
    gc.collect()
    gc.freeze()  # what was there before, of which there is much
    try:
        fit(model, Count(), monitor, limit_train_batches=3, max_epochs=2)
    finally:
        gc.unfreeze()
    # Within a window rows are kept.
    assert [count > 0 for count in alive] == [data == "train" and step == 4 for step in range(6)]


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda monitor: pickle.loads(pickle.dumps(monitor))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("used", [False, True], ids=["new", "after a fit"])
def test_copies_measure_alike(duplicate: Callable[[Any], Any], used: bool) -> None:
    original = FeatureRankMonitor(["stable_rank", "lidar"], ["network.0"], log_spaced(3), 2, "train", views=2, samples=6)
    if used:
        fit(mlp(), original)
    rows = []
    for monitor in (original, duplicate(original)):
        torch.manual_seed(0)
        recorder = Recorder()
        fit(mlp(batches=6), monitor, logger=recorder, max_epochs=2)
        rows.append(recorder.readings("feature_rank"))
    assert rows[0] == rows[1]
    assert {step for step, _ in rows[0]} == {1, 5, 10}


@pytest.mark.parametrize("namespace", ["pytorch_lightning", "lightning.pytorch"])
@MODES
def test_both_lightning_packages(namespace: str, data: str) -> None:
    lightning = import_module(namespace)

    class Model(Training, lightning.LightningModule):
        shuffle = False

        def forward(self, inputs: Tensor) -> Tensor:
            return self.network(inputs)

    model = Model(two_layers(), torch.randn(12, 6))
    recorder = type("Recorder", (Recorder, import_module(f"{namespace}.loggers").Logger), {})()
    given = model.val_dataloader() if data == "loader" else data
    monitor = FeatureRankMonitor(["stable_rank"], "network.0", 2, None, given)
    lightning.Trainer(callbacks=[monitor], **(QUIET | {"logger": recorder})).fit(model)
    assert recorder.steps("feature_rank") == {"train": [2], "val": [2], "loader": [0, 2]}[data]


@pytest.mark.parametrize("namespace", ["pytorch_lightning", "lightning.pytorch"])
def test_command_line(namespace: str, tmp_path: Path) -> None:
    class Model(Training, import_module(namespace).LightningModule):
        def __init__(self) -> None:
            super().__init__(two_layers(), torch.randn(12, 6))

    config = """
    trainer:
      callbacks:
        - class_path: rank_callbacks.FeatureRankMonitor
          init_args: {measures: [stable_rank, centered_energy_rank_0.95, lidar], layers: [network.0], every_n_steps: 2,
                      window: 2, data: train, maps: mean, samples: 50, num_classes: 3, ignore_index: -100, views: 2,
                      scalars: all}
        - class_path: rank_callbacks.FeatureRankMonitor
          init_args:
            group: of_validation
            mask: padding
            labels: y
            every_n_steps: {class_path: rank_callbacks.log_spaced, init_args: {per_decade: 5}}
    """
    (tmp_path / "config.yaml").write_text(config)
    quiet = [f"--trainer.{name}=false" for name in ("logger", "enable_checkpointing", "enable_progress_bar")]
    arguments = [f"--config={tmp_path / 'config.yaml'}", "--trainer.max_epochs=1", "--trainer.accelerator=cpu", *quiet]
    arguments += ["--trainer.limit_val_batches=0"]
    cli = import_module(f"{namespace}.cli").LightningCLI(Model, args=["fit", *arguments], save_config_callback=None)
    tags = {tag for tag in cli.trainer.callback_metrics if tag.endswith("/network.0")}
    measures = ["stable_rank", "centered_energy_rank_0.95", "lidar", "stable_rank_of_class_2", "samples_per_class", "depth"]
    assert {f"feature_rank/{measure}/network.0" for measure in measures} < tags
    first, second = (callback for callback in cli.trainer.callbacks if isinstance(callback, FeatureRankMonitor))
    assert (first.maps, first.samples, first.num_classes, first.ignore_index, first.views) == ("mean", 50, 3, -100, 2)
    assert (second.data, second.group, second.mask, second.labels) == ("val", "of_validation", "padding", "y")
    assert second.cadence.schedule == log_spaced(5)
