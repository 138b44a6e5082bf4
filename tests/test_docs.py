import re
import runpy
from pathlib import Path

from rank_callbacks.catalog import MEASURES

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_of_measures_is_what_the_catalogue_says():
    page = runpy.run_path(str(DOCS / "generate_measures.py"))["page"]()
    written = (DOCS / "measures.md").read_text(encoding="utf-8")
    assert written == page, "docs/measures.md is stale: run `python docs/generate_measures.py`"


def test_every_measure_has_a_section_and_every_link_leads_to_one():
    text = (DOCS / "measures.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## `(\w+)`$", text, flags=re.MULTILINE)
    assert sections == list(MEASURES)
    assert re.findall(r"\]\(#(\w+)\)", text) == sections
