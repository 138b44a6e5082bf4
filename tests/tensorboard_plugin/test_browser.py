"""The Ranks tab as a reader has it: TensorBoard in a process of its own, Chromium, and logs of real runs."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytorch_lightning.loggers import TensorBoardLogger

from benchmarks.ranks_tab import find_browser
from rank_callbacks.tags import Tag
from rank_callbacks.writers.tensorboard import write_to_tensorboard
from tests.tensorboard_plugin.conftest import DECAYS
from tests.tensorboard_plugin.logs import Run

pytest.importorskip("playwright", reason="needs playwright: pip install playwright")
if find_browser() is None:
    pytest.skip("needs Chromium or Chrome: make browser", allow_module_level=True)

from playwright.sync_api import BrowserContext, FrameLocator, Page, expect, sync_playwright

from benchmarks.ranks_tab import launched, open_tab, served, tab_of

MARKUP = "<img src=x onerror=alert(1)>"
LAYERS = ["network.0.weight", "network.2.weight"]
LOADERS = pytest.mark.parametrize("load_fast", ["true", "false"])


@pytest.fixture(scope="module")
def browser() -> Generator[BrowserContext]:
    with sync_playwright() as driver:
        yield launched(driver).new_context(viewport={"width": 1280, "height": 800})  # one, so that files are kept


@pytest.fixture(scope="module")
def address(folder: Path, runs: dict[str, Run]) -> Generator[str]:
    with served(folder) as found:
        yield found


@pytest.fixture
def page(browser: BrowserContext) -> Generator[Page]:
    """A page that fails its test on any error in the console, on any dialogue and on any request elsewhere."""
    complaints: list[str] = []
    page = browser.new_page()
    page.set_default_timeout(8_000)
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(f"dialogue: {dialog.message}"))
    page.on(
        "request",
        lambda request: (
            complaints.append(request.url) if "//localhost" not in request.url and request.url[:4] == "http" else None
        ),
    )
    yield page
    page.close()
    assert complaints == []


def chart(tab: FrameLocator, of: str = "data") -> Any:
    """A part of what plotly shows."""
    return tab.locator(".chart").evaluate(f"chart => JSON.parse(JSON.stringify(chart.{of}))")


def lines(tab: FrameLocator) -> dict[str, list[float]]:
    return {trace["name"]: trace["y"] for trace in chart(tab)}


def settled(tab: FrameLocator) -> None:
    expect(tab.locator("main")).to_have_attribute("aria-busy", "false")


def choose(tab: FrameLocator, label: str, value: str) -> None:
    tab.get_by_label(label, exact=True).select_option(value)
    settled(tab)


def logged(run: Run, measure: str, step: int) -> list[float]:
    return [run.readings[step, f"weight_rank/{measure}/{layer}"] for layer in LAYERS]


def test_values_are_those_logged_for_the_runs_and_the_step_chosen(page: Page, address: str, runs: dict[str, Run]) -> None:
    tab = open_tab(page, address)
    choose(tab, "Of", "weight_rank")
    choose(tab, "Measure", "stable_rank")
    assert list(lines(tab)) == ["&lt;img src=x onerror=alert(1)&gt;", "decay=0", "decay=0.01"]
    tab.get_by_label("decay=0", exact=True).uncheck()
    settled(tab)
    assert list(lines(tab)) == ["&lt;img src=x onerror=alert(1)&gt;", "decay=0.01"]
    assert lines(tab)["decay=0.01"] == pytest.approx(logged(runs["decay=0.01"], "stable_rank", 8))
    rail = tab.locator(".slider-rail-touch-rect").bounding_box()
    page.mouse.click(rail["x"] + rail["width"] / 4, rail["y"] + rail["height"] / 2)
    page.wait_for_timeout(300)
    assert chart(tab, "layout.sliders[0].active") == 1
    assert lines(tab)["decay=0.01"] == pytest.approx(logged(runs["decay=0.01"], "stable_rank", 2))
    assert lines(tab)["decay=0.01"] != pytest.approx(logged(runs["decay=0.01"], "stable_rank", 8))


def test_choices_are_in_the_address_and_come_back_with_it(page: Page, address: str, runs: dict[str, Run]) -> None:
    tab = open_tab(page, address)
    choose(tab, "Of", "weight_rank")
    choose(tab, "Measure", "stable_rank")
    tab.get_by_label(MARKUP, exact=True).uncheck()
    settled(tab)
    tab.get_by_label("log y").check()
    page.wait_for_timeout(400)
    spelled = page.url
    assert "p.rank_callbacks.measure=stable_rank" in spelled
    page.goto("about:blank")
    page.goto(spelled)
    tab.locator(".main-svg").first.wait_for()
    settled(tab)
    assert list(lines(tab)) == ["decay=0", "decay=0.01"]
    assert lines(tab)["decay=0"] == pytest.approx(logged(runs["decay=0"], "stable_rank", 8))
    assert chart(tab, "layout.yaxis.type") == "log"
    expect(tab.get_by_label(MARKUP, exact=True)).not_to_be_checked()


def test_step_in_the_address(page: Page, address: str, runs: dict[str, Run]) -> None:
    tab = open_tab(page, address, {"group": "weight_rank", "measure": "stable_rank", "step": "4"})
    assert lines(tab)["decay=0"] == pytest.approx(logged(runs["decay=0"], "stable_rank", 4))
    assert chart(tab, "layout.sliders[0].active") == 2


def test_other_tabs_of_tensorboard_still_work(page: Page, address: str) -> None:
    tab = open_tab(page, address, {"view": "heatmap", "group": "weight_rank"})
    page.get_by_role("tab", name="scalars").click()
    page.wait_for_url("**/*#scalars*")
    page.get_by_role("tab", name="Ranks").click()
    page.wait_for_url("**/*#rank_callbacks*view=heatmap*")
    expect(tab.get_by_role("tab", name="Heatmap")).to_have_attribute("aria-selected", "true")
    assert chart(tab)[0]["type"] == "heatmap"


def test_click_on_a_row_of_the_heatmap_opens_the_spectrum_of_its_layer(page: Page, address: str, runs: dict[str, Run]) -> None:
    tab = open_tab(page, address, {"view": "heatmap", "group": "weight_rank", "run": "decay=0.01"})
    assert [row[-1] for row in chart(tab)[0]["customdata"]] == pytest.approx(logged(runs["decay=0.01"], "effective_rank", 8))
    area = tab.locator(".chart .nsewdrag").bounding_box()
    page.mouse.move(area["x"] + area["width"] / 2, area["y"] + area["height"] * 3 / 4)
    page.mouse.click(area["x"] + area["width"] / 2 + 3, area["y"] + area["height"] * 3 / 4)
    expect(tab.get_by_role("tab", name="Spectrum")).to_have_attribute("aria-selected", "true")
    settled(tab)
    expect(tab.get_by_label("Layer", exact=True)).to_have_value("network.2.weight")
    expect(tab.get_by_label("Run", exact=True)).to_have_value("decay=0.01")
    values = np.linalg.svd(runs["decay=0.01"].weights.at[8]["network.2.weight"])[1]
    assert lines(tab)["step 8"] == pytest.approx(values, rel=1e-5)


def test_every_view_shows_something_and_how_to_read_it(page: Page, address: str) -> None:
    tab = open_tab(page, address)
    for button in tab.get_by_role("tab").all():
        button.click()
        settled(tab)
        expect(tab.locator(".help")).not_to_be_empty()
        expect(tab.locator(".chart .main-svg, .finding").locator("visible=true").first).to_be_visible()
        expect(tab.locator("p.error")).to_have_count(0)


def test_keyboard_goes_from_view_to_view(page: Page, address: str) -> None:
    tab = open_tab(page, address)
    tab.get_by_role("tab", name="Depth profile").focus()
    page.keyboard.press("ArrowRight")
    expect(tab.get_by_role("tab", name="Heatmap")).to_be_focused()
    settled(tab)
    assert chart(tab)[0]["type"] == "heatmap"


def test_names_are_text_and_no_markup(page: Page, address: str) -> None:
    tab = open_tab(page, address, {"group": "weight_rank", "run": MARKUP})
    expect(tab.locator(".runs .name").first).to_have_text(MARKUP)
    expect(tab.locator(".legendtext").first).to_have_text(MARKUP)
    assert tab.locator("img").count() == 0
    tab.get_by_role("tab", name="Heatmap").click()
    settled(tab)
    assert MARKUP in tab.locator(".gtitle").text_content()


def test_dark_mode_is_followed(page: Page, address: str) -> None:
    tab = open_tab(page, address, dark=True)
    expect(tab.locator("body")).to_have_class("dark")
    assert chart(tab, "layout.font.color") == "#e6e6e6"
    page.evaluate("document.body.classList.remove('dark-mode')")
    expect(tab.locator("body")).not_to_have_class("dark")
    page.wait_for_timeout(200)
    assert chart(tab, "layout.font.color") == "#212121"


def test_downloads(page: Page, address: str, runs: dict[str, Run], tmp_path: Path) -> None:
    tab = open_tab(page, address, {"group": "weight_rank", "measure": "stable_rank"})
    with page.expect_download() as picture:
        tab.get_by_text("Download PNG").click()
    assert picture.value.suggested_filename == "ranks_depth_profile.png"
    assert Path(picture.value.path()).read_bytes()[:4] == b"\x89PNG"
    with page.expect_download() as table:
        tab.get_by_text("Download CSV").click()
    text = Path(table.value.path()).read_text()
    assert text.splitlines()[0] == "run,step,tag,value"
    assert len(text.splitlines()) == 1 + len(DECAYS) * 5 * 5  # steps, and two layers with their mean, least and most


@LOADERS
def test_reload_shows_what_a_run_has_written_since(page: Page, tmp_path: Path, load_fast: str) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="run")

    def report(step: int, value: float) -> None:
        write_to_tensorboard(logger, step, {Tag("weight_rank", "effective_rank", layer): value for layer in LAYERS}, {}, {})
        logger.experiment.flush()

    report(0, 5.0)
    with served(tmp_path, f"--load_fast={load_fast}", "--reload_interval=1") as address:
        tab = open_tab(page, address)
        reload_until(page, lambda: [5.0, 5.0] in lines_or_none(tab))
        report(10, 3.0)
        reload_until(page, lambda: [3.0, 3.0] in lines_or_none(tab))
        assert [step["label"] for step in chart(tab, "layout.sliders[0].steps")] == ["0", "10"]
    logger.finalize("success")


def lines_or_none(tab: FrameLocator) -> list[list[float]]:
    """Of a chart that may not be there yet."""
    return tab.locator(".chart").evaluate("chart => (chart.data ?? []).map((trace) => [...trace.y])")


def reload_until(page: Page, condition: Any) -> None:
    """Press TensorBoard's reload button until its server has read what was written."""
    for _ in range(20):
        if condition():
            return
        page.get_by_role("button", name="Last Updated").click()
        page.wait_for_timeout(500)
    pytest.fail("Expected the page to show what was written after a reload.")


