from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.tensorboard_plugin.logs import Run, provider, train

DECAYS = {"decay=0": 0.0, "decay=0.01": 0.01, "<img src=x onerror=alert(1)>": 0.1}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="session")
def runs(folder: Path) -> dict[str, Run]:
    return {name: train(folder, name, decay) for name, decay in DECAYS.items()}


@pytest.fixture(scope="session", params=["fast", "slow"])
def data_provider(request: pytest.FixtureRequest, folder: Path, runs: dict[str, Run]) -> Generator[Any]:
    with provider(request.param, folder, rank_callbacks=500) as opened:
        yield opened
