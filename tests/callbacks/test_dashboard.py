import math
import re
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger as OtherTensorBoardLogger
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray

from rank_callbacks import GradientRankMonitor, NeuralCollapseMonitor, RankCollapseMonitor, RankDashboard, WeightRankMonitor
from rank_callbacks.tags import Tag
from rank_callbacks.writers import Report, write_report
from tests.models import CLASSES, Classifier, Training, convnet, mlp, two_layers
from tests.processes import run_script
from tests.training import Recorder, assert_identical, fit, outcome

COLUMNS = [f"weight_rank/{name}/mean_over_layers" for name in ("effective_rank", "stable_rank", "numerical_rank")]
LOGGERS = pytest.mark.parametrize(
    "logger", [TensorBoardLogger, OtherTensorBoardLogger], ids=["pytorch_lightning", "lightning"]
)


class Saved(Classifier):
    """A classifier that keeps what it was made with."""

    def __init__(self, weight_decay: float = 0.01, width: str = "narrow") -> None:
        super().__init__(two_layers(), torch.randn(12, 6))
        self.save_hyperparameters()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, weight_decay=self.hparams.weight_decay)


class Reports(pl.Callback):
    """Reports given values of one tag or several, one after each step."""

    def __init__(self, values: dict[str, list[float]]) -> None:
        self.values = values

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step - 1
        scalars = {Tag.parse(tag): values[step] for tag, values in self.values.items() if step < len(values)}
        write_report(trainer, Report(step, scalars, {}))


class Full:
    """Where nothing can be written."""

    def __getattr__(self, name: str) -> Any:
        raise OSError("No space left on device")


class Broken(Recorder):
    """Takes Lightning's own metrics, and fails at whatever we write."""

    @property
    def experiment(self) -> Full:
        return Full()

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "loss" not in metrics:
            raise OSError("No space left on device")


class BrokenTensorBoardLogger(Broken):
    _prefix = ""
    _default_hp_metric = True


class BrokenWandbLogger(Broken):
    _prefix = ""


def accumulated(path: Path) -> EventAccumulator:
    return EventAccumulator(str(path), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def hyperparameter_records(path: Path) -> dict[str, HParamsPluginData]:
    """The first record of each kind: the one that TensorBoard keeps."""
    records = accumulated(path).PluginTagToContent("hparams")
    return {tag: HParamsPluginData.FromString(content) for tag, content in records.items()}


def columns(path: Path) -> list[str]:
    experiment = hyperparameter_records(path)[metadata.EXPERIMENT_TAG].experiment
    return [info.name.tag for info in experiment.metric_infos]


def session(path: Path) -> dict[str, Any]:
    record = hyperparameter_records(path)[metadata.SESSION_START_INFO_TAG].session_start_info
    return {name: getattr(value, str(value.WhichOneof("kind"))) for name, value in record.hparams.items()}


@LOGGERS
@pytest.mark.parametrize("default", [True, False])
def test_hparams_has_rank_columns_and_a_session_a_run(logger: Any, default: bool, tmp_path: Path) -> None:
    for decay in (0.0, 0.1):
        tensorboard = logger(tmp_path, name="", version=f"{decay}", default_hp_metric=default)
        fit(Saved(decay), RankDashboard(columns=["loss"]), WeightRankMonitor(), logger=tensorboard)
        path = tmp_path / f"{decay}"
        assert columns(path) == ["loss", *COLUMNS, *["hp_metric"] * default]
        assert session(path) == {"weight_decay": decay, "width": "narrow"}
        scalars = accumulated(path).Tags()["scalars"]
        assert {*COLUMNS, "loss"} <= set(scalars)
        assert not [event for tag in COLUMNS for event in accumulated(path).Scalars(tag) if math.isnan(event.value)]


def test_tensorboard_itself_reads_the_table(tmp_path: Path) -> None:
    """Through the plugin's own code: a row a run, with the last value of every column."""
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

    for decay in (0.0, 0.1):
        logger = TensorBoardLogger(tmp_path, name="", version=f"decay_{decay}")
        fit(Saved(decay), WeightRankMonitor(), RankDashboard(), logger=logger)
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    provider = MultiplexerDataProvider(multiplexer, str(tmp_path))
    context = backend_context.Context(TBContext(data_provider=provider, logdir=str(tmp_path)))
    found = context.hparams_metadata(RequestContext(), "")
    experiment = context.experiment_from_metadata(
        RequestContext(), "", True, found, context.hparams_from_data_provider(RequestContext(), "", 0)
    )
    asked = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=10,
        aggregation_type=api_pb2.AGGREGATION_AVG,
        allowed_statuses=[api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_RUNNING],
        include_metrics=True,
    )
    asked.col_params.extend(api_pb2.ColParams(metric=info.name) for info in experiment.metric_infos)
    table = list_session_groups.Handler(RequestContext(), context, "", asked).run()
    assert table.total_size == 2
    assert sorted(row.hparams["weight_decay"].number_value for row in table.session_groups) == [0.0, 0.1]
    for row in table.session_groups:
        values = {value.name.tag: value.value for value in row.metric_values}
        assert set(COLUMNS) <= set(values)
        assert all(values[tag] >= 1 for tag in COLUMNS)


