import argparse
import csv
import io
import json
import math
import subprocess
import sys
from collections.abc import Generator
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import plotly.graph_objects as go
import pytest
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.plugins.base_plugin import TBContext
from torch.utils.tensorboard import SummaryWriter
from werkzeug.test import Client, TestResponse

from rank_callbacks.tags import Tag
from rank_callbacks.tensorboard_plugin.listing import PLUGIN_NAME
from rank_callbacks.tensorboard_plugin.plugin import RanksLoader, RanksPlugin
from rank_callbacks.writers.tensorboard import PLUGIN_NAME as WRITTEN
from tests.tensorboard_plugin.conftest import DECAYS
from tests.tensorboard_plugin.logs import Run, provider, write

ROOT = Path(__file__).parents[2]
VIEWS = ("depth_profile", "heatmap", "spectrum", "gradient_bound", "collapse", "sweep")
LAYER = "network.0.weight"
RANK = Tag("weight_rank", "effective_rank", LAYER)


class Page:
    """Asks what the page asks, without a server."""

    def __init__(self, data_provider: Any) -> None:
        self.plugin = RanksLoader().load(TBContext(data_provider=data_provider))

    def get(self, address: str, **choice: Any) -> TestResponse:
        apps = self.plugin.get_plugin_apps()
        app = apps.get(address) or apps["/static/*"]
        return Client(app).get(f"/data/plugin/rank_callbacks{address}", query_string=choice)

    def json(self, address: str, **choice: Any) -> dict[str, Any]:
        answer = self.get(address, **choice)
        assert answer.status_code == 200
        return json.loads(answer.text, parse_constant=pytest.fail)  # NaN is no JSON


class Failing:
    """A provider that cannot read."""

    def __getattr__(self, name: str) -> Any:
        raise OSError("the disk is gone")


@pytest.fixture
def page(data_provider: Any) -> Page:
    return Page(data_provider)


@pytest.fixture
def empty(tmp_path: Path) -> Generator[Page]:
    writer = SummaryWriter(tmp_path)
    writer.add_scalar("loss", 1.0)
    writer.close()
    with provider("slow", tmp_path) as found:
        yield Page(found)


def test_tensorboard_finds_the_tab() -> None:
    (found,) = entry_points(group="tensorboard_plugins", name="rank_callbacks")
    assert found.load() is RanksLoader


def test_one_name_in_all_places() -> None:
    assert RanksPlugin.plugin_name == PLUGIN_NAME == WRITTEN


def test_title_and_page(page: Page) -> None:
    metadata = page.plugin.frontend_metadata()
    assert metadata.tab_name == "Ranks"
    assert page.get(metadata.es_module_path).mimetype == "text/javascript"


def test_nothing_heavy_is_loaded_with_tensorboard() -> None:
    assert heavy_of("plugin") == "set()"


def test_nothing_heavy_is_loaded_for_a_view() -> None:
    assert heavy_of("views") == "set()"


def heavy_of(module: str) -> str:
    """What an import of a part of the plugin loads that takes time."""
    heavy = {"torch", "plotly", "pytorch_lightning", "lightning", "pandas"}
    script = f"import rank_callbacks.tensorboard_plugin.{module}, sys; print({heavy} & set(sys.modules))"
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def test_choices(page: Page) -> None:
    index = page.json("/index")
    assert index["runs"] == ["<img src=x onerror=alert(1)>", "decay=0", "decay=0.01"]
    assert index["empty"] is None
    assert index["groups"]["weight_rank"]["measures"][0] == "effective_rank"
    assert index["groups"]["weight_rank"]["layers"] == ["network.0.weight", "network.2.weight"]
    assert "monitor" not in index["groups"]
    assert index["spectra"]["weight_rank"] == {"spectrum": ["network.0.weight", "network.2.weight"]}
    assert index["hyperparameters"] == ["optimizer", "weight_decay"]
    assert index["accuracies"][0] == "accuracy"


@pytest.mark.parametrize("view", VIEWS)
def test_plotly_takes_every_view(page: Page, view: str) -> None:
    answer = page.json("/figure", view=view)
    assert answer["message"] is None
    assert len(answer["how_to_read"]) > 40
    assert go.Figure(answer["figure"]).data


