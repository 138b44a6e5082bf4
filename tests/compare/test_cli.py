import re
import subprocess
import sys
from pathlib import Path

import pandas
import pytest

from rank_callbacks.cli import main
from rank_callbacks.compare import load

HEAD = "step,val_acc,loss,weight_rank/effective_rank/head.weight"


def run_of(folder: Path, rank: float, accuracy: float = 0.5, end: int = 9, **settings: object) -> None:
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text(f"{HEAD}\n0,,3,8\n{end},{accuracy},1,{rank}\n")
    (folder / "hparams.yaml").write_text("".join(f"{name}: {value}\n" for name, value in settings.items()))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for weight_decay, ranks in {0: (7.0, 8.0), 0.01: (2.0, 4.0)}.items():
        for seed, rank in enumerate(ranks):
            name = f"wd={weight_decay},seed={seed}"
            run_of(tmp_path / "runs" / name, rank, 0.9 - weight_decay, weight_decay=weight_decay, seed=seed, lr=0.1)
    return tmp_path / "runs"


def table(output: str) -> list[list[str]]:
    """The cells of the printed table, without its headings."""
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in output.splitlines() if line.startswith("│")]


def compare(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    main(["compare", *map(str, arguments)])
    return capsys.readouterr().out


def test_table_has_one_row_a_run(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = compare(capsys, sweep)
    assert [row[:4] for row in table(output)] == [
        ["wd=0,seed=0", "0", "0.9", "7"],
        ["wd=0,seed=1", "0", "0.9", "8"],
        ["wd=0.01,seed=0", "0.01", "0.89", "2"],
        ["wd=0.01,seed=1", "0.01", "0.89", "4"],
    ]
    assert re.search(
        r"weight_decay.*val_acc.*effective rank.*NC1.*TCV ratio.*distance to rank K.*certificate.*share of time", output
    )
    assert {cell for row in table(output) for cell in row[4:]} == {"–"}


def test_any_axis_and_metric(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [row[1:3] for row in table(compare(capsys, sweep, "--x", "lr", "--accuracy", "loss"))] == [["0.1", "1"]] * 4


def test_where_chooses_runs(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = compare(capsys, sweep, "--where", "weight_decay=1e-2", "--where", "seed=1")
    assert [row[0] for row in table(output)] == ["wd=0.01,seed=1"]


def test_seeds_are_averaged(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = table(compare(capsys, sweep, "--seed"))
    assert [row[0] for row in rows] == ["wd=0,seed=0 and 1 more", "wd=0.01,seed=0 and 1 more"]
    assert [row[3] for row in rows] == ["7.5 ± 6.4 (2)", "3 ± 13 (2)"]  # 12.706 · s / √2


def test_a_wrong_run_is_named_and_not_averaged_in(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_of(sweep / "failed", float("nan"), weight_decay=0, seed=2, lr=0.1)
    output = compare(capsys, sweep, "--seed")
    rows = {row[0]: row[3] for row in table(output)}
    assert rows == {
        "wd=0,seed=0 and 1 more": "7.5 ± 6.4 (2)",
        "wd=0.01,seed=0 and 1 more": "3 ± 13 (2)",
        "failed": "NaN",
    }
    assert "failed: 1 of its 2 readings are NaN, the first at step 9" in output


def test_nan_of_a_run_is_in_no_mean_of_seeds(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And stops nothing; the number of runs tells."""
    for folder, accuracy in zip(sorted(sweep.iterdir()), (0.5, "nan", "nan", "inf"), strict=True):
        table = folder / "metrics.csv"
        table.write_text(re.sub(r"^9,[^,]+", f"9,{accuracy}", table.read_text(), flags=re.MULTILINE))
    assert [row[2] for row in table_of_seeds(sweep, capsys)] == ["0.5 (1)", "NaN"]


def table_of_seeds(sweep: Path, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    return table(compare(capsys, sweep, "--seed"))


def test_runs_of_any_length(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_of(sweep / "stopped", 5.0, end=3, weight_decay=0, seed=2, lr=0.1)
    assert "stopped: Ends at step 3" in compare(capsys, sweep)
    output = compare(capsys, sweep, "--any-length", "--seed")
    assert "Ends at" not in output
    assert "(3)" in table(output)[0][3]


def test_table_is_written_as_load_has_it(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sweep.parent / "long.csv"
    compare(capsys, sweep, "--out", path)
    written, frame = pandas.read_csv(path, keep_default_na=False), load(sweep)
    assert written.columns.tolist() == frame.columns.tolist()
    assert written.astype("str").to_numpy().tolist() == frame.astype("str").to_numpy().tolist()
    assert not path.with_suffix(".html").exists()


def test_report_has_a_row_for_the_seeds_of_a_setting(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the table in the terminal."""
    compare(capsys, sweep, "--seed", "--out", sweep.parent / "report.html")
    page = (sweep.parent / "report.html").read_text()
    assert "<td>wd=0,seed=0 and 1 more</td><td>0</td><td>0.9<small>± 0 (2)</small></td><td>7.5<small>± 6.4 (2)</small>" in page


def test_report_brings_its_table(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = compare(capsys, sweep, "--out", sweep.parent / "report.html")
    assert "wd=0.01,seed=1" in (sweep.parent / "report.html").read_text()
    assert len(pandas.read_csv(sweep.parent / "report.csv")) == len(load(sweep))
    assert output.count("Wrote ") == 2


def test_markup_and_control_characters_are_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_of(tmp_path / "[red]a[/red]\x1b[2J", 1.0, weight_decay=0)
    run_of(tmp_path / "b[/]", 1.0, weight_decay="'[bold]'")
    rows = table(compare(capsys, tmp_path))
    assert [row[:2] for row in rows] == [["[red]a[/red]�[2J", "0"], ["b[/]", "[bold]"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "does not exist"),
        (["."], "Looked for TensorBoard's event files"),
        (["runs", "--x", "momentum"], r"got 'momentum'. Choose from \['lr', 'seed', 'weight_decay'\]"),
        (["runs", "--seed", "random_seed"], r"got 'random_seed'. Choose from"),
        (["runs", "--accuracy", "f1"], r"got 'f1'. Choose from \['loss', 'val_acc'\]"),
        (["runs", "--where", "lr"], "Expected KEY=VALUE, got 'lr'"),
        (["runs", "--where", "lr=3"], "Expected a run with lr=3, found none. The runs have lr=0.1"),
        (["runs", "--out", "report.pdf"], r"suffixes \['.html', '.csv', '.parquet'\], got 'report.pdf'"),
        (["runs", "--out", "nowhere/report.html"], "Expected a file in a folder that exists"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (sweep.parent / "empty").mkdir()
    monkeypatch.chdir(sweep.parent / "empty" if arguments == ["."] else sweep.parent)
    with pytest.raises(SystemExit) as end:
        main(["compare", *arguments, "--quiet"] if "--out" in arguments else ["compare", "--quiet", *arguments])
    assert end.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_progress_bar_counts_runs(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", str(sweep)])
    assert "4/4" in capsys.readouterr().err
    main(["compare", str(sweep), "--quiet"])
    assert capsys.readouterr().err == ""


def test_command_compares_without_torch(sweep: Path) -> None:
    script = (
        "import sys; from rank_callbacks.cli import main; main(sys.argv[1:]); "
        "print({'torch', 'lightning', 'pytorch_lightning', 'wandb'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", script, "compare", str(sweep)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_inspect_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["inspect", "--help"])
    assert end.value.code == 0
    assert "--rtol" in capsys.readouterr().out
