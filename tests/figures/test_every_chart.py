"""What holds for every chart: it is JSON, plotly takes it, and names stay text."""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator

import plotly.graph_objects as go
import pytest

from rank_callbacks.figures import CHARTS, Figure
from rank_callbacks.rows import Row
from rank_callbacks.tags import Tag

NAMES = ("<b>x</b>", "a&b", "plain")
LAYERS = ("<i>stem</i>", "R&D", "fc")
MEASURES = {
    "feature_rank": ("effective_rank",),
    "weight_rank": ("effective_rank",),
    "gradient_rank": ("bound", "utilization", "effective_rank"),
    "rank_collapse": (
        "relative_distance_to_rank_k",
        "distance_to_rank_k",
        "tcv_ratio_input",
        "weight_decay",
        "alignment_bound",
        "certificate_joint",
        "certificate_sharp",
        "certificate_loose",
    ),
}


def rows() -> Iterator[Row]:
    """Three runs, three layers, five steps; NaN and infinity among them, and a run that lacks the first step."""
    for number, run in enumerate(NAMES):
        for step in range(1 if number == 2 else 0, 5):
            for group, measures in MEASURES.items():
                for place, layer in enumerate(LAYERS):
                    for measure in measures:
                        odd = {(0, 0): math.nan, (4, 1): math.inf}.get((step, place))
                        yield Row(run, step, Tag(group, measure, layer), odd if odd is not None else 1.0 / (1 + place + step))
            yield Row(run, step, Tag("weight_rank", "effective_rank", "mean_over_layers"), 2.0)
            yield Row(run, step, Tag("neural_collapse", "nc1_pinv", "penultimate"), math.nan if number == 0 else 0.5)


SETTINGS = {run: {"weight<decay>": decay} for run, decay in zip(NAMES, (0.0, 1e-3, 1e-1), strict=True)}
SPECTRA = {run: {step: [2.0, 1.0, 0.0, math.nan] for step in range(9)} for run in NAMES}
DRAWN: dict[str, Callable[[], Figure]] = {
    "depth_profile": lambda: CHARTS["depth_profile"](rows(), "feature_rank", "effective_rank"),
    "heatmap": lambda: CHARTS["heatmap"](rows(), NAMES[0], "feature_rank", "effective_rank"),
    "spectrum": lambda: CHARTS["spectrum"](SPECTRA, (4, 4), k=2, title="<u>head</u>"),
    "gradient_bound": lambda: CHARTS["gradient_bound"](rows(), reasons=dict.fromkeys(LAYERS, "<b>batch</b>")),
    "collapse": lambda: CHARTS["collapse"](rows(), paths=True),
    "sweep": lambda: CHARTS["sweep"](rows(), SETTINGS, "weight<decay>", accuracies=dict.fromkeys(NAMES, 0.9)),
}

every_chart = pytest.mark.parametrize("chart", DRAWN)


def test_every_chart_is_here() -> None:
    assert set(DRAWN) == set(CHARTS)


@every_chart
def test_is_json(chart: str) -> None:
    figure = DRAWN[chart]()
    assert json.loads(json.dumps(figure, allow_nan=False)) == figure


@every_chart
def test_plotly_takes_it(chart: str) -> None:
    """Which refuses names and values that it does not know."""
    assert len(go.Figure(DRAWN[chart]()).data) > 0


@every_chart
def test_names_are_no_markup(chart: str) -> None:
    """But in ``meta``, which is not shown, and in keys by which traces belong together."""

    def texts(value: object, key: str = "") -> Iterator[str]:
        if isinstance(value, dict):
            for name, inner in value.items():
                yield from texts(inner, name)
        elif isinstance(value, list):
            for inner in value:
                yield from texts(inner, key)
        elif isinstance(value, str) and key != "legendgroup":
            yield value

    figure = DRAWN[chart]()
    shown = list(texts({part: value for part, value in figure.items() if part != "data"}))
    shown += texts([{key: value for key, value in trace.items() if key != "meta"} for trace in figure["data"]])
    assert not [text for text in shown for name in (*NAMES[:2], *LAYERS[:2], "<decay>", "<b>batch", "<u>head") if name in text]
    assert any("&lt;" in text for text in shown)


@every_chart
def test_stands_on_any_page(chart: str) -> None:
    layout = DRAWN[chart]()["layout"]
    assert layout["paper_bgcolor"] == layout["plot_bgcolor"] == "rgba(0, 0, 0, 0)"
    assert "template" not in layout


def test_plotly_and_torch_are_not_imported() -> None:
    script = "import sys, rank_callbacks.figures; print({'plotly', 'torch', 'numpy'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