def test_depth_profile_has_the_values_logged(page: Page, runs: dict[str, Run]) -> None:
    figure = page.json("/figure", view="depth_profile", group="weight_rank", measure="stable_rank", runs="decay=0.01")[
        "figure"
    ]
    (trace,) = figure["data"]
    values = [runs["decay=0.01"].readings[8, f"weight_rank/stable_rank/network.{i}.weight"] for i in (0, 2)]
    assert trace["y"] == pytest.approx(values)
    assert [frame["name"] for frame in figure["frames"]] == ["0", "2", "4", "6", "8"]


def test_runs_are_chosen_in_their_own_order(page: Page) -> None:
    traces = page.json("/figure", group="weight_rank", runs=["decay=0.01", "decay=0"])["figure"]["data"]
    assert [trace["name"] for trace in traces] == ["decay=0", "decay=0.01"]


def test_names_are_text_and_no_markup(page: Page) -> None:
    traces = page.json("/figure", group="weight_rank")["figure"]["data"]
    assert traces[0]["name"] == "&lt;img src=x onerror=alert(1)&gt;"


def test_choice_that_these_logs_do_not_have_falls_back(page: Page) -> None:
    choice = page.json("/figure", view="heatmap", group="gone", measure="gone", run="gone", runs="gone")["choice"]
    assert choice["run"] == "<img src=x onerror=alert(1)>"
    assert (choice["group"], choice["measure"]) == ("weight_rank", "effective_rank")


def test_module_of_the_weight_that_was_chosen(page: Page) -> None:
    choice = page.json("/figure", view="spectrum", group="weight_rank", layer="network.2")["choice"]
    assert choice["layer"] == "network.2.weight"


def test_rank_of_classes_in_a_spectrum(page: Page) -> None:
    names = [trace["name"] for trace in page.json("/figure", view="spectrum", group="weight_rank", k="3")["figure"]["data"]]
    assert "rank K = 3" in names


def test_sweep_over_weight_decay(page: Page) -> None:
    figure = page.json("/figure", view="sweep", group="weight_rank")["figure"]
    accuracy = next(trace for trace in figure["data"] if trace.get("name") == "accuracy")
    assert max(filter(None, accuracy["y"])) == pytest.approx(0.6)  # 0.5 and the weight decay


def test_no_scalar_is_taken_for_an_accuracy_that_does_not_sound_like_one(tmp_path: Path) -> None:
    """Lightning logs the epoch beside everything else."""
    write(tmp_path, "run", {RANK: 3.0, RANK._replace(layer="mean_over_layers"): 3.0})
    logger = TensorBoardLogger(tmp_path, name="", version="run", default_hp_metric=False)
    logger.log_hyperparams({"weight_decay": 0.1}, {"loss": 0.5})
    logger.log_metrics({"epoch": 7.0}, step=9)
    logger.finalize("success")
    with provider("slow", tmp_path) as found:
        page = Page(found)
        assert page.json("/index")["accuracies"] == ["", "epoch", "loss"]
        figures = [page.json("/figure", view="sweep", **chosen)["figure"] for chosen in ({}, {"accuracy": "epoch"})]
    panels = [[one["text"] for one in figure["layout"]["annotations"]] for figure in figures]
    assert panels == [["<b>effective rank (weight rank)</b>"], ["<b>effective rank (weight rank)</b>", "<b>accuracy</b>"]]


def test_gradient_bounds_say_what_binds_them(page: Page) -> None:
    texts = [text for trace in page.json("/figure", view="gradient_bound")["figure"]["data"] for text in trace["text"]]
    assert any("batch of 4" in text for text in texts)


def test_findings(tmp_path: Path) -> None:
    for place, value in enumerate([9.0, 2.0]):  # no fall: two runs
        write(tmp_path, f"part{place}", {RANK: value})
    b, stable = RANK._replace(layer="b"), RANK._replace(measure="stable_rank")
    write(
        tmp_path,
        "run",
        *({RANK: value, stable: value, b: rank} for value, rank in ((1.0, 9.0), (math.nan, 5.0), (math.nan, 1.0))),
    )
    with provider("slow", tmp_path) as found:
        answer = Page(found).json("/figure", view="findings")
    assert answer["figure"] is None
    assert [(one["severity"], one["run"], one["step"]) for one in answer["findings"]] == [
        ("error", "run", 1),
        ("notice", "run", 2),
    ]
    assert "NaN" in answer["findings"][0]["text"]
    assert "stable_rank" in answer["findings"][0]["text"]


