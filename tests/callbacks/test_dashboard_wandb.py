import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import wandb
from plotly.graph_objects import Figure

from rank_callbacks import RankCollapseMonitor, RankDashboard, WeightRankMonitor
from rank_callbacks.tags import Tag
from rank_callbacks.writers import Report, write_report
from tests.callbacks.test_dashboard import Reports, Saved
from tests.models import CLASSES
from tests.training import Recorder, fit
from tests.writers.test_writers import history, offline, wandb_records


class Run:
    """What an offline run has recorded, and what was read."""

    def __init__(self, path: Path, recorder: Recorder) -> None:
        (self.folder,) = path.glob("wandb/offline-run-*")
        (file,) = self.folder.glob("run-*.wandb")
        self.records = wandb_records(file)
        self.rows = history(path)
        self.readings = recorder.readings("weight_rank", "rank_collapse", "monitor")

    def of_kind(self, kind: str) -> list[Any]:
        return [getattr(record, kind) for record in self.records if record.WhichOneof("record_type") == kind]

    def media(self, name: str) -> tuple[int, dict[str, Any], Any]:
        """The step, the row's value and the file of what was written once."""
        ((step, value),) = [(row["trainer/global_step"], row[name]) for row in self.rows if name in row]
        return step, value, json.loads((self.folder / "files" / value["path"]).read_text())


def finish(logger: Any) -> None:
    """End the run, and the process that writes its file: it may not be whole before."""
    logger.experiment.finish()
    wandb.teardown()


@pytest.fixture(scope="module", params=["pytorch_lightning", "lightning.pytorch"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    path = tmp_path_factory.mktemp("wandb")
    with offline(path):
        logger = import_module(f"{request.param}.loggers").WandbLogger(offline=True, save_dir=path)
        monitors = [WeightRankMonitor(every_n_steps=2), RankCollapseMonitor(num_classes=CLASSES, every_n_steps=2)]
        falls = Reports({"weight_rank/effective_rank/made_up": [8.0, 3.0, 2.0]})
        with pytest.warns(UserWarning, match="weight made_up is down to 3"):
            fit(Saved(), RankDashboard(alerts=True), *monitors, falls, logger=[logger, recorder := Recorder()], max_epochs=2)
        finish(logger)
        yield Run(path, recorder)


def test_each_group_has_its_axis(run: Run) -> None:
    axes = {metric.glob_name: metric.step_metric for metric in run.of_kind("metric") if metric.glob_name}
    assert axes == dict.fromkeys(["*", "weight_rank/*", "rank_collapse/*", "monitor/*"], "trainer/global_step")


def test_the_summary_keeps_the_least_and_the_largest(run: Run) -> None:
    defined = {metric.name: metric for metric in run.of_kind("metric") if "over_layers" in metric.name}
    tags = {tag for _, tag in run.readings if tag.endswith(("/min_over_layers", "/max_over_layers"))}
    assert set(defined) == tags
    for tag, metric in defined.items():
        assert (metric.summary.min, metric.summary.max) == (tag.endswith("/min_over_layers"), tag.endswith("/max_over_layers"))
        assert metric.step_metric == "trainer/global_step"


def test_depth_profile_is_a_plotly_chart_of_the_last_report(run: Run) -> None:
    step, value, chart = run.media("weight_rank/depth_profile")
    assert (step, value["_type"]) == (6, "plotly-file")
    (line,) = chart["data"]
    heights = {text: y for text, y in zip(line["text"], Figure(chart).data[0].y, strict=True)}
    for layer in ("network.0.weight", "network.2.weight"):
        assert heights[layer] == pytest.approx(run.readings[6, f"weight_rank/effective_rank/{layer}"])
    assert not {"sliders", "updatemenus"} & set(chart["layout"])


def test_collapse_is_a_plotly_chart(run: Run) -> None:
    step, value, chart = run.media("rank_collapse/collapse")
    assert (step, value["_type"]) == (6, "plotly-file")
    distances = [y for trace in Figure(chart).data if trace.mode == "markers" for y in trace.y]
    tag = "rank_collapse/relative_distance_to_rank_k/network.0.weight"
    assert max(step for step, name in run.readings if name == tag) <= 6
    assert any(y == pytest.approx(value) for (_, name), value in run.readings.items() if name == tag for y in distances)


def test_final_readings_are_a_table(run: Run) -> None:
    step, value, table = run.media("monitor/final_readings")
    assert (step, value["_type"]) == (6, "table-file")
    assert table["columns"] == ["group", "measure", "layer", "first", "last", "step"]
    last = {tag: (value, step) for (step, tag), value in sorted(run.readings.items())}
    first = {tag: value for (_, tag), value in sorted(run.readings.items(), reverse=True)}
    assert {"/".join(row[:3]): tuple(row[4:]) for row in table["data"]} == last
    assert {"/".join(row[:3]): row[3] for row in table["data"]} == first


def test_alert_goes_out_once(run: Run) -> None:
    alerts = [alert for alert in run.of_kind("alert") if "made_up" in alert.text]
    assert [alert.level for alert in alerts] == ["WARN"]
    assert alerts[0].text.startswith("The effective rank of the weight made_up is down to 3 at step 1, from 8 at step 0")


def test_nan_is_an_error(tmp_path: Path) -> None:
    class Nan(Reports):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            write_report(trainer, Report(0, {Tag("weight_rank", "effective_rank", "fc"): float("nan")}, {}))

    with offline(tmp_path):
        logger = import_module("pytorch_lightning.loggers").WandbLogger(offline=True, save_dir=tmp_path)
        with pytest.warns(UserWarning, match="weight_rank of fc reads NaN since step 0"):
            fit(Saved(), RankDashboard(alerts=True), Nan({}), logger=[logger, recorder := Recorder()])
        finish(logger)
        assert [alert.level for alert in Run(tmp_path, recorder).of_kind("alert")] == ["ERROR"]
