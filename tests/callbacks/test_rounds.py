"""Layers in turn: who comes when, what a window holds, and that its readings are those of a window of all layers."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rank_callbacks import FeatureRankMonitor, RankCollapseMonitor
from rank_callbacks.callbacks.rounds import Rounds, allowance
from rank_callbacks.tags import Tag
from tests.models import CLASSES
from tests.training import Recorder, fit

EVERY, STEPS = 2, 13
LAST = "max_over_layers"


def windows(rounds: Rounds, sizes: dict[str, int], count: int) -> list[set[str]]:
    """Which layers the first windows look at, and nothing else happens."""
    chosen = []
    for step in range(count):
        rounds.begin()
        chosen.append({name for name, size in sizes.items() if rounds.admits(name, size)})
        rounds.end(step)
    return chosen


def test_each_layer_is_looked_at_once_a_round() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        numbers = torch.randint(1, 100, (9,), generator=generator).tolist()
        sizes = {f"layer{place}": size for place, size in enumerate(numbers)}
        chosen, rest = windows(Rounds(120), sizes, 20), list(sizes)
        for now in chosen:
            assert sum(sizes[name] for name in now) <= 120
            assert now <= set(rest)
            rest = [name for name in rest if name not in now] or list(sizes)


def test_the_largest_come_first_once_they_are_known() -> None:
    sizes = {"small": 10, "huge": 500, "large": 80, "middle": 30}
    assert windows(Rounds(100), sizes, 6) == [
        {"small", "large"},
        {"huge"},
        {"middle"},
        {"huge"},
        {"large", "small"},
        {"middle"},
    ]
    told = Rounds(100)
    told.begin(sizes)
    assert [told.admits(name, size) for name, size in sizes.items()] == [False, True, False, False]


def test_with_room_every_window_is_of_all() -> None:
    rounds = Rounds()
    assert windows(rounds, {"a": 10**12, "b": 10**12}, 2) == [{"a", "b"}] * 2
    readings = {"rank": {"a": torch.tensor(1.0), "b": torch.tensor(3.0)}}
    assert rounds.tagged("group", readings, per_layer=False, step=7)[Tag("group", "rank", "mean_over_layers")] == 2
    assert Tag("monitor", "spectrum_age", "group") not in rounds.tagged("group", readings, True, 7)


def test_what_was_not_reported_is_looked_at_again() -> None:
    rounds = Rounds(10)
    for _ in range(2):
        rounds.begin()
        assert [rounds.admits("a", 10), rounds.admits("b", 10)] == [True, False]


def test_summaries_are_of_the_latest_of_each_layer() -> None:
    rounds, found = Rounds(10), []
    for step, value in enumerate([5.0, 7.0, 1.0, 2.0]):
        rounds.begin({"a": 10, "b": 10})
        (name,) = (name for name in "ab" if rounds.admits(name, 10))
        rounds.end(step)
        found.append(rounds.tagged("group", {"rank": {name: torch.tensor(value)}}, per_layer=True, step=step))
    age, of = Tag("monitor", "spectrum_age", "group"), "group/rank/"
    of_layers = [{str(tag).removeprefix(of): value for tag, value in one.items() if tag != age} for one in found]
    assert of_layers == [
        {"a": 5.0},  # of b nothing is known
        {"b": 7.0, "mean_over_layers": 6.0, "min_over_layers": 5.0, "max_over_layers": 7.0},
        {"a": 1.0, "mean_over_layers": 4.0, "min_over_layers": 1.0, "max_over_layers": 7.0},
        {"b": 2.0, "mean_over_layers": 1.5, "min_over_layers": 1.0, "max_over_layers": 2.0},
    ]
    assert [one[age] for one in found] == [0, 1, 1, 1]


@pytest.mark.parametrize(("numbers", "least"), [(100, 4 * 2**20), (10**8, 8e6)])
def test_allowance(numbers: int, least: float) -> None:
    model = nn.Module()
    model.weight = nn.Parameter(torch.empty(numbers, device="meta"))
    assert allowance(model) == least


class Chosen(pl.Callback):
    """What monitors that choose for themselves are taken to have chosen."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        for one in trainer.callbacks:
            if hasattr(one, "cadence"):
                one.cadence.load_state_dict({"every_n_steps": EVERY, "last_report": 0})


class Wide(pl.LightningModule):
    """Of each of the first two layers a window holds more than 4 MiB."""

    def __init__(self, network: nn.Module, optimizer: type[torch.optim.Optimizer] = torch.optim.SGD) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network, self.optimizer = network, optimizer
        self.network.apply(lambda module: module.reset_parameters() if isinstance(module, nn.Linear) else None)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters(), lr=1e-3, weight_decay=1e-2)

    def train_dataloader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randn(6 * STEPS, 8, generator=generator)
        return DataLoader(TensorDataset(inputs, torch.arange(len(inputs)) % CLASSES), batch_size=6)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self(batch[0])

    val_dataloader = train_dataloader


