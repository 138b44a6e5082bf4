from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from rank_callbacks import GradientRankMonitor, log_spaced
from rank_callbacks.callbacks import gradient_spectra, monitor
from rank_callbacks.callbacks.lightning import step_axis
from tests.gradients import BATCH, BOUNDS, LAYERS, Gradients, Wide, exact_rank, readings, spectrum, three_layers, wide
from tests.models import CLASSES, MODELS, Classifier, convnet, mlp
from tests.training import Recorder, Weights, fit


def naive_effective_rank(s: NDArray[np.float64]) -> float:
    p = s[s > 0] / s.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


NAIVE = {
    "effective_rank": naive_effective_rank,
    "stable_rank": lambda s: (s**2).sum() / s[0] ** 2,
    "energy_at_rank_8": lambda s: (s[:8] ** 2).sum() / (s**2).sum(),
    "frobenius_norm": lambda s: np.sqrt((s**2).sum()),
}
Matrices = dict[int, dict[str, NDArray[np.float64]]]
SUMMARIES = ["mean_over_layers", "min_over_layers", "max_over_layers"]


def naive_readings(measure: str, matrices: Matrices) -> dict[tuple[int, str], float]:
    values = {(step, name): spectrum(matrix) for step, of_layers in matrices.items() for name, matrix in of_layers.items()}
    return {key: NAIVE[measure](s) for key, s in values.items()}


def check_values(recorder: Recorder, matrices: Matrices, group: str = "gradient_rank") -> None:
    for measure in NAIVE:
        assert readings(recorder, measure, group) == pytest.approx(naive_readings(measure, matrices), rel=1e-4, abs=1e-12)


@pytest.mark.parametrize(
    ("every_n_steps", "options", "steps"),
    [
        pytest.param(1, {}, [0, 1, 2, 3, 4], id="every step"),
        pytest.param(2, {}, [0, 2, 4], id="every second"),
        pytest.param(100, {}, [0], id="the first"),
        pytest.param(3, {"max_epochs": 2}, [0, 3, 6, 9], id="two epochs"),
        pytest.param(3, {"max_steps": 4, "max_epochs": -1}, [0, 3], id="max_steps"),
        pytest.param(1, {"accumulate_grad_batches": 2}, [0, 1, 2], id="accumulation, uneven"),
        pytest.param(2, {"accumulate_grad_batches": 2}, [0, 2], id="accumulation on schedule"),
        pytest.param(2, {"accumulate_grad_batches": 2, "val_check_interval": 1}, [0, 2], id="validation in a window"),
        pytest.param(2, {"precision": "bf16-mixed"}, [0, 2, 4], id="bf16-mixed"),
        pytest.param(2, {"precision": "bf16-true"}, [0, 2, 4], id="bf16-true"),
        pytest.param(2, {"precision": "64-true"}, [0, 2, 4], id="64-true"),
        pytest.param(2, {"gradient_clip_val": 1e-3}, [0, 2, 4], id="before clipping"),
        pytest.param(2, {"num_sanity_val_steps": 2}, [0, 2, 4], id="sanity check"),
        pytest.param(log_spaced(per_decade=3), {"max_epochs": 2}, [0, 1, 2, 5], id="log-spaced"),
        pytest.param(lambda step: step in {1, 3}, {}, [1, 3], id="function"),
    ],
)
def test_exact_steps_and_values_of_the_gradient_that_is_used(
    every_n_steps: Any, options: dict[str, Any], steps: list[int]
) -> None:
    recorder, gradients = Recorder(), Gradients()
    fit(wide(batches=5), gradients, GradientRankMonitor([*NAIVE], every_n_steps=every_n_steps), logger=recorder, **options)
    assert recorder.steps("gradient_rank") == steps
    check_values(recorder, {step: gradients.at[step] for step in steps})


def test_exact_tags() -> None:
    recorder = Recorder()
    fit(wide(), GradientRankMonitor(every_n_steps=1), logger=recorder)
    measures = ["numerical_rank", "effective_rank", "stable_rank", "energy_at_rank_8", "bound", "utilization"]
    tags = {f"gradient_rank/{measure}/{layer}" for measure in measures for layer in LAYERS + SUMMARIES}
    tags |= {f"gradient_rank/{factor}/{layer}" for factor in ("input_rank", "delta_rank") for layer in LAYERS + SUMMARIES}
    assert {tag for step, tag in recorder.readings("gradient_rank") if step == 0} == tags
    # Of matrices of more than 8 rows and columns.
    tags |= {f"gradient_rank/subspace_overlap_8/{layer}" for layer in LAYERS[:2] + SUMMARIES}
    assert {tag for step, tag in recorder.readings("gradient_rank") if step == 1} == tags
    assert {tag for _, tag in recorder.readings("monitor")} == {
        "monitor/seconds/gradient_rank",
        "monitor/share_of_training/gradient_rank",
    }


