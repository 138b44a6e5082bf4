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
from torch.utils.data import DataLoader, TensorDataset

from rank_callbacks import NeuralCollapseMonitor, log_spaced
from tests.models import CLASSES, MODELS, Classifier, Training, mlp, spectrally_normed, two_layers, two_optimizers
from tests.training import Recorder, assert_identical, fit, outcome

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
    return DataLoader(model.data, batch_size=5, shuffle=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"num_classes": 1}, "num_classes to be a whole number from 2, got 1", id="one class"),
        pytest.param({"num_classes": 2.5}, r"num_classes to be a whole number from 2, got 2\.5", id="half a class"),
        pytest.param({"data": "test"}, "data to be 'train', 'val' or a loader, got 'test'", id="data"),
        pytest.param({"data": iter([1])}, "a loader that can be gone through again, got a list_iterator", id="iterator"),
        pytest.param({"data": (_ for _ in ())}, "gone through again, got a generator", id="generator"),
        pytest.param({"maps": "max"}, "maps to be one of mean, positions, projection, got 'max'", id="maps"),
        pytest.param({"measures": ["nc1"]}, r"name of a measure, got 'nc1'\. Choose from nc1_pinv, nc1_quot.*", id="measure"),
        pytest.param({"scalars": "none"}, "scalars to be 'auto' or 'all', got 'none'", id="scalars"),
        pytest.param({"minority": [0, 3]}, r"minority to hold classes from 0 to 2, got \[0, 3\]", id="minority"),
        pytest.param({"minority": [-1]}, r"minority to hold classes from 0 to 2, got \[-1\]", id="negative minority"),
        pytest.param({"every_n_steps": 0}, "every_n_steps to be a whole number from 1, got 0", id="every 0"),
        pytest.param({"every_n_steps": 2.5}, r"every_n_steps to be a whole number from 1, got 2\.5", id="every 2.5"),
        pytest.param({"window": 0}, "window to be a whole number of steps from 1 to every_n_steps, got 0", id="no window"),
        pytest.param({"window": 1.5}, r"window to be a whole number .* got 1\.5", id="half a step"),
        pytest.param({"window": 5, "every_n_steps": 4}, "from 1 to every_n_steps, got 5", id="window longer than a period"),
    ],
)
def test_refused_at_construction(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NeuralCollapseMonitor(**({"num_classes": CLASSES} | arguments))


SIZES = r"Linear layers and their outputs: network\.0 \(5\), network\.2 \(3\)\."
NO_CLASSIFIER = [
    pytest.param(
        {"num_classes": 7},
        f"a linear layer with num_classes=7 outputs, got none. {SIZES} Check num_classes=",
        id="no classifier",
    ),
    pytest.param(
        {"classifier": "head"},
        f"classifier='head' to be a linear layer .*{SIZES} Choose classifier= from network.2",
        id="no such classifier",
    ),
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *NO_CLASSIFIER,
        pytest.param({"classifier": "network.0"}, f"'network.0' to be a linear layer with num_classes=3 .*{SIZES}", id="size"),
        pytest.param({"classifier": "network.1"}, "'network.1' to be a linear layer with num_classes=3", id="not linear"),
        pytest.param({"layers": "decoder"}, r"'decoder' in layers.*Choose from network, network\.0, network\.1", id="layer"),
        pytest.param({"layers": ["network.0", "encoder.*"]}, r"'encoder\.\*'", id="one of two patterns"),
        pytest.param({"layers": lambda name: False}, "layers to accept the name", id="function"),
    ],
)
@pytest.mark.parametrize("data", ["train", "val"])
def test_refused_when_fitting_starts(arguments: dict[str, Any], message: str, data: str) -> None:
    model, monitor = mlp(), NeuralCollapseMonitor(**({"num_classes": CLASSES, "data": data} | arguments))
    with pytest.raises(ValueError, match=message):
        fit(model, monitor)
    assert model.losses == []
    if data == "val":
        with pytest.raises(ValueError, match=message):
            pl.Trainer(callbacks=[monitor], logger=False, enable_progress_bar=False, accelerator="cpu").validate(mlp())


def test_model_without_linear_layers_is_told_so() -> None:
    model = Classifier(nn.Sequential(nn.Conv1d(6, 3, 1), nn.Flatten()), torch.randn(12, 6, 1))
    with pytest.raises(ValueError, match="Linear layers and their outputs: nothing"):
        fit(model, NeuralCollapseMonitor(CLASSES))