class TestMarks:
    """Of a run that reads layers in turn."""

    def reports(self) -> list[dict[Tag, float]]:
        b, mark = RANK._replace(layer="b"), Tag("monitor", "approximate_layers", "weight_rank")
        age, cadence = mark._replace(measure="spectrum_age"), mark._replace(measure="every_n_steps")
        second = {RANK: 8.0, mark: 1.0, age: 1.0, cadence: 2000.0}
        return [{RANK: 9.0, b: 5.0, mark: 0.0, age: 0.0}, second, {RANK: 7.0, mark: 1.0, age: 2.0, cadence: 2000.0}]

    @pytest.mark.parametrize("view", ["depth_profile", "heatmap"])
    def test_charts_say_how_old_readings_are(self, tmp_path: Path, view: str) -> None:
        write(tmp_path, "run", *self.reports())
        with provider("slow", tmp_path) as found:
            page = Page(found)
            title = page.json("/figure", view=view)["figure"]["layout"]["title"]["text"]
            rows = list(csv.DictReader(io.StringIO(page.get("/csv", view=view).text)))
        assert "effective rank: oldest spectrum" in title
        assert "2 steps old" in title
        assert {row["tag"] for row in rows} >= {"monitor/spectrum_age/weight_rank", "monitor/approximate_layers/weight_rank"}

    def test_health_tells_the_cadence_and_finds_no_fault_with_gaps(self, tmp_path: Path) -> None:
        write(tmp_path, "run", *self.reports())
        with provider("slow", tmp_path) as found:
            answer = Page(found).json("/figure", view="findings")
        assert answer["findings"] == []
        (cadence,) = answer["cadences"]
        assert cadence["run"] == "run"
        assert cadence["text"].startswith("weight_rank reports every 2,000 steps")

    def test_a_run_with_steps_of_its_users_choice_has_none(self, page: Page) -> None:
        assert page.json("/figure", view="findings")["cadences"] == []


def test_nan_is_a_gap(tmp_path: Path) -> None:
    write(tmp_path, "run", {RANK: math.nan, RANK._replace(layer="b"): 3.0})
    with provider("slow", tmp_path) as found:
        (trace,) = Page(found).json("/figure", view="depth_profile")["figure"]["data"]
    assert sorted(trace["y"], key=str) == [3.0, None]


def test_file_of_readings_has_all_steps(page: Page, runs: dict[str, Run]) -> None:
    answer = page.get("/csv", view="heatmap", group="weight_rank", measure="stable_rank", run="decay=0")
    assert answer.mimetype == "text/csv"
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    found = {(int(row["step"]), row["tag"]): float(row["value"]) for row in rows}
    logged = {key: value for key, value in runs["decay=0"].readings.items() if key[1].startswith("weight_rank/stable_rank/")}
    assert found == pytest.approx(logged)
    assert {row["run"] for row in rows} == {"decay=0"}


def test_file_of_singular_values(page: Page) -> None:
    answer = page.get("/csv", view="spectrum", group="weight_rank", layer=LAYER, run="decay=0")
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["index"] for row in rows[:5]] == ["1", "2", "3", "4", "5"]
    assert {row["step"] for row in rows} == {"0", "2", "4", "6", "8"}
    assert {row["tag"] for row in rows} == {f"weight_rank/spectrum/{LAYER}"}


def test_plotly_is_the_installed_one_and_may_be_kept(page: Page) -> None:
    answer = page.get("/static/plotly.min.js")
    assert answer.text.startswith("/**\n* plotly.js v")
    assert "max-age=86400" in answer.headers["Cache-Control"]


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "rank_callbacks/tensorboard_plugin/static").iterdir()))
def test_every_file_of_the_page_is_served(page: Page, name: str) -> None:
    answer = page.get(f"/static/{name}")
    assert answer.status_code == 200
    assert answer.mimetype == {"js": "text/javascript", "css": "text/css"}[name.rpartition(".")[2]]


