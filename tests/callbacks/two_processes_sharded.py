"""Trains sharded models in two processes: ``python -m tests.callbacks.two_processes_sharded FOLDER`` saves what each saw."""

import os
import socket
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.utils.parametrizations import weight_norm

from rank_callbacks import (
    FeatureRankMonitor,
    GradientRankMonitor,
    NeuralCollapseMonitor,
    RankCollapseMonitor,
    TruncationMonitor,
    WeightRankMonitor,
)
from rank_callbacks.callbacks.gathering import shared_rounding_noise
from rank_callbacks.callbacks.lightning import step_axis
from rank_callbacks.callbacks.sharing import shared_singular_values
from rank_callbacks.functional import singular_values_of_each
from rank_callbacks.functional.spectrum import widened
from rank_callbacks.matrices import matrix_views, weight_matrices
from rank_callbacks.matrices.sharded import row_shard, whole
from tests.callbacks.two_processes_features import InOrder, probe
from tests.models import CLASSES, Classifier
from tests.training import Recorder, fit, outcome

MEASURES = ["effective_rank", "stable_rank", "frobenius_norm", "numerical_rank"]
# Tall ones whose Gram matrix travels, others that travel themselves; parts that are uneven, and one that is empty.
SHAPES = {
    "embedding": (5000, 16),
    "tall": (300, 120),
    "wide": (120, 300),
    "square": (64, 64),
    "uneven": (33, 7),
    "row": (1, 16),
    "column": (16, 1),
}


