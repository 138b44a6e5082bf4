"""The README says what is true: its code runs, prints what it says, and its table lists every measure."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from rank_callbacks.catalog import MEASURES

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```(?:\n\n```\n(.*?)```)?", README, flags=re.DOTALL)


@pytest.mark.parametrize(("code", "expected"), BLOCKS, ids=range(len(BLOCKS)))
def test_code_runs_and_prints_what_stands_below_it(code: str, expected: str) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    assert not expected or printed.getvalue() == expected


def test_some_code_was_found() -> None:
    assert len(BLOCKS) >= 2
    assert any(expected for _, expected in BLOCKS)


def test_every_measure_is_in_the_table() -> None:
    listed = re.findall(r"^\| `(\w+)` \| ", README, flags=re.MULTILINE)
    assert {re.sub(r"_10$", "", name) for name in listed} >= set(MEASURES)


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)", README))
def test_every_link_leads_to_a_file(link: str) -> None:
    assert (Path(__file__).parents[1] / link).exists()


@pytest.mark.parametrize("target", re.findall(r"^make ([\w-]+)", README, flags=re.MULTILINE))
def test_every_command_is_a_target_of_the_makefile(target: str) -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
