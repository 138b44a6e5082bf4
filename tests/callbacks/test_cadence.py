import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rank_callbacks import (
    FeatureRankMonitor,
    GradientRankMonitor,
    NeuralCollapseMonitor,
    RankCollapseMonitor,
    WeightRankMonitor,
)
from rank_callbacks.callbacks import log_spaced
from rank_callbacks.callbacks.cadence import Cadence, affordable
from rank_callbacks.callbacks.lightning import is_last_validation
from tests.models import Classifier, mlp, two_layers
from tests.training import Recorder, fit

MONITORS = [
    WeightRankMonitor,
    GradientRankMonitor,
    FeatureRankMonitor,
    lambda **given: NeuralCollapseMonitor(3, **given),
    lambda **given: RankCollapseMonitor(3, **given),
]


@pytest.mark.parametrize(
    ("report", "step", "share", "expected"),
    [
        (1e-6, 1.0, 0.01, 50),
        (0.1, 0.1, 0.02, 50),
        (0.1, 0.1, 0.0199, 100),
        (0.1, 0.01, 0.01, 1000),
        (0.101, 0.01, 0.01, 2000),
        (0.201, 0.01, 0.01, 5000),
        (0.501, 0.01, 0.01, 10_000),
        (1.0, 1e-3, 1e-3, 1_000_000),
    ],
)
def test_affordable_by_hand(report: float, step: float, share: float, expected: int) -> None:
    assert affordable(report, step, share) == expected


@given(report=st.floats(1e-5, 100), step=st.floats(1e-4, 100), share=st.floats(1e-4, 1), shortest=st.integers(1, 10**4))
@settings(derandomize=True, deadline=None)
def test_affordable_is_within_the_share_and_the_next_shorter_is_not(
    report: float, step: float, share: float, shortest: int
) -> None:
    n = affordable(report, step, share, shortest)
    assert n >= shortest
    assert report / (n * step) <= share * (1 + 1e-9)
    shorter = n / 2.5 if str(n)[0] == "5" else n / 2
    assert shorter < shortest or report / (shorter * step) > share * (1 - 1e-9)