def test_rank_bound_and_utilization() -> None:
    recorder, gradients = Recorder(), Gradients()
    fit(wide(batches=4), gradients, GradientRankMonitor(every_n_steps=1), logger=recorder)
    ranks = {(step, name): exact_rank(m) for step, of_layers in gradients.at.items() for name, m in of_layers.items()}
    bounds = {(step, name): bound for step in range(4) for name, bound in BOUNDS.items()}
    assert readings(recorder, "numerical_rank") == ranks
    assert readings(recorder, "bound") == bounds
    assert readings(recorder, "utilization") == pytest.approx({key: ranks[key] / bounds[key] for key in bounds})
    assert readings(recorder, "input_rank") == {(s, n): {LAYERS[2]: CLASSES}.get(n, BATCH) for s, n in bounds}
    assert readings(recorder, "delta_rank") == {(s, n): {LAYERS[2]: CLASSES - 1}.get(n, BATCH) for s, n in bounds}


def test_summaries_are_over_the_layers_that_have_a_reading() -> None:
    recorder = Recorder()
    fit(wide(batches=1), GradientRankMonitor(every_n_steps=1), logger=recorder)
    got = [recorder.readings("gradient_rank")[0, f"gradient_rank/bound/{summary}"] for summary in SUMMARIES]
    assert got == pytest.approx([np.mean(list(BOUNDS.values())), CLASSES - 1, BATCH])


def test_numerical_rank_with_a_tolerance_of_its_own() -> None:
    recorder, gradients = Recorder(), Gradients()
    fit(wide(), gradients, GradientRankMonitor(["numerical_rank_0.3"], every_n_steps=1), logger=recorder)
    matrices = {(step, name): spectrum(m) for step, of_layers in gradients.at.items() for name, m in of_layers.items()}
    assert readings(recorder, "numerical_rank_0.3") == {key: (s > 0.3 * s[0]).sum() for key, s in matrices.items()}


def test_no_measures_leave_bounds_and_spectra() -> None:
    recorder = Recorder()
    fit(wide(batches=1), GradientRankMonitor([]), logger=recorder)
    measures = {tag.split("/")[1] for _, tag in recorder.readings("gradient_rank")}
    assert measures == {"bound", "utilization", "input_rank", "delta_rank"}


@pytest.mark.parametrize("accumulate", [1, 3])
def test_bound_counts_the_rows_of_the_whole_window(accumulate: int) -> None:
    """As the rank does: of three micro-batches of four it is twelve."""

    class Small(Wide):
        batch_size = 4

    recorder, model = Recorder(), wide(batches=3, kind=Small)
    fit(model, GradientRankMonitor(every_n_steps=1), logger=recorder, accumulate_grad_batches=accumulate)
    rows = 4 * accumulate
    for step in recorder.steps("gradient_rank")[:2]:
        assert readings(recorder, "bound")[step, LAYERS[0]] == rows
        assert readings(recorder, "numerical_rank")[step, LAYERS[0]] == rows


def patches() -> Classifier:
    """Two positions of a kernel, so that its gradient has a small bound."""
    network = nn.Sequential(nn.Conv2d(3, 40, 4, stride=4), nn.Tanh(), nn.Flatten(), nn.Linear(80, CLASSES))
    return Wide(network, torch.randn(30, 3, 4, 8))


@pytest.mark.parametrize("model", [*MODELS[:4], wide, patches], ids=lambda model: model.__name__)
@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_no_rank_exceeds_its_bound_in_real_training(model: Any, precision: str) -> None:
    recorder = Recorder()
    fit(model(), GradientRankMonitor(every_n_steps=1), logger=recorder, max_epochs=5, precision=precision)
    utilization = readings(recorder, "utilization")
    assert len(recorder.steps("gradient_rank")) >= 15
    assert utilization.keys() <= readings(recorder, "numerical_rank").keys()
    assert max(utilization.values(), default=1) <= 1
    assert min(readings(recorder, "bound").values(), default=1) >= 1


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_rounding_does_not_add_to_the_rank_of_a_bottleneck(precision: str) -> None:
    """Without the noise of bf16 as a floor the rank would be that of the batch, or of the shape."""
    network = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 4), nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, CLASSES))
    recorder = Recorder()
    fit(Wide(network, torch.randn(30, 64)), GradientRankMonitor(every_n_steps=1), logger=recorder, precision=precision)
    for measure in ("numerical_rank", "bound"):
        found = readings(recorder, measure)
        assert {found[step, f"network.{place}.weight"] for step in range(3) for place in (0, 1, 2)} == {4}


