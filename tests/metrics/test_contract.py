import itertools
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from rank_callbacks.metrics import class_metric
from tests.metrics.cases import CASES, CHEAP, CLASSES, SCATTERED, SIZES, WIDTH, linear, samples

each = pytest.mark.parametrize("name", CASES)
BATCHES = (11, 1, 2, 26)


def fresh(name: str, **options: Any) -> Metric:
    return CASES[name].metric(linear(), **options)


def expected(name: str, features: Tensor, labels: Tensor, head: nn.Linear | None = None) -> Tensor:
    return CASES[name].twin(features, labels, head or linear())


def assert_near(actual: Tensor, reference: Tensor | float, rtol: float = 1e-10) -> None:
    assert actual.dtype == torch.float64
    assert actual.shape == ()
    torch.testing.assert_close(actual, torch.as_tensor(reference, dtype=torch.float64), atol=1e-12, rtol=rtol)


def batches(features: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(features.split(BATCHES), labels.split(BATCHES), strict=True))


@each
def test_equals_the_function_of_all_samples(name: str) -> None:
    features, labels = samples()
    metric = fresh(name)
    metric.update(features, labels)
    assert_near(metric.compute(), expected(name, features, labels), rtol=1e-12)
    assert metric.compute().isfinite()


GOLDEN = {
    "tcv": 0.025120666085651222,
    "ratio": 0.009842229655068402,
    "nc1_pinv": 0.0032326117364566997,
    "nc1_svds": 0.0096978352093701,
    "nc1_pinv_sample_mean": 0.0032326117364566997,
    "nc1_fuzziness": 0.0096978352093701,
    "nc1_quotient": 0.009940062028336919,
    "equinorm": 0.1399587139100833,
    "equiangularity": 0.1377091101278839,
    "cdnv": 0.003492278507422375,
    "duality": 1.9272518858779777,
    "duality_zhu": 1.321823733159576,
    "mismatch": 2 / 3,
}


def golden_samples() -> tuple[Tensor, Tensor, nn.Linear]:
    k, i, j = np.ogrid[:3, :4, :5]
    features = torch.from_numpy(np.sin(1 + 2 * k + j) + 0.1 * np.cos(3 * i + (j + 1) * (k + 1)))
    head = nn.Linear(5, 3, bias=False, dtype=torch.float64)
    head.weight.data = torch.from_numpy(np.cos(np.arange(3)[:, None] + 2 * np.arange(5)))
    return features.reshape(12, 5), torch.arange(3).repeat_interleave(4), head


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_numbers(name: str) -> None:
    features, labels, head = golden_samples()
    metric = CASES[name].metric(head)
    for part in torch.randperm(12).split(5):
        metric.update(features[part], labels[part])
    assert float(metric.compute()) == pytest.approx(GOLDEN[name], rel=1e-12, abs=0)


def test_golden_numbers_are_of_every_metric_of_features() -> None:
    assert GOLDEN.keys() == CASES.keys() - {"minority"}


@each
@given(cuts=st.lists(st.integers(0, sum(SIZES)), max_size=8).map(sorted), order=st.permutations(range(sum(SIZES))))
@settings(derandomize=True, deadline=None, max_examples=15)
def test_any_split_into_batches_equals_one_batch(name: str, cuts: list[int], order: list[int]) -> None:
    features, labels = samples()
    metric = fresh(name)
    for start, stop in itertools.pairwise([0, *cuts, len(order)]):
        metric.update(features[order[start:stop]], labels[order[start:stop]])
    assert_near(metric.compute(), expected(name, features, labels))


@each
def test_one_sample_at_a_time(name: str) -> None:
    features, labels = samples()
    metric = fresh(name)
    for pair in zip(features, labels, strict=True):
        metric.update(*pair)
    assert_near(metric.compute(), expected(name, features, labels))


@each
def test_one_class_at_a_time(name: str) -> None:
    features, labels = samples()
    metric = fresh(name)
    for label in range(CLASSES):
        metric.update(features[labels == label], labels[labels == label])
    assert_near(metric.compute(), expected(name, features, labels))