class Clock:
    """A clock that stands still until it is moved, in the place of the process's own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


def run(cadence: Cadence, clock: Clock, steps: range, step: float, report: Any) -> list[int]:
    """The steps of the reports of a training whose steps and reports take so long."""
    reports = []
    for place in steps:
        cadence.begin_step(place)
        if cadence(place):
            reports.append(place)
            with cadence.stopwatch:
                clock.now += report(len(reports)) if callable(report) else report
            cadence.reported(place)
        clock.now += step
    return reports


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def auto(share: float = 0.01, **options: Any) -> Cadence:
    cadence = Cadence("auto", share, **options)
    cadence.restart("Monitor", 1)
    return cadence


class TestAuto:
    @pytest.mark.parametrize(
        ("step", "report", "every"),
        [(0.02, 1e-4, 50), (0.02, 0.02, 200), (0.02, 0.4, 5000), (1.0, 0.4, 50), (1e-3, 0.1, 20_000)],
    )
    def test_reports_as_often_as_the_share_affords(self, clock: Clock, step: float, report: float, every: int) -> None:
        cadence = auto()
        reports = run(cadence, clock, range(40_001), step, report)
        assert reports == sorted({*range(0, 40_001, every), *([10] if every > 50 else [])})
        assert cadence.every_n_steps == every

    @given(step=st.floats(1e-3, 1), report=st.floats(1e-5, 1), share=st.floats(0.001, 0.5))
    @settings(derandomize=True, deadline=None, max_examples=40)
    def test_share_of_the_time_is_kept_to_from_the_second_report_on(self, step: float, report: float, share: float) -> None:
        with pytest.MonkeyPatch.context() as patch:
            clock = Clock(patch)
            cadence = auto(share)
            steps = run(cadence, clock, range(3000), step, report)
            spent, own = len([place for place in steps if place > 10]) * report, (steps[-1] or 3000) * step
            assert spent <= share * own * (1 + 1e-9)

    def test_windows_are_timed_before_the_first_report(self, clock: Clock) -> None:
        """Which then is within the share."""
        cadence = auto(at_start=False)
        cadence.restart("Monitor", 1, expected=0.4)
        assert run(cadence, clock, range(12_000), 0.02, 0.4) == [5000, 10_000]

    def test_first_report_that_is_slow_does_not_decide(self, clock: Clock) -> None:
        cadence = auto()
        reports = run(cadence, clock, range(2001), 0.02, lambda number: 0.1 if number == 1 else 0.01)
        assert reports == [0, 10, *range(100, 2001, 100)]

    def test_first_report_that_is_dear_is_not_repeated(self, clock: Clock) -> None:
        cadence = auto()
        reports = run(cadence, clock, range(8001), 0.02, lambda number: 0.6 if number == 1 else 0.01)
        assert reports[:3] == [0, 5000, 5100]

    def test_choice_stays_after_two_corrections(self, clock: Clock) -> None:
        cadence = auto()
        costs = {1: 0.001, 2: 0.002, 3: 0.001}
        reports = run(cadence, clock, range(1000), 0.02, lambda number: costs.get(number, 0.5))
        assert reports == list(range(0, 1000, 50))

    def test_monitors_share_the_time(self, clock: Clock) -> None:
        cadence = Cadence("auto", 0.01)
        cadence.restart("Monitor", 4)
        assert cadence.share == pytest.approx(0.0025)
        assert run(cadence, clock, range(2000), 0.02, 0.01)[:3] == [0, 10, 500]

    def test_slow_steps_now_and_then_do_not_count(self, clock: Clock) -> None:
        """Validation, or what another monitor takes."""
        cadence = auto()
        for place in range(100):
            cadence.begin_step(place)
            if cadence(place):
                with cadence.stopwatch:
                    clock.now += 0.01
                cadence.reported(place)
            clock.now += 5.0 if place % 4 == 0 else 0.02
        assert cadence.every_n_steps == 100

    def test_steps_of_several_batches_are_timed_whole(self, clock: Clock) -> None:
        cadence = auto()
        for place in range(200):
            for _ in range(4):
                cadence.begin_step(place)
                clock.now += 0.005
            if cadence(place):
                with cadence.stopwatch:
                    clock.now += 0.01
                cadence.reported(place)
        assert cadence.every_n_steps == 100

    def test_is_told_once(self, clock: Clock, told: pytest.LogCaptureFixture) -> None:
        cadence = auto()
        run(cadence, clock, range(2001), 0.02, lambda number: 0.1 if number == 1 else 0.01)
        (line,) = [record.getMessage() for record in told.records if "Monitor" in record.getMessage()]
        assert "Monitor reports every 100 steps: a report takes 10 ms, a step 20 ms" in line

    def test_validation_is_looked_at_as_often_as_the_share_affords(self, clock: Clock) -> None:
        cadence = auto(at_start=False)
        looked = []
        for place in range(2000):
            cadence.begin_step(place)
            clock.now += 0.02
            if place % 100 == 99 and cadence.due_at_validation(place, is_last=place == 1999) and cadence.affords(0.0599):
                looked.append(place)
                with cadence.stopwatch:
                    clock.now += 0.06
                cadence.reported(place)
        assert looked == [599, 1099, 1599, 1999]


class TestExplicit:
    @pytest.mark.parametrize(("given", "expected"), [(7, [0, 7, 14, 21, 28]), (log_spaced(1), [0, 1, 10])])
    def test_is_kept_to_whatever_it_costs(self, clock: Clock, given: Any, expected: list[int]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert run(Cadence(given, 0.01), clock, range(30), 0.01, 1.0) == expected

    def test_one_warning_says_what_would_be_affordable(self, clock: Clock) -> None:
        cadence = Cadence(10, 0.01)
        cadence.restart("WeightRankMonitor", 1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run(cadence, clock, range(500), 0.01, 0.01)
        (warning,) = caught
        assert str(warning.message) == (
            "WeightRankMonitor has taken 11% of the training's time by step 50. every_n_steps=200 would keep it below 1%, "
            "'auto' chooses for you, and a max_overhead= above 0.11 says that it may."
        )

    @pytest.mark.parametrize(("report", "max_overhead"), [(0.004, 0.01), (0.04, 0.5)])
    def test_no_warning_up_to_5_per_cent_or_what_was_said(self, clock: Clock, report: float, max_overhead: float) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run(Cadence(10, max_overhead), clock, range(500), 0.01, report)

    @pytest.mark.parametrize(("told", "expected"), [(1, [9, 19, 29, 39, 49]), (15, [9, 29, 49]), (1000, [9, 49])])
    def test_validations_so_many_steps_apart_are_looked_at_and_the_last(self, told: int, expected: list[int]) -> None:
        cadence, seen = Cadence(told, 0.01), []
        for step in range(9, 50, 10):
            if cadence.due_at_validation(step, is_last=step == 49) and cadence.affords(1e9):
                seen.append(step)
                cadence.reported(step)
        assert seen == expected

    def test_a_schedule_looks_at_every_validation(self) -> None:
        cadence = Cadence(lambda step: step == 3, 0.01)
        cadence.reported(3)
        assert cadence.due_at_validation(4, is_last=False)


@pytest.mark.parametrize("monitor", MONITORS)
class TestMisuse:
    def test_unknown_word(self, monitor: Any) -> None:
        with pytest.raises(ValueError, match="every_n_steps to be 'auto', a whole number from 1 or a schedule, got 'often'"):
            monitor(every_n_steps="often")

    @pytest.mark.parametrize("share", [0, -0.1, 1.5, float("nan")])
    def test_share(self, monitor: Any, share: float) -> None:
        with pytest.raises(ValueError, match="max_overhead to be a share of the time, above 0 and up to 1, got"):
            monitor(max_overhead=share)


class Validations(pl.Callback):
    """Which runs of validation were taken for the last."""

    def __init__(self) -> None:
        self.last: list[bool] = []

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.last.append(is_last_validation(trainer))


@pytest.mark.parametrize(
    ("options", "runs"),
    [
        ({"max_epochs": 3}, 3),
        ({"max_epochs": 3, "accumulate_grad_batches": 3}, 3),
        ({"max_epochs": 7, "check_val_every_n_epoch": 3}, 2),
        ({"max_epochs": 2, "val_check_interval": 4}, 4),
        ({"max_epochs": 2, "val_check_interval": 0.25}, 8),
        ({"max_epochs": -1, "max_steps": 21}, 2),
        ({"max_epochs": -1, "max_steps": 21, "val_check_interval": 5}, 3),
        ({"max_epochs": 1}, 1),
    ],
)
def test_last_validation_is_known(options: dict[str, Any], runs: int) -> None:
    seen = Validations()
    fit(mlp(batches=8), seen, **options)
    assert seen.last == [False] * (runs - 1) + [True]


class Streamed(Classifier):
    """Of whose data nobody knows the length."""

    def train_dataloader(self) -> Any:
        return Batches(super().train_dataloader())


class Batches:
    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


@pytest.mark.parametrize(
    ("options", "last"),
    [
        ({"max_epochs": 3}, [False, False, True]),
        ({"max_epochs": 5, "check_val_every_n_epoch": 2}, [False, True]),
        ({"max_epochs": 2, "val_check_interval": 3}, [False] * 4),
        ({"max_epochs": -1, "max_steps": 20}, [False, False]),
    ],
)
def test_last_validation_of_streamed_data_is_that_of_the_last_epoch(options: dict[str, Any], last: list[bool]) -> None:
    seen = Validations()
    fit(Streamed(two_layers(), torch.randn(32, 6)), seen, **options)
    assert seen.last == last


def test_validation_outside_a_fit_is_the_last() -> None:
    seen, model = Validations(), mlp()
    pl.Trainer(callbacks=[seen], accelerator="cpu", logger=False, enable_progress_bar=False).validate(model, verbose=False)
    assert seen.last == [True]


class Slow(Classifier):
    """A millisecond a step at least."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        time.sleep(1e-3)
        return super().training_step(batch, batch_idx)