def test_no_bound_is_read_where_none_is_known() -> None:
    network = nn.Sequential(nn.ConvTranspose1d(2, 3, 2), nn.Flatten(), nn.Linear(15, CLASSES))
    recorder = Recorder()
    fit(Wide(network, torch.randn(10, 2, 4)), GradientRankMonitor(), logger=recorder)
    assert {layer for _, layer in readings(recorder, "numerical_rank")} == {"network.0.weight", "network.2.weight"}
    for measure in ("bound", "utilization", "input_rank", "delta_rank"):
        assert {layer for _, layer in readings(recorder, measure)} == {"network.2.weight"}


def test_bounds_are_told_once(told: pytest.LogCaptureFixture) -> None:
    fit(wide(), GradientRankMonitor(every_n_steps=1, layers=["network.0", "network.4"]), max_epochs=2)
    lines = "\n".join(told.messages).splitlines()
    start = lines.index("Bounds of the gradients' ranks at step 0:")
    assert lines[start + 1 : start + 4] == [
        "layer             shape    bound  bound by",
        "network.0.weight  48 x 40     10  batch of 10",
        "network.4.weight  3 x 36       2  3 classes under cross-entropy",
    ]
    assert "Bounds" not in "".join(lines[start + 4 :])


def test_bounds_name_the_layers_whose_weights_are_computed(told: pytest.LogCaptureFixture, reports: list[Any]) -> None:
    network = three_layers()
    parametrizations.spectral_norm(network[2])
    fit(Wide(network, torch.randn(10, 40)), GradientRankMonitor(every_n_steps=1))
    reason = "computed from other parameters, as by weight_norm, and so without a gradient of its own"
    assert f"network.2.weight  36 x 48      -  {reason}" in "\n".join(told.messages).splitlines()
    (table,) = reports[0].tables.values()
    assert table.rows[-1] == ("network.2.weight", "36 x 48", "-", reason)


def test_bounds_are_logged_as_a_table_once(reports: list[Any]) -> None:
    fit(wide(), GradientRankMonitor(every_n_steps=1, layers=["network.0", "network.4"]), max_epochs=2)
    (table,) = reports[0].tables.values()
    assert table.rows[1] == ("network.4.weight", "3 x 36", 2, "3 classes under cross-entropy")
    assert not any(report.tables for report in reports[1:])


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the monitor hands to the writers."""
    written: list[Any] = []
    monkeypatch.setattr(monitor, "write_report", lambda trainer, report: written.append(report))
    return written


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ways in which spectra are computed, in order; what is left over is a full spectrum."""
    taken: list[str] = []

    def watch(name: str) -> None:
        original = getattr(gradient_spectra, name)
        monkeypatch.setattr(gradient_spectra, name, lambda *args: taken.append(name) or original(*args))

    watch("outer_product_spectrum")
    watch("low_rank_singular_values")
    return taken


