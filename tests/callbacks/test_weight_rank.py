from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn

from rank_callbacks import WeightRankMonitor, log_spaced
from tests.models import Classifier, Training, TwoOptimizers, convnet, mlp, two_layers, two_optimizers
from tests.training import Recorder, Weights, fit

LAYERS = ["network.0.weight", "network.2.weight"]


def naive_effective_rank(s: NDArray[np.float64]) -> float:
    p = s[s > 0] / s.sum()
    return float(np.exp(-(p * np.log(p)).sum())) if len(p) else 0.0


def naive_stable_rank(s: NDArray[np.float64]) -> float:
    return float((s**2).sum() / s[0] ** 2) if s[0] else 0.0


def naive_numerical_rank(s: NDArray[np.float64]) -> float:
    return float((s > 1e-3 * s[0]).sum())


NAIVE = {"effective_rank": naive_effective_rank, "stable_rank": naive_stable_rank, "numerical_rank": naive_numerical_rank}


def naive_readings(
    matrices: dict[int, dict[str, NDArray[np.float64]]], group: str = "weight_rank"
) -> dict[tuple[int, str], float]:
    """What the monitor should log, from the definitions alone."""
    rows: dict[tuple[int, str], float] = {}
    for step, of_layers in matrices.items():
        spectra = {layer: np.linalg.svd(matrix, compute_uv=False) for layer, matrix in of_layers.items()}
        for measure, function in NAIVE.items():
            values = {layer: function(spectrum) for layer, spectrum in spectra.items()}
            every = list(values.values())
            values |= {"mean_over_layers": np.mean(every), "min_over_layers": min(every), "max_over_layers": max(every)}
            rows |= {(step, f"{group}/{measure}/{layer}"): value for layer, value in values.items()}
    return rows


def at_steps(weights: Weights, steps: list[int]) -> dict[int, dict[str, NDArray[np.float64]]]:
    return {step: weights.at[step] for step in steps}