def test_sharding_is_refused() -> None:
    class FSDPStrategy(SingleDeviceStrategy):
        """Stands for the first FSDP, which needs a GPU."""

    for data in ("train", "val"):
        strategy = FSDPStrategy(device="cpu")
        model = mlp()
        with pytest.raises(ValueError, match=r"FSDPStrategy flattens .* strategy='ddp'"):
            fit(model, NeuralCollapseMonitor(CLASSES, data=data), strategy=strategy, devices=1)
        assert model.losses == []


class Collated(Forward):
    """Batches as a function makes them of inputs and labels."""

    made: Callable[[Tensor, Tensor], Any] = staticmethod(lambda inputs, labels: [inputs, labels])

    def batches(self) -> list[Any]:
        inputs, labels = self.data.tensors
        return [self.made(inputs[start : start + 4], labels[start : start + 4]) for start in range(0, 12, 4)]

    def train_dataloader(self) -> Any:
        return DataLoader(self.batches(), batch_size=None)

    val_dataloader = train_dataloader

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.network(self.data.tensors[0][:4]).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.network(self.data.tensors[0][:4])

    def forward(self, batch: Any) -> Tensor:
        return self.network(self.data.tensors[0][:4])


HINT = r"Name the labels by labels='key' for a dict, or by labels=lambda batch: \.\.\."


@pytest.mark.parametrize(
    ("made", "arguments", "message"),
    [
        pytest.param(lambda x, y: x, {}, f"second item of the batch, got NoneType.*is a Tensor. {HINT}", id="inputs alone"),
        pytest.param(lambda x, y: [x], {}, "The batch is a list of Tensor", id="a list of one"),
        pytest.param(lambda x, y: {"x": x, "y": y}, {}, "a dict with the keys 'x', 'y'", id="a dict"),
        pytest.param(
            lambda x, y: {"x": x, "y": y}, {"labels": "label"}, r"as batch\['label'\], got NoneType", id="another key"
        ),
        pytest.param(lambda x, y: [x, y.tolist()], {}, "second item of the batch, got list", id="a list of labels"),
        pytest.param(lambda x, y: [x, y], {"labels": lambda batch: None}, "what labels= returns, got NoneType", id="function"),
        pytest.param(
            lambda x, y: [x, y + 1], {}, r"labels from 0 to 2, got 3\. If one of them means no label", id="too large"
        ),
        pytest.param(lambda x, y: [x, y - 1], {}, "labels from 0 to 2, got -1.*ignore_index", id="negative"),
        pytest.param(lambda x, y: [x, y - 1], {"ignore_index": -2}, r"labels from 0 to 2, got -1\.$", id="not the ignored"),
        pytest.param(lambda x, y: [x, y.float()], {}, r"labels to be integers, .* got torch\.float32", id="floats"),
        pytest.param(
            lambda x, y: [x, torch.ones(len(y), CLASSES)], {}, "that sum to 1 in each row, got others", id="not probabilities"
        ),
    ],
)
@MODES
def test_labels_that_are_refused(made: Any, arguments: dict[str, Any], message: str, data: str) -> None:
    model = Collated(two_layers(), torch.randn(12, 6))
    model.made = made
    given = model.batches() if data == "loader" else data
    with pytest.raises(ValueError, match=message):
        fit(model, NeuralCollapseMonitor(CLASSES, every_n_steps=1, data=given, **arguments))
    assert hooks(model) == 0


class Taught(Forward):
    """With a teacher, which its weights are drawn to."""

    def __init__(self, network: nn.Module, inputs: Tensor) -> None:
        super().__init__(network, inputs)
        self.teacher = copy.deepcopy(network).requires_grad_(False)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + (self.network(batch[0]) - self.teacher(batch[0])).square().mean()


@pytest.mark.parametrize("name", [None, "network.2"])
def test_classifier_is_that_of_the_student_and_is_told(name: str | None, caplog: pytest.LogCaptureFixture) -> None:
    readings = []
    for classifier in (name, "network.2"):
        torch.manual_seed(0)
        model, recorder = Taught(two_layers(), torch.randn(12, 6)), Recorder()
        caplog.clear()
        with caplog.at_level("INFO"):
            fit(model, NeuralCollapseMonitor(CLASSES, every_n_steps=2, classifier=classifier), logger=recorder)
        told = [record.message for record in caplog.records if "classifier" in record.message]
        assert len(told) == (classifier is None)
        readings.append(recorder.readings("neural_collapse"))
        if told:
            assert told[0].startswith("NeuralCollapseMonitor takes network.2 for the classifier. teacher.2 would fit as well")
    assert readings[0] == readings[1] != {}


