import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import save_file
from torch import nn

from rank_callbacks.functional.rank import effective_rank, stable_rank
from rank_callbacks.inspection import InspectionTable, add_arguments, inspect_checkpoint, run
from rank_callbacks.matrices import weight_matrices
from rank_callbacks.truncation import truncate
from tests.models import mlp


class Fused(nn.Module):
    """Attention whose projections are one, as in timm."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 18)
        self.proj = nn.Linear(6, 6)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 1)),
    "conv": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv1d(4, 6, 5), nn.Conv3d(2, 3, 2)),
    "embedding": lambda: nn.Sequential(nn.Embedding(12, 6)),
    "attention": lambda: nn.TransformerEncoderLayer(8, 2, 16),
    "fused": Fused,
    "LSTM": lambda: nn.Sequential(nn.LSTM(6, 5, num_layers=2, proj_size=4)),
    "LSTM bidirectional": lambda: nn.LSTM(6, 5, bidirectional=True),
    "GRU": lambda: nn.Sequential(nn.GRU(6, 5)),
    "RNN": lambda: nn.Sequential(nn.RNN(6, 5)),
    "cell": lambda: nn.Sequential(nn.LSTMCell(6, 5), nn.GRUCell(6, 5)),
    "compiled": lambda: torch.compile(nn.Linear(8, 6)),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.pt"


def saved(content: Any, file: Path) -> InspectionTable:
    torch.save(content, file)
    return inspect_checkpoint(file)


@pytest.mark.parametrize("name", MODELS)
def test_the_matrices_are_those_of_the_model(name: str, file: Path) -> None:
    model = MODELS[name]()
    table = saved(model.state_dict(), file)
    matrices = weight_matrices(model)
    assert {row.layer: row.shape for row in table} == {name: tuple(matrix.shape) for name, matrix in matrices.items()}
    for row in table:
        values = torch.linalg.svdvals(matrices[row.layer].double())
        assert row.effective_rank == pytest.approx(effective_rank(values).item())
        assert row.stable_rank == pytest.approx(stable_rank(values).item())
        assert row.numerical_rank == (values > 1e-2 * values[0]).sum()


@pytest.mark.parametrize("name", MODELS)
def test_saves_what_truncation_saves(name: str, file: Path) -> None:
    model = MODELS[name]()
    torch.save(model.state_dict(), file)
    inspected = inspect_checkpoint(file, rtol=0.5)
    with truncate(model, rtol=0.5) as truncated:
        pass
    assert [row.parameters - row.saved for row in inspected] == [row.factored for row in truncated]
    assert inspected.parameters == truncated.parameters
    assert inspected.saved == truncated.parameters - truncated.factored


def test_a_lightning_checkpoint(tmp_path: Path) -> None:
    module = mlp()
    checkpoints = pl.callbacks.ModelCheckpoint(tmp_path, filename="last")
    trainer = pl.Trainer(max_epochs=1, callbacks=[checkpoints], logger=False, enable_progress_bar=False, accelerator="cpu")
    trainer.fit(module)
    table = inspect_checkpoint(tmp_path / "last.ckpt")
    assert [row.layer for row in table] == ["network.0.weight", "network.2.weight"]
    assert len(torch.load(tmp_path / "last.ckpt", weights_only=True)["optimizer_states"]) == 1


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_the_optimizer_is_passed_over(key: str, file: Path) -> None:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    table = saved({"epoch": 3, "optimizer": optimizer.state_dict(), key: model.state_dict()}, file)
    assert [row.layer for row in table] == ["weight"]


def test_safetensors_and_torch_agree(tmp_path: Path, file: Path) -> None:
    tensors = nn.TransformerEncoderLayer(8, 2, 16).state_dict()
    save_file(tensors, tmp_path / "model.safetensors")
    of_torch = {row.layer: row for row in saved(tensors, file)}
    assert {row.layer: row for row in inspect_checkpoint(tmp_path / "model.safetensors")} == of_torch


def test_without_safetensors(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['safetensors'] = None\n"
        "from rank_callbacks.inspection import inspect_checkpoint\n"
        "inspect_checkpoint('model.safetensors')"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "ImportError: Reading a .safetensors file needs" in process.stderr
    assert "pip install 'rank-callbacks[safetensors]'" in process.stderr


def test_the_table(file: Path) -> None:
    low = torch.diag(torch.tensor([1.0, 1.0, 0.005] + [0.0] * 9))
    torch.save(
        {"head.weight": low, "first.bias": torch.ones(3), "steps": torch.tensor(3), "blocks": torch.ones(2, 3, 3)}, file
    )
    assert str(inspect_checkpoint(file)).splitlines() == [
        "layer        shape      effective  stable  numerical  parameters  saved",
        "head.weight  12 x 12          2.0     2.0          2         144     96",
        "blocks       2 x 3 x 3        2.0     2.0          2          18      6",
        "total                                                        162    102",
    ]
    assert inspect_checkpoint(file, rtol=0.001, layers="head")[0].numerical_rank == 3


def test_rounding_is_not_rank(file: Path) -> None:
    low = (torch.randn(64, 4) @ torch.randn(4, 64)).bfloat16()
    torch.save({"weight": low}, file)
    assert inspect_checkpoint(file, rtol=1e-4)[0].numerical_rank == 4


def test_tied_tensors_appear_once(file: Path) -> None:
    weight = torch.randn(6, 4)
    assert [row.layer for row in saved({"embedding.weight": weight, "head.weight": weight}, file)] == ["embedding.weight"]


def test_heads_of_one_buffer_are_not_tied(file: Path) -> None:
    both = torch.randn(2, 6, 4)
    assert len(saved({"first.weight": both[0], "second.weight": both[1]}, file)) == 2


def test_a_matrix_that_is_not_finite(file: Path) -> None:
    broken = torch.eye(10)
    broken[0, 0] = float("nan")
    row = saved({"weight": broken}, file)[0]
    assert row.numerical_rank != row.numerical_rank
    assert row.effective_rank != row.effective_rank
    assert row.saved == 0


def test_what_is_no_matrix_is_left_out(file: Path) -> None:
    others = {
        "position": torch.ones(1, 7, 4),
        "norm.weight": torch.ones(4),
        "attn.bias": torch.ones(1, 1, 7, 7),
        "mask": torch.ones(7, 7, dtype=torch.bool),
        "weight_g": torch.ones(4, 1),
    }
    assert [row.layer for row in saved({**others, "head.weight": torch.ones(1, 4)}, file)] == ["head.weight"]
    with pytest.raises(ValueError, match="known to be a matrix, got position, norm"):
        saved(others, file)


class Custom:
    """What a checkpoint that pickles more than tensors holds."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {"weight": torch.ones(2, 2)}, "settings": Custom()}, "torch.load refuses it"),
        ({"epoch": 3}, "to be a state dict, or to hold one under state_dict, model_state_dict, model; got dict of epoch"),
        ({}, "got dict of nothing"),
        ([torch.ones(2, 2)], "got list"),
    ],
)
def test_files_that_hold_no_weights(content: Any, message: str, file: Path) -> None:
    with pytest.raises(ValueError, match=message):
        saved(content, file)