class Poison(pl.Callback):
    """Writes a NaN into a layer before the third batch."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            pl_module.spare.weight.data[0, 0] = torch.nan


def with_spare(batches: int = 4) -> Classifier:
    """A model with a layer that no batch goes through."""
    model = mlp(batches)
    model.spare = nn.Linear(4, 4)
    return model


@pytest.mark.parametrize(
    ("every_n_steps", "options", "steps"),
    [
        pytest.param(2, {}, [0, 2, 4, 5], id="start, schedule and end"),
        pytest.param(5, {}, [0, 5], id="end on schedule"),
        pytest.param(1, {}, [0, 1, 2, 3, 4, 5], id="every step"),
        pytest.param(100, {}, [0, 5], id="start and end"),
        pytest.param(3, {"max_epochs": 2}, [0, 3, 6, 9, 10], id="two epochs"),
        pytest.param(3, {"max_steps": 4, "max_epochs": -1}, [0, 3, 4], id="max_steps"),
        pytest.param(1, {"accumulate_grad_batches": 2}, [0, 1, 2, 3], id="accumulation, uneven"),
        pytest.param(2, {"accumulate_grad_batches": 2}, [0, 2, 3], id="accumulation on schedule"),
        pytest.param(2, {"precision": "bf16-mixed"}, [0, 2, 4, 5], id="bf16-mixed"),
        pytest.param(2, {"precision": "bf16-true"}, [0, 2, 4, 5], id="bf16-true"),
        pytest.param(2, {"precision": "64-true"}, [0, 2, 4, 5], id="64-true"),
        pytest.param(2, {"num_sanity_val_steps": 2}, [0, 2, 4, 5], id="sanity check"),
        pytest.param(2, {"val_check_interval": 3}, [0, 2, 4, 5], id="validation in between"),
        pytest.param(log_spaced(per_decade=3), {"max_epochs": 2}, [0, 1, 2, 5, 10], id="log-spaced"),
        pytest.param(lambda step: step in {1, 3}, {}, [1, 3, 5], id="function"),
    ],
)
def test_exact_steps_tags_and_values(every_n_steps: Any, options: dict[str, Any], steps: list[int]) -> None:
    recorder, weights = Recorder(), Weights()
    fit(mlp(batches=5), WeightRankMonitor(every_n_steps=every_n_steps), weights, logger=recorder, **options)
    assert recorder.steps("weight_rank") == steps
    assert recorder.readings("weight_rank") == pytest.approx(naive_readings(at_steps(weights, steps)), rel=1e-9)


@pytest.mark.parametrize("every_n_steps", [1, 2])
def test_exact_rows_with_two_optimizers_stepped_by_hand(every_n_steps: int) -> None:
    recorder, weights = Recorder(), Weights()
    fit(two_optimizers(batches=5), WeightRankMonitor(every_n_steps=every_n_steps), weights, logger=recorder)
    steps = [0, 1, 2, 3, 4, 5] if every_n_steps == 1 else [0, 2, 4, 5]
    assert recorder.readings("weight_rank") == pytest.approx(naive_readings(at_steps(weights, steps)), rel=1e-9)


@pytest.mark.parametrize("namespace", ["pytorch_lightning", "lightning.pytorch"])
def test_both_lightning_packages(namespace: str) -> None:
    lightning = import_module(namespace)
    model = type("Module", (Training, lightning.LightningModule), {})(two_layers(), torch.randn(12, 6))
    recorder = type("Recorder", (Recorder, import_module(f"{namespace}.loggers").Logger), {})()
    trainer = lightning.Trainer(
        callbacks=[WeightRankMonitor(every_n_steps=2)], logger=recorder, max_epochs=1, log_every_n_steps=1, accelerator="cpu",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model)
    final = naive_readings({3: {name: p.detach().double().numpy() for name, p in model.named_parameters() if p.dim() > 1}})
    assert recorder.steps("weight_rank") == [0, 2, 3]
    assert {key: value for key, value in recorder.readings("weight_rank").items() if key[0] == 3} == pytest.approx(final)


@pytest.mark.parametrize("options", [{"fast_dev_run": True}, {"logger": False}], ids=["fast_dev_run", "no logger"])
def test_readings_reach_callback_metrics_without_a_logger(options: dict[str, Any]) -> None:
    weights = Weights()
    trainer = fit(mlp(), WeightRankMonitor(), weights, **options)
    last = trainer.global_step
    expected = {tag: value for (_, tag), value in naive_readings({last: weights.at[last]}).items()}
    got = {tag: value.item() for tag, value in trainer.callback_metrics.items() if tag.startswith("weight_rank/")}
    assert got == pytest.approx(expected, rel=1e-6)


def test_every_logger_gets_the_same_report() -> None:
    loggers = [Recorder(), Recorder()]
    fit(mlp(), WeightRankMonitor(every_n_steps=2), logger=loggers)
    ours = [[row for row in logger.rows if row[1] != "loss"] for logger in loggers]
    assert ours[0] == ours[1]
    assert loggers[0].steps("weight_rank") == [0, 2, 3]


class SelfMeasuring(Classifier):
    """Logs, by Lightning's own means, the norm of the weight that a batch is run with."""

    def training_step(self, *args: Any) -> torch.Tensor:
        self.log("own", torch.linalg.matrix_norm(self.network[0].weight.double()))
        return super().training_step(*args)


class SelfMeasuringTwice(SelfMeasuring, TwoOptimizers):
    pass


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        pytest.param(SelfMeasuring, {}, id="plain"),
        pytest.param(SelfMeasuring, {"accumulate_grad_batches": 2}, id="accumulated"),
        pytest.param(SelfMeasuring, {"max_epochs": 2}, id="two epochs"),
        pytest.param(SelfMeasuringTwice, {"max_epochs": 2}, id="two optimizers by hand"),
    ],
)
def test_step_axis_is_that_of_lightnings_own_metrics(kind: type[Classifier], options: dict[str, Any]) -> None:
    recorder = Recorder()
    monitor = WeightRankMonitor(["frobenius_norm"], layers="network.0", every_n_steps=1)
    fit(kind(two_layers(), torch.randn(20, 6)), monitor, logger=recorder, **options)
    ours = {step: value for (step, tag), value in recorder.readings("weight_rank").items() if tag.endswith("weight")}
    own: dict[int, float] = {}
    for step, tag, value in recorder.rows:
        if tag == "own":
            own.setdefault(step, value)
    last = ours.pop(max(ours))
    assert ours == pytest.approx(own, rel=1e-12)
    assert last != pytest.approx(own[max(own)], rel=1e-12)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
