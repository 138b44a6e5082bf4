"""The Ranks tab in a real browser: TensorBoard in a process of its own, and Chromium without a window."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import Browser, FrameLocator, Page, Playwright

__all__ = ["find_browser", "launched", "open_tab", "served", "tab_of"]

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Of a machine without a screen or a graphics card, and of a container without a sandbox.
_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-3d-apis"]


def find_browser() -> str | None:
    """Chromium's or Chrome's program; None if there is none."""
    return next((path for name in _BROWSERS if (path := shutil.which(name))), None)


def launched(driver: Playwright) -> Browser:
    """The browser, without a window."""
    return driver.chromium.launch(executable_path=find_browser(), args=_FLAGS)


@contextmanager
def served(logs: Path, *flags: str) -> Generator[str]:
    """TensorBoard at a free port: its address, as soon as it answers."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--port", "0", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            address = next((found[0] for line in server.stderr if (found := re.search(r"http://\S+/", line))), None)
            if address is None:
                raise RuntimeError(f"Expected TensorBoard to start, but it ended: {' '.join(command)}")
            yield address
        finally:
            server.terminate()


def tab_of(page: Page) -> FrameLocator:
    """What the plugin draws, in its frame."""
    return page.frame_locator("iframe[src*='name=rank_callbacks']")


def open_tab(page: Page, address: str, chosen: Mapping[str, str] | None = None, dark: bool = False) -> FrameLocator:
    """Open the tab with choices in the address, and wait until it shows something."""
    spelled = "".join(f"&p.rank_callbacks.{name}={quote(value, safe='')}" for name, value in (chosen or {}).items())
    page.goto("about:blank")  # or a change behind the # would not load anything
    page.goto(f"{address}?darkMode={str(dark).lower()}#rank_callbacks{spelled}")
    tab = tab_of(page)
    tab.locator(".finding, .main-svg, p.message, p.error").locator("visible=true").first.wait_for()
    tab.locator("main[aria-busy=false]").wait_for()
    return tab
