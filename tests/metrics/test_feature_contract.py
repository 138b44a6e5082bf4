"""Metrics of features: any way of seeing the samples gives the value of all at once."""

import itertools
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Metric, MetricCollection

from rank_callbacks.metrics import (
    AlphaReQ,
    EffectiveRank,
    LayerSaturation,
    LiDAR,
    NumericalRank,
    RankMe,
    StableRank,
    feature_metric,
)
from tests.metrics.feature_cases import FEATURE_CASES, OBJECTS, OF_SPECTRA, VIEWS, WIDTH, objects
from tests.metrics.test_types import CASTS, types
from tests.training import QUIET, Recorder

NAN, INF = float("nan"), float("inf")
each = pytest.mark.parametrize("name", FEATURE_CASES)
BATCHES = (11, 2, 3, 8)


def fresh(name: str, **options: Any) -> Metric:
    return FEATURE_CASES[name].metric(**options)


def expected(name: str, views: Tensor) -> Tensor:
    return FEATURE_CASES[name].twin(views)


def assert_near(actual: Tensor, reference: Tensor, rtol: float = 1e-10) -> None:
    assert actual.dtype == torch.float64
    assert actual.shape == ()
    torch.testing.assert_close(actual, reference, atol=0, rtol=rtol, equal_nan=True)


@each
def test_equals_the_function_of_all_samples(name: str) -> None:
    metric = fresh(name)
    metric.update(objects())
    assert_near(metric.compute(), expected(name, objects()))
    assert metric.compute().isfinite()


@each
@given(cuts=st.lists(st.integers(0, OBJECTS), max_size=8).map(sorted), order=st.permutations(range(OBJECTS)))
@settings(derandomize=True, deadline=None, max_examples=10)
def test_any_split_into_batches_equals_one_batch(name: str, cuts: list[int], order: list[int]) -> None:
    metric = fresh(name)
    for start, stop in itertools.pairwise([0, *cuts, OBJECTS]):
        metric.update(objects()[order[start:stop]])
    assert_near(metric.compute(), expected(name, objects()))


@pytest.mark.parametrize("name", sorted(OF_SPECTRA))
def test_one_row_at_a_time(name: str) -> None:
    metric = fresh(name)
    for row in objects().flatten(0, 1):
        metric.update(row)
    assert_near(metric.compute(), expected(name, objects()))


@each
def test_merged_metrics_equal_the_union_and_go_on(name: str) -> None:
    views = objects()
    first, second, third, fourth = views.split(BATCHES)
    metric, other = fresh(name), fresh(name)
    metric.update(first)
    metric.compute()
    other.update(second)
    other.update(fourth)
    before = other.compute()
    metric.merge_state(other)
    assert_near(metric.compute(), expected(name, torch.cat([first, second, fourth])))
    metric.update(third)
    assert_near(metric.compute(), expected(name, views))
    other._computed = None
    assert torch.equal(other.compute(), before)


@each
def test_states_merge_as_metrics_do(name: str) -> None:
    metric, other = fresh(name), fresh(name)
    for one, views in zip(itertools.cycle([metric, other]), objects().split(BATCHES), strict=False):
        one.update(views)
    metric.merge_state(other.metric_state)
    assert_near(metric.compute(), expected(name, objects()))


@each
@pytest.mark.parametrize("full", [False, True])
def test_forward_gives_the_batch_value_and_accumulates(name: str, full: bool) -> None:
    metric = fresh(name, dist_sync_on_step=full)
    for views in objects().split(BATCHES):
        value = metric(views)
        if name != "alpha_req" or len(views) * VIEWS > WIDTH:  # of few rows the twin takes the logarithm of rounding
            assert_near(value, expected(name, views), rtol=1e-8)
    assert_near(metric.compute(), expected(name, objects()))


@each
def test_reset_forgets(name: str) -> None:
    metric = fresh(name)
    metric.update(objects(seed=1) + 1)
    metric.reset()
    assert not metric.moments.any()
    metric.update(objects())
    assert_near(metric.compute(), expected(name, objects()))


@each
@pytest.mark.parametrize("copied", [Metric.clone, lambda metric: pickle.loads(pickle.dumps(metric))], ids=["clone", "pickle"])
def test_copies_continue_identically(name: str, copied: Callable[[Metric], Metric]) -> None:
    first, *rest = objects().split(BATCHES)
    metric = fresh(name)
    metric.update(first)
    twin = copied(metric)
    for views in rest:
        metric.update(views)
    assert_near(metric.compute(), expected(name, objects()))
    assert_near(twin.compute(), expected(name, first))
    for views in rest:
        twin.update(views)
    assert torch.equal(twin.compute(), metric.compute())


