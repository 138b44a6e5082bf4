import copy
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torchmetrics import Metric, MetricCollection

from rank_callbacks.metrics import ClassMetric, MinorityCollapse, NearestCenterMismatch, SelfDuality
from rank_callbacks.metrics.classifier_metric import ClassifierMetric
from tests.metrics.cases import CASES, CLASSES, WIDTH, linear, samples

NAMES = ("duality", "duality_zhu", "mismatch", "minority")
each = pytest.mark.parametrize("name", NAMES)


class Module(nn.Module):
    """Holds a classifier and metrics of it, in either order."""

    def __init__(self, name: str, head_first: bool = True) -> None:
        super().__init__()
        head = linear()
        if head_first:
            self.net = nn.Sequential(nn.ReLU(), head)
        self.metric = CASES[name].metric(head)
        self.metrics = MetricCollection({"all": CASES[name].metric(head)})
        if not head_first:
            self.net = nn.Sequential(nn.ReLU(), head)

    @property
    def head(self) -> nn.Linear:
        return self.net[1]


def other_weights(head: nn.Linear) -> None:
    head.load_state_dict(linear(seed=2).state_dict())


def value(name: str, seed: int) -> torch.Tensor:
    """Of the classifier drawn from that seed."""
    return CASES[name].twin(*samples(), linear(seed))


@each
def test_classifier_is_read_when_computed(name: str) -> None:
    head = linear()
    metric = CASES[name].metric(head)
    metric.update(*samples())
    other_weights(head)
    torch.testing.assert_close(metric.compute(), value(name, seed=2))
    assert not torch.isclose(value(name, seed=1), value(name, seed=2))


@each
def test_classifier_is_no_part_of_the_metric(name: str) -> None:
    metric = CASES[name].metric(linear())
    assert isinstance(metric, ClassifierMetric)
    assert not list(metric.parameters())
    assert not list(metric.children())
    assert not list(metric.buffers())
    metric.persistent(True)
    assert metric.state_dict().keys() == metric.metric_state.keys()
    module = Module(name)
    assert module.state_dict().keys() == {"net.1.weight", "net.1.bias"}


@each
def test_casting_the_metric_leaves_the_classifier(name: str) -> None:
    head = linear()
    CASES[name].metric(head).to(torch.bfloat16)
    assert head.weight.dtype == torch.float32


@each
@pytest.mark.parametrize(
    "copied",
    [
        Metric.clone,
        copy.deepcopy,
        copy.copy,
        lambda metric: metric.clone().clone(),
        lambda metric: MetricCollection({"a": metric, "b": metric.clone()}).clone(prefix="val_")["a"],
    ],
    ids=["clone", "deepcopy", "copy", "clone of clone", "collection"],
)
def test_copies_of_the_metric_read_the_same_classifier(name: str, copied: Any) -> None:
    head = linear()
    metric = CASES[name].metric(head)
    twin = copied(metric)
    assert twin is not metric
    assert twin.classifier is head
    other_weights(head)
    twin.update(*samples())
    torch.testing.assert_close(twin.compute(), value(name, seed=2))


@each
@pytest.mark.parametrize("head_first", [True, False])
def test_deep_copy_of_a_module_reads_the_copied_classifier(name: str, head_first: bool) -> None:
    module = Module(name, head_first)
    twin = copy.deepcopy(module)
    again = copy.deepcopy(twin)
    other_weights(twin.head)
    for one, seed in ((module, 1), (twin, 2), (again, 1)):
        assert one.metric.classifier is one.metrics["all"].classifier is one.head
        one.metric.update(*samples())
        torch.testing.assert_close(one.metric.compute(), value(name, seed))
    assert module.metric.clone().classifier is module.head
    assert twin.metric.clone().classifier is twin.head


@each
@pytest.mark.parametrize("head_first", [True, False])
def test_pickled_module_reads_its_own_classifier(name: str, head_first: bool) -> None:
    module = Module(name, head_first)
    for original in (module, copy.deepcopy(module)):
        twin = pickle.loads(pickle.dumps(original))
        assert twin.metric.classifier is twin.metrics["all"].classifier is twin.head
        assert twin.head is not original.head


def test_reference_by_itself_can_be_copied() -> None:
    head = linear()
    reference = SelfDuality(CLASSES, WIDTH, head)._reference
    assert copy.deepcopy(reference).layer is head
    both = copy.deepcopy([reference, head])
    assert both[0].layer is both[1] is not head


