"""Takes pictures of the Ranks tab and of a report: ``python docs/screenshots.py LOGS``; needs Chromium, and ``make demo``."""

from __future__ import annotations

import argparse
from pathlib import Path

from playwright.sync_api import sync_playwright

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
    arguments.add_argument("logs", type=Path)
    arguments.add_argument("--folder", type=Path, default=IMAGES)
    options = arguments.parse_args()
    with served(options.logs) as address, sync_playwright() as driver:
        page = launched(driver).new_page(viewport={"width": 1280, "height": 760})
        for name, chosen in PICTURES.items():
            open_tab(page, address, chosen, dark=name.endswith("_dark"))
            page.wait_for_timeout(500)  # fonts and transitions
            page.screenshot(path=options.folder / f"ranks_{name}.png")
        page.goto((options.logs / "report.html").absolute().as_uri())
        page.wait_for_timeout(2000)  # for its charts
        page.screenshot(path=options.folder / "report.png")


if __name__ == "__main__":
    main()
