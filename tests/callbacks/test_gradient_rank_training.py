"""The monitor in every way that Lightning trains: precision, scaling, several optimizers, by hand, not at all."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rank_callbacks import GradientRankMonitor
from tests.gradients import BATCH, BOUNDS, LAYERS, Gradients, Wide, readings, spectrum, three_layers, wide
from tests.models import CLASSES, Classifier, Training
from tests.training import Recorder, fit

NORM = "frobenius_norm"


def watched(model: Classifier, **options: Any) -> tuple[Recorder, Gradients]:
    """A fit with the norm and the rank of every gradient read at every step."""
    recorder, gradients = Recorder(), Gradients()
    arguments = {name: options.pop(name) for name in ("layers", "moments", "update") if name in options}
    monitor = GradientRankMonitor([NORM, "numerical_rank"], every_n_steps=1, **arguments)
    fit(model, gradients, monitor, logger=recorder, **options)
    return recorder, gradients


def norms(gradients: Gradients) -> dict[tuple[int, str], float]:
    return {(step, name): np.linalg.norm(m) for step, of_layers in gradients.at.items() for name, m in of_layers.items()}


def scaled_by(**options: Any) -> dict[str, Any]:
    """float16 with a scaler of losses, on the CPU."""
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", **options))]}


def with_optimizer(optimizer: Callable[..., torch.optim.Optimizer], **options: Any) -> type[Wide]:
    class Chosen(Wide):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer(self.parameters(), **options)

    return Chosen


def test_scaled_loss_is_read_unscaled() -> None:
    recorder, gradients = watched(wide(), **scaled_by(init_scale=2.0**16))
    assert readings(recorder, NORM) == pytest.approx(norms(gradients), rel=1e-6)
    torch.manual_seed(0)
    plain, _ = watched(wide())
    assert readings(recorder, NORM)[0, LAYERS[0]] == pytest.approx(readings(plain, NORM)[0, LAYERS[0]], rel=1e-2)
    assert {readings(recorder, "numerical_rank")[step, layer] for step in range(3) for layer in LAYERS[:2]} == {BATCH}


def test_optimizer_that_unscales_by_itself_is_read_unscaled() -> None:
    """At its hook the gradients are still scaled: 65,536 times those of an optimizer that leaves it to Lightning."""
    fused, scaled = watched(wide(kind=with_optimizer(torch.optim.Adam, fused=True)), **scaled_by(init_scale=2.0**16))
    torch.manual_seed(0)
    plain, _ = watched(wide(kind=with_optimizer(torch.optim.Adam, fused=False)), **scaled_by(init_scale=2.0**16))
    first = {key: value for key, value in readings(plain, NORM).items() if key[0] == 0}
    assert {key: value for key, value in readings(fused, NORM).items() if key[0] == 0} == pytest.approx(first, rel=1e-6)
    assert norms(scaled)[0, LAYERS[0]] == pytest.approx(2**16 * first[0, LAYERS[0]], rel=1e-6)
    assert readings(fused, "numerical_rank") == readings(plain, "numerical_rank")


@pytest.mark.filterwarnings("ignore:network.*reads NaN")
@pytest.mark.parametrize("fused", [False, True])
def test_overflow_reads_nan_and_training_goes_on(fused: bool) -> None:
    model = wide(kind=with_optimizer(torch.optim.Adam, fused=fused))
    recorder, _ = watched(model, update=True, moments=True, **scaled_by(init_scale=2.0**60, backoff_factor=2.0**-50))
    ranks = readings(recorder, "numerical_rank")
    assert {key for key, rank in ranks.items() if np.isnan(rank)} == {(0, layer) for layer in LAYERS}
    assert set(readings(recorder, NORM, "update_rank").values()) > {0.0}
    assert np.isfinite(model.losses).all()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


class Skipping(Wide):
    """Leaves out the first batch."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        return super().training_step(batch, batch_idx) if batch_idx else None


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_batch_that_is_left_out_has_no_readings(told: pytest.LogCaptureFixture) -> None:
    """And the bounds are told at the first that has."""
    recorder, gradients = watched(wide(kind=Skipping), update=True, moments=True)
    assert recorder.steps("gradient_rank") == recorder.steps("update_rank") == recorder.steps("moment_rank") == [1, 2]
    assert readings(recorder, NORM) == pytest.approx(norms(gradients), rel=1e-6)
    assert told.text.count("Bounds of the gradients' ranks at step 1") == 1


def test_lbfgs_is_measured_once_a_step_at_its_first_evaluation() -> None:
    model = wide(kind=with_optimizer(torch.optim.LBFGS, lr=0.1, max_iter=4))
    recorder, gradients = watched(model, update=True)
    assert len(model.losses) > len(recorder.steps("gradient_rank")) == 3
    assert readings(recorder, NORM) == pytest.approx(norms(gradients), rel=1e-6)
    bounds = readings(recorder, "bound")
    assert {name: bounds[0, name] for name in LAYERS} == BOUNDS
    assert min(readings(recorder, NORM, "update_rank").values()) > 0