def test_change_is_zero_at_first_and_then_that_of_the_weights(precision: str) -> None:
    recorder, weights = Recorder(), Weights()
    fit(mlp(batches=5), WeightRankMonitor(every_n_steps=2, change=True), weights, logger=recorder, precision=precision)
    changes = {step: {layer: weights.at[step][layer] - weights.at[0][layer] for layer in LAYERS} for step in (0, 2, 4, 5)}
    readings = recorder.readings("weight_change_rank")
    assert readings == pytest.approx(naive_readings(changes, "weight_change_rank"), rel=1e-9)
    assert {value for (step, _), value in readings.items() if step == 0} == {0.0}
    assert recorder.readings("weight_rank") == pytest.approx(naive_readings(at_steps(weights, [0, 2, 4, 5])), rel=1e-9)


def test_change_of_a_convolution_as_a_map_on_images() -> None:
    """The singular values of all frequencies together have the energy of the kernel, as often as there are frequencies."""
    recorder, weights = Recorder(), Weights()
    monitor = WeightRankMonitor(["frobenius_norm"], "network.0", every_n_steps=1, conv="circular_5x5", change=True)
    fit(convnet(), monitor, weights, logger=recorder)
    tag = "weight_change_rank/frobenius_norm/network.0.weight.circular_5x5"
    got = {step: value for (step, name), value in recorder.readings("weight_change_rank").items() if name == tag}
    kernels = {step: matrices["network.0.weight"] for step, matrices in weights.at.items()}
    assert got == pytest.approx({step: 5 * np.linalg.norm(kernel - kernels[0]) for step, kernel in kernels.items()}, rel=1e-5)


