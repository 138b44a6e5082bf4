"""The README and the pages of docs say what is true: their code runs, prints what they say, their links lead somewhere."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from rank_callbacks.catalog import MEASURES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {page: page.read_text(encoding="utf-8") for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
BLOCKS = [
    pytest.param(code, expected, id=f"{page.name}-{place}")
    for page, text in PAGES.items()
    for place, (code, expected) in enumerate(re.findall(r"```python\n(.*?)```(?:\n\n```\n(.*?)```)?", text, flags=re.DOTALL))
]
LINKS = [(page, link) for page, text in PAGES.items() for link in re.findall(r"\]\((?!http)([^)#]+)", text)]


@pytest.mark.parametrize(("code", "expected"), BLOCKS)
def test_code_runs_and_prints_what_stands_below_it(code: str, expected: str) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    assert not expected or printed.getvalue() == expected


def test_some_code_was_found() -> None:
    assert len(BLOCKS) >= 2
    assert any(block.values[1] for block in BLOCKS)


def test_every_measure_is_in_the_table() -> None:
    listed = re.findall(r"^\| `(\w+)` \| ", README, flags=re.MULTILINE)
    assert {re.sub(r"_10$", "", name) for name in listed} >= set(MEASURES)


@pytest.mark.parametrize(("page", "link"), LINKS, ids=lambda value: getattr(value, "name", value))
def test_every_link_leads_to_a_file(page: Path, link: str) -> None:
    assert (page.parent / link).exists()


@pytest.mark.parametrize("target", re.findall(r"^make ([\w-]+)", README, flags=re.MULTILINE))
def test_every_command_is_a_target_of_the_makefile(target: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