@each
def test_persistent_state_comes_back_from_a_state_dict(name: str) -> None:
    first, *rest = objects().split(BATCHES)
    metric, other = fresh(name), fresh(name)
    assert metric.state_dict() == {}
    metric.persistent(True)
    metric.update(first)
    saved = metric.state_dict()
    assert saved.keys() == {"moments"}
    other.load_state_dict(saved)
    for views in rest:
        other.update(views)
    assert_near(other.compute(), expected(name, objects()))


@each
def test_no_graph_is_kept_and_none_of_the_callers_tensors(name: str) -> None:
    given = objects().requires_grad_()
    metric = fresh(name)
    outputs = [metric(given * 1), metric.compute()]
    assert not any(tensor.requires_grad for tensor in [metric.moments, *outputs])
    given.detach().zero_()
    metric._computed = None
    assert_near(metric.compute(), expected(name, objects()))


@each
@pytest.mark.parametrize("bad", [NAN, INF])
def test_features_that_are_not_finite_give_nan(name: str, bad: float) -> None:
    views = objects()
    views[3, 1, 2] = bad
    metric = fresh(name)
    metric.update(objects())
    metric.update(views)
    metric.update(objects())
    assert metric.compute().isnan()


@each
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_without_samples_nan(name: str) -> None:
    metric = fresh(name)
    assert metric.compute().isnan()
    metric.update(torch.zeros(0, VIEWS, WIDTH))
    assert metric.compute().isnan()


@each
def test_one_sample(name: str) -> None:
    metric = fresh(name)
    metric.update(objects()[:1, :1])
    if FEATURE_CASES[name].centered:
        assert metric.compute().isnan()
    else:
        assert_near(metric.compute(), expected(name, objects()[:1, :1]))


@each
def test_equal_samples_have_centred_rank_zero(name: str) -> None:
    metric = fresh(name)
    metric.update(torch.full((5, VIEWS, WIDTH), 0.5))
    value = metric.compute()
    if name == "alpha_req":
        assert value.isnan()
    elif FEATURE_CASES[name].centered:
        assert value == 0
    else:
        assert_near(value, expected(name, torch.full((5, VIEWS, WIDTH), 0.5)))


@each
def test_silent_features_have_rank_zero(name: str) -> None:
    metric = fresh(name)
    metric.update(torch.zeros(5, VIEWS, WIDTH))
    assert metric.compute().isnan() if name == "alpha_req" else metric.compute() == 0


@pytest.mark.parametrize("name", [name for name, case in FEATURE_CASES.items() if case.centered])
def test_a_large_common_mean_does_not_matter(name: str) -> None:
    metric = fresh(name)
    for views in objects().split(BATCHES):
        metric.update(1e5 + views)
    assert_near(metric.compute(), expected(name, objects()), rtol=1e-8)


@each
def test_narrow_features_are_measured_as_they_are(name: str) -> None:
    views = objects().bfloat16()
    metric = fresh(name)
    for batch in views.split(BATCHES):
        metric.update(batch)
    assert_near(metric.compute(), expected(name, views.double()))


@each
def test_state_is_no_more_than_stated(name: str) -> None:
    metric = fresh(name)
    metric.update(objects())
    assert metric.metric_state.keys() == {"moments"}
    square = WIDTH + WIDTH**2
    assert metric.moments.shape == ((1 + square,) if name in OF_SPECTRA else (2 + square + WIDTH**2,))


@each
@pytest.mark.parametrize("cast", CASTS)
def test_state_stays_float64_when_cast(name: str, cast: str) -> None:
    first, second = objects().split([15, OBJECTS - 15])
    metric = fresh(name)
    module = nn.ModuleDict({"net": nn.Linear(2, 2), "metric": metric})
    metric(first)
    CASTS[cast](module)
    CASTS[cast](metric)
    assert types(metric) == {torch.float64}
    metric.update(second)
    assert_near(metric.compute(), expected(name, objects()))
    metric.reset()
    assert types(metric) == {torch.float64}


@each
def test_state_follows_to_another_device(name: str) -> None:
    metric = fresh(name)
    metric.update(objects())
    metric.to("meta", torch.bfloat16)
    assert metric.moments.device.type == metric._defaults["moments"].device.type == "meta"
    assert metric.moments.dtype == torch.float64


@each
def test_metric_of_inference_mode_goes_on_outside(name: str) -> None:
    first, second, *rest = objects().split(BATCHES)
    with torch.inference_mode():
        metric = fresh(name)
        metric.update(first)
        metric(second)
    for views in rest:
        metric(views)
    assert_near(metric.compute(), expected(name, objects()))


@each
def test_flags(name: str) -> None:
    kind = type(fresh(name))
    assert (kind.is_differentiable, kind.full_state_update, kind.plot_lower_bound) == (False, False, 0)
    assert kind.higher_is_better is (True if kind in (RankMe, LiDAR) else None)