@pytest.mark.parametrize("name", ["gone.js", "../plugin.py", "/etc/passwd"])
def test_no_other_file_is_served(page: Page, name: str) -> None:
    answer = page.get(f"/static/{name}")
    assert answer.status_code == 404
    assert "Expected one of index.js" in answer.json["error"]


def test_empty_folder_names_the_callbacks(empty: Page) -> None:
    index = empty.json("/index")
    assert index["runs"] == []
    assert "Add WeightRankMonitor" in index["empty"]
    for view in (*VIEWS, "findings"):
        answer = empty.json("/figure", view=view)
        assert "Add WeightRankMonitor" in answer["message"]
        assert empty.get("/csv", view=view).status_code == 200


def test_view_without_readings_names_its_callback(tmp_path: Path) -> None:
    write(tmp_path, "run", {RANK: 1.0})
    with provider("slow", tmp_path) as found:
        page = Page(found)
        assert "Add RankCollapseMonitor" in page.json("/figure", view="collapse")["message"]
        assert "Add GradientRankMonitor" in page.json("/figure", view="gradient_bound")["message"]
        assert "Expected a spectrum" in page.json("/figure", view="spectrum")["message"]


def test_view_of_a_network_with_many_layers_names_the_argument(tmp_path: Path) -> None:
    measures = {"weight_rank": "effective_rank", "gradient_rank": "bound", "rank_collapse": "relative_distance_to_rank_k"}
    write(tmp_path, "run", {Tag(*name, "mean_over_layers"): 1.0 for name in measures.items()})
    monitors = {"depth_profile": "Weight", "heatmap": "Weight", "gradient_bound": "Gradient", "collapse": "RankCollapse"}
    with provider("slow", tmp_path) as found:
        page = Page(found)
        for view, monitor in monitors.items():
            message = page.json("/figure", view=view, group="weight_rank")["message"]
            assert f"Give {monitor}" in message
            assert 'scalars="all"' in message


def test_tab_is_active_where_monitors_logged(page: Page, empty: Page, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert page.plugin.is_active()
    assert not empty.plugin.is_active()
    assert page.plugin.data_plugin_names() == ("rank_callbacks",)
    folder = tmp_path_factory.mktemp("scalars")
    write(folder, "run", {Tag("rank_collapse", "numerical_rank", "a"): 1.0})
    with provider("slow", folder) as found:
        assert Page(found).plugin.is_active()


@pytest.mark.parametrize("address", ["/index", "/figure", "/csv"])
def test_failure_is_told_to_the_page_alone(address: str, caplog: pytest.LogCaptureFixture) -> None:
    answer = Page(Failing()).get(address)
    assert answer.status_code == 500
    assert answer.json == {"error": "OSError: the disk is gone"}
    assert "The Ranks tab could not answer" in caplog.text


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"view": "profile"}, "Expected the name of a view, got 'profile'."),
        ({"view": "spectrum", "k": "ten"}, "Expected k to be a whole"),
    ],
)
def test_request_that_makes_no_sense(page: Page, choice: dict[str, str], message: str) -> None:
    answer = page.get("/figure", **choice)
    assert answer.status_code == 400
    assert answer.json["error"].startswith(message)


def test_tab_that_cannot_be_made_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    assert RanksLoader().load(SimpleNamespace()) is None
    assert "left out" in caplog.text


@pytest.mark.parametrize(("given", "kept"), [({}, 500), ({"rank_callbacks": 7}, 7), ({"images": 3}, 500)])
def test_more_spectra_are_kept_than_of_other_tensors(given: dict[str, int], kept: int) -> None:
    flags = argparse.Namespace(samples_per_plugin=dict(given))
    RanksLoader().fix_flags(flags)
    assert flags.samples_per_plugin == given | {"rank_callbacks": kept}


def test_flags_of_another_tensorboard_are_left_alone() -> None:
    RanksLoader().fix_flags(argparse.Namespace())


def test_all_runs_are_there(page: Page) -> None:
    assert set(page.json("/index")["runs"]) == set(DECAYS)
