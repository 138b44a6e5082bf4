"""With the client of Weights & Biases, against a server that answers it as theirs was seen to be asked."""

import math
from pathlib import Path
from typing import Any

import pandas
import pytest
from pandas.testing import assert_frame_equal

from rank_callbacks.cli import main
from rank_callbacks.compare import load, read_runs
from rank_callbacks.compare.run import Run
from rank_callbacks.tags import Tag
from tests.compare.wandb_server import Logged, Refusal, logged_offline, serving

# The real client, with its own service process, against a server of ours.
pytestmark = pytest.mark.slow

PROJECT = "wandb://entity/project"
RANK = Tag("weight_rank", "effective_rank", "head.weight")


def row(step: int, **more: object) -> dict[str, Any]:
    return {"_step": step, "_timestamp": 1.0, "trainer/global_step": 10 * step, str(RANK): 3.0, "val_acc": 0.5, **more}


def read(tmp_path: Path, *runs: Logged) -> list[Run]:
    with serving(runs, tmp_path):
        return read_runs(PROJECT)


def cells(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Without names of runs, by step and tag; values as TensorBoard has them."""
    frame = frame.astype({"group": "str", "measure": "str", "layer": "str", "value": "float32"})
    parts = ["step", "group", "measure", "layer"]
    return frame.drop(columns="run").sort_values(parts).reset_index(drop=True)


def test_a_training_reads_back_from_the_server_as_from_its_files(trained: tuple[Path, Any, Any], tmp_path: Path) -> None:
    (folder,) = trained[0].glob("wandb/offline-run-*")
    with serving([logged_offline(folder)], tmp_path):
        online = load(PROJECT)
    assert set(online["run"]) == {"happy-tree-1"}
    assert online.attrs["notes"] == {}
    assert len(online) > 400
    for other in (folder, trained[0] / "event files", trained[0] / "table"):
        assert_frame_equal(cells(online), cells(load(other)), check_exact=True)


def test_numbers_that_json_has_not_and_values_that_are_none(tmp_path: Path) -> None:
    strange = {
        str(RANK): "NaN",
        "loss": "Infinity",
        "low": "-Infinity",
        "table": {"_type": "table-file", "nrows": 2},
        "text": "1.5",
    }
    (run,) = read(tmp_path, Logged("a", [row(1), row(2, **strange)], {"lr": 0.1}))
    assert [(each.step, each.tag) for each in run.rows] == [(10, RANK), (20, RANK)]
    assert math.isnan(run.rows[1].value)
    assert run.metrics == {"val_acc": [(10, 0.5), (20, 0.5)], "loss": [(20, math.inf)], "low": [(20, -math.inf)]}


def test_settings_are_flat_and_those_of_wandb_left_out(tmp_path: Path) -> None:
    (run,) = read(tmp_path, Logged("a", [row(1)], {"optimizer": {"lr": 0.1, "name": "SGD"}, "seed": 3}))
    assert run.hyperparameters == {"optimizer/lr": 0.1, "optimizer/name": "SGD", "seed": 3.0}


def test_history_of_many_pages(tmp_path: Path) -> None:
    """The client asks for a thousand steps at once."""
    (run,) = read(tmp_path, Logged("a", [row(step) for step in range(2500)], {"lr": 0.1}))
    assert [each.step for each in run.rows] == [10 * step for step in range(2500)]


def test_states_are_told_and_names_made_unique(tmp_path: Path) -> None:
    runs = [
        Logged("a", [row(1)], {"lr": 0.1}, "one"),
        Logged("b", [row(1)], {"lr": 0.1}, "one", "crashed"),
        Logged("c", [row(1)], {"lr": 0.1}, "two", "running"),
        Logged("d", [], {"lr": 0.1}, "empty"),
        Logged("e", [row(1)], {"lr": 0.1}, ""),
    ]
    assert {run.name: list(run.notes) for run in read(tmp_path, *runs)} == {
        f"{PROJECT}/a": [],
        f"{PROJECT}/b": ["Has not finished: its state is 'crashed'."],
        "two": ["It has not ended: running."],
        "empty": ["Empty: it has logged no numbers."],
        "e": [],
    }


def test_folders_and_projects_together(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "metrics.csv").write_text(f"step,{RANK}\n10,3\n")
    with serving([Logged("b", [row(1)])], tmp_path / "cache"):
        runs = read_runs([tmp_path, Path(PROJECT)])
    assert [(run.name, run.kind) for run in runs] == [
        ("a", "csv"),
        ("happy-tree-1", "wandb"),
    ]


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving([Logged("a", [row(1)], {"weight_decay": 0.25}, "<b>one</b>")], tmp_path):
        main(["compare", PROJECT, "--quiet"])
    output = capsys.readouterr().out
    assert "<b>one</b>" in output
    assert "0.25" in output


def test_history_that_the_server_refuses_is_a_note(tmp_path: Path) -> None:
    with serving([Logged("a", [row(1)], {"lr": 0.1})], tmp_path, Refusal(200, "too much", "HistoryPage")):
        (run,) = read_runs(PROJECT)
    assert run.notes[0].startswith("Cannot be read: its history cannot be read: ")
    assert "too much" in run.notes[0]


@pytest.mark.parametrize(
    ("address", "runs", "refusal", "kind", "message"),
    [
        ("wandb://entity", [], None, ValueError, "as wandb://entity/project, got 'wandb://entity'"),
        ("wandb://entity/project/abc", [], None, ValueError, "as wandb://entity/project, got"),
        ("wandb://entity/other", [], None, ValueError, "got 'wandb://entity/other': Could not find project other"),
        (PROJECT, [], None, ValueError, "Expected runs in wandb://entity/project, found none"),
        (
            PROJECT,
            [],
            Refusal(200, "no access", "Runs("),
            ConnectionError,
            "project cannot be read: .*no access",
        ),
        (PROJECT, [], Refusal(401, "who are you"), PermissionError, "Expected to be logged in .*who are you.* `wandb login`"),
    ],
    ids=["entity alone", "run", "no such project", "no run", "refused", "key"],
)
def test_errors_are_words(
    address: str, runs: list[Logged], refusal: Refusal | None, kind: type[Exception], message: str, tmp_path: Path
) -> None:
    with serving(runs, tmp_path, refusal), pytest.raises(kind, match=message):
        read_runs(address)


@pytest.mark.parametrize("key", ["", "short"])
def test_without_a_key(key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving([], tmp_path, key=key), pytest.raises(SystemExit):
        main(["compare", PROJECT])
    assert "Expected to be logged in to Weights & Biases for wandb://entity/project" in capsys.readouterr().err