class Odd(nn.Module):
    """Layers whose parts are uneven or empty, a kernel, an embedding, a fused projection and a computed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.uneven = nn.Linear(7, 33)
        self.convolution = nn.Conv1d(3, 5, 2)
        self.embedding = nn.Embedding(5000, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.row = nn.Linear(16, 1)
        self.normed = weight_norm(nn.Linear(51, 66))
        self.tall = nn.Linear(66, 300)
        self.last = nn.Linear(300, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = self.embedding((inputs * 1000).long() % 5000)
        mixed = self.attention(tokens, tokens, tokens)[0].mean(1)
        places = self.convolution(self.uneven(inputs).tanh().unflatten(1, (3, 11))).flatten(1)
        return self.last(self.tall(self.normed(torch.cat([places, self.row(mixed)], 1)).tanh()).tanh())


class Sharded(Classifier):
    """Shards its network over the data-parallel processes of ``ModelParallelStrategy``."""

    def configure_model(self) -> None:
        mesh: DeviceMesh | None = self.device_mesh
        if mesh is not None and not isinstance(self.network.last.weight, DTensor):
            for layer in (self.network.tall, self.network.embedding):
                fully_shard(layer, mesh=mesh["data_parallel"])
            fully_shard(self.network, mesh=mesh["data_parallel"])


class Split(Classifier):
    """Splits two layers of its network between the tensor-parallel processes."""

    def configure_model(self) -> None:
        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        parallelize_module(self.network, self.device_mesh["tensor_parallel"], plan)


class Wholes(pl.Callback):
    """All of every weight, gradient and momentum that a monitor reads, by step."""

    def __init__(self) -> None:
        self.weights: dict[int, dict[str, Tensor]] = {}
        self.gradients: dict[int, dict[str, Tensor]] = {}
        self.moments: dict[int, dict[str, Tensor]] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        self.weights[step_axis(trainer)] = {name: all_of(p) for name, p in pl_module.named_parameters()}

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        self.gradients[step_axis(trainer)] = {name: all_of(p.grad) for name, p in pl_module.named_parameters()}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        state = trainer.optimizers[0].state
        self.moments[max(self.gradients)] = {name: all_of(state[p]["exp_avg"]) for name, p in pl_module.named_parameters()}

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.on_train_batch_start(trainer, pl_module)


class Save(pl.Callback):
    """Writes what a process is left with when its training ends."""

    def __init__(self, path: Path, wholes: Wholes | None = None) -> None:
        self.path, self.wholes = path, wholes

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        metrics = {tag: value.item() for tag, value in trainer.callback_metrics.items() if is_ours(tag)}
        rows = {(s, tag): value for logger in trainer.loggers for s, tag, value in logger.rows if is_ours(tag)}
        seen = {"outcome": local_parts(outcome(trainer, pl_module)), "metrics": metrics, "rows": rows}
        if self.wholes:
            seen |= {"weights": self.wholes.weights, "gradients": self.wholes.gradients, "moments": self.wholes.moments}
        torch.save(seen, f"{self.path}-{trainer.global_rank}.pt")


def is_ours(tag: str) -> bool:
    return tag.split("/")[0].endswith(("_rank", "_collapse"))


def all_of(tensor: Tensor) -> Tensor:
    return tensor.full_tensor().detach().clone() if isinstance(tensor, DTensor) else tensor.detach().clone()


def local_parts(thing: Any) -> Any:
    if isinstance(thing, DTensor):
        return thing.to_local().detach().clone()
    if isinstance(thing, dict):
        return {key: local_parts(value) for key, value in thing.items()}
    return [local_parts(value) for value in thing] if isinstance(thing, list) else thing


def odd(kind: type[Classifier] = Sharded) -> Classifier:
    return kind(Odd(), torch.rand(16, 7))


def split() -> Classifier:
    layers = nn.Sequential(nn.Linear(6, 34), nn.Tanh(), nn.Linear(34, 20), nn.Tanh(), nn.Linear(20, CLASSES))
    return Split(layers, torch.randn(12, 6))


def monitors() -> list[pl.Callback]:
    weights = WeightRankMonitor(MEASURES, every_n_steps=1, change=True)
    return [weights, GradientRankMonitor(MEASURES, every_n_steps=1, subspace_rank=2, update=True, moments=True)]


def two(data: int = 2, tensor: int = 1) -> ModelParallelStrategy:
    return ModelParallelStrategy(data, tensor, process_group_backend="gloo")


def run(
    path: Path, model: Callable[[], Classifier], *callbacks: pl.Callback, split: bool = False, **options: Any
) -> pl.Trainer:
    pl.seed_everything(0, verbose=False)
    strategy = two(1, 2) if split else two()
    save = Save(path, next((callback for callback in callbacks if isinstance(callback, Wholes)), None))
    return fit(model(), *callbacks, save, logger=Recorder(), devices=2, strategy=strategy, **options)


class Traffic:
    """Counts the bytes that this process hands to collective operations, by operation."""

    def __init__(self) -> None:
        self.bytes = {"all_reduce": 0, "reduce": 0, "gather": 0}

    @contextmanager
    def counted(self) -> Generator[None]:
        kept = {name: getattr(distributed, name) for name in self.bytes}
        for name, function in kept.items():
            setattr(distributed, name, self._counting(name, function))
        try:
            yield
        finally:
            for name, function in kept.items():
                setattr(distributed, name, function)

    def _counting(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counting(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.bytes[name] += tensor.numel() * tensor.itemsize
            return function(tensor, *args, **kwargs)

        return counting


def spectra_of(matrices: Mapping[str, Tensor], placements: list[Any], mesh: DeviceMesh) -> dict[str, dict[str, Any]]:
    """Spectra and noise of sharded matrices next to those of the same matrices in one process, and what it took."""
    traffic = Traffic()
    sharded = {name: distribute_tensor(matrix, mesh, placements) for name, matrix in matrices.items()}
    settled = {name: matrix_views(name, nn.Linear(1, 1), matrix)[name] for name, matrix in sharded.items()}
    with traffic.counted():
        values = shared_singular_values(settled)
    noise = {name: shared_rounding_noise(matrix, torch.bfloat16).item() for name, matrix in settled.items()}
    products = {}
    for name, matrix in sharded.items():
        rows, total = row_shard(matrix)
        products[name] = total(widened(rows).mH @ widened(rows).sum(1))
    return {"values": values, "noise": noise, "bytes": traffic.bytes, "products": products}


def pieces(folder: Path, rank: int) -> None:
    """What there is to sharing besides training."""
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    matrices = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    seen = {f"cut along {dim}": spectra_of(matrices, [Shard(dim)], mesh) for dim in (0, 1)}
    types = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64, "complex64": torch.complex64}
    of_types = {name: matrices["tall"].to(dtype) for name, dtype in types.items()}
    seen["types"] = spectra_of(of_types, [Shard(0)], mesh)
    spoilt = {name: matrix.clone() for name, matrix in matrices.items()}
    for matrix in spoilt.values():
        matrix[-1, -1] = torch.nan
    seen["spoilt"] = {"values": shared_singular_values({n: distribute_tensor(m, mesh, [Shard(0)]) for n, m in spoilt.items()})}
    impossible = DTensor.from_local(torch.zeros(1, 1).expand(5, 10**16), mesh, [Shard(0)], run_check=False)
    possible = distribute_tensor(torch.eye(3), mesh, [Shard(0)])
    seen["failed"] = {"values": shared_singular_values({"impossible": impossible, "possible": possible})}
    seen["refused"] = {"values": shared_singular_values({"owned": possible, "other": possible}, fails_on_first)}
    seen["kernels"] = kernels(mesh)
    seen["adapters"] = adapters(mesh)
    torch.save(seen | {"matrices": matrices, "of_types": of_types}, folder / f"pieces-{rank}.pt")


def fails_on_first(matrices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if distributed.get_rank() == 0 and matrices:
        raise RuntimeError
    return singular_values_of_each(matrices)


def kernels(mesh: DeviceMesh) -> list[dict[str, Any]]:
    found = []
    torch.manual_seed(1)
    for conv in (nn.Conv2d(4, 5, 3), nn.ConvTranspose2d(4, 5, 3), nn.Conv2d(4, 6, 3, groups=2), nn.Conv1d(5, 4, 2)):
        for dim in (0, 1):
            for how in ("filters", "slices"):
                kernel = distribute_tensor(conv.weight.data, mesh, [Shard(dim)])
                ((name, view),) = matrix_views("weight", conv, kernel, how).items()
                expected = matrix_views("weight", conv, conv.weight.data, how)[name]
                stays = isinstance(view, DTensor)
                found.append({"conv": f"{conv} cut along {dim} as {how}", "view": whole(view), "is": expected, "stays": stays})
    return found


def adapters(mesh: DeviceMesh) -> dict[str, Tensor]:
    """A model with an adapter, a pruned layer and a spectrally normed one, whole and sharded."""
    torch.manual_seed(2)
    model = nn.ModuleDict(
        {
            "lora_A": nn.Linear(9, 3, bias=False),
            "lora_B": nn.Linear(3, 5, bias=False),
            "pruned": nn.utils.prune.l1_unstructured(nn.Linear(7, 6), "weight", 0.3),
            "old": nn.utils.spectral_norm(nn.Linear(7, 6)),
            "new": nn.utils.parametrizations.spectral_norm(nn.Linear(7, 6)),
            "bilinear": nn.Bilinear(3, 4, 5),
            "recurrent": nn.GRU(3, 5),
        }
    )
    before = {name: matrix.clone() for name, matrix in weight_matrices(model).items()}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(distribute_tensor(parameter.data, mesh, [Shard(0)])))
    return {"before": before, "after": {name: whole(matrix) for name, matrix in weight_matrices(model).items()}}


def grid(folder: Path, rank: int) -> None:
    """Four processes in two rows and two columns."""
    mesh = init_device_mesh("cpu", (2, 2))
    torch.manual_seed(0)
    matrices = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    ways = {"both": [Shard(0), Shard(1)], "hybrid": [Replicate(), Shard(0)], "copies": [Replicate(), Replicate()]}
    seen = {name: spectra_of(matrices, way, mesh) for name, way in ways.items()}
    named = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    model = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 16))
    before = {name: matrix.clone() for name, matrix in weight_matrices(model).items()}
    parallelize_module(model, named["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=named["data"])
    seen["model"] = {"before": before, "values": shared_singular_values(weight_matrices(model))}
    torch.save(seen | {"matrices": matrices}, folder / f"grid-{rank}.pt")


def training(folder: Path, rank: int) -> None:
    run(folder / "unwatched", odd)
    wholes = Wholes()
    trainer = run(folder / "sharded", odd, *monitors(), wholes)
    trainer.save_checkpoint(folder / "checkpoint")
    run(folder / "resumed", odd, *monitors(), Wholes(), ckpt_path=str(folder / "checkpoint"), max_epochs=2)
    run(folder / "split", split, *monitors(), Wholes(), split=True)
    refused = {}
    for monitor in (FeatureRankMonitor(), NeuralCollapseMonitor(CLASSES), RankCollapseMonitor(CLASSES), TruncationMonitor()):
        try:
            run(folder / "refused", split, monitor, split=True)
        except ValueError as error:
            refused[type(monitor).__name__] = str(error)
    torch.save(refused, folder / f"refusals-{rank}.pt")


class InParts(InOrder):
    """Its network is sharded where it has two processes."""

    def configure_model(self) -> None:
        if not self.in_one and not isinstance(self.network[0].weight, DTensor):
            mesh = self.device_mesh["data_parallel"]
            fully_shard(self.network[4], mesh=mesh)
            fully_shard(self.network, mesh=mesh)

    training_step = Classifier.training_step


def features(folder: Path, rank: int) -> None:
    """Training with monitors of features, and without, in as many processes as there are."""
    processes = distributed.get_world_size()
    for data in ("train", "val", "loader", "unwatched"):
        pl.seed_everything(0, verbose=False)
        callbacks = [] if data == "unwatched" else monitors_of_features(probe() if data == "loader" else data)
        options = {
            "devices": processes,
            "strategy": two() if processes == 2 else "auto",
            "max_epochs": 2,
            "use_distributed_sampler": False,
        }
        save = Save(folder / f"features-{data}-{processes}")
        fit(InParts(processes == 1), *callbacks, save, logger=Recorder(), **options)


def monitors_of_features(data: Any) -> list[pl.Callback]:
    layers, window = ["network.0", "network.1"], 3 if data == "train" else None
    collapse = NeuralCollapseMonitor(CLASSES, layers, every_n_steps=4, window=3, data=data)
    return [collapse, FeatureRankMonitor(layers=layers, every_n_steps=4, window=window, data=data)]


def process(rank: int, folder: Path, port: int, processes: int, work: Callable[[Path, int], None]) -> None:
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), MASTER_ADDR="localhost", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    distributed.init_process_group("gloo", rank=rank, world_size=processes)
    work(folder, rank)
    distributed.barrier()
    distributed.destroy_process_group()


def start(folder: Path, processes: int, work: Callable[[Path, int], None]) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(process, (folder, port, processes, work), processes, start_method="fork")


if __name__ == "__main__":
    for number, task in ((2, pieces), (4, grid), (2, training), (1, features), (2, features)):
        start(Path(sys.argv[1]), number, task)
