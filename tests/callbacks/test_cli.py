from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from rank_callbacks import WeightRankMonitor
from tests.models import Training, two_layers

QUIET = [
    "accelerator=cpu",
    "max_epochs=1",
    "enable_checkpointing=false",
    "enable_progress_bar=false",
    "enable_model_summary=false",
]


@pytest.fixture(params=["pytorch_lightning", "lightning.pytorch"])
def namespace(request: pytest.FixtureRequest) -> str:
    return request.param


def fitted(namespace: str, path: Path, *arguments: str) -> tuple[Any, WeightRankMonitor]:
    """The command line's trainer after ``fit``, and the monitor in it."""

    class Model(Training, import_module(namespace).LightningModule):
        def __init__(self) -> None:
            super().__init__(two_layers(), torch.randn(12, 6))

    common = [f"--trainer.{option}" for option in [*QUIET, f"default_root_dir={path}"]]
    cli = import_module(f"{namespace}.cli").LightningCLI(Model, args=["fit", *arguments, *common])
    (monitor,) = (callback for callback in cli.trainer.callbacks if isinstance(callback, WeightRankMonitor))
    return cli.trainer, monitor


def written(path: Path, text: str) -> str:
    (path / "config.yaml").write_text(text)
    return f"--config={path / 'config.yaml'}"


def ranks(trainer: Any) -> set[str]:
    return {tag for tag in trainer.callback_metrics if tag.startswith("weight_")}


def expected_ranks(measures: list[str], layers: list[str], *groups: str) -> set[str]:
    names = [*layers, "mean_over_layers", "min_over_layers", "max_over_layers"]
    return {f"{group}/{measure}/{name}" for group in groups for measure in measures for name in names}


DEFAULT = ["effective_rank", "stable_rank", "numerical_rank"]
BOTH = ["network.0.weight", "network.2.weight"]


def test_yaml(namespace: str, tmp_path: Path) -> None:
    config = """
    trainer:
      callbacks:
        - class_path: rank_callbacks.WeightRankMonitor
          init_args:
            measures: [stable_rank, energy_rank_0.9]
            layers: [network.2]
            every_n_steps: 9
            conv: slices
            change: true
            scalars: all
    """
    trainer, monitor = fitted(namespace, tmp_path, written(tmp_path, config))
    tags = expected_ranks(["stable_rank", "energy_rank_0.9"], ["network.2.weight"], "weight_rank", "weight_change_rank")
    assert ranks(trainer) == tags
    assert [step for step in range(20) if monitor.cadence(step)] == [0, 9, 18]
    assert (monitor.conv, monitor.change, monitor.scalars) == ("slices", True, "all")


def test_yaml_without_arguments(namespace: str, tmp_path: Path) -> None:
    config = "{trainer: {callbacks: [{class_path: rank_callbacks.WeightRankMonitor}]}}"
    trainer, monitor = fitted(namespace, tmp_path, written(tmp_path, config))
    assert ranks(trainer) == expected_ranks(DEFAULT, BOTH, "weight_rank")
    assert monitor.cadence.is_auto
    assert monitor.cadence(0)


def test_yaml_with_a_schedule(namespace: str, tmp_path: Path) -> None:
    config = """
    trainer:
      callbacks:
        - class_path: rank_callbacks.WeightRankMonitor
          init_args:
            layers: network
            every_n_steps: {class_path: rank_callbacks.log_spaced, init_args: {per_decade: 5}}
    """
    trainer, monitor = fitted(namespace, tmp_path, written(tmp_path, config))
    assert ranks(trainer) == expected_ranks(DEFAULT, BOTH, "weight_rank")
    assert [step for step in range(50) if monitor.cadence(step)] == [0, 1, 2, 3, 4, 6, 10, 16, 25, 40]


def test_command_line(namespace: str, tmp_path: Path) -> None:
    trainer, monitor = fitted(
        namespace,
        tmp_path,
        "--trainer.callbacks+=rank_callbacks.WeightRankMonitor",
        "--trainer.callbacks.every_n_steps=9",
        "--trainer.callbacks.measures=[stable_rank]",
        "--trainer.callbacks.layers=network.0",
    )
    assert ranks(trainer) == expected_ranks(["stable_rank"], ["network.0.weight"], "weight_rank")
    assert [step for step in range(20) if monitor.cadence(step)] == [0, 9, 18]


def test_config_that_the_command_line_saves_can_be_run_again(namespace: str, tmp_path: Path) -> None:
    config = """
    trainer:
      callbacks:
        - class_path: rank_callbacks.WeightRankMonitor
          init_args:
            measures: [stable_rank]
            every_n_steps: {class_path: rank_callbacks.log_spaced, init_args: {per_decade: 2}}
    """
    trainer, first = fitted(namespace, tmp_path / "first", written(tmp_path, config))
    _, second = fitted(namespace, tmp_path / "second", f"--config={Path(trainer.log_dir) / 'config.yaml'}")
    assert first.cadence.schedule == second.cadence.schedule
    assert first.measures == second.measures == ["stable_rank"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("every_n_steps=0", "whole number from 1, got 0"),
        ("measures=[rank]", "name of a measure, got 'rank'"),
        ("scalars=few", "few"),
    ],
)
def test_misuse_is_told(
    namespace: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], argument: str, message: str
) -> None:
    with pytest.raises((SystemExit, ValueError)) as stopped:
        fitted(namespace, tmp_path, "--trainer.callbacks+=rank_callbacks.WeightRankMonitor", f"--trainer.callbacks.{argument}")
    assert message in capsys.readouterr().err + str(stopped.value)