def test_one_classifier_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        fit(mlp(), NeuralCollapseMonitor(CLASSES))
    assert not any("classifier" in record.message for record in caplog.records)


def test_loader_for_a_module_without_forward_is_refused_before_training() -> None:
    model = mlp()
    with pytest.raises(ValueError, match="Expected Classifier to define forward"):
        fit(model, NeuralCollapseMonitor(CLASSES, data=shuffled(model), every_n_steps=lambda step: False))
    assert model.losses == []
    fit(model, NeuralCollapseMonitor(CLASSES))


def test_features_of_another_width_are_refused() -> None:
    class Growing(Forward):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            self.network[1](torch.ones(len(batch[0]), 2 + batch_idx))
            return self.network[0](batch[0]).sum()

    model = Growing(nn.Sequential(nn.Linear(6, CLASSES), nn.Identity()), torch.randn(12, 6))
    with pytest.raises(ValueError, match="features of width 3 as before, got 4"):
        fit(model, NeuralCollapseMonitor(CLASSES, "network.1", 2, 2))
    assert hooks(model) == 0


def trained(model: Callable[[], Classifier], arguments: dict[str, Any] | None, **options: Any) -> dict[str, Any]:
    pl.seed_everything(0, verbose=False)
    module = callable_model(model)
    monitors = []
    if arguments is not None:
        given = arguments | ({"data": shuffled(module)} if arguments["data"] == "loader" else {})
        monitors = [NeuralCollapseMonitor(CLASSES, "network.*", **({"every_n_steps": 2} | given))]
    trainer = fit(module, *monitors, **({"max_epochs": 2} | options))
    measured = any(tag.startswith("neural_collapse") for tag in trainer.callback_metrics)
    return {"measured": measured, **outcome(trainer, module)}


def check_harmless(model: Callable[[], Classifier], data: str, options: dict[str, Any], **arguments: Any) -> None:
    without, watched = trained(model, None, **options), trained(model, {"data": data, **arguments}, **options)
    assert (without.pop("measured"), watched.pop("measured")) == (False, True)
    assert_identical(watched, without)


@MODES
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
@pytest.mark.filterwarnings("ignore:neural_collapse of")
def test_training_is_bit_identical(model: Callable[[], Classifier], data: str) -> None:
    """With the buffers of batch and spectral norm, dropout and a shuffled loader."""
    check_harmless(model, data, {})


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16-mixed"},
        {"accumulate_grad_batches": 2},
        {"gradient_clip_val": 0.01},
        {"val_check_interval": 1},
        {"num_sanity_val_steps": 2},
    ],
    ids=str,
)
@MODES
@pytest.mark.filterwarnings("ignore:neural_collapse of")
def test_training_is_bit_identical_with(options: dict[str, Any], data: str) -> None:
    check_harmless(MODELS[1], data, options, maps="positions")


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
@pytest.mark.parametrize("data", ["train", "val"])
@pytest.mark.filterwarnings("ignore:neural_collapse of")
def test_training_is_bit_identical_in_precision(precision: str, data: str) -> None:
    check_harmless(MODELS[1], data, {"precision": precision})


@pytest.mark.parametrize("data", ["train", "val"])
def test_training_by_hand_is_bit_identical(data: str) -> None:
    check_harmless(two_optimizers, data, {})


