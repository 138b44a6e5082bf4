"""Takes pictures of the Ranks tab and of reports: ``python docs/screenshots.py LOGS``; needs Chromium, and ``make demo``.

``--sweep FOLDER`` takes that of a sweep with seeds, as docs/sweeps.md runs it, and no other.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from benchmarks.ranks_tab import launched, open_tab, served

IMAGES = Path(__file__).with_name("images")
COLLAPSED = "weight_decay=0.01"
# What each picture shows, as the tab's own address spells it.
PICTURES = {
    "depth_profile": {"view": "depth_profile", "group": "weight_rank"},
    "depth_profile_dark": {"view": "depth_profile", "group": "feature_rank", "measure": "centered_effective_rank"},
    "heatmap": {"view": "heatmap", "group": "weight_rank", "run": COLLAPSED},
    "spectrum": {"view": "spectrum", "group": "weight_rank", "run": COLLAPSED, "layer": "net.hidden3.0.weight", "k": "10"},
    "gradient_bound": {"view": "gradient_bound", "run": "weight_decay=0.002"},
    "collapse": {"view": "collapse"},
    "sweep": {"view": "sweep", "group": "weight_rank"},
    "findings": {"view": "findings"},
}


def main() -> None:
    """Take all pictures."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("logs", type=Path, nargs="?")
    arguments.add_argument("--sweep", type=Path)
    arguments.add_argument("--folder", type=Path, default=IMAGES)
    options = arguments.parse_args()
    if (options.logs is None) == (options.sweep is None):
        arguments.error("Expected either the logs of make demo or --sweep.")
    with sync_playwright() as driver:
        page = launched(driver).new_page(viewport={"width": 1280, "height": 760})
        if options.sweep:
            of_report(page, options.sweep / "report.html", options.folder / "report_seeds.png", height=1660)
        else:
            of_tab(page, options.logs, options.folder)
            of_report(page, options.logs / "report.html", options.folder / "report.png")


def of_tab(page: Page, logs: Path, folder: Path) -> None:
    """Every picture of the tab."""
    with served(logs) as address:
        for name, chosen in PICTURES.items():
            open_tab(page, address, chosen, dark=name.endswith("_dark"))
            page.wait_for_timeout(500)  # fonts and transitions
            page.screenshot(path=folder / f"ranks_{name}.png")


def of_report(page: Page, report: Path, picture: Path, height: int = 760) -> None:
    """The top of a report."""
    page.set_viewport_size({"width": 1280, "height": height})
    page.goto(report.absolute().as_uri())
    page.wait_for_timeout(2000)  # for its charts
    page.screenshot(path=picture)


if __name__ == "__main__":
    main()