class ByHand(Wide):
    automatic_optimization = False
    clip: float | None = None

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        if self.clip:
            self.clip_gradients(optimizer, self.clip, "norm")
        optimizer.step()


def test_optimization_by_hand() -> None:
    recorder, gradients = watched(wide(kind=ByHand))
    assert recorder.steps("gradient_rank") == [0, 1, 2]
    assert readings(recorder, NORM) == pytest.approx(norms(gradients), rel=1e-6)
    assert {key: bound for key, bound in readings(recorder, "bound").items() if key[0] == 1} == {
        (1, name): bound for name, bound in BOUNDS.items()
    }


def test_clipping_is_seen_only_if_done_by_hand() -> None:
    class Clipped(ByHand):
        clip = 1e-3

    by_hand, _ = watched(wide(kind=Clipped))
    torch.manual_seed(0)
    by_lightning, gradients = watched(wide(), gradient_clip_val=1e-3)
    assert max(readings(by_hand, NORM).values()) < 1e-3
    assert min(readings(by_lightning, NORM).values()) > 1e-3
    assert readings(by_lightning, NORM) == pytest.approx(norms(gradients), rel=1e-6)


class Alternating(Wide):
    """Two optimizers, each with a loss of its own and half of the layers; one also fills the gradients of the other."""

    automatic_optimization = False
    toggle = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        for optimizer in self.optimizers():
            if self.toggle:
                self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(Training.training_step(self, batch, batch_idx))
            optimizer.step()
            if self.toggle:
                self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(layers.parameters(), lr=0.01) for layers in (self.network[:2], self.network[2:])]


class Toggling(Alternating):
    toggle = True


@pytest.mark.parametrize("kind", [Alternating, Toggling])
def test_two_optimizers_are_measured_each_at_its_own_step_and_reported_together(kind: type[Wide]) -> None:
    """The second layer's gradient is that of the second loss, after the first optimizer has stepped."""
    recorder, gradients = watched(wide(kind=kind), update=True, moments=True)
    assert recorder.steps("gradient_rank") == [0, 1, 2]
    assert {name for _, name in readings(recorder, NORM)} == set(LAYERS)
    assert readings(recorder, NORM) == pytest.approx(norms(gradients), rel=1e-6)
    assert readings(recorder, NORM, "update_rank").keys() == readings(recorder, NORM).keys()
    assert len(readings(recorder, NORM, "moment_rank")) == 2 * len(readings(recorder, NORM))
    assert max(readings(recorder, "utilization").values()) <= 1


@pytest.mark.parametrize("layers", ["network.0", ["network.0", "network.4"]], ids=str)
def test_layers_of_one_optimizer_are_not_missed_while_the_other_steps(layers: Any) -> None:
    """``toggle_optimizer`` freezes the layers of the other."""
    recorder, gradients = watched(wide(kind=Toggling), layers=layers)
    chosen = {key: norm for key, norm in norms(gradients).items() if key[1] != LAYERS[1]}
    expected = chosen if isinstance(layers, list) else {key: norm for key, norm in chosen.items() if key[1] == LAYERS[0]}
    assert readings(recorder, NORM) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("steps", [(0, 1, 2), (1,)], ids=["each batch", "second batch"])
def test_toggled_optimizer_without_a_matrix_has_no_reading(steps: tuple[int, ...]) -> None:
    """As that of a temperature in soft actor-critic, while every matrix is frozen."""

    class Tempered(Wide):
        automatic_optimization = False

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            of_biases, of_matrices = self.optimizers()
            for optimizer in (of_biases, of_matrices) if batch_idx in steps else (of_biases,):
                self.toggle_optimizer(optimizer)
                optimizer.zero_grad()
                self.manual_backward(Training.training_step(self, batch, batch_idx))
                optimizer.step()
                self.untoggle_optimizer(optimizer)

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:
            return [torch.optim.Adam([p for p in self.parameters() if p.dim() == dim], lr=0.01) for dim in (1, 2)]

    recorder, gradients = watched(wide(kind=Tempered), update=True, moments=True)
    assert readings(recorder, NORM) == pytest.approx(norms(gradients), rel=1e-6)
    assert {step for step, _ in readings(recorder, NORM)} == set(steps)


def test_optimizer_that_does_not_step_is_not_measured() -> None:
    class Rarely(Alternating):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            first, second = self.optimizers()
            for optimizer in (first, second) if batch_idx == 1 else (first,):
                optimizer.zero_grad()
                self.manual_backward(Training.training_step(self, batch, batch_idx))
                optimizer.step()

    recorder, _ = watched(wide(kind=Rarely))
    assert {step for step, name in readings(recorder, NORM) if name == LAYERS[0]} == {0, 1, 2}
    assert {step for step, name in readings(recorder, NORM) if name == LAYERS[1]} == {1}


