"""Every way to train that a CPU has, and what becomes of each monitor in it: ``verdicts``."""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy

from rank_callbacks import (
    FeatureRankMonitor,
    GradientRankMonitor,
    NetworkRankMonitor,
    NeuralCollapseMonitor,
    RankCollapseMonitor,
    RankDashboard,
    TruncationMonitor,
    WeightRankMonitor,
)
from tests.models import CLASSES, Classifier
from tests.training import Recorder, assert_identical, fit, outcome

# By the group of their tags: two reports each in six steps, the fewest of a case, or in two runs of validation.
MONITORS: dict[str, Callable[[], pl.Callback]] = {
    "weight_rank": lambda: WeightRankMonitor(every_n_steps=2, change=True),
    "gradient_rank": lambda: GradientRankMonitor(every_n_steps=2, subspace_rank=2, update=True, moments=True),
    "feature_rank": lambda: FeatureRankMonitor(every_n_steps=1),
    "feature_rank_in_training": lambda: FeatureRankMonitor(
        every_n_steps=2, window=1, data="train", group="feature_rank_in_training"
    ),
    "neural_collapse": lambda: NeuralCollapseMonitor(CLASSES, every_n_steps=3, window=2),
    "rank_collapse": lambda: RankCollapseMonitor(CLASSES, every_n_steps=3, window=2),
    "network_rank": lambda: NetworkRankMonitor(inputs=2, copies=8, num_classes=CLASSES),
    "truncation": lambda: TruncationMonitor(rtols=[0.3]),
}

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "fused AdamW": partial(torch.optim.AdamW, lr=0.01, fused=True),
    "foreach Adam": partial(torch.optim.Adam, lr=0.01, foreach=True),
}


class Configuration(NamedTuple):
    """A way to train.

    Args:
        precision: Of Lightning; "16-mixed" with a GradScaler on the CPU.
        accumulate: Batches a step.
        strategy: "one" process, "ddp" or "fsdp2" in two.
        compiled: What is compiled and how: "no", or "model", "model in place", "network", "network in place".
        backend: Of the compiler.
        optimizer: Its name.
    """

    precision: str = "32-true"
    accumulate: int = 1
    strategy: str = "one"
    compiled: str = "no"
    backend: str = ""
    optimizer: str = "SGD"

    def __str__(self) -> str:
        compiled = "" if self.compiled == "no" else f"{self.compiled} by {self.backend}"
        batches = f"{self.accumulate} batches a step" if self.accumulate > 1 else ""
        return ", ".join(part for part in (self.strategy, self.precision, self.optimizer, batches, compiled) if part)


