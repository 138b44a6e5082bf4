import copy
import pickle
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from rank_callbacks import GradientRankMonitor, WeightRankMonitor, log_spaced
from tests.gradients import BATCH, LAYERS, Wide, readings, three_layers, wide
from tests.models import MODELS, Classifier, Training, convnet, mlp, two_layers, two_optimizers
from tests.training import Recorder, assert_identical, fit, outcome


def trained(model: Callable[[], Classifier], *callbacks: pl.Callback, **options: Any) -> dict[str, Any]:
    pl.seed_everything(0, verbose=False)
    module = model()
    trainer = fit(module, *callbacks, max_epochs=2, **options)
    measured = any(tag.startswith("gradient_rank") for tag in trainer.callback_metrics)
    return {"measured": measured, **outcome(trainer, module)}


def check_harmless(model: Callable[[], Classifier], monitor: GradientRankMonitor, **options: Any) -> None:
    without, watched = trained(model, **options), trained(model, monitor, **options)
    assert (without.pop("measured"), watched.pop("measured")) == (False, True)
    assert_identical(watched, without)


@pytest.mark.parametrize("model", [*MODELS[:4], wide, two_optimizers], ids=lambda model: model.__name__)
def test_training_is_bit_identical(model: Callable[[], Classifier]) -> None:
    check_harmless(model, GradientRankMonitor(every_n_steps=1, subspace_rank=2, update=True, moments=True))


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
def test_training_is_bit_identical_with(options: dict[str, Any]) -> None:
    check_harmless(wide, GradientRankMonitor(every_n_steps=1, update=True, moments=True), **options)


@pytest.mark.parametrize("conv", ["slices", "circular_5x5"])
def test_training_is_bit_identical_however_a_convolution_is_viewed(conv: str) -> None:
    check_harmless(convnet, GradientRankMonitor(every_n_steps=1, conv=conv, update=True, moments=True))