def test_weight_of_a_spectrally_normed_classifier_is_that_of_eval_mode() -> None:
    """Which no power iteration moves."""
    model, recorder, weights = spectrally_normed(), Recorder(), []

    class Weights(pl.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            weights.append(copy.deepcopy(model.network[2]).eval().weight.detach().double())

    monitor = NeuralCollapseMonitor(CLASSES, every_n_steps=1, measures=["classifier_equinorm"])
    fit(model, Weights(), monitor, logger=recorder)
    norms = [torch.linalg.vector_norm(weight, dim=1) for weight in weights]
    got = [recorder.readings("neural_collapse")[s, "neural_collapse/classifier_equinorm/penultimate"] for s in range(3)]
    assert got == pytest.approx([float(norm.std() / norm.mean()) for norm in norms], rel=1e-6)


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
    model = crashing(PLACES[data] if error else "", error or RuntimeError)
    given = shuffled(model) if data == "loader" else data
    monitor, recorder = NeuralCollapseMonitor(CLASSES, "network.*", 4, 3, data=given), Recorder()
    # Seven steps, in the fifth of which a window would have to begin that ends with them: the one of step 8 stays open.
    options = {"num_sanity_val_steps": 0, "max_steps": 7, "max_epochs": 2}
    if error:
        with pytest.raises((error, SystemExit)):
            fit(model, monitor, **options)
    else:
        fit(model, monitor, **options)
        assert model.hooks["training_step"] == [5 * (data == "train" and step in {2, 3, 4, 6}) for step in range(7)]
    # Of three layers, and twice of the classifier.
    assert model.hooks[PLACES[data]][:2] == ([0, 0] if data == "train" else [5, 5])
    assert hooks(model) == 0
    assert monitor._hooks is None
    again = crashing()
    if data == "loader":
        monitor.data = shuffled(again)
    fit(again, monitor, logger=recorder, max_epochs=2)
    assert recorder.steps("neural_collapse") == {"train": [4, 8, 11], "val": [5, 11], "loader": [0, 4, 8, 11]}[data]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_crash_inside_a_window_leaves_no_hook(error: type[BaseException]) -> None:
    model = crashing("training_step", error)
    with pytest.raises((error, SystemExit)):
        fit(model, NeuralCollapseMonitor(CLASSES, "network.*", lambda step: step == 3, 4))
    assert model.hooks["training_step"] == [5, 5]
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("every_n_steps", "steps", "stays_open"),
    [
        pytest.param(4, {3, 4, 7, 8, 10, 11}, False, id="the last ends with training"),
        pytest.param(
            lambda step: step in {2, 10, 12}, {1, 2, 9, 10, 11}, True, id="the last, opened in the last step, does not"
        ),
    ],
)
def test_hooks_are_there_in_windows_alone(every_n_steps: Any, steps: set[int], stays_open: bool) -> None:
    """And in validation where it falls into one."""
    model = crashing()
    fit(model, NeuralCollapseMonitor(CLASSES, every_n_steps=every_n_steps, window=2), max_epochs=2, num_sanity_val_steps=0)
    assert [bool(count) for count in model.hooks["training_step"]] == [step in steps for step in range(12)]
    assert [bool(count) for count in model.hooks["validation_step"]] == [False] * 6 + [stays_open] * 6
    assert hooks(model) == 0


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
    monitor = NeuralCollapseMonitor(CLASSES, "network.*", 4, 2, given)
    gc.collect()
    gc.freeze()  # what was there before, of which there is much
    try:
        fit(model, Count(), monitor, limit_train_batches=3, max_epochs=2)
    finally:
        gc.unfreeze()
    # Within a window rows are kept.
    expected = [step == 4 for step in range(6)] if data == "train" else [False] * 6
    assert [count > 0 for count in alive] == expected
    assert monitor._moments == {}


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda monitor: pickle.loads(pickle.dumps(monitor))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("used", [False, True], ids=["new", "after a fit"])
def test_copies_measure_alike(duplicate: Callable[[Any], Any], used: bool) -> None:
    original = NeuralCollapseMonitor(CLASSES, ["network.0"], log_spaced(per_decade=3), 2, labels=None)
    if used:
        fit(mlp(), original)
    rows = []
    for monitor in (original, duplicate(original)):
        torch.manual_seed(0)
        recorder = Recorder()
        fit(mlp(batches=6), monitor, logger=recorder, max_epochs=2)
        rows.append(recorder.readings("neural_collapse"))
    assert rows[0] == rows[1]
    assert {step for step, _ in rows[0]} == {1, 5, 10}


@pytest.mark.parametrize("namespace", ["pytorch_lightning", "lightning.pytorch"])
@MODES
def test_both_lightning_packages(namespace: str, data: str) -> None:
    lightning = import_module(namespace)

    class Model(Training, lightning.LightningModule):
        def forward(self, inputs: Tensor) -> Tensor:
            return self.network(inputs)

    torch.manual_seed(0)
    models = [kind(two_layers(), torch.randn(12, 6)) for kind in (Model, Forward)]
    models[1].load_state_dict(models[0].state_dict())
    models[1].data = models[0].data
    recorders = [type("Recorder", (Recorder, import_module(f"{namespace}.loggers").Logger), {})(), Recorder()]
    for model, recorder, package in zip(models, recorders, (lightning, pl), strict=True):
        model.shuffle = False
        given = model.val_dataloader() if data == "loader" else data
        trainer = package.Trainer(
            callbacks=[NeuralCollapseMonitor(CLASSES, "network.0", 2, data=given)], logger=recorder, max_epochs=2,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        )  # fmt: skip
        trainer.fit(model)
    assert recorders[0].readings("neural_collapse") == recorders[1].readings("neural_collapse") != {}