def slow(batches: int) -> Slow:
    return Slow(two_layers(), torch.randn(4 * batches, 6))


class TestTraining:
    def test_monitors_report_at_round_steps_and_say_how_often(self) -> None:
        recorder = Recorder()
        fit(slow(400), *[monitor(max_overhead=0.9) for monitor in MONITORS], logger=recorder)
        monitor = recorder.readings("monitor")
        chosen = {tag.split("/")[-1]: value for (_, tag), value in monitor.items() if "/every_n_steps/" in tag}
        groups = ["weight_rank", "gradient_rank", "feature_rank", "neural_collapse", "rank_collapse"]
        assert chosen == dict.fromkeys(groups, 50)
        assert recorder.steps("weight_rank") == [0, 50, 100, 150, 200, 250, 300, 350, 400]
        assert recorder.steps("gradient_rank") == [0, 50, 100, 150, 200, 250, 300, 350]
        assert recorder.steps("rank_collapse") == recorder.steps("neural_collapse") == [50, 100, 150, 200, 250, 300, 350, 399]
        assert len(recorder.steps("feature_rank")) == 1  # of the only validation

    def test_training_of_few_steps_ends_with_a_report_of_each(self) -> None:
        recorder = Recorder()
        fit(mlp(), *[monitor() for monitor in MONITORS], logger=recorder)
        assert recorder.steps("weight_rank") == [0, 3]
        assert recorder.steps("gradient_rank") == [0]
        assert recorder.steps("rank_collapse") == recorder.steps("neural_collapse") == [2]
        assert len(recorder.steps("feature_rank")) == 1

    def test_choice_is_restored_on_resume(self, tmp_path: Path) -> None:
        path = tmp_path / "some.ckpt"
        first = [monitor(max_overhead=0.9) for monitor in MONITORS]
        fit(slow(70), *first, check_val_every_n_epoch=1).save_checkpoint(path)
        state = torch.load(path, weights_only=True)["callbacks"]
        assert [one["cadence"]["every_n_steps"] for one in state.values() if "cadence" in one][:2] == [50, 50]
        second = [monitor(max_overhead=1e-6) for monitor in MONITORS]
        fit(slow(70), *second, ckpt_path=str(path), max_epochs=2)
        assert [one.cadence.every_n_steps for one in second[:2]] == [50, 50]

    def test_another_fit_chooses_anew(self) -> None:
        monitor = WeightRankMonitor(max_overhead=0.9)
        fit(slow(70), monitor)
        assert monitor.cadence.every_n_steps == 50
        fit(mlp(), monitor)
        assert monitor.cadence.every_n_steps is None

    def test_monitors_that_choose_count_alone(self) -> None:
        chooses = [WeightRankMonitor(), GradientRankMonitor()]
        fit(mlp(), *chooses, NeuralCollapseMonitor(3, every_n_steps=2))
        assert [monitor.cadence.share for monitor in chooses] == [0.005, 0.005]