@each
def test_deep_copy_holds_on_to_nothing_once_read(name: str) -> None:
    twin = CASES[name].metric(linear()).clone()
    assert twin._reference._copies
    assert twin.classifier is not None
    assert not twin._reference._copies


def test_bias_decides_and_may_be_missing() -> None:
    features, labels = samples()
    head = linear()
    values = []
    for bias in (100 * torch.eye(CLASSES)[2], None):
        layer = SimpleNamespace(weight=head.weight, bias=bias, out_features=CLASSES)
        metric = NearestCenterMismatch(CLASSES, WIDTH, layer)
        metric.update(features, labels)
        torch.testing.assert_close(metric.compute(), CASES["mismatch"].twin(features, labels, layer))
        values.append(float(metric.compute()))
    assert len(set(values)) == 2
    without = NearestCenterMismatch(CLASSES, WIDTH, SimpleNamespace(weight=head.weight))
    without.update(features, labels)
    assert without.compute().item() in values[1:]


def test_narrow_classifier_is_widened() -> None:
    head = linear().bfloat16()
    for name in NAMES:
        metric = CASES[name].metric(head)
        metric.update(*samples())
        torch.testing.assert_close(metric.compute(), CASES[name].twin(*samples(), copy.deepcopy(head).double()))


@pytest.mark.parametrize("few", [(1, 2), [2, 1, 1], torch.tensor([1, 2]), {1, 2}])
def test_minority_may_be_listed(few: Any) -> None:
    head = linear()
    metric = MinorityCollapse(CLASSES, WIDTH, head, minority=few)
    metric.update(*samples())
    first, second = head.weight.detach().double()[1:3]
    torch.testing.assert_close(metric.compute(), torch.cosine_similarity(first, second, dim=0))


@pytest.mark.parametrize("few", [(), (3,)])
def test_fewer_than_two_minority_classes_give_nan(few: tuple[int, ...]) -> None:
    metric = MinorityCollapse(CLASSES, WIDTH, linear(), minority=few)
    metric.update(*samples())
    assert metric.compute().isnan()


def test_balanced_classes_have_no_minority() -> None:
    metric = MinorityCollapse(CLASSES, WIDTH, linear())
    metric.update(torch.ones(11, WIDTH), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3]))
    assert metric.compute().isnan()


def test_minority_has_at_most_half_of_the_largest_class() -> None:
    head = linear()
    metric = MinorityCollapse(CLASSES, WIDTH, head)
    metric.update(torch.ones(10, WIDTH), torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 3]))
    half, less = head.weight.detach().double()[2:]
    torch.testing.assert_close(metric.compute(), torch.cosine_similarity(half, less, dim=0))


def test_zero_row_of_a_minority_class_gives_nan() -> None:
    head = linear()
    head.weight.data[2] = 0
    metric = MinorityCollapse(CLASSES, WIDTH, head)
    metric.update(*samples())
    assert metric.compute().isnan()


@pytest.mark.parametrize("kind", [SelfDuality, NearestCenterMismatch, MinorityCollapse])
@pytest.mark.parametrize(
    ("classifier", "found"),
    [
        (nn.Linear(CLASSES, WIDTH), r"a Linear with one of shape \(6, 4\)"),
        (nn.BatchNorm1d(WIDTH), r"a BatchNorm1d with one of shape \(6,\)"),
        (nn.BatchNorm1d(WIDTH, affine=False), "a BatchNorm1d without a weight"),
        (nn.Identity(), "an? Identity without a weight"),
        (None, "a NoneType without a weight"),
    ],
)
def test_classifier_that_does_not_fit(kind: type[ClassMetric], classifier: Any, found: str) -> None:
    with pytest.raises(ValueError, match=rf"^Expected a classifier with a weight of shape \(4, 6\), got {found}\.$"):
        kind(CLASSES, WIDTH, classifier)


@pytest.mark.parametrize(("few", "found"), [((1, 4), 4), ((-1, 2), -1)])
def test_minority_class_that_does_not_exist(few: tuple[int, ...], found: int) -> None:
    with pytest.raises(ValueError, match=rf"^Expected minority to hold classes from 0 to 3, got {found}\.$"):
        MinorityCollapse(CLASSES, WIDTH, linear(), minority=few)
