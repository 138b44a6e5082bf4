import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import torch

torch.set_num_threads(1)
# Lightning's ModelParallelStrategy would set it to all cores, for every test that follows.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Some virtual machines announce AMX and kill the process that multiplies bfloat16 with it.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_FP16")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def port_of_its_own() -> Iterator[None]:
    """Lightning leaves the port of a training to those that follow, who would find it in use."""
    yield
    os.environ.pop("MASTER_PORT", None)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What goes to Lightning's log: that of the package which was imported last, and which may propagate or not."""
    logs = [
        logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric")
    ]
    closed = [log for log in logs if not (log.propagate and (log.parent or log).propagate)]
    with ExitStack() as levels:
        for log in logs:
            levels.enter_context(caplog.at_level(logging.INFO, log.name))
        for log in closed:
            log.addHandler(caplog.handler)
        yield caplog
    for log in closed:
        log.removeHandler(caplog.handler)