def wide(width: int, **options: Any) -> Wide:
    layers = [nn.Linear(8, width), nn.Tanh(), nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, CLASSES)]
    return Wide(nn.Sequential(*layers), **options)


def readings(recorder: Recorder, group: str) -> dict[tuple[int, str], float]:
    """Of layers, without how old they are."""
    return {key: value for key, value in recorder.readings(group).items() if "_over_layers" not in key[1]}


def read_in_turn(recorder: Recorder, group: str, measure: str) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for step, tag in readings(recorder, group):
        if tag.startswith(f"{group}/{measure}/"):
            found.setdefault(step, set()).add(tag.rpartition("network.")[2])
    return found


class Held(pl.Callback):
    """The most bytes that a monitor's tensors have at the end of a batch."""

    def __init__(self, held: Any) -> None:
        self.held, self.most = held, 0

    def on_train_batch_end(self, *args: Any) -> None:
        storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in self.held()}
        self.most = max(self.most, sum(storages.values()))


def collapse_in(every: Any, **options: Any) -> tuple[Recorder, int]:
    recorder, monitor = Recorder(), RankCollapseMonitor(CLASSES, every_n_steps=every, window=EVERY)

    def tensors() -> list[Tensor]:
        window = monitor._window
        if window is None:
            return []
        moments = [*window._inputs.values(), *window._deltas.values()]
        return [*window._gradients.values(), *(part for one in moments for part in one if part is not None)]

    watch = Held(tensors)
    fit(wide(80_000, **options), watch, monitor, Chosen(), logger=recorder)
    return recorder, watch.most


def test_collapse_of_layers_in_turn_is_that_of_all() -> None:
    (whole, most), (turns, least) = collapse_in(EVERY), collapse_in("auto")
    alike, expected = readings(turns, "rank_collapse"), readings(whole, "rank_collapse")
    assert alike == pytest.approx({key: expected[key] for key in alike}, rel=1e-9, abs=1e-12)
    of_steps = list(read_in_turn(turns, "rank_collapse", "certificate_sharp").values())
    assert of_steps == [{"0.weight"}, {"2.weight"}, {"4.weight"}] * 2
    assert least < 5 * 2**20 < 8 * 2**20 < most


def test_collapse_tells_how_old_its_readings_are() -> None:
    recorder, _ = collapse_in("auto")
    age = {step: value for (step, tag), value in recorder.readings("monitor").items() if "spectrum_age" in tag}
    assert list(age.values()) == [2, 4, 4, 4, 4, 4]
    sharp = recorder.readings("rank_collapse")
    means = [step for step, tag in sharp if tag == f"rank_collapse/certificate_sharp/{LAST}"]
    assert means == list(age)[2:]


def test_gradients_are_added_up_for_certificates_alone() -> None:
    """Of AdamW there are none."""
    (recorder, most), (_, with_them) = collapse_in(EVERY, optimizer=torch.optim.AdamW), collapse_in(EVERY)
    measures = {tag.split("/")[1] for _, tag in recorder.readings("rank_collapse")}
    assert {"tcv_input", "alignment_bound", "distance_to_rank_k"} <= measures
    assert not any("certificate" in measure for measure in measures)
    gradients = 4 * (2 * 8 * 80_000 + 8 * CLASSES)
    assert with_them - most == pytest.approx(gradients, rel=1e-3)


def features_in(every: Any, data: Any = "train") -> tuple[Recorder, int]:
    window = EVERY if data == "train" else None
    recorder, monitor = Recorder(), FeatureRankMonitor(data=data, every_n_steps=every, window=window)

    def tensors() -> list[Tensor]:
        return [] if monitor._hooks is None else [part for one in monitor._hooks.samples.values() for part in one._rows]

    watch = Held(tensors)
    fit(wide(512), watch, monitor, Chosen(), logger=recorder)
    return recorder, watch.most


def test_features_of_layers_in_turn_are_those_of_all() -> None:
    """By width 512, 512, 8, 8 and K: 4 MiB are the rows that are kept of the first alone."""
    (whole, most), (turns, least) = features_in(EVERY), features_in("auto")
    alike, expected = readings(turns, "feature_rank"), readings(whole, "feature_rank")
    assert alike == pytest.approx({key: expected[key] for key in alike}, rel=1e-9, abs=1e-12)
    assert {key[1] for key in alike if "/depth/" in key[1]} == {f"feature_rank/depth/network.{place}" for place in range(5)}
    of_steps = list(read_in_turn(turns, "feature_rank", "effective_rank").values())
    assert of_steps == [{"0"}, {"1"}, {"2", "3", "4"}] * 2
    assert least < 0.6 * most


def test_validation_is_of_all_layers() -> None:
    """Its activations are gone before the next layer's come, so that there is room."""
    recorder, _ = features_in("auto", data="val")
    assert set(map(frozenset, read_in_turn(recorder, "feature_rank", "effective_rank").values())) == {frozenset("01234")}
