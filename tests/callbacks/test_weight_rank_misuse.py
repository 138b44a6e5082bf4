from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard

from rank_callbacks import WeightRankMonitor
from tests.models import Classifier, convnet, mlp
from tests.training import fit


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            {"measures": ["rank"]}, r"'rank'\. Choose from stable_rank, .*relative_distance_to_rank_<k>", id="measure"
        ),
        pytest.param({"measures": ["distance_to_rank"]}, "needs its k in the name: distance_to_rank_10", id="no parameter"),
        pytest.param({"measures": ["energy_rank_2"]}, r"a share in \(0, 1\] .*, got 2", id="bad parameter"),
        pytest.param({"every_n_steps": 0}, "every_n_steps to be a whole number from 1, got 0", id="every 0"),
        pytest.param({"every_n_steps": -5}, "every_n_steps to be a whole number from 1, got -5", id="every -5"),
        pytest.param({"every_n_steps": 2.5}, r"every_n_steps to be a whole number from 1, got 2\.5", id="every 2.5"),
        pytest.param({"conv": "rows"}, "'filters', 'slices' or .*'circular_32x32', got 'rows'", id="conv"),
        pytest.param({"scalars": "none"}, "'auto' or 'all', got 'none'", id="scalars"),
    ],
)
def test_refused_at_construction(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightRankMonitor(**arguments)


class Scale(nn.Module):
    """Not one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs[:, :3] * self.weight


def without_matrices() -> pl.LightningModule:
    return Classifier(Scale(), torch.randn(12, 6))


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        pytest.param(mlp, {"layers": "decoder"}, r"'decoder'.*Choose from network\.0\.weight", id="pattern"),
        pytest.param(mlp, {"layers": ["network.0", "network.1"]}, r"'network\.1'", id="one of two patterns"),
        pytest.param(mlp, {"layers": []}, "at least one pattern", id="no pattern"),
        pytest.param(mlp, {"layers": lambda name: False}, "accept the name of a matrix", id="function"),
        pytest.param(without_matrices, {}, "at least one weight matrix", id="no matrix"),
        pytest.param(convnet, {"conv": "circular_2x2"}, r"network\.0\.weight, \(3, 3\)", id="images below the kernel"),
        pytest.param(convnet, {"conv": "circular_8"}, r"2 dimensions", id="images of one dimension"),
    ],
)
def test_refused_when_fitting_starts(model: Any, arguments: dict[str, Any], message: str) -> None:
    training, monitor = model(), WeightRankMonitor(every_n_steps=lambda step: False, **arguments)
    with pytest.raises(ValueError, match=message):
        fit(training, monitor)
    assert training.losses == []


class Sharded(Classifier):
    def configure_model(self) -> None:
        fully_shard(self.network, mesh=self.device_mesh["data_parallel"])


def test_sharding_over_one_process_is_measured() -> None:
    model = Sharded(mlp().network, torch.randn(12, 6))
    strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1, process_group_backend="gloo")
    try:
        trainer = fit(model, WeightRankMonitor(), strategy=strategy, devices=1)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    assert "weight_rank/effective_rank/network.0.weight" in trainer.callback_metrics