@each
def test_merged_metrics_equal_the_union_and_go_on(name: str) -> None:
    features, labels = samples()
    first, second, third, fourth = batches(features, labels)
    metric, other = fresh(name), fresh(name)
    metric.update(*first)
    metric.compute()
    other.update(*second)
    other.update(*fourth)
    before = other.compute()
    metric.merge_state(other)
    assert_near(metric.compute(), expected(name, *map(torch.cat, zip(first, second, fourth, strict=True))))
    metric.update(*third)
    assert_near(metric.compute(), expected(name, features, labels))
    other._computed = None
    assert torch.equal(other.compute(), before)


@each
def test_states_merge_as_metrics_do(name: str) -> None:
    features, labels = samples()
    metric, other = fresh(name), fresh(name)
    for one, pair in zip(itertools.cycle([metric, other]), batches(features, labels), strict=False):
        one.update(*pair)
    metric.merge_state(other.metric_state)
    assert_near(metric.compute(), expected(name, features, labels))


@each
@pytest.mark.parametrize("full", [False, True])
def test_forward_gives_the_batch_value_and_accumulates(name: str, full: bool) -> None:
    features, labels = samples()
    metric = fresh(name, dist_sync_on_step=full)
    for batch in batches(features, labels):
        torch.testing.assert_close(metric(*batch), expected(name, *batch), atol=1e-12, rtol=1e-10, equal_nan=True)
    assert_near(metric.compute(), expected(name, features, labels))


@each
def test_reset_forgets(name: str) -> None:
    features, labels = samples()
    metric = fresh(name)
    metric.update(features + 1, labels.flip(0))
    metric.reset()
    for state in metric.metric_state.values():
        assert not any(map(torch.any, state))
    metric.update(features, labels)
    assert_near(metric.compute(), expected(name, features, labels))


@each
@pytest.mark.parametrize("copied", [Metric.clone, lambda metric: pickle.loads(pickle.dumps(metric))], ids=["clone", "pickle"])
def test_copies_continue_identically(name: str, copied: Any) -> None:
    features, labels = samples()
    first, *rest = batches(features, labels)
    metric = fresh(name)
    metric.update(*first)
    twin = copied(metric)
    for batch in rest:
        metric.update(*batch)
    assert_near(metric.compute(), expected(name, features, labels))
    torch.testing.assert_close(twin.compute(), expected(name, *first), atol=1e-12, rtol=1e-10, equal_nan=True)
    for batch in rest:
        twin.update(*batch)
    assert torch.equal(twin.compute(), metric.compute())


@each
def test_persistent_state_comes_back_from_a_state_dict(name: str) -> None:
    features, labels = samples()
    first, *rest = batches(features, labels)
    metric, other = fresh(name), fresh(name)
    assert metric.state_dict() == {}
    metric.persistent(True)
    metric.update(*first)
    saved = metric.state_dict()
    assert saved.keys() == metric.metric_state.keys()
    other.load_state_dict(saved)
    for batch in rest:
        other.update(*batch)
    assert_near(other.compute(), expected(name, features, labels))


@each
def test_large_common_mean_and_small_spread(name: str) -> None:
    features, labels = samples()
    features = 1e4 + 1e-4 * features
    head = linear() if name != "mismatch" else aligned(features, labels)
    metric = CASES[name].metric(head)
    for batch in batches(features, labels):
        metric.update(*batch)
    assert float(metric.compute()) == pytest.approx(naive(features.numpy(), labels.numpy(), head)[name], rel=1e-6, abs=0)


def aligned(features: Tensor, labels: Tensor) -> nn.Linear:
    """Has the class means as rows, and gives half of the samples their class: rounding decides no sample."""
    head = nn.Linear(WIDTH, CLASSES, dtype=torch.float64)
    means = torch.stack([features[labels == label].mean(0) for label in range(CLASSES)])
    head.weight.data = 1e4 * (means - means.mean(0))
    head.bias.data = -(head.weight.data @ means.mean(0))
    return head