def hooks(model: nn.Module) -> int:
    """On modules and parameters, of every kind."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_forward_hooks_with_kwargs")
    of_modules = sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)
    return of_modules + sum(bool(parameter._backward_hooks) for parameter in model.parameters())


class Counting(Wide):
    """Counts its hooks in every training step, and crashes where it is told to."""

    def __init__(self, network: nn.Module, inputs: Tensor) -> None:
        super().__init__(network, inputs)
        self.hooks: list[int] = []
        self.crash = ""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.hooks.append(hooks(self))
        if batch_idx == 1 and self.crash == "forward":
            self.network[3].forward = None
        loss = super().training_step(batch, batch_idx)
        if batch_idx == 1 and self.crash == "training_step":
            raise RuntimeError("on purpose")
        return loss

    def on_after_backward(self) -> None:
        if self.crash == "backward" and len(self.hooks) == 2:
            raise RuntimeError("on purpose")


def test_hooks_are_there_on_scheduled_steps_alone() -> None:
    model = wide(batches=6, kind=Counting)
    monitor = GradientRankMonitor(every_n_steps=3, update=True, moments=True)
    fit(model, monitor, max_epochs=1)
    assert [bool(count) for count in model.hooks] == [True, False, False, True, False, False]
    assert hooks(model) == 0
    assert not monitor._gradients.is_open


def test_hooks_are_there_for_every_batch_of_a_scheduled_window() -> None:
    model = wide(batches=6, kind=Counting)
    fit(model, GradientRankMonitor(every_n_steps=2), accumulate_grad_batches=2)
    assert [bool(count) for count in model.hooks] == [True, True, False, False, True, True]


@pytest.mark.parametrize("crash", ["training_step", "forward", "backward"])
def test_crash_leaves_no_hook_and_the_monitor_can_be_used_again(crash: str) -> None:
    monitor, model, recorder = GradientRankMonitor(every_n_steps=1, update=True), wide(kind=Counting), Recorder()
    model.crash = crash
    with pytest.raises((RuntimeError, TypeError)):
        fit(model, monitor)
    assert model.hooks[1] > 0
    assert hooks(model) == 0
    fit(wide(), monitor, logger=recorder)
    assert recorder.steps("gradient_rank") == [0, 1, 2]
    assert {step for step, _ in readings(recorder, "subspace_overlap_8")} == {1, 2}


def test_training_that_ends_within_a_window_leaves_no_hook() -> None:
    """By hand a window may stay open: no optimizer steps before the end."""

    class Never(Counting):
        automatic_optimization = False

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.manual_backward(super().training_step(batch, batch_idx))

    model, recorder = wide(kind=Never), Recorder()
    fit(model, GradientRankMonitor(every_n_steps=1), logger=recorder)
    assert model.hooks[0] > 0
    assert hooks(model) == 0
    assert recorder.readings("gradient_rank") == {}


def test_validation_leaves_no_hook() -> None:
    monitor, model = GradientRankMonitor(every_n_steps=1), wide(kind=Counting)
    trainer = fit(model, monitor)
    trainer.validate(model, verbose=False)
    assert hooks(model) == 0


def test_cost_is_logged_with_every_report() -> None:
    recorder = Recorder()
    fit(wide(batches=4), GradientRankMonitor(every_n_steps=2), WeightRankMonitor(every_n_steps=2), logger=recorder)
    cost = {key: value for key, value in recorder.readings("monitor").items() if key[1].endswith("gradient_rank")}
    assert {key for key in cost if "seconds" in key[1]} == {(step, "monitor/seconds/gradient_rank") for step in (0, 2)}
    assert all(value > 0 for value in cost.values())
    assert all(value < 1 for (_, tag), value in cost.items() if "share" in tag)


def test_steps_go_on_after_a_resume(tmp_path: Path) -> None:
    fit(wide(), GradientRankMonitor(every_n_steps=2)).save_checkpoint(tmp_path / "three.ckpt")
    after = Recorder()
    path = str(tmp_path / "three.ckpt")
    fit(wide(), GradientRankMonitor(every_n_steps=2), logger=after, max_epochs=3, ckpt_path=path)
    assert after.steps("gradient_rank") == [4, 6, 8]


def test_two_monitors_of_different_layers_each_report_theirs() -> None:
    recorder = Recorder()
    monitors = [
        GradientRankMonitor(layers=f"network.{place}", every_n_steps=n, group=f"of_{place}") for place, n in ((0, 1), (2, 2))
    ]
    fit(wide(), *monitors, logger=recorder)
    steps = {name: [s for s, tag, _ in recorder.rows if tag.endswith(f"/stable_rank/{name}")] for name in LAYERS[:2]}
    assert steps == {LAYERS[0]: [0, 1, 2], LAYERS[1]: [0, 2]}


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda monitor: pickle.loads(pickle.dumps(monitor))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("used", [False, True], ids=["new", "after a fit"])
def test_copies_measure_alike(duplicate: Callable[[Any], Any], used: bool) -> None:
    original = GradientRankMonitor(["stable_rank"], ["network.0"], log_spaced(per_decade=3), update=True, moments=True)
    if used:
        fit(mlp(), original)
    rows = []
    for monitor in (original, duplicate(original)):
        torch.manual_seed(0)
        recorder = Recorder()
        fit(wide(batches=6), monitor, logger=recorder)
        rows.append([row for row in recorder.rows if not row[1].startswith("monitor/")])
    assert rows[0] == rows[1]
    assert len(rows[0]) > 6


@pytest.mark.parametrize("namespace", ["pytorch_lightning", "lightning.pytorch"])
def test_command_line_and_both_lightning_packages(namespace: str, tmp_path: Path) -> None:
    class Model(Training, import_module(namespace).LightningModule):
        def __init__(self) -> None:
            super().__init__(two_layers(), torch.randn(12, 6))

    config = """
    trainer:
      callbacks:
        - class_path: rank_callbacks.GradientRankMonitor
          init_args: {measures: [stable_rank, energy_at_rank_2], layers: [network.2], every_n_steps: 2, subspace_rank: 2,
                      update: true, moments: true}
    """
    (tmp_path / "config.yaml").write_text(config)
    quiet = [f"--trainer.{name}=false" for name in ("logger", "enable_checkpointing", "enable_progress_bar")]
    arguments = ["fit", f"--config={tmp_path / 'config.yaml'}", "--trainer.max_epochs=1", "--trainer.accelerator=cpu", *quiet]
    cli = import_module(f"{namespace}.cli").LightningCLI(Model, args=arguments, save_config_callback=None)
    layers = {tag.split("/", 2)[2] for tag in cli.trainer.callback_metrics if "_rank/stable_rank/" in tag}
    names = ["network.2.weight", "network.2.weight.exp_avg", "network.2.weight.exp_avg_sq"]
    assert layers == {*names, "mean_over_layers", "min_over_layers", "max_over_layers"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"measures": ["rank"]}, r"'rank'\. Choose from stable_rank", id="measure"),
        pytest.param({"measures": ["energy_at_rank"]}, "needs its k in the name: energy_at_rank_", id="no parameter"),
        pytest.param({"every_n_steps": 0}, "every_n_steps to be a whole number from 1, got 0", id="every 0"),
        pytest.param({"every_n_steps": 2.5}, r"every_n_steps to be a whole number from 1, got 2\.5", id="every 2.5"),
        pytest.param({"conv": "rows"}, "'filters', 'slices' or .*'circular_32x32', got 'rows'", id="conv"),
        pytest.param({"scalars": "none"}, "'auto' or 'all', got 'none'", id="scalars"),
        pytest.param({"subspace_rank": 0}, "subspace_rank to be None or a whole number from 1, got 0", id="subspace of 0"),
        pytest.param({"subspace_rank": 1.5}, r"a whole number from 1, got 1\.5", id="subspace of 1.5"),
    ],
)
def test_refused_at_construction(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GradientRankMonitor(**arguments)


def frozen() -> Classifier:
    model = wide()
    model.network[0].requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        pytest.param(wide, {"layers": "decoder"}, r"'decoder'.*Choose from network\.0\.weight", id="pattern"),
        pytest.param(wide, {"layers": ["network.0", "network.1"]}, r"'network\.1'", id="one of two patterns"),
        pytest.param(wide, {"layers": []}, "at least one pattern", id="no pattern"),
        pytest.param(wide, {"layers": lambda name: False}, "accept the name of a matrix", id="function"),
        pytest.param(frozen, {"layers": "network.0"}, r"'network\.0'.*Choose from network\.2\.weight", id="frozen layer"),
        pytest.param(convnet, {"conv": "circular_2x2"}, r"network\.0\.weight, \(3, 3\)", id="images below the kernel"),
    ],
)
def test_refused_when_fitting_starts(model: Any, arguments: dict[str, Any], message: str) -> None:
    training = model()
    with pytest.raises(ValueError, match=message):
        fit(training, GradientRankMonitor(**arguments), num_sanity_val_steps=0)
    assert training.losses == []


def test_model_without_matrices_is_refused() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs[:, :3] * self.weight

    with pytest.raises(ValueError, match="at least one weight matrix"):
        fit(Wide(Scale(), torch.randn(10, 6)), GradientRankMonitor())


def test_model_sharded_over_one_process_is_measured() -> None:
    class Sharded(Wide):
        def configure_model(self) -> None:
            fully_shard(self.network, mesh=self.device_mesh["data_parallel"])

    strategy = pl.strategies.ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1, process_group_backend="gloo")
    try:
        trainer = fit(Sharded(three_layers(), torch.randn(10, 40)), GradientRankMonitor(), strategy=strategy, devices=1)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    assert trainer.callback_metrics["gradient_rank/bound/network.0.weight"] == BATCH
    assert trainer.callback_metrics["gradient_rank/input_rank/network.0.weight"] == BATCH