def test_hparams_has_the_optimizers_weight_decay_of_a_module_that_saves_nothing(tmp_path: Path) -> None:
    class Decayed(Classifier):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), weight_decay=0.25)

    logger = TensorBoardLogger(tmp_path, name="", version="")
    fit(Decayed(two_layers(), torch.randn(12, 6)), RankDashboard(), WeightRankMonitor(), logger=logger)
    assert session(tmp_path) == {"weight_decay": 0.25}


def test_hparams_columns_are_those_of_the_monitors(tmp_path: Path) -> None:
    monitors = [
        GradientRankMonitor(measures=["energy_rank", "stable_rank"]),
        NeuralCollapseMonitor(num_classes=CLASSES, measures=["nc1_quotient"], group="head"),
        RankCollapseMonitor(num_classes=CLASSES),
    ]
    logger = TensorBoardLogger(tmp_path, name="", version="", default_hp_metric=False)
    fit(Saved(), *monitors, RankDashboard(), logger=logger, max_epochs=2)
    expected = [
        "gradient_rank/energy_rank/mean_over_layers",
        "head/nc1_quotient/mean_over_layers",
        "rank_collapse/relative_distance_to_rank_k/mean_over_layers",
        "gradient_rank/stable_rank/mean_over_layers",
        "rank_collapse/tcv_ratio_input/mean_over_layers",
    ]
    assert columns(tmp_path) == expected
    assert set(expected) <= set(accumulated(tmp_path).Tags()["scalars"])


@LOGGERS
@pytest.mark.parametrize("prefix", ["", "mine"])
def test_layout_of_custom_scalars(logger: Any, prefix: str, tmp_path: Path) -> None:
    dashboard, monitors = RankDashboard(), [WeightRankMonitor(measures=["stable_rank"]), GradientRankMonitor()]
    fit(mlp(), dashboard, *monitors, logger=logger(tmp_path, name="", version="", prefix=prefix))
    file = accumulated(tmp_path)
    last = file.Tensors("custom_scalars__config__")[-1]
    layout = layout_pb2.Layout.FromString(make_ndarray(last.tensor_proto).item())
    charts = {category.title: {chart.title: chart for chart in category.chart} for category in layout.category}
    assert list(charts) == ["weight_rank", "gradient_rank", "monitor"]
    costs = {"seconds by monitor", "share_of_training by monitor"}
    assert set(charts["monitor"]) == costs | {"approximate_layers by monitor", "spectrum_age by monitor"}
    start = f"{prefix}-" * bool(prefix) + "weight_rank/stable_rank/"
    (series,) = charts["weight_rank"]["stable_rank: mean, least and largest over layers"].margin.series
    assert (series.value, series.lower, series.upper) == tuple(f"{start}{name}_over_layers" for name in ("mean", "min", "max"))
    (pattern,) = charts["weight_rank"]["stable_rank by layer"].multiline.tag
    drawn = {tag for tag in file.Tags()["scalars"] if re.match(pattern, tag)}
    assert drawn == {f"{start}network.0.weight", f"{start}network.2.weight"}


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("effective_rank/mean_over_layers", ["weight_rank", "gradient_rank"]),
        ("weight_rank/effective_rank/mean_over_layers", ["weight_rank"]),
        ("rank/mean_over_layers", []),
    ],
)
@pytest.mark.filterwarnings("ignore:Expected a reading named")
def test_progress_bar(name: str, groups: list[str]) -> None:
    monitors = [WeightRankMonitor(every_n_steps=2), GradientRankMonitor(every_n_steps=2)]
    trainer = fit(mlp(), RankDashboard(progress_bar=(name,)), *monitors, max_epochs=2)
    tags = [f"{group}/effective_rank/mean_over_layers" for group in groups]
    shown = {tag: float(value) for tag, value in trainer.progress_bar_metrics.items() if "rank/" in tag}
    assert shown == {tag: pytest.approx(trainer.callback_metrics[tag].item()) for tag in tags}
    assert "loss" in trainer.progress_bar_metrics


