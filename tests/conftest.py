import logging
import os
from collections.abc import Iterator

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
    """What goes to Lightning's log, which does not propagate."""
    log = logging.getLogger("pytorch_lightning")
    log.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, "pytorch_lightning"):
        yield caplog
    log.removeHandler(caplog.handler)
