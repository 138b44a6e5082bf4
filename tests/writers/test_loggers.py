from importlib import import_module
from pathlib import Path

import pytest

from rank_callbacks.writers.loggers import kind_of


@pytest.mark.parametrize("namespace", ["pytorch_lightning", "lightning.pytorch"])
@pytest.mark.parametrize(
    ("name", "kind"), [("TensorBoardLogger", "tensorboard"), ("WandbLogger", "wandb"), ("CSVLogger", "other")]
)
def test_kind_of_a_logger_and_of_one_made_from_it(namespace: str, name: str, kind: str, tmp_path: Path) -> None:
    logger = getattr(import_module(f"{namespace}.loggers"), name)
    own = type("Own", (logger,), {})
    options = {"offline": True} if kind == "wandb" else {}
    assert kind_of(logger(save_dir=tmp_path, **options)) == kind
    assert kind_of(own(save_dir=tmp_path, **options)) == kind
