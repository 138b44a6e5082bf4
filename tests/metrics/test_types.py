"""What becomes of float64 states when a metric, or a module that holds it, is cast, moved or trained in half precision."""

from collections.abc import Callable

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Metric, MetricCollection

from tests.metrics.cases import CASES, WIDTH, linear, samples
from tests.training import QUIET, Recorder

each = pytest.mark.parametrize("name", CASES)
CASTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "to bfloat16": lambda module: module.to(torch.bfloat16),
    "to half": lambda module: module.to(torch.float16),
    "to float": lambda module: module.to(torch.float32),
    "to device and type": lambda module: module.to("cpu", torch.bfloat16),
    "to like": lambda module: module.to(torch.zeros(1, dtype=torch.float16)),
    "bfloat16": nn.Module.bfloat16,
    "half": nn.Module.half,
    "float": nn.Module.float,
    "type": lambda module: module.type(torch.float16),
}


def types(metric: Metric) -> set[torch.dtype]:
    """Of states, of what they are reset to, and of what is cached."""
    states = [part for state in metric.metric_state.values() for part in state]
    defaults = [part for state in metric._defaults.values() for part in state]
    cached = [part for part in (metric._computed, metric._forward_cache) if part is not None]
    return {tensor.dtype for tensor in [*states, *defaults, *cached]}


@each
@pytest.mark.parametrize("cast", CASTS)
def test_states_stay_float64_when_cast(name: str, cast: str) -> None:
    features, labels = samples()
    metric = CASES[name].metric(linear())
    module = nn.ModuleDict({"net": nn.Linear(2, 2), "metric": metric})
    metric(features[:30], labels[:30])
    metric.compute()
    CASTS[cast](module)
    assert types(metric) == {torch.float64}
    metric.update(features[30:], labels[30:])
    expected = CASES[name].twin(features, labels, linear())
    torch.testing.assert_close(metric.compute(), expected, atol=0, rtol=1e-12)
    metric.reset()
    metric.update(features, labels)
    assert types(metric) == {torch.float64}
    torch.testing.assert_close(metric.compute(), expected, atol=0, rtol=1e-12)


@each
@pytest.mark.parametrize("cast", CASTS)
def test_metric_itself_and_its_collection_stay_float64_when_cast(name: str, cast: str) -> None:
    metrics = MetricCollection({"one": CASES[name].metric(linear())})
    metrics.update(*samples())
    alone = CASES[name].metric(linear())
    alone.update(*samples())
    CASTS[cast](metrics)
    CASTS[cast](alone)
    assert types(metrics["one"]) == types(alone) == {torch.float64}


@each
def test_states_follow_to_another_device(name: str) -> None:
    metric = CASES[name].metric(linear())
    metric.update(*samples())
    metric.to("meta", torch.bfloat16)
    states = [part for state in metric.metric_state.values() for part in state]
    assert {tensor.device.type for tensor in states} == {metric.device.type} == {metric._defaults["moments"].device.type}
    assert metric.device.type == "meta"
    assert types(metric) == {torch.float64}


class Classifier(pl.LightningModule):
    """Logs every metric of its own features while it validates."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(WIDTH, WIDTH), linear()
        self.metrics = MetricCollection({name: case.metric(self.head) for name, case in CASES.items()}, prefix="val/")
        self.tcv = CASES["tcv"].metric(self.head)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        features = self.body(batch[0])
        self.log("tcv", self.tcv, on_step=False, on_epoch=True)
        self.tcv(features, batch[1])
        return nn.functional.cross_entropy(self.head(features), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        features = self.body(batch[0])
        self.metrics.update(features, batch[1])
        self.seen.append((features.clone(), batch[1]))
        self.log_dict(self.metrics)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "32-true", "64-true"])
def test_metrics_of_a_module_that_lightning_trains(precision: str) -> None:
    features, labels = samples()
    loader = DataLoader(TensorDataset(features.float(), labels), batch_size=16)
    module, recorder = Classifier(), Recorder()
    options = QUIET | {"logger": recorder, "num_sanity_val_steps": 0}
    pl.Trainer(precision=precision, **options).fit(module, loader, loader)
    assert module.head.weight.dtype == {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(precision, torch.float32)
    for metric in (module.tcv, *module.metrics.values()):
        assert types(metric) == {torch.float64}
    logged = {tag: value for _, tag, value in recorder.rows}
    assert logged["tcv"] > 0
    seen = tuple(map(torch.cat, zip(*module.seen, strict=True)))
    for name, case in CASES.items():
        torch.testing.assert_close(logged[f"val/{name}"], float(case.twin(*seen, module.head)), atol=0, rtol=1e-6)