@pytest.mark.parametrize("namespace", ["pytorch_lightning", "lightning.pytorch"])
def test_command_line(namespace: str, tmp_path: Path) -> None:
    class Model(Training, import_module(namespace).LightningModule):
        def __init__(self) -> None:
            super().__init__(two_layers(), torch.randn(12, 6))

    config = """
    trainer:
      callbacks:
        - class_path: rank_callbacks.NeuralCollapseMonitor
          init_args: {num_classes: 3, layers: [network.0], every_n_steps: 2, window: 2, measures: [nc1_quotient, self_duality],
                      classifier: network.2, maps: positions, ignore_index: -100, minority: [0, 1], scalars: all}
        - class_path: rank_callbacks.NeuralCollapseMonitor
          init_args:
            num_classes: 3
            data: val
            group: neural_collapse_val
            labels: y
            every_n_steps: {class_path: rank_callbacks.log_spaced, init_args: {per_decade: 5}}
    """
    (tmp_path / "config.yaml").write_text(config)
    quiet = [f"--trainer.{name}=false" for name in ("logger", "enable_checkpointing", "enable_progress_bar")]
    arguments = [f"--config={tmp_path / 'config.yaml'}", "--trainer.max_epochs=1", "--trainer.accelerator=cpu", *quiet]
    arguments += ["--trainer.limit_val_batches=0"]
    cli = import_module(f"{namespace}.cli").LightningCLI(Model, args=["fit", *arguments], save_config_callback=None)
    tags = {tag for tag in cli.trainer.callback_metrics if tag.startswith("neural_collapse/")}
    of_layers = {tag.split("/")[2] for tag in tags if "nc1_quotient" in tag}
    assert of_layers == {"network.0", "penultimate", "mean_over_layers", "min_over_layers", "max_over_layers"}
    assert {tag.split("/")[1] for tag in tags} == {"nc1_quotient", "self_duality", "samples_per_class"}
    first, second = (callback for callback in cli.trainer.callbacks if isinstance(callback, NeuralCollapseMonitor))
    assert (first.minority, first.ignore_index, first.maps, first.scalars) == ([0, 1], -100, "positions", "all")
    assert (second.data, second.labels, second.cadence.schedule) == ("val", "y", log_spaced(5))


def test_loader_in_the_precision_of_training() -> None:
    """Its batches are brought to the type of the model, as those of training are."""
    for precision in ("64-true", "bf16-true"):
        model, recorder = callable_model(mlp), Recorder()
        loader = DataLoader(TensorDataset(*model.data.tensors), batch_size=4)
        fit(model, NeuralCollapseMonitor(CLASSES, every_n_steps=1, data=loader), logger=recorder, precision=precision)
        assert recorder.steps("neural_collapse") == [0, 1, 2]


def test_two_monitors_of_one_training_need_two_groups() -> None:
    monitors = [NeuralCollapseMonitor(CLASSES), NeuralCollapseMonitor(CLASSES, data="val")]
    with pytest.raises(ValueError, match=r"Expected each monitor to have a group= of its own, got 'neural_collapse'"):
        fit(mlp(), *monitors)


def test_training_and_validation_side_by_side() -> None:
    recorder = Recorder()
    monitors = [
        NeuralCollapseMonitor(CLASSES, every_n_steps=2),
        NeuralCollapseMonitor(CLASSES, data="val", group="validation"),
    ]
    fit(mlp(), *monitors, logger=recorder)
    assert recorder.steps("neural_collapse") == [2]
    assert recorder.steps("validation") == [2]


def test_labels_are_checked_at_the_first_batch_however_late_the_first_window() -> None:
    model = Classifier(two_layers(), torch.randn(24, 6))
    model.data = TensorDataset(model.data.tensors[0], torch.full((24,), CLASSES))
    with pytest.raises(ValueError, match=r"Expected labels from 0 to 2, got 3\."):
        fit(model, NeuralCollapseMonitor(CLASSES, every_n_steps=1000))
    assert len(model.losses) == 0
