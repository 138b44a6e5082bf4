"""How long the Ranks tab takes to show something, and what it costs TensorBoard that never opens it.

Run ``python -m benchmarks.dashboard``. It writes a log of 20 runs, 100 layers and 200 steps, of two measures each of weights
and of gradients, serves it with TensorBoard, and prints the median of some rounds of

- **server**: seconds until the answer of the server to the page's two questions, for names and for the first chart, once
  TensorBoard has read the log;
- **browser**: seconds from the opening of the tab to the first chart on the screen, in Chromium if there is one, with nothing
  cached; TensorBoard's own page has been loaded before;
- **every view** likewise on the server;
- **start**: what importing the plugin adds to ``import tensorboard.main``.

The bars are two seconds for the first view and 0.2 s for the start.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from urllib.request import urlopen

from benchmarks.ranks_tab import find_browser, launched, open_tab, served
from rank_callbacks.tags import Tag

FIRST_VIEW, START = 2.0, 0.2  # seconds
GROUPS, MEASURES = ("weight_rank", "gradient_rank"), ("effective_rank", "stable_rank")
VIEWS = ("depth_profile", "heatmap", "gradient_bound", "sweep", "findings")
DATA = "data/plugin/rank_callbacks"


def write_logs(folder: Path, runs: int, layers: int, steps: int) -> None:
    """Runs as the monitors write them, ranks falling with depth and with the steps."""
    from torch.utils.tensorboard import SummaryWriter

    from rank_callbacks.writers.tensorboard import write_to_tensorboard

    tags = [Tag(group, measure, f"encoder.{i}.weight") for group in GROUPS for measure in MEASURES for i in range(layers)]
    for run in range(runs):
        writer = SummaryWriter(folder / f"weight_decay={run / 1000:g}")
        logger = SimpleNamespace(experiment=writer, _prefix="")
        for step in range(steps):
            level = 100 * (1 - run / runs * step / steps)
            write_to_tensorboard(logger, 10 * step, {tag: level / (1 + i % layers) for i, tag in enumerate(tags)}, {}, {})
        writer.close()


def seconds(action: Callable[[], object], rounds: int) -> float:
    """The median over some rounds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def get(address: str) -> bytes:
    with urlopen(address) as answer:
        return bytes(answer.read())


def wait_until_read(address: str, runs: int, steps: int) -> None:
    """Until TensorBoard has the last step of every run."""
    asked = f"{address}{DATA}/figure?view=depth_profile"
    while True:
        answer = json.loads(get(f"{address}{DATA}/index"))
        if len(answer["runs"]) == runs and json.loads(get(asked))["figure"]["frames"][-1]["name"] == str(10 * (steps - 1)):
            return
        time.sleep(1)


def first_chart(address: str) -> Callable[[], object]:
    def ask() -> None:
        get(f"{address}{DATA}/index")
        get(f"{address}{DATA}/figure?view=depth_profile")

    return ask


def start_up(rounds: int) -> float:
    """Seconds that the plugin's import adds to TensorBoard's, each in a process of its own."""

    def took(statement: str) -> float:
        program = f"import time; import tensorboard.main; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
        run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        return float(run.stdout.split()[-1])

    return statistics.median(took("import rank_callbacks.tensorboard_plugin.plugin") for _ in range(rounds))


def in_browser(address: str, rounds: int) -> float | None:
    """Seconds from the opening of the tab until the first chart is drawn; None without a browser."""
    if find_browser() is None:
        return None
    from playwright.sync_api import sync_playwright

    drawn = "() => performance.getEntriesByName('ranks_drawn')[0].startTime / 1000"
    with sync_playwright() as driver:
        browser = launched(driver)
        times = [open_tab(browser.new_page(), address).locator("body").evaluate(drawn) for _ in range(rounds)]
    return statistics.median(times)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=int, default=20)
    arguments.add_argument("--layers", type=int, default=100)
    arguments.add_argument("--steps", type=int, default=200)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--logs", type=Path, help="logs of these sizes from before, instead of new ones")
    options = arguments.parse_args()
    print(f"start: {start_up(options.rounds):.3f} s (bar {START} s)")
    with TemporaryDirectory() as made:
        folder = options.logs or Path(made)
        if options.logs is None:
            write_logs(folder, options.runs, options.layers, options.steps)
        with served(folder) as address:
            wait_until_read(address, options.runs, options.steps)
            report(address, options.rounds)


def report(address: str, rounds: int) -> None:
    print(f"first view, server: {seconds(first_chart(address), rounds):.2f} s (bar {FIRST_VIEW} s)")
    browser = in_browser(address, rounds)
    print("first view, browser: " + ("no browser" if browser is None else f"{browser:.2f} s (bar {FIRST_VIEW} s)"))
    for view in VIEWS:
        ask = partial(get, f"{address}{DATA}/figure?view={view}")
        print(f"{view}, server: {seconds(ask, rounds):.2f} s, {len(ask()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
