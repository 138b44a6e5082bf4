"""A saved view of Weights & Biases for a sweep of runs with monitors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rank_callbacks.tags import Tag

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Section, Workspace

__all__ = ["wandb_workspace"]

# Readings that show first what a group is about: those that its monitor takes when it is told nothing.
_MEASURES = {
    "weight_rank": ("effective_rank", "stable_rank", "numerical_rank"),
    "gradient_rank": ("effective_rank", "utilization"),
    "feature_rank": ("effective_rank", "rankme"),
    "neural_collapse": ("nc1_pinv", "class_mean_equiangularity"),
    "rank_collapse": ("relative_distance_to_rank_k", "tcv_ratio_input"),
    "network_rank": ("jacobian_rank",),
}
_STEP = "trainer/global_step"


def wandb_workspace(
    entity: str,
    project: str,
    groups: Sequence[str] = tuple(_MEASURES),
    accuracy: str = "val_accuracy",
    name: str = "Ranks",
) -> Workspace:
    """A workspace of Weights & Biases with a section a group: means over layers, layers, and rank against accuracy.

    It is built offline and returned unsaved: ``save()`` sends it, and ``url`` tells where it then is. Charts are over the
    trainer's step and show all runs of the project; panels of readings that no run has stay empty.

    Args:
        entity: User or team that the project belongs to.
        project: Name of the project whose runs have monitors.
        groups: Which sections there are, in their order.
        accuracy: What ranks are drawn against: the name of a reading in the runs' summaries.
        name: Name of the view.

    Raises:
        ImportError: If the package wandb-workspaces is not installed.
        ValueError: If a group is unknown, or there is none.

    Example:
        >>> workspace = wandb_workspace("me", "weight-decay", groups=["weight_rank"])  # doctest: +SKIP
        >>> workspace.save()  # doctest: +SKIP
    """
    unknown = [group for group in groups if group not in _MEASURES]
    if unknown or isinstance(groups, str) or not groups:
        raise ValueError(f"Expected groups out of {', '.join(_MEASURES)}, got {groups!r}.")
    try:
        import wandb_workspaces.workspaces as workspaces
    except ImportError as missing:
        raise ImportError('A saved view needs wandb-workspaces: pip install "rank-callbacks[workspace]".') from missing

    sections = [_section(group, accuracy) for group in groups]
    settings = workspaces.WorkspaceSettings(x_axis=_STEP)
    return workspaces.Workspace(entity=entity, project=project, name=name, sections=sections, settings=settings)


def _section(group: str, accuracy: str) -> Section:
    import wandb_workspaces.workspaces as workspaces

    panels = [panel for measure in _MEASURES[group] for panel in _panels(group, measure, accuracy)]
    layout = workspaces.SectionLayoutSettings(columns=3, rows=len(_MEASURES[group]))
    return workspaces.Section(name=group, panels=panels, is_open=True, layout_settings=layout)


def _panels(group: str, measure: str, accuracy: str) -> list[Any]:
    """One row of a section: over time the mean, over time every layer, and the last mean against accuracy."""
    from wandb_workspaces.reports.v2 import interface as reports

    mean = str(Tag(group, measure, "mean_over_layers"))
    return [
        reports.LinePlot(title=f"{measure}: mean over layers", x=_STEP, y=[mean]),
        reports.LinePlot(title=f"{measure}: every layer", x=_STEP, metric_regex=f"^{group}/{measure}/"),
        reports.ScatterPlot(
            title=f"{measure} against {accuracy}", x=reports.SummaryMetric(mean), y=reports.SummaryMetric(accuracy)
        ),
    ]
