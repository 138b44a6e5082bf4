"""``rank-callbacks compare``: a sweep's runs as a table, a report and a long table."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rank_callbacks.compare.cells import ABOUT_SEEDS
from rank_callbacks.compare.choice import check_hyperparameter
from rank_callbacks.compare.final import final_table
from rank_callbacks.compare.load import read_runs
from rank_callbacks.compare.long_table import SUFFIXES, write_long_table
from rank_callbacks.compare.run import Run
from rank_callbacks.compare.seeds import SEED, alike, over_seeds
from rank_callbacks.compare.soundness import problems
from rank_callbacks.compare.terminal import print_table
from rank_callbacks.garbage import uncollected

if TYPE_CHECKING:
    from argparse import _SubParsersAction

__all__ = ["add_compare"]

_X = "weight_decay"


def add_compare(commands: _SubParsersAction[ArgumentParser]) -> None:
    """Add ``compare`` to the commands of a parser."""
    parser = commands.add_parser(
        "compare",
        help="compare runs that any logger has written",
        description="Compare every run at or below some folders, or of a project on W&B.",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PLACE",
        help="where runs are: a folder of TensorBoard, CSVLogger or offline W&B; or wandb://entity/project",
    )
    _add_choices(parser)
    _add_outputs(parser)
    parser.set_defaults(run_command=_compare)


def _add_choices(parser: ArgumentParser) -> None:
    """What is compared, and by what."""
    parser.add_argument("--x", metavar="NAME", help=f"the hyperparameter to compare by ({_X})")
    parser.add_argument(
        "--accuracy",
        metavar="NAME",
        help="the metric to hold ranks against, of which more is better (one whose name has 'acc')",
    )
    parser.add_argument(
        "--where", type=_setting, action="append", default=[], metavar="KEY=VALUE", help="only runs with this hyperparameter"
    )
    parser.add_argument(
        "--seed",
        nargs="?",
        const=SEED,
        metavar="NAME",
        help=f"a row for runs that differ in it alone, their mean with its 95 %% interval ({SEED})",
    )
    parser.add_argument(
        "--any-length", action="store_true", help="runs that end before others have finished, as early stopping leaves them"
    )


def _add_outputs(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        nargs="+",
        type=_output,
        default=[],
        metavar="FILE",
        help="a report (.html; its long table comes with it as .csv unless one is named), the long table (.csv, .parquet)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ArgumentTypeError(f"Expected KEY=VALUE, got {text!r}.")
    return name, value


def _output(text: str) -> Path:
    path = Path(text)
    if path.suffix not in {".html", *SUFFIXES}:
        raise ArgumentTypeError(f"Expected a file with one of the suffixes {['.html', *SUFFIXES]}, got {text!r}.")
    if not path.absolute().parent.is_dir():
        raise ArgumentTypeError(f"Expected a file in a folder that exists, got {text!r}.")
    return path


@uncollected()
def _compare(arguments: Namespace) -> None:
    runs = read_runs(arguments.paths, dict(arguments.where), not arguments.quiet, arguments.any_length)
    x = arguments.x or _X
    _check(runs, arguments.x, arguments.accuracy, arguments.seed)
    _print(runs, x, arguments.accuracy, arguments.seed)
    for path in _with_table(arguments.out):
        _write(runs, x, arguments.accuracy, arguments.seed, path)
        print(f"Wrote {path}")


def _check(runs: Sequence[Run], x: str | None, accuracy: str | None, seed: str | None) -> None:
    for name in (x, seed):
        if name is not None:
            check_hyperparameter(runs, name)
    metrics = sorted({name for run in runs for name in run.metrics})
    if accuracy is not None and accuracy not in metrics:
        raise ValueError(f"Expected a metric that a run has logged, got {accuracy!r}. Choose from {metrics}.")


def _print(runs: Sequence[Run], x: str, accuracy: str | None, seed: str | None) -> None:
    columns, rows = final_table(runs, x, accuracy)
    wrong = problems(runs, x)
    told = {run.name: [*wrong[run.name], *run.remarks] for run in runs}
    if seed:
        groups = alike([run for run in runs if not wrong[run.name]], x, seed)
        print_table(columns, over_seeds(rows, groups), told, sys.stdout, ABOUT_SEEDS)
    else:
        print_table(columns, rows, told, sys.stdout)


def _with_table(paths: Sequence[Path]) -> list[Path]:
    """A report brings its long table, unless one is asked for."""
    if any(path.suffix in SUFFIXES for path in paths):
        return list(paths)
    return [each for path in paths for each in (path, path.with_suffix(".csv"))]


def _write(runs: Sequence[Run], x: str, accuracy: str | None, seed: str | None, path: Path) -> None:
    if path.suffix in SUFFIXES:
        write_long_table(runs, path)
        return
    from rank_callbacks.compare.report import report

    path.write_text(report(runs, x, accuracy, seed), encoding="utf-8")