ROUTES = {
    "outer products": ({}, ["outer_product_spectrum"] * 2),
    "sketch": (
        {"_missed": lambda *_: torch.tensor(torch.inf)},
        ["outer_product_spectrum"] * 2 + ["low_rank_singular_values"] * 2,
    ),
    "full spectrum": ({"_SMALL": 0.0}, []),
}


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_gives_the_singular_values(
    route: str, reports: list[Any], taken: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    constants, expected = ROUTES[route]
    for name, value in constants.items():
        monkeypatch.setattr(gradient_spectra, name, value)
    gradients = Gradients()
    fit(wide(), gradients, GradientRankMonitor(layers=LAYERS[:2]))
    assert taken == expected
    for layer in LAYERS[:2]:
        truth = spectrum(gradients.at[0][layer])
        values = {str(tag): values for tag, (values, _) in reports[0].spectra.items()}[f"gradient_rank/spectrum/{layer}"]
        np.testing.assert_allclose(values, truth, rtol=0, atol=1e-6 * truth[0])


def test_last_digits_of_float64_are_left_to_the_full_spectrum(reports: list[Any], taken: list[str]) -> None:
    gradients = Gradients()
    fit(wide(), gradients, GradientRankMonitor(), precision="64-true")
    assert taken == []
    assert len(reports[0].spectra) == len(LAYERS)


class Penalised(Wide):
    """Something besides the layer adds to the gradient of its weight."""

    strength = 0.1

    def training_step(self, *args: Any) -> Tensor:
        return super().training_step(*args) + self.strength * self.network[0].weight[:, :15].square().sum()


@pytest.mark.parametrize("strength", [0.1, 1e-5])
def test_penalty_on_a_weight_is_seen_though_outer_products_know_nothing_of_it(strength: float) -> None:
    """Also where it hardly changes the norm of the gradient, as on the columns of inputs that are always zero."""
    recorder, gradients, model = Recorder(), Gradients(), wide(kind=Penalised)
    model.strength = strength
    model.data.tensors[0][:, :15] = 0
    fit(model, gradients, GradientRankMonitor([*NAIVE, "numerical_rank"]), logger=recorder)
    check_values(recorder, {0: gradients.at[0]})
    assert readings(recorder, "numerical_rank")[0, LAYERS[0]] == exact_rank(gradients.at[0][LAYERS[0]]) > BATCH
    assert readings(recorder, "utilization")[0, LAYERS[0]] > 1


class Standstill(Wide):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_subspaces_of_identical_gradients_overlap_entirely() -> None:
    recorder = Recorder()
    fit(wide(batches=1, kind=Standstill), GradientRankMonitor(every_n_steps=1), logger=recorder, max_epochs=3)
    overlaps = readings(recorder, "subspace_overlap_8")
    assert overlaps == pytest.approx({(step, layer): 1 for step in (1, 2) for layer in LAYERS[:2]}, abs=1e-6)


@pytest.mark.parametrize("route", ROUTES)
def test_subspace_overlap_is_that_of_singular_vectors(route: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ROUTES[route][0].items():
        monkeypatch.setattr(gradient_spectra, name, value)
    recorder, gradients = Recorder(), Gradients()
    fit(wide(batches=4), gradients, GradientRankMonitor(every_n_steps=2, subspace_rank=3), logger=recorder)
    bases = {step: {name: np.linalg.svd(m)[0][:, :3] for name, m in gradients.at[step].items()} for step in (0, 2)}
    expected = {(2, name): np.linalg.norm(bases[0][name].T @ bases[2][name]) ** 2 / 3 for name in LAYERS[:2]}
    assert readings(recorder, "subspace_overlap_3") == pytest.approx(expected, abs=1e-3)
    assert all(0 < value < 0.9 for value in expected.values())


def test_subspaces_that_the_gradient_does_not_determine_are_not_compared() -> None:
    """Of rank below 8, its eight leading vectors are anyone's."""

    class Small(Wide):
        batch_size = 5

    recorder = Recorder()
    fit(wide(kind=Small), GradientRankMonitor(every_n_steps=1), logger=recorder)
    assert readings(recorder, "numerical_rank")[1, LAYERS[0]] == 5
    assert not readings(recorder, "subspace_overlap_8")


def test_no_subspaces_if_not_asked_for() -> None:
    recorder = Recorder()
    fit(wide(), GradientRankMonitor(every_n_steps=1, subspace_rank=None), logger=recorder)
    assert not any("subspace" in tag for _, tag in recorder.readings("gradient_rank"))


class Momentum(Wide):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
@pytest.mark.parametrize("kind", [Wide, Momentum], ids=["Adam", "SGD"])
def test_update_is_what_the_weights_move_by(kind: type[Classifier], precision: str) -> None:
    recorder, weights = Recorder(), Weights()
    monitor = GradientRankMonitor([*NAIVE], every_n_steps=2, update=True)
    fit(wide(batches=5, kind=kind), monitor, weights, logger=recorder, precision=precision)
    updates = {s: {name: weights.at[s + 1][name] - weights.at[s][name] for name in LAYERS} for s in (0, 2, 4)}
    check_values(recorder, updates, "update_rank")


@pytest.mark.parametrize("lr", [1.0, 1e-3])
def test_update_by_plain_gradient_descent_has_the_rank_of_the_gradient(lr: float) -> None:
    """Which stands out of the rounding of the weights, before and after."""

    class Descent(Wide):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=lr)

    recorder = Recorder()
    fit(wide(kind=Descent), GradientRankMonitor(every_n_steps=1, update=True), logger=recorder)
    assert readings(recorder, "numerical_rank", "update_rank") == readings(recorder, "numerical_rank")


def test_update_of_a_convolution_as_a_map_on_images() -> None:
    recorder, weights = Recorder(), Weights()
    monitor = GradientRankMonitor(["frobenius_norm"], "network.0", every_n_steps=1, conv="circular_5x5", update=True)
    fit(convnet(), monitor, weights, logger=recorder)
    kernels = {step: matrices["network.0.weight"] for step, matrices in weights.at.items()}
    got = readings(recorder, "frobenius_norm", "update_rank")
    expected = {step: 5 * np.linalg.norm(kernels[step + 1] - kernels[step]) for step in range(3)}
    assert {step: value for (step, _), value in got.items()} == pytest.approx(expected, rel=1e-4)


class Moments(pl.Callback):
    """The matrices in the optimizer's state after each step, by step and name."""

    def __init__(self) -> None:
        self.at: dict[int, dict[str, NDArray[np.float64]]] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        state = trainer.optimizers[0].state
        self.at[step_axis(trainer)] = {
            f"{name}.{key}": moment.detach().double().flatten(1).numpy().copy()
            for name, parameter in pl_module.named_parameters()
            for key, moment in state[parameter].items()
            if parameter.dim() > 1 and moment is not None and moment.dim() > 1
        }


@pytest.mark.parametrize(
    ("kind", "keys"), [(Wide, {"exp_avg", "exp_avg_sq"}), (Momentum, {"momentum_buffer"})], ids=["Adam", "SGD"]
)
def test_moments_are_those_of_the_optimizer(kind: type[Classifier], keys: set[str]) -> None:
    recorder, moments = Recorder(), Moments()
    fit(wide(batches=5, kind=kind), moments, GradientRankMonitor([*NAIVE], every_n_steps=2, moments=True), logger=recorder)
    assert {name.rpartition(".")[2] for name in moments.at[0]} == keys
    check_values(recorder, {step: moments.at[step] for step in (0, 2, 4)}, "moment_rank")


@pytest.mark.parametrize("conv", ["filters", "slices", "circular_5x5"])
def test_convolutions_are_viewed_as_asked(conv: str) -> None:
    recorder = Recorder()
    fit(convnet(), GradientRankMonitor(every_n_steps=1, conv=conv, update=True, moments=True), logger=recorder)
    name = "network.0.weight" + ("" if conv == "filters" else f".{conv}")
    whole = {"filters": 4, "slices": 9 * 2, "circular_5x5": 25 * 2}[conv]
    assert readings(recorder, "bound")[0, name] == whole
    assert 0 < readings(recorder, "numerical_rank")[0, name] <= whole
    assert (0, name) in readings(recorder, "numerical_rank", "update_rank")
    assert (0, f"{name}.exp_avg") in readings(recorder, "numerical_rank", "moment_rank")


def test_layers_are_selected() -> None:
    recorder = Recorder()
    monitor = GradientRankMonitor(every_n_steps=1, layers="network.2", update=True, moments=True)
    fit(wide(), monitor, logger=recorder)
    groups = ("gradient_rank", "update_rank", "moment_rank")
    layers = {tag.split("/", 2)[2] for _, tag in recorder.readings(*groups)} - set(SUMMARIES)
    assert layers == {LAYERS[1], f"{LAYERS[1]}.exp_avg", f"{LAYERS[1]}.exp_avg_sq"}


def test_part_of_a_stack_is_measured_alone() -> None:
    """The keys of an attention layer, which have a rank less than the queries and values."""
    encoder = nn.TransformerEncoderLayer(40, 2, 40, dropout=0, batch_first=True)
    network, recorder = nn.Sequential(encoder, nn.Flatten(), nn.Linear(120, CLASSES)), Recorder()
    fit(Wide(network, torch.randn(10, 3, 40)), GradientRankMonitor(layers="*.k"), logger=recorder)
    name = "network.0.self_attn.in_proj_weight.k"
    assert readings(recorder, "bound") == readings(recorder, "numerical_rank") == {(0, name): 20}


@pytest.mark.parametrize("scalars", ["auto", "all"])
@pytest.mark.parametrize("count", [200, 201])
def test_beyond_two_hundred_layers_only_summaries_unless_asked(scalars: str, count: int) -> None:
    recorder = Recorder()
    network = nn.Sequential(*[nn.Linear(6, 6) for _ in range(count - 1)], nn.Linear(6, CLASSES))
    fit(Classifier(network, torch.randn(4, 6)), GradientRankMonitor(["stable_rank"], scalars=scalars), logger=recorder)
    layers = {tag.split("/")[2] for _, tag in recorder.readings("gradient_rank")} - set(SUMMARIES)
    assert len(layers) == (count if scalars == "all" or count == 200 else 0)


class Poison(pl.Callback):
    """Writes a NaN and an infinity into gradients from a step on."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        if step_axis(trainer) >= self.step:
            pl_module.network[0].weight.grad[0, 0] = torch.nan
            pl_module.network[2].weight.grad[0, 0] = torch.inf


class Cure(pl.Callback):
    """Keeps them from the weights."""

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        for parameter in pl_module.parameters():
            parameter.grad.nan_to_num_(0, 0, 0)


def test_nan_in_a_gradient_is_a_nan_reading_and_one_warning(recwarn: pytest.WarningsRecorder) -> None:
    recorder = Recorder()
    fit(wide(batches=4), Poison(step=1), GradientRankMonitor(every_n_steps=1), Cure(), logger=recorder)
    warned = [str(warning.message) for warning in recwarn if "reads NaN" in str(warning.message)]
    assert [message.split(":")[0] for message in warned] == [f"{layer} reads NaN at step 1" for layer in LAYERS[:2]]
    ranks = readings(recorder, "numerical_rank")
    assert {key for key, rank in ranks.items() if np.isnan(rank)} == {(s, n) for s in (1, 2, 3) for n in LAYERS[:2]}
    assert {ranks[step, LAYERS[2]] for step in range(4)} == {CLASSES - 1}
    assert not readings(recorder, "subspace_overlap_8")


def test_each_fit_warns_of_its_own_nan() -> None:
    monitor = GradientRankMonitor(layers="network.0")
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"network\.0\.weight reads NaN at step 0"):
            fit(wide(batches=1), Poison(step=0), monitor, Cure())


def test_subspaces_are_compared_with_those_of_the_last_report_alone() -> None:
    class Zero(pl.Callback):
        def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
            if step_axis(trainer) == 1:
                pl_module.network[0].weight.grad[:] = 0

    recorder = Recorder()
    fit(wide(batches=4), Zero(), GradientRankMonitor(every_n_steps=1), logger=recorder)
    assert [step for step, layer in readings(recorder, "subspace_overlap_8") if layer == LAYERS[0]] == [3]
    assert [step for step, layer in readings(recorder, "subspace_overlap_8") if layer == LAYERS[1]] == [1, 2, 3]


@pytest.mark.parametrize("options", [{"fast_dev_run": True}, {"logger": False}], ids=["fast_dev_run", "no logger"])
def test_readings_reach_callback_metrics_without_a_logger(options: dict[str, Any]) -> None:
    trainer = fit(wide(), GradientRankMonitor(), **options)
    got = {name: trainer.callback_metrics[f"gradient_rank/bound/{name}"].item() for name in BOUNDS}
    assert got == BOUNDS


def test_zero_gradient_has_rank_zero() -> None:
    """Behind a unit that is dead the bound is zero as well, and there is nothing to use of it."""
    model, recorder = mlp(), Recorder()
    model.network[0].bias.data.fill_(-100)
    fit(model, GradientRankMonitor(), logger=recorder)
    zero = {(0, "network.0.weight"): 0, (0, "network.2.weight"): 0}
    assert readings(recorder, "numerical_rank") == readings(recorder, "bound") == zero
    assert readings(recorder, "utilization") == {}


def test_each_fit_of_a_monitor_starts_anew(told: pytest.LogCaptureFixture) -> None:
    monitor = GradientRankMonitor(every_n_steps=2)
    for _ in range(2):
        recorder = Recorder()
        fit(wide(batches=4), monitor, logger=recorder)
        assert recorder.steps("gradient_rank") == [0, 2]
        assert {step for step, _ in readings(recorder, "subspace_overlap_8")} == {2}
        assert "Bounds of the gradients' ranks at step 0" in told.text
        told.clear()


def test_three_layers_are_what_the_tests_say() -> None:
    assert [tuple(p.shape) for p in three_layers().parameters() if p.dim() > 1] == [(48, 40), (36, 48), (3, 36)]