class Network(nn.Sequential):
    """With a ``forward`` of its own, since dynamo leaves alone those of PyTorch."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs)


class Watched(Classifier):
    """Batch normalisation and dropout, so that buffers and the random state move."""

    def __init__(self, optimizer: Callable[..., torch.optim.Optimizer], samples: int) -> None:
        hidden = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 8), nn.Tanh()]
        super().__init__(Network(*hidden, nn.Linear(8, CLASSES)), torch.randn(samples, 6))
        self.optimizer = optimizer

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"].item())  # not in the step, where dynamo meets Lightning's log and gives up

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())


class Sharded(Watched):
    """Over the processes of ``ModelParallelStrategy``."""

    def configure_model(self) -> None:
        if not isinstance(self.network[0].weight, DTensor):
            fully_shard(self.network, mesh=self.device_mesh["data_parallel"])


class Seen(NamedTuple):
    """What a training leaves behind.

    Args:
        outcome: All that a monitor must not change; of sharded tensors this process's parts.
        reports: Steps with readings, by group.
        validated: Groups with readings in a run of validation after training.
        warned: Of monitors that read nothing.
        compiler: How many frames, graphs and graph breaks the compiler had.
    """

    outcome: dict[str, Any]
    reports: dict[str, int]
    validated: set[str]
    warned: list[str]
    compiler: dict[str, int]


def seen(configuration: Configuration, *callbacks: pl.Callback, **options: Any) -> Seen:
    """Train as configured, then validate."""
    torch._dynamo.reset()
    counters.clear()
    pl.seed_everything(0, verbose=False)
    kind = Sharded if configuration.strategy == "fsdp2" else Watched
    model = kind(OPTIMIZERS[configuration.optimizer], samples=32 if configuration.strategy == "one" else 64)
    recorder = Recorder()
    options = {"max_epochs": 2, "logger": recorder} | trainer_options(configuration) | options
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        trainer = fit(compiled(model, configuration), *callbacks, **options)
        left, rows = local_parts(outcome(trainer, model)), list(recorder.rows)
        if configuration.compiled != "model":  # which the trainer has taken apart
            trainer.validate(model, verbose=False)
    texts = [str(warning.message) for warning in warned]
    steps = {(step, tag.split("/")[0]) for step, tag, _ in rows}
    return Seen(
        outcome=left,
        reports=Counter(group for _, group in steps),
        validated={tag.split("/")[0] for _, tag, _ in recorder.rows[len(rows) :]},
        warned=[text for text in texts if "no reading" in text],
        compiler=counts_of_compiler(),
    )


def compiled(model: Watched, configuration: Configuration) -> Any:
    what, backend = configuration.compiled, configuration.backend
    if what == "model":
        return torch.compile(model, backend=backend)
    if what == "model in place":
        model.compile(backend=backend)
    elif what == "network":
        model.network = torch.compile(model.network, backend=backend)
    elif what == "network in place":
        model.network.compile(backend=backend)
    return model


def trainer_options(configuration: Configuration) -> dict[str, Any]:
    options: dict[str, Any] = {"accumulate_grad_batches": configuration.accumulate, "inference_mode": True}
    if configuration.precision == "16-mixed":  # which Lightning makes bfloat16 on a CPU, unless told otherwise
        options["plugins"] = [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))]
    else:
        options["precision"] = configuration.precision
    if configuration.strategy == "ddp":
        options |= {"strategy": DDPStrategy(process_group_backend="gloo"), "devices": 2}
    if configuration.strategy == "fsdp2":
        strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")
        options |= {"strategy": strategy, "devices": 2}
    return options


def counts_of_compiler() -> dict[str, int]:
    breaks = sum(counters["graph_break"].values())
    return {"frames": counters["frames"]["total"], "graphs": counters["stats"]["unique_graphs"], "breaks": breaks}


def local_parts(thing: Any) -> Any:
    if isinstance(thing, DTensor):
        return thing.to_local().detach().clone()
    if isinstance(thing, dict):
        return {key: local_parts(value) for key, value in thing.items()}
    return [local_parts(value) for value in thing] if isinstance(thing, list) else thing


class Verdicts(NamedTuple):
    """What became of each monitor.

    Args:
        of: "identical" where training was the same bit by bit and the monitor reported twice, "changed", "refused", "warned"
            where it read nothing and said why, or "silent".
        errors: Of those that refused.
        watched: What the training with all the others left behind.
        without: What the training without monitors left behind.
    """

    of: dict[str, str]
    errors: dict[str, str]
    watched: Seen
    without: Seen


def verdicts(configuration: Configuration) -> Verdicts:
    """Train without monitors and with all at once that do not refuse."""
    without = seen(configuration)
    errors = {name: error for name in MONITORS if (error := refusal(configuration, MONITORS[name]()))}
    accepted = {name: monitor() for name, monitor in MONITORS.items() if name not in errors}
    watched = seen(configuration, RankDashboard(), *accepted.values())
    assert len(without.outcome["losses"]) == 16
    of = dict.fromkeys(errors, "refused") | {name: verdict(name, watched, without) for name in accepted}
    return Verdicts({name: of[name] for name in MONITORS}, errors, watched, without)


def refusal(configuration: Configuration, monitor: pl.Callback) -> str:
    if configuration.strategy != "fsdp2":
        return ""
    try:
        seen(configuration, monitor, max_steps=0)
    except ValueError as error:
        return str(error)
    return ""


def verdict(name: str, watched: Seen, without: Seen) -> str:
    try:
        assert_identical(watched.outcome, without.outcome)
    except AssertionError:
        return "changed"
    if watched.reports[name] >= 2:
        return "identical"
    names = {"rank_collapse": "weight has no reading"}
    return "warned" if any(names.get(name, f"{name} of ") in text for text in watched.warned) else "silent"


def table(rows: Mapping[str, Mapping[str, str]]) -> str:
    """Configuration x monitor."""
    width = max(map(len, rows))
    lines = [f"{'':<{width}}  " + "  ".join(MONITORS)]
    for configuration, of in rows.items():
        lines.append(f"{configuration:<{width}}  " + "  ".join(f"{of[name]:<{len(name)}}" for name in MONITORS))
    return "\n".join(lines)