@pytest.mark.parametrize(("name", "message"), [("a.ckpt", "torch.load refuses it"), ("a.safetensors", "whole safetensors")])
@pytest.mark.parametrize("content", [b"", b"no checkpoint at all"])
def test_files_of_another_kind(name: str, message: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        inspect_checkpoint(tmp_path / name)


@pytest.mark.parametrize("name", ["none.pt", "none.safetensors"])
def test_no_such_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        inspect_checkpoint(tmp_path / name)


def test_misuse(file: Path) -> None:
    torch.save({"head.weight": torch.eye(3)}, file)
    with pytest.raises(ValueError, match="Expected rtol to be a number from 0, got -1"):
        inspect_checkpoint(file, rtol=-1)
    with pytest.raises(ValueError, match=r"Expected 'body' in layers to match a matrix.*Choose from head\.weight"):
        inspect_checkpoint(file, layers="body")


def test_on_the_command_line(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"head.weight": torch.diag(torch.tensor([1.0] + [0.05] * 9)), "body.weight": torch.eye(3)}, file)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    run(parser.parse_args([str(file), "--rtol", "0.1", "--layers", "head"]))
    printed = capsys.readouterr().out.splitlines()
    assert printed[:-1] == str(inspect_checkpoint(file, 0.1, "head")).splitlines()
    assert printed[1].split() == ["head.weight", "10", "x", "10", "3.7", "1.0", "1", "100", "80"]
    assert printed[-1] == "Truncation to the singular values above 0.1·σ₁ would save 80.0% of these parameters."
    assert "(0.01·σ₁)" in parser.format_help()