def naive(features: NDArray[np.float64], labels: NDArray[np.int64], head: nn.Linear) -> dict[str, float]:
    """Each measure as its paper writes it, in two passes."""
    weight = head.weight.detach().double().numpy()
    bias = head.bias.detach().double().numpy()
    of_class = [features[labels == label] for label in range(CLASSES)]
    means = np.stack([rows.mean(0) for rows in of_class])
    counts = np.array([len(rows) for rows in of_class])
    within = sum((rows - mean).T @ (rows - mean) for rows, mean in zip(of_class, means, strict=True)) / len(features)
    directions, from_samples = means - means.mean(0), means - features.mean(0)

    def nc1(centred: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
        return np.trace(within @ np.linalg.pinv((weights[:, None] * centred).T @ centred, rcond=1e-9))

    equal, share = np.full(CLASSES, 1 / CLASSES), counts / counts.sum()
    norms = np.linalg.norm(directions, axis=1)
    pairs = list(itertools.combinations(range(CLASSES), 2))
    variances = np.array([((rows - rows.mean(0)) ** 2).sum(1).mean() for rows in of_class])
    product = weight @ directions.T
    simplex = (np.eye(CLASSES) - 1 / CLASSES) / np.sqrt(CLASSES - 1)
    nearest = np.linalg.norm(features[:, None] - means, axis=2).argmin(1)
    few = [label for label in range(CLASSES) if 2 * counts[label] <= counts.max()]
    rows = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    between_samples = share @ (from_samples**2).sum(1)
    return {
        "tcv": np.trace(within),
        "ratio": np.trace(within) / (np.trace(within) + between_samples),
        "nc1_pinv": nc1(directions, equal) / CLASSES,
        "nc1_svds": nc1(directions, equal),
        "nc1_pinv_sample_mean": nc1(from_samples, equal) / CLASSES,
        "nc1_fuzziness": nc1(from_samples, share),
        "nc1_quotient": np.trace(within) / (norms**2).mean(),
        "equinorm": norms.std(ddof=1) / norms.mean(),
        "equiangularity": np.mean(
            [abs(directions[k] @ directions[m] / norms[k] / norms[m] + 1 / (CLASSES - 1)) for k, m in pairs]
        ),
        "cdnv": np.mean([(variances[k] + variances[m]) / 2 / ((means[k] - means[m]) ** 2).sum() for k, m in pairs]),
        "duality": ((weight / np.linalg.norm(weight) - directions / np.linalg.norm(directions)) ** 2).sum(),
        "duality_zhu": np.linalg.norm(product / np.linalg.norm(product) - simplex),
        "mismatch": np.mean((features @ weight.T + bias).argmax(1) != nearest),
        "minority": np.mean([rows[k] @ rows[m] for k, m in itertools.combinations(few, 2)]),
    }


@each
def test_naive_version_agrees_on_plain_samples(name: str) -> None:
    features, labels = samples()
    metric = fresh(name)
    metric.update(features, labels)
    assert_near(metric.compute(), naive(features.numpy(), labels.numpy(), linear())[name])


@each
def test_no_graph_is_kept(name: str) -> None:
    features, labels = samples()
    features.requires_grad_()
    metric = fresh(name)
    outputs = [metric(features * 2, labels), metric.compute()]
    metric.update(features * 2, labels)
    states = [part for state in metric.metric_state.values() for part in state]
    assert not any(tensor.requires_grad for tensor in [*states, *outputs, metric.compute()])


@each
def test_states_are_none_of_the_callers_tensors(name: str) -> None:
    features, labels = samples()
    metric, given = fresh(name), features.clone()
    metric.update(given, labels)
    given.zero_()
    assert_near(metric.compute(), expected(name, features, labels))


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"mismatch", "minority"}))
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_features_that_are_not_finite_give_nan(name: str, bad: float) -> None:
    features, labels = samples()
    metric = fresh(name)
    metric.update(features, labels)
    features[3, 2] = bad
    metric.update(features, labels)
    assert metric.compute().isnan()