def test_accumulation_by_hand_counts_the_whole_window() -> None:
    class Window(ByHand):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            optimizer = self.optimizers()
            self.manual_backward(Training.training_step(self, batch, batch_idx))
            if batch_idx % 2:
                optimizer.step()
                optimizer.zero_grad()

    recorder, gradients = watched(wide(batches=4, kind=Window))
    assert recorder.steps("gradient_rank") == [1, 3]
    assert readings(recorder, "bound")[1, LAYERS[0]] == 2 * BATCH
    assert readings(recorder, NORM) == pytest.approx(norms(gradients), rel=1e-6)


def test_layer_that_no_batch_goes_through_has_no_reading() -> None:
    model = wide()
    model.spare = nn.Linear(20, 20)
    recorder, _ = watched(model, update=True, moments=True)
    assert not any("spare" in tag for _, tag, _ in recorder.rows)


def test_frozen_layer_has_no_reading() -> None:
    model = wide()
    model.network[0].requires_grad_(False)
    recorder, _ = watched(model, update=True)
    assert {name for _, name in readings(recorder, NORM)} == set(LAYERS[1:])


def test_layer_that_is_thawed_later_is_read_from_then_on() -> None:
    class Thawing(Wide):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.network[0].requires_grad_(batch_idx > 0)

    recorder, _ = watched(wide(kind=Thawing))
    assert {step for step, name in readings(recorder, NORM) if name == LAYERS[0]} == {1, 2}


class Bag(nn.Module):
    """The mean of word vectors, whose gradients may be sparse."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 30, padding_idx=0, sparse=sparse), nn.Linear(30, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens).mean(1).tanh())


@pytest.mark.parametrize("sparse", [False, True])
def test_embedding(sparse: bool) -> None:
    """Of 10 x 2 tokens of a batch, some twice and some padding."""
    tokens = torch.randint(20, (30, 2))
    recorder, gradients = watched(with_optimizer(torch.optim.SGD, lr=0.1)(Bag(sparse), tokens))
    name = "network.embed.weight"
    for step, batch in enumerate(tokens.split(10)):
        distinct = len(set(batch.flatten().tolist()) - {0})
        assert readings(recorder, "bound")[step, name] == distinct
        assert readings(recorder, NORM)[step, name] == pytest.approx(norms(gradients)[step, name], rel=1e-6)
        rank = readings(recorder, "numerical_rank")[step, name]
        assert rank == (spectrum(gradients.at[step][name]) > 1e-5 * spectrum(gradients.at[step][name])[0]).sum() <= distinct


def test_layer_used_twice_adds_up_its_uses() -> None:
    shared = nn.Linear(40, 40)
    network = nn.Sequential(shared, nn.Tanh(), shared, nn.Tanh(), nn.Linear(40, CLASSES))
    recorder, gradients = watched(Wide(network, torch.randn(30, 40)))
    name = "network.0.weight"
    assert {bound for (_, layer), bound in readings(recorder, "bound").items() if layer == name} == {2 * BATCH}
    assert readings(recorder, NORM) == pytest.approx(norms(gradients), rel=1e-6)
    assert readings(recorder, "numerical_rank")[0, name] > BATCH


class Checkpointed(nn.Module):
    """Computes its hidden layers again in the backward pass."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.layers, self.use_reentrant = three_layers(), use_reentrant

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = checkpoint(self.layers[:4], inputs.requires_grad_(), use_reentrant=self.use_reentrant)
        return self.layers[4](hidden)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_layers_are_read_as_others(use_reentrant: bool) -> None:
    recorder, gradients = watched(Wide(Checkpointed(use_reentrant), torch.randn(30, 40)))
    assert readings(recorder, NORM) == pytest.approx(norms(gradients), rel=1e-6)
    expected = {name.replace("network", "network.layers"): bound for name, bound in BOUNDS.items()}
    assert {name: bound for (step, name), bound in readings(recorder, "bound").items() if step == 1} == expected


def test_tied_head_and_embedding_are_one_matrix() -> None:
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.body = nn.Embedding(CLASSES, 30), nn.Linear(30, 30)
            self.head = nn.Linear(30, CLASSES, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.body(self.embed(tokens)).tanh().mean(1))

    recorder, gradients = watched(Wide(Language(), torch.randint(CLASSES, (30, 4))))
    assert {name for _, name in readings(recorder, NORM)} == {"network.embed.weight", "network.body.weight"}
    assert readings(recorder, NORM) == pytest.approx(norms(gradients), rel=1e-6)
    assert readings(recorder, "bound")[0, "network.embed.weight"] == CLASSES


def test_compiled_names_are_plain() -> None:
    model = wide()
    model.network = torch.compile(model.network, backend="eager")
    recorder, _ = watched(model)
    assert {name for _, name in readings(recorder, NORM)} == set(LAYERS)