@each
def test_plot(name: str) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    metric = fresh(name)
    values = [metric(objects()), metric(objects(seed=1))]
    _, axes = pyplot.subplots()
    assert metric.plot(values, axes)[1] is axes
    figure, own = metric.plot()
    assert figure.axes == [own]
    pyplot.close("all")


def collection() -> MetricCollection:
    return MetricCollection({name: case.metric() for name, case in FEATURE_CASES.items()})


def test_metrics_of_spectra_form_one_group() -> None:
    metrics = collection()
    metrics.update(objects())
    assert sorted(map(set, metrics.compute_groups.values()), key=len) == [{"lidar"}, OF_SPECTRA]


def test_a_batch_is_taken_in_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = feature_metric.second_moments, []
    monkeypatch.setattr(feature_metric, "second_moments", lambda features: calls.append(1) or original(features))
    first, *rest = objects().split(BATCHES)
    metrics = collection()
    metrics.update(first)
    for views in rest:
        metrics.update(views)
    assert len(calls) == len(OF_SPECTRA) + len(rest)


@pytest.mark.parametrize("prefix", [None, "val/"])
def test_collection_and_its_clones_give_the_values_of_metrics_alone(prefix: str | None) -> None:
    first, second, *rest = objects().split(BATCHES)
    metrics = collection()
    metrics.update(first)
    metrics.update(second)
    metrics = metrics.clone(prefix=prefix) if prefix else metrics
    for views in rest:
        metrics.update(views)
    for tag, value in metrics.compute().items():
        assert_near(value, expected(tag.removeprefix("val/"), objects()))


@each
@pytest.mark.parametrize("shape", [(3, 2, WIDTH + 1), (3, WIDTH - 1), (2,), ()], ids=str)
def test_features_of_another_width(name: str, shape: tuple[int, ...]) -> None:
    metric = fresh(name)
    metric.update(objects())
    before = metric.moments.clone()
    message = f"Expected features of shape (*, {WIDTH}), as num_features says, got {shape}."
    with pytest.raises(ValueError, match=re.escape(message)):
        metric.update(torch.zeros(shape))
    assert torch.equal(metric.moments, before)


def test_views_of_another_shape() -> None:
    with pytest.raises(ValueError, match=re.escape(f"Expected views of shape (objects, views, features), got (4, {WIDTH}).")):
        fresh("lidar").update(torch.zeros(4, WIDTH))


@each
def test_unknown_option(name: str) -> None:
    with pytest.raises(ValueError, match="Unexpected keyword arguments: `reduction`"):
        fresh(name, reduction="sum")


@pytest.mark.parametrize("metric", [EffectiveRank, StableRank, LiDAR])
@pytest.mark.parametrize("num_features", [0, -1, 1.5])
def test_too_few_features(metric: type[Metric], num_features: int) -> None:
    with pytest.raises(ValueError, match=f"Expected num_features to be a whole number from 1, got {num_features}\\."):
        metric(num_features)


@pytest.mark.parametrize(
    ("metric", "options", "message"),
    [
        (NumericalRank, {"rtol": -1}, "Expected rtol to be a number from 0, got -1."),
        (RankMe, {"epsilon": NAN}, "Expected epsilon to be a number from 0, got nan."),
        (AlphaReQ, {"first": 0}, "Expected first to be from 1 and last at least first + 9, got first=0 and last=100."),
        (LayerSaturation, {"energy": 99}, "Expected energy to be in (0, 1], got 99."),
        (LiDAR, {"delta": 0}, "Expected delta to be above 0 and epsilon from 0, got delta=0 and epsilon=1e-08."),
    ],
)
def test_options_are_checked_at_once(metric: type[Metric], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        metric(WIDTH, **options)


class Ranks(pl.LightningModule):
    """Logs every metric of its own features while it validates."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(WIDTH, WIDTH)
        self.metrics = MetricCollection({name: case.metric() for name, case in FEATURE_CASES.items()})
        self.seen: list[Tensor] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.body(batch[0]).square().mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.seen.append(self.body(batch[0]).clone())
        self.metrics.update(self.seen[-1])
        self.log_dict(self.metrics)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("precision", ["bf16-true", "32-true", "64-true"])
def test_metrics_of_a_module_that_lightning_trains(precision: str) -> None:
    loader = DataLoader(TensorDataset(objects().float()), batch_size=10)
    module, recorder = Ranks(), Recorder()
    pl.Trainer(precision=precision, **(QUIET | {"logger": recorder, "num_sanity_val_steps": 0})).fit(module, loader, loader)
    logged = {tag: value for _, tag, value in recorder.rows}
    for name, metric in module.metrics.items():
        assert types(metric) == {torch.float64}
        assert logged[name] == pytest.approx(expected(name, torch.cat(module.seen)).item(), rel=1e-6)