def test_samples_that_are_not_finite_are_in_disagreement() -> None:
    features, labels = samples()
    metric = fresh("mismatch")
    metric.update(features, labels)
    features[5] = torch.nan
    metric.update(features, labels)
    both = torch.cat([samples()[0], features]), torch.cat([labels, labels])
    assert_near(metric.compute(), expected("mismatch", *both))
    metric.reset()
    metric.update(features * torch.nan, labels)
    assert metric.compute() == 1


def test_minority_collapse_looks_at_labels_alone() -> None:
    features, labels = samples()
    metric = fresh("minority")
    metric.update(features * torch.nan, labels)
    assert_near(metric.compute(), expected("minority", features, labels))


@each
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_without_samples_nan(name: str) -> None:
    metric = fresh(name)
    assert metric.compute().isnan()
    metric.update(torch.zeros(0, WIDTH), torch.zeros(0, dtype=torch.long))
    assert metric.compute().isnan()


@each
def test_compute_before_update_warns(name: str) -> None:
    with pytest.warns(UserWarning, match="was called before the ``update`` method"):
        fresh(name).compute()


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"tcv", "ratio", "mismatch", "minority"}))
def test_one_class_gives_nan(name: str) -> None:
    features, labels = samples()
    metric = fresh(name)
    metric.update(features, labels * 0)
    assert metric.compute().isnan()


def test_nearest_center_is_never_that_of_a_class_without_samples() -> None:
    head = linear()
    head.weight.data, head.bias.data = torch.zeros(CLASSES, WIDTH), torch.tensor([0.0, 1.0, 0.0, 0.0])
    metric = CASES["mismatch"].metric(head)
    metric.update(torch.tensor([[-3.0], [2.5], [0.5]]).expand(3, WIDTH), torch.tensor([0, 1, 1]))
    assert_near(metric.compute(), 1 / 3)


@pytest.mark.parametrize(
    "name", sorted(CASES.keys() - {"equinorm", "equiangularity", "duality", "duality_zhu", "mismatch", "minority"})
)
def test_one_sample_a_class_gives_zero(name: str) -> None:
    features, _ = samples()
    metric = fresh(name)
    metric.update(features[:CLASSES].float(), torch.arange(CLASSES))
    assert metric.compute() == 0


@each
def test_ignored_labels_count_for_nothing(name: str) -> None:
    features, labels = samples()
    metric = fresh(name, ignore_index=-100)
    ignored = torch.full((5,), -100)
    for rows, classes in batches(features, labels):
        metric.update(torch.cat([100 * torch.ones(5, WIDTH), rows]), torch.cat([ignored, classes]))
    metric.update(features[:5], ignored)
    assert_near(metric.compute(), expected(name, features, labels))


@each
def test_one_hot_labels_are_those_of_integers(name: str) -> None:
    features, labels = samples()
    metric = fresh(name)
    metric.update(features[:8].view(2, 4, WIDTH), labels[:8].view(2, 4))
    metric.update(features[8:], nn.functional.one_hot(labels[8:], CLASSES).double())
    assert_near(metric.compute(), expected(name, features, labels))


def test_soft_labels_keep_each_feature_once() -> None:
    features, _ = samples()
    soft = torch.full((len(features), CLASSES), 0.1).index_fill_(1, torch.tensor(2), 0.7)
    metric = fresh("mismatch")
    metric.update(features, soft)
    assert [len(part) for part in metric.features] == [len(features)]
    assert torch.equal(metric.features[0], features)


@each
def test_narrow_features_are_measured_as_they_are(name: str) -> None:
    features, labels = samples()
    features = features.bfloat16()
    metric = fresh(name)
    for batch in batches(features, labels):
        metric.update(*batch)
    assert_near(metric.compute(), expected(name, features.double(), labels))