def test_change_below_the_rounding_of_the_weights_is_not_rank() -> None:
    """An update of rank one, of norm 1.6e-5; adding it to float32 weights leaves rounding of norm 1.8e-8."""

    class Update(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
            pl_module.spare.weight.data += 1e-5 * torch.outer(torch.rand(4) + 0.1, torch.rand(4) + 0.1)

    recorder, model = Recorder(), with_spare(batches=1)
    fit(model, Update(), WeightRankMonitor(["numerical_rank_0", "numerical_rank"], "spare", change=True), logger=recorder)
    ranks = {tag.split("/")[1]: value for (step, tag), value in recorder.readings("weight_change_rank").items() if step == 1}
    assert ranks == {"numerical_rank_0": 1, "numerical_rank": 1}


def test_no_measures_means_spectra_only() -> None:
    recorder = Recorder()
    fit(mlp(), WeightRankMonitor(measures=[]), logger=recorder)
    assert {tag.split("/")[0] for _, tag, _ in recorder.rows} == {"loss", "epoch", "monitor"}


def test_frozen_weights_are_measured() -> None:
    recorder, model = Recorder(), mlp()
    model.network[0].requires_grad_(False)
    fit(model, WeightRankMonitor(change=True), logger=recorder)
    assert recorder.readings("weight_change_rank")[3, "weight_change_rank/numerical_rank/network.0.weight"] == 0
    assert recorder.readings("weight_rank")[3, "weight_rank/numerical_rank/network.0.weight"] == 5


def test_zero_matrix_has_rank_zero() -> None:
    recorder, model = Recorder(), with_spare()
    model.spare.weight.data.zero_()
    fit(model, WeightRankMonitor(layers="spare"), logger=recorder)
    assert set(recorder.readings("weight_rank").values()) == {0.0}


@pytest.mark.parametrize("scalars", ["auto", "all"])
@pytest.mark.parametrize("count", [200, 201])
def test_beyond_two_hundred_layers_only_summaries_unless_asked(scalars: str, count: int) -> None:
    recorder, model = Recorder(), mlp(batches=1)
    model.many = nn.ModuleList(nn.Linear(2, 2) for _ in range(count))
    fit(model, WeightRankMonitor(["stable_rank"], "many", change=True, scalars=scalars), logger=recorder)
    summaries = {f"{kind}_over_layers" for kind in ("mean", "min", "max")}
    layers = {f"many.{place}.weight" for place in range(count)} if scalars == "all" or count == 200 else set()
    for group in ("weight_rank", "weight_change_rank"):
        tags = {tag for step, tag in recorder.readings(group) if step == 1}
        assert tags == {f"{group}/stable_rank/{name}" for name in summaries | layers}


def test_nan_in_a_layer_is_a_nan_reading_and_one_warning(recwarn: pytest.WarningsRecorder) -> None:
    recorder, weights, model = Recorder(), Weights(), with_spare()
    monitor = WeightRankMonitor(every_n_steps=1)
    fit(model, Poison(), monitor, weights, logger=recorder)
    warned = [str(warning.message) for warning in recwarn if "NaN" in str(warning.message)]
    assert len(warned) == 1
    assert "spare.weight" in warned[0]
    assert "step 2" in warned[0]
    readings = recorder.readings("weight_rank")
    nan = {key for key, value in readings.items() if np.isnan(value)}
    spoiled = ("spare.weight", "mean_over_layers", "min_over_layers", "max_over_layers")
    assert nan == {(step, f"weight_rank/{measure}/{layer}") for step in (2, 3, 4) for measure in NAIVE for layer in spoiled}
    healthy = {step: {layer: of_layers[layer] for layer in LAYERS} for step, of_layers in weights.at.items()}
    for (step, tag), value in naive_readings(healthy).items():
        if tag.endswith(tuple(LAYERS)):
            assert readings[step, tag] == pytest.approx(value, rel=1e-9)
    assert np.isfinite(model.losses).all()


def test_cost_is_logged_with_every_report() -> None:
    recorder = Recorder()
    fit(mlp(batches=4), WeightRankMonitor(every_n_steps=2), logger=recorder)
    cost = recorder.readings("monitor")
    assert set(cost) == {(step, "monitor/seconds/weight_rank") for step in (0, 2, 4)} | {
        (step, "monitor/share_of_training/weight_rank") for step in (2, 4)
    }
    assert all(value > 0 for value in cost.values())
    assert all(value < 1 for (_, tag), value in cost.items() if "share" in tag)


def test_nothing_on_the_progress_bar() -> None:
    class Bar(pl.Callback):
        shown: set[str] = set()  # ruff: ignore[mutable-class-default]

        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            self.shown |= trainer.progress_bar_metrics.keys()

    bar = Bar()
    fit(mlp(), WeightRankMonitor(every_n_steps=1), bar, logger=Recorder())
    assert {name for name in bar.shown if name != "v_num"} == {"loss"}


MONITORED = "weight_rank/stable_rank/network.0.weight"


def last_of_epochs(recorder: Recorder, batches: int) -> list[float]:
    """The reading that stands at the end of each epoch: that before its last batch."""
    readings = {step: value for (step, tag), value in recorder.readings("weight_rank").items() if tag == MONITORED}
    return [value for step, value in readings.items() if step % batches == batches - 1]


def test_early_stopping_stops_on_a_reading() -> None:
    torch.manual_seed(0)
    first = Recorder()
    fit(mlp(), WeightRankMonitor(every_n_steps=1), logger=first, max_epochs=5)
    *before, last = last_of_epochs(first, batches=3)[:3]
    threshold = (min(before) + last) / 2
    assert last < threshold < min(before)
    torch.manual_seed(0)
    stopping = EarlyStopping(MONITORED, mode="min", patience=10, stopping_threshold=threshold)
    trainer = fit(mlp(), WeightRankMonitor(every_n_steps=1), stopping, max_epochs=5)
    assert trainer.global_step == 9


def test_model_checkpoint_selects_by_a_reading(tmp_path: Path) -> None:
    recorder = Recorder()
    checkpoint = ModelCheckpoint(tmp_path, monitor=MONITORED, mode="max", filename="{epoch}", save_top_k=1)
    fit(mlp(), WeightRankMonitor(every_n_steps=1), checkpoint, logger=recorder, max_epochs=3, enable_checkpointing=True)
    values = last_of_epochs(recorder, batches=3)
    best = int(np.argmax(values))
    assert best < 2  # not simply the last
    assert Path(checkpoint.best_model_path).stem == f"epoch={best}"
    assert checkpoint.best_model_score.item() == pytest.approx(values[best], rel=1e-6)
