import json
import math
from html.parser import HTMLParser

import pytest

from rank_callbacks.compare.report import report
from rank_callbacks.compare.run import Run
from rank_callbacks.compare.sections import Section, sections
from rank_callbacks.rows import Row
from rank_callbacks.tags import Tag
from tests.compare.sweeps import made_run, ranks, sweep_of


def section(runs: list[Run], title: str) -> Section:
    (found,) = [each for each in sections(runs, "weight_decay") if title in each.title]
    return found


class Page(HTMLParser):
    """The elements of a page, its text outside of scripts, and the JSON of its figures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.figures: dict[str, str] = {}
        self.text = ""
        self._at = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._at = (dict(attrs).get("id") or "script") if tag == "script" else ""

    def handle_endtag(self, tag: str) -> None:
        self._at = "" if tag == "script" else self._at

    def handle_data(self, data: str) -> None:
        if self._at.startswith("figure"):
            self.figures[self._at] = data
        elif not self._at:
            self.text += data


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(report(sweep_of()))


def test_opens_offline(page: Page) -> None:
    addresses = [value for _, attributes in page.elements for name, value in attributes.items() if name in {"src", "href"}]
    assert not addresses
    assert not [tag for tag, _ in page.elements if tag in {"link", "iframe", "img"}]


def test_each_chart_has_its_figure(page: Page) -> None:
    places = [attributes["data-figure"] for tag, attributes in page.elements if attributes.get("class") == "chart"]
    assert set(places) == set(page.figures)
    assert len(places) >= 5
    for text in page.figures.values():
        assert {"data", "layout"} <= json.loads(text, parse_constant=pytest.fail).keys()


def test_table_has_all_runs(page: Page) -> None:
    assert sum(tag == "tr" for tag, _ in page.elements) == 4
    assert "wd=0.001" in page.text


def test_missing_charts_say_what_to_add(page: Page) -> None:
    assert "Add GradientRankMonitor to the trainer's callbacks" in page.text
    assert "Add FeatureRankMonitor" in page.text


EVIL = '</script><script>alert(1)</script><img src=x onerror="alert(2)">&amp;'


def test_names_and_settings_are_text() -> None:
    runs = [
        run._replace(name=f"{EVIL}{run.name}", hyperparameters={EVIL: f"{EVIL}{place}"})
        for place, run in enumerate(sweep_of())
    ]
    renamed = [run._replace(rows=[row._replace(run=run.name) for row in run.rows]) for run in runs]
    noted = made_run(EVIL, 0.1, ranks(1.0, 2.0), notes=[EVIL])
    page = Page(report([*renamed, noted], x=EVIL))
    plain = Page(report(sweep_of()))
    assert sum(tag == "script" for tag, _ in page.elements) - len(page.figures) == 2
    assert sum(tag == "script" for tag, _ in plain.elements) - len(plain.figures) == 2
    assert not [tag for tag, _ in page.elements if tag == "img"]
    assert page.text.count(EVIL) > 5
    # Plotly takes tags for markup in what it draws: none of these is whole.
    drawn = [trace.get("name", "") for text in page.figures.values() for trace in json.loads(text)["data"]]
    assert not [name for name in drawn if "<img" in name or "<script" in name]


def troubled() -> list[Run]:
    return [
        *sweep_of(),
        made_run("cut-off", 0.1, ranks(1e6, 1e6), notes=["still running"]),
        Run("empty", "csv", {"weight_decay": 0.1}, [], {}, {}),
        made_run("unnamed", 0.1, ranks(1e6, 1e6))._replace(hyperparameters={}),
        made_run("diverged", 0.1, ranks(math.nan, 1e6), 0.5),
        made_run("smaller", 0.1, ranks(1e6, layers=["net.a.weight"])),
    ]


def test_troubled_runs_are_named_with_their_trouble() -> None:
    page = Page(report(troubled()))
    for text in (
        "cut-off: still running",
        "empty: no readings of any monitor",
        "unnamed: no hyperparameter weight_decay",
        "diverged: effective ranks that are NaN or infinite at the end: net.a.weight",
        "smaller: other layers than most runs: lacks net.b.weight",
    ):
        assert text in page.text
    assert "NaN" in page.text


def test_troubled_runs_are_in_no_mean_fit_or_front() -> None:
    compared, clean = (sections(runs, "weight_decay")[:4] for runs in (troubled(), sweep_of()))
    assert compared == clean


def test_troubled_runs_are_in_charts_of_single_runs() -> None:
    depths = section(troubled(), "Depth")
    names = {trace["name"] for trace in json.loads(depths.charts[0].json)["data"]}
    assert {"cut-off", "diverged"} <= names


def test_fitted_line_in_the_chart() -> None:
    (chart,) = section(sweep_of(), "law").charts
    line = json.loads(chart.json)["data"][-1]
    assert line["name"] == "slope 1 (1 to 1),<br>R² 1.00"
    assert line["y"] == pytest.approx([0.0005 * ratio for ratio in line["x"]])
    assert line["x"] == pytest.approx([20, 500])


def test_fitted_line_tells_what_it_leaves_out() -> None:
    (note,) = section(sweep_of(), "law").notes
    assert note.startswith("The line is fitted to 4 layers; 2 more have no place in it")
    without = section(sweep_of([0.0, 0.1]), "law")
    assert without.notes[0].startswith("No line is fitted. Expected 3 layers")
    assert without.charts[0].json


def test_many_runs_are_thinned_and_it_is_said() -> None:
    spectra = section(sweep_of([0.001 * place for place in range(1, 21)]), "Spectra")
    assert spectra.notes == ["8 runs are drawn, evenly along weight_decay; 12 more are not, for want of room."]


def seed_of(run: Run, seed: int, name: str) -> Run:
    rows = [row._replace(run=name, value=row.value * (1 + seed / 100)) for row in run.rows]
    return run._replace(name=name, rows=rows, hyperparameters={**run.hyperparameters, "seed": seed})


def seeds_of(runs: list[Run], many: int = 3) -> list[Run]:
    """Each run as often; the first seed is the last in the order of names."""
    return [seed_of(run, seed, f"{run.name},{many - seed}") for run in runs for seed in range(many)]


def test_table_has_a_row_a_setting_and_the_runs_folded_below() -> None:
    page = Page(report(seeds_of(sweep_of()), seed="seed"))
    tables = [place for place, (tag, _) in enumerate(page.elements) if tag == "table"]
    rows = [
        sum(tag == "tr" for tag, _ in page.elements[start:end]) for start, end in zip(tables, [*tables[1:], None], strict=True)
    ]
    assert rows == [1 + 3, 1 + 9]
    assert ("details", {}) in page.elements[tables[0] : tables[1]]
    # Ranks of 30 times 1, 1.01 and 1.02: their s is 0.3.
    assert "30.3± 0.75 (3)" in page.text
    assert "half of the 95 % interval of the mean over seeds" in page.text


def test_an_odd_run_keeps_a_row_of_its_own() -> None:
    runs = seeds_of(sweep_of())
    page = Page(report([runs[0]._replace(notes=["failed"]), *runs[1:]], seed="seed"))
    assert "(2)" in page.text
    assert page.text.count("wd=0,3") > 2


def test_of_seeds_the_first_is_in_charts_of_single_runs() -> None:
    runs = seeds_of(sweep_of([0.001 * place for place in range(1, 21)]))
    depths = section(runs, "Depth")
    names = [trace["name"] for trace in json.loads(depths.charts[0].json)["data"]]
    assert names[0] == "wd=0.001,3"
    assert len(names) == 8
    assert {name.partition(",")[2] for name in names} == {"3"}
    assert depths.notes == [
        "Of runs that differ in their seed alone the first is drawn: 20 of 60 runs.",
        "8 runs are drawn, evenly along weight_decay; 12 more are not, for want of room.",
    ]


def test_trade_off_is_one_of_means() -> None:
    found = section(seeds_of(sweep_of()), "against accuracy")
    front, _, marks = json.loads(found.charts[0].json)["data"]
    assert marks["x"] == pytest.approx([30.3, 15.15, 10.1])
    assert front["x"] == pytest.approx([10.1, 15.15, 30.3])
    assert found.help.startswith("A large mark is the mean")
    assert section(sweep_of(), "against accuracy").help.startswith("Each mark is a run;")


def test_help_tells_the_bars_of_each_chart() -> None:
    text = section(sweep_of(), "Rank against weight").help
    assert "its bar their range" not in text
    assert "In the first chart the bar of a mark is the 95 % interval of its mean" in text


def test_layers_are_in_the_order_of_the_network() -> None:
    names = {"net.a.weight": "net.hidden.weight", "net.b.weight": "net.head.weight"}
    renamed = [
        run._replace(
            kind="tensorboard",
            rows=[row._replace(tag=row.tag._replace(layer=names.get(row.tag.layer, row.tag.layer))) for row in run.rows],
            spectra={
                tag._replace(layer=layer): next(iter(run.spectra.values())) for layer in names.values() for tag in run.spectra
            },
        )
        for run in sweep_of()
    ]
    layers, *_ = section(renamed, "Rank against weight").charts
    assert [line["name"] for line in json.loads(layers.json)["data"]] == ["hidden", "head"]
    assert [chart.title for chart in section(renamed, "Spectra").charts] == ["net.hidden.weight", "net.head.weight"]
    profile = json.loads(section(renamed, "Depth").charts[0].json)
    assert profile["layout"]["xaxis"]["ticktext"] == ["hidden", "head"]
    law = json.loads(section(renamed, "law").charts[0].json)["data"]
    assert [trace["name"] for trace in law if trace.get("name") in {"hidden", "head"}] == ["hidden", "head"]


def test_runs_without_accuracy_are_named() -> None:
    runs = [*sweep_of(), made_run("silent", 0.1, sweep_readings(), None)]
    assert section(runs, "against accuracy").notes == ["Without a final accuracy or rank, and so not drawn: silent."]


def sweep_readings() -> dict[tuple[str, str, str], float]:
    return {tuple(row.tag): row.value for row in sweep_of([0.1])[0].rows}


def test_latest_spectrum_of_each_run() -> None:
    (chart,) = section(sweep_of(), "Spectra").charts
    curves = [trace for trace in json.loads(chart.json)["data"] if "step 9" in trace["name"]]
    assert [curve["y"] for curve in curves] == [[3.0, 1.0]] * 3


def test_no_runs() -> None:
    with pytest.raises(ValueError, match="Expected runs to compare, got none"):
        report([])


def test_accuracy_by_name() -> None:
    runs = [run._replace(metrics={**run.metrics, "f1": [(9, 0.123)]}) for run in sweep_of()]
    assert r"<th>f1</th>" in report(runs, accuracy="f1")
    assert "0.123" in Page(report(runs, accuracy="f1")).text


def test_what_is_odd_is_named_and_compared() -> None:
    runs = sweep_of()
    odd = [runs[0]._replace(remarks=[f"1 of its readings is NaN {EVIL}"]), *runs[1:]]
    assert sections(odd, "weight_decay") == sections(runs, "weight_decay")
    page = Page(report(odd))
    assert "Not compared" not in page.text
    assert f"wd=0: 1 of its readings is NaN {EVIL}" in page.text


def test_runs_without_accuracy_are_named_beside_the_means() -> None:
    runs = [*sweep_of(), made_run("silent", 0.1, sweep_readings(), None)]
    assert section(runs, "Rank against weight").notes == ["Without a final accuracy, and so in no mean of it: silent."]


def with_truncation(runs: list[Run]) -> list[Run]:
    """Accuracies fall with the tolerance, and sizes with the weight decay."""
    added = []
    for place, run in enumerate(runs):
        values = {"accuracy": 0.9, "accuracy_at_rtol_0.1": 0.895, "parameters_at_rtol_0.1": 0.6 / (place + 1)}
        values |= {"accuracy_at_rtol_0.3": 0.5, "parameters_at_rtol_0.3": 0.1 / (place + 1)}
        rows = [Row(run.name, 9, Tag("truncation", name, "network"), value) for name, value in values.items()]
        added.append(run._replace(rows=[*run.rows, *rows]))
    return added


def test_truncation_is_drawn_where_it_was_logged() -> None:
    found = section(with_truncation(sweep_of()), "What the ranks allow")
    tolerance, size, spectra = (json.loads(chart.json)["data"] for chart in found.charts)
    assert [line["y"] for line in tolerance] == [[0.9, 0.895, 0.5]] * 3
    assert size[2]["x"] == pytest.approx([1, 0.2, 0.1 / 3])
    # Of the 2 x 2 matrices with singular values 3 and 1 the second counts above a third: one factor pair has all 4 numbers.
    assert [line["y"] for line in spectra] == [[1.0] * 6] * 3
    assert found.notes == []


def test_runs_without_truncation_are_named() -> None:
    some, *others = sweep_of()
    found = section([*with_truncation([some]), *(run._replace(spectra={}) for run in others)], "What the ranks allow")
    named = "wd=0.001, wd=0.01."
    assert found.notes == [
        f"Without TruncationMonitor's readings, and so not in the charts of accuracy: {named}",
        f"Without whole spectra with shapes, and so not in the chart of the final spectra: {named}",
    ]
    missing = section([run._replace(spectra={}) for run in sweep_of()], "What the ranks allow")
    assert missing.notes == []
    assert "Add TruncationMonitor" in missing.charts[0].missing
    assert "Log to TensorBoard with WeightRankMonitor" in missing.charts[2].missing