def test_progress_bar_shows_them_while_training_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    dashboard = RankDashboard(progress_bar=["weight_rank/stable_rank/max_over_layers"])
    fit(mlp(), dashboard, WeightRankMonitor(), pl.callbacks.TQDMProgressBar(), enable_progress_bar=True)
    assert "weight_rank/stable_rank/max_over_layers=" in capsys.readouterr().out


def test_progress_bar_without_such_a_reading_names_those_that_are() -> None:
    with pytest.warns(
        UserWarning, match="named 'effective_rnak/mean_over_layers' .* got none. Choose from .*weight_rank/stable"
    ):
        fit(mlp(), RankDashboard(progress_bar=["effective_rnak/mean_over_layers"]), WeightRankMonitor())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"progress_bar": "effective_rank/mean"},
            r"Expected progress_bar to be a list of names, got the text 'effective_rank/mean'",
        ),
        ({"columns": "val_accuracy"}, "Expected columns to be a list"),
        ({"progress_bar": ["effective_rank"]}, "got 'effective_rank' without a '/'"),
    ],
)
def test_misuse(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RankDashboard(**options)


def alerts(values: dict[str, list[float]], alerts: bool = True) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(mlp(batches=12), RankDashboard(alerts=alerts), Reports(values))
    return [str(warning.message) for warning in caught if "step" in str(warning.message)]


def test_each_finding_goes_out_once() -> None:
    first, second = "weight_rank/effective_rank/one", "weight_rank/effective_rank/two"
    values = {first: [8.0, 8.0, 3.0, 2.0, 2.0, math.nan, math.nan, 2.0], second: [5.0, 4.0, 5.0, 2.0, 5.0, 2.0, 1.0]}
    messages = alerts(values)
    assert len(messages) == 3
    assert "weight one is down to 3 at step 2, from 8 at step 0" in messages[0]
    assert "weight two is down to 2 at step 3, from 5 at step 0" in messages[1]
    assert "weight_rank of one reads NaN since step 5" in messages[2]


def test_findings_of_one_report_go_out_together() -> None:
    (message,) = alerts({f"weight_rank/effective_rank/{name}": [8.0, 1.0] for name in "abc"})
    assert len(message.splitlines()) == 3


def test_nothing_goes_out_unasked() -> None:
    assert alerts({"weight_rank/effective_rank/one": [8.0, 1.0]}, alerts=False) == []


def test_a_gradient_must_stay_low_for_five_reports() -> None:
    assert alerts({"gradient_rank/utilization/fc": [0.05] * 4 + [0.5] * 4}) == []
    assert len(alerts({"gradient_rank/utilization/fc": [0.5] * 4 + [0.05] * 8})) == 1


def test_a_monitors_cost_is_judged_from_its_fifth_report() -> None:
    share = "monitor/share_of_training/weight_rank"
    assert alerts({share: [0.9, 0.5, 0.2, 0.1] + [0.01] * 8}) == []
    assert len(alerts({share: [0.9, 0.5, 0.2, 0.1, 0.1, 0.1]})) == 1


@pytest.mark.parametrize("model", [mlp, convnet], ids=lambda model: model.__name__)
def test_training_is_bit_identical(model: Callable[[], Classifier], tmp_path: Path) -> None:
    def trained(*callbacks: pl.Callback) -> dict[str, Any]:
        pl.seed_everything(0, verbose=False)
        module = model()
        trainer = fit(module, *callbacks, logger=TensorBoardLogger(tmp_path), max_epochs=2)
        return outcome(trainer, module)

    dashboard = RankDashboard(progress_bar=["effective_rank/mean_over_layers"], alerts=True, columns=["loss"])
    assert_identical(trained(WeightRankMonitor(every_n_steps=1), dashboard), trained())


def test_a_logger_that_fails_ends_no_training() -> None:
    loggers = [BrokenTensorBoardLogger(), BrokenWandbLogger(), Broken(), recorder := Recorder()]
    dashboard = RankDashboard(alerts=True, progress_bar=["stable_rank/mean_over_layers"])
    with pytest.warns(UserWarning, match=r"could not be written to, and training goes on: OSError\('No space left") as caught:
        trainer = fit(Saved(), dashboard, WeightRankMonitor(every_n_steps=1), logger=loggers)
    names = {str(warning.message).split()[0] for warning in caught if "training goes on" in str(warning.message)}
    assert names == {"BrokenTensorBoardLogger", "BrokenWandbLogger", "Broken"}
    assert trainer.global_step == 3
    assert recorder.steps("weight_rank") == [0, 1, 2, 3]
    assert "weight_rank/stable_rank/mean_over_layers" in trainer.progress_bar_metrics


@pytest.mark.parametrize("options", [{"logger": False}, {"fast_dev_run": 2}, {"logger": True}], ids=str)
def test_without_monitors_or_loggers_it_is_silent(options: dict[str, Any], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*could not be written")
        fit(Saved(), RankDashboard(alerts=True), **options, default_root_dir=tmp_path)
        fit(Saved(), RankDashboard(), WeightRankMonitor(), **options, default_root_dir=tmp_path)


def test_resumed_training_does_not_repeat_alerts(tmp_path: Path) -> None:
    values = {"weight_rank/effective_rank/one": [8.0, 1.0, 1.0]}
    with pytest.warns(UserWarning, match="down to 1 at step 1, from 8 at step 0"):
        trainer = fit(mlp(), RankDashboard(alerts=True), Reports(values))
    trainer.save_checkpoint(tmp_path / "it.ckpt")
    dashboard = RankDashboard(alerts=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is down to")
        fit(mlp(), dashboard, Reports({tag: [1.0] * 6 for tag in values}), ckpt_path=str(tmp_path / "it.ckpt"), max_epochs=2)
    assert [row.value for row in dashboard._history.rows()] == [8.0, 1.0, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("namespace", ["pytorch_lightning", "lightning.pytorch"])
def test_command_line(namespace: str, tmp_path: Path) -> None:
    class Model(Training, import_module(namespace).LightningModule):
        def __init__(self, weight_decay: float = 0.01) -> None:
            super().__init__(two_layers(), torch.randn(12, 6))
            self.save_hyperparameters()

    (tmp_path / "config.yaml").write_text("""
    trainer:
      accelerator: cpu
      max_epochs: 1
      enable_checkpointing: false
      enable_progress_bar: false
      enable_model_summary: false
      callbacks:
        - class_path: rank_callbacks.WeightRankMonitor
        - class_path: rank_callbacks.RankDashboard
          init_args: {progress_bar: [effective_rank/mean_over_layers], alerts: true, columns: [loss]}
    model:
      weight_decay: 0.5
    """)
    arguments = ["fit", f"--config={tmp_path / 'config.yaml'}", f"--trainer.default_root_dir={tmp_path}"]
    cli = import_module(f"{namespace}.cli").LightningCLI(Model, args=arguments)
    assert "weight_rank/effective_rank/mean_over_layers" in cli.trainer.progress_bar_metrics
    path = Path(cli.trainer.logger.log_dir)
    assert columns(path)[:4] == ["loss", *COLUMNS]
    assert session(path) == {"weight_decay": 0.5}


def test_two_processes_write_once(tmp_path: Path) -> None:
    run_script("tests.callbacks.two_processes_dashboard", tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first["progress"] == second["progress"] != {}
    assert (first["alerts"], second["alerts"]) == (1, 0)
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1
    assert len(accumulated(tmp_path).Tensors("custom_scalars__config__")) >= 1
    assert columns(tmp_path)[:3] == COLUMNS
