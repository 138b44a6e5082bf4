from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn

from rank_callbacks import gradient_rank_bounds, network_ranks, truncate


@pytest.fixture
def sharded(tmp_path: Path) -> Iterator[nn.Module]:
    """A layer whose parameters know of other processes, though there is but one."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    distributed.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    layer = nn.Linear(6, 5)
    layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [Shard(0)]))
    yield nn.Sequential(layer)
    distributed.destroy_process_group()


def enter_truncate(model: nn.Module) -> Any:
    with truncate(model, rank=1) as table:
        return table


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (enter_truncate, "truncate"),
        (lambda model: network_ranks(model, torch.randn(4, 6)), "network_ranks"),
        (lambda model: gradient_rank_bounds(model, torch.randn(4, 6)), "gradient_rank_bounds"),
    ],
    ids=["truncate", "network_ranks", "gradient_rank_bounds"],
)
def test_what_needs_whole_parameters_refuses_sharded_ones(
    sharded: nn.Module, call: Callable[[nn.Module], Any], name: str
) -> None:
    with pytest.raises(ValueError, match=rf"^{name} needs whole parameters, and 0\.weight is sharded"):
        call(sharded)
