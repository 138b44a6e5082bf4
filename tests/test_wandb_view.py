import re
import sys
from typing import Any

import pytest

from rank_callbacks import RankCollapseMonitor, WeightRankMonitor, wandb_workspace
from rank_callbacks.wandb_view import _MEASURES
from tests.models import CLASSES, mlp
from tests.training import Recorder, fit

workspaces = pytest.importorskip("wandb_workspaces.workspaces")


def panels(group: str, **options: Any) -> list[dict[str, Any]]:
    """What would be sent to the server of one section: the type of each panel and its settings."""
    spec = wandb_workspace("me", "decay", groups=[group], **options)._to_model().spec
    (section,) = spec.section.panel_bank_config.sections
    assert (section.name, section.is_open) == (group, True)
    return [{"type": panel.view_type, **panel.config.model_dump()} for panel in section.panels]


def test_it_is_a_workspace_with_a_section_a_group() -> None:
    workspace = wandb_workspace("me", "decay", name="Sweep")
    assert (workspace.entity, workspace.project, workspace.name) == ("me", "decay", "Sweep")
    assert [section.name for section in workspace.sections] == list(_MEASURES)


def test_panels_of_a_measure() -> None:
    mean, layers, scatter = panels("network_rank", accuracy="test_accuracy")
    tag = "network_rank/jacobian_rank/mean_over_layers"
    assert (mean["type"], mean["x_axis"], mean["metrics"]) == ("Run History Line Plot", "trainer/global_step", [tag])
    assert (layers["use_metric_regex"], layers["metric_regex"]) == (True, "^network_rank/jacobian_rank/")
    assert layers["x_axis"] == "trainer/global_step"
    assert (scatter["type"], scatter["x_axis"], scatter["y_axis"]) == (
        "Scatter Plot",
        f"summary:{tag}",
        "summary:test_accuracy",
    )


@pytest.mark.parametrize(
    ("group", "monitor"),
    [("weight_rank", WeightRankMonitor()), ("rank_collapse", RankCollapseMonitor(num_classes=CLASSES))],
    ids=["weight_rank", "rank_collapse"],
)
def test_monitors_log_what_panels_show(group: str, monitor: Any) -> None:
    fit(mlp(), monitor, logger=(recorder := Recorder()))
    logged = {tag for _, tag in recorder.readings(group)}
    for panel in panels(group):
        assert set(panel.get("metrics") or []) <= logged
        assert panel["x_axis"].removeprefix("summary:") in logged | {"trainer/global_step"}
        assert any(re.search(panel.get("metric_regex") or "", tag) for tag in logged)


@pytest.mark.parametrize("groups", [["weight_ranks"], [], "weight_rank"])
def test_unknown_group(groups: Any) -> None:
    with pytest.raises(ValueError, match=r"Expected groups out of weight_rank, gradient_rank, .*, got "):
        wandb_workspace("me", "decay", groups=groups)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(ImportError, match=r'pip install "rank-callbacks\[workspace\]"'):
        wandb_workspace("me", "decay")