def test_readings_that_are_old_or_bounds_are_marked(page: Page, tmp_path: Path) -> None:
    """In the title of the step that is shown, by hollow marks and on hover; and the cadence is told in words."""
    reports = ({0: 9.0, 2: 5.0}, {0: 8.0}, {0: 7.0, 2: 4.0})
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    for place, read in enumerate(reports):
        scalars = {Tag("weight_rank", "effective_rank", f"network.{i}.weight"): value for i, value in read.items()}
        marks = {"approximate_layers": place % 2, "spectrum_age": 500 * (place % 2), "every_n_steps": 500}
        scalars |= {Tag("monitor", name, "weight_rank"): float(value) for name, value in marks.items()}
        write_to_tensorboard(logger, 500 * place, scalars, {}, {})
    logger.finalize("success")
    with served(tmp_path) as address:
        tab = open_tab(page, address, {"step": "500"})
        expect(tab.locator(".gtitle")).to_contain_text("effective rank: oldest spectrum 500 steps old")
        assert lines(tab) == {"run": [8.0, 5.0]}
        expect(tab.locator("path.point").nth(0)).to_have_css("fill", "rgb(0, 114, 178)")
        expect(tab.locator("path.point").nth(1)).to_have_css("fill", "none")
        mark = tab.locator("path.point").nth(1).bounding_box()
        page.mouse.move(mark["x"] + mark["width"] / 2, mark["y"] + mark["height"] / 2)
        expect(tab.locator(".hoverlayer")).to_contain_text("network.2.weight: 5.000 (step 0)")
        rail = tab.locator(".slider-rail-touch-rect").bounding_box()
        page.mouse.click(rail["x"] + rail["width"] - 2, rail["y"] + rail["height"] / 2)
        expect(tab.locator(".gtitle")).not_to_contain_text("old")
        assert lines(tab) == {"run": [7.0, 4.0]}
        expect(tab.locator("path.point").nth(1)).to_have_css("fill", "rgb(0, 114, 178)")
        tab.get_by_role("tab", name="Health").click()
        expect(tab.locator(".cadence")).to_contain_text("weight_rank reports every 500 steps")


def test_empty_folder_names_the_callbacks(page: Page, tmp_path: Path) -> None:
    with served(tmp_path) as address:
        tab = open_tab(page, address)
        expect(tab.locator("p.message")).to_contain_text("Add WeightRankMonitor")
        expect(tab.locator("aside")).to_be_hidden()


def test_server_that_is_gone_is_said(browser: BrowserContext, folder: Path, runs: dict[str, Run]) -> None:
    page = browser.new_page()
    with served(folder) as address:
        tab = open_tab(page, address)
    tab.get_by_role("tab", name="Sweep").click()
    expect(tab_of(page).get_by_role("alert")).to_contain_text("TensorBoard does not answer.")
    page.close()