@each
def test_states_are_float64_and_no_more_than_stated(name: str) -> None:
    metric = fresh(name)
    metric.update(*samples())
    states = metric.metric_state
    assert {part.dtype for state in states.values() for part in state} == {torch.float64}
    assert len(states["moments"]) == CLASSES * (WIDTH + 2) + (WIDTH**2 if name in SCATTERED else 0)
    assert states.keys() == ({"moments", "features"} if name == "mismatch" else {"moments"})


@each
def test_metric_of_inference_mode_goes_on_outside(name: str) -> None:
    features, labels = samples()
    first, second, *rest = batches(features, labels)
    with torch.inference_mode():
        metric = fresh(name)
        metric.update(*first)
        metric(*second)
    for batch in rest:
        metric(*batch)
    assert_near(metric.compute(), expected(name, features, labels))


@each
def test_flags(name: str) -> None:
    kind = type(fresh(name))
    assert (kind.is_differentiable, kind.higher_is_better, kind.full_state_update) == (False, False, False)
    assert kind.plot_lower_bound == (-1 if name == "minority" else 0)


@each
def test_plot(name: str) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    features, labels = samples()
    metric = fresh(name)
    values = [metric(features, labels), metric(features + labels[:, None], labels)]
    _, axes = pyplot.subplots()
    assert metric.plot(values, axes)[1] is axes
    figure, own = metric.plot()
    assert own is not axes
    assert figure.axes == [own]
    pyplot.close("all")


def collection(head: nn.Linear | None = None) -> MetricCollection:
    head = head or linear()
    return MetricCollection({name: case.metric(head) for name, case in CASES.items()})


def test_metrics_of_equal_states_form_a_group() -> None:
    metrics = collection()
    metrics.update(*samples())
    groups = sorted(map(set, metrics.compute_groups.values()), key=len)
    assert groups == [{"mismatch"}, SCATTERED, CHEAP]


def test_groups_are_the_same_after_a_batch_without_labels() -> None:
    features, labels = samples()
    metrics = MetricCollection({name: CASES[name].metric(linear(), ignore_index=-1) for name in CASES})
    metrics.update(features, labels * 0 - 1)
    metrics.update(features, labels)
    assert sorted(map(len, metrics.compute_groups.values())) == [1, len(SCATTERED), len(CHEAP)]
    for name, value in metrics.compute().items():
        assert_near(value, expected(name, features, labels))


def test_a_batch_is_taken_in_once_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = class_metric.batch_moments, []

    def spy(features: Tensor, labels: Tensor, num_classes: int, scatter: bool, ignore_index: int | None) -> Any:
        calls.append(scatter)
        return original(features, labels, num_classes, scatter, ignore_index)

    monkeypatch.setattr(class_metric, "batch_moments", spy)
    first, *rest = batches(*samples())
    metrics = collection()
    metrics.update(*first)
    assert len(calls) == len(CASES)
    for number, batch in enumerate(rest, 1):
        metrics.update(*batch)
        assert sorted(calls[len(CASES) :]) == sorted(number * [False, True, False])


@pytest.mark.parametrize("prefix", [None, "val/"])
def test_collection_and_its_clones_give_the_values_of_metrics_alone(prefix: str | None) -> None:
    features, labels = samples()
    first, second, *rest = batches(features, labels)
    metrics = collection()
    metrics.update(*first)
    metrics.update(*second)
    if prefix:
        metrics = metrics.clone(prefix=prefix)
    for batch in rest:
        metrics.update(*batch)
    values = metrics.compute()
    assert values.keys() == {(prefix or "") + name for name in CASES}
    for name in CASES:
        assert_near(values[(prefix or "") + name], expected(name, features, labels))
    metrics.reset()
    metrics.update(*first)
    metrics.update(*second)
    assert not any(torch.equal(value, values[tag]) for tag, value in metrics.compute().items() if "minority" not in tag)
