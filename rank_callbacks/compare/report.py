"""The report of a sweep: one HTML file that needs no network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path

from rank_callbacks.compare.cells import ABOUT_SEEDS, cell_text
from rank_callbacks.compare.final import Cell, final_table
from rank_callbacks.compare.run import Run
from rank_callbacks.compare.sections import Chart, Section, sections
from rank_callbacks.compare.seeds import SEED, Spread, alike, over_seeds
from rank_callbacks.compare.soundness import problems
from rank_callbacks.compare.summary import summary

__all__ = ["report"]

_STATIC = Path(__file__).with_name("static")
_ABOUT = (
    "Readings at the end of each run, means over layers; NC1 is of the penultimate features where they were measured. "
    "Distance to rank K and its certificate, which it cannot exceed at any step, are in the unit of the weights. A dash "
    "is what a run has not logged."
)


def report(runs: Sequence[Run], x: str = "weight_decay", accuracy: str | None = None, seed: str | None = None) -> str:
    """The text of ``report.html``: a summary in words, a table of all runs, what is wrong with some, and the charts.

    It holds plotly's JavaScript, about 5 MB, and loads nothing. Runs with a problem are named with it and shown in the table
    and in charts of single runs, and enter no mean, fit or front; what is only odd is named as well. The trade-off is one of
    means over seeds, and charts of single runs show the first: seeds are runs that differ in ``seed`` alone, or where none is
    given in the hyperparameter of that name. Names and hyperparameters show as they are written, markup among them. It is
    light or dark as the reader's system is, and light on paper.

    Args:
        runs: All that were found; their names are unique.
        x: The hyperparameter that they are compared by.
        accuracy: Name of the metric; None for the one that most runs have of those whose name holds "acc".
        seed: Give the table a row for runs that differ in this alone, with their rows folded below; None for a row a run.

    Raises:
        ValueError: If there is no run.
        ImportError: If plotly is not installed.

    Example:
        >>> page = report([Run("a", "csv", {"weight_decay": 0.1}, [], {}, {})])
        >>> page[:15], "no readings of any monitor" in page
        ('<!doctype html>', True)
    """
    if not runs:
        raise ValueError("Expected runs to compare, got none. Give a folder with logs of the monitors.")
    shown = sections(runs, x, accuracy, seed or SEED)
    figures = {f"figure-{place}": chart for place, chart in enumerate(chart for part in shown for chart in part.charts)}
    of_chart = {id(chart): name for name, chart in figures.items()}
    wrong = problems(runs, x)
    body = [
        f"<h1>Ranks of {len(runs)} run{'' if len(runs) == 1 else 's'}</h1>",
        *_summary(summary(runs, x, accuracy, seed or SEED)),
        *_tables(runs, x, accuracy, seed, wrong),
        *_problems(wrong),
        *_remarks(runs),
        *(line for section in shown for line in _section(section, of_chart)),
    ]
    return _page(body, {name: chart.json for name, chart in figures.items() if chart.json})


def _summary(sentences: Sequence[str]) -> Iterator[str]:
    yield '<ul class="summary">'
    yield from (f"<li>{escape(sentence)}</li>" for sentence in sentences)
    yield "</ul>"


def _tables(
    runs: Sequence[Run], x: str, accuracy: str | None, seed: str | None, wrong: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """A row a run; or a row a setting, and the runs folded below."""
    columns, rows = final_table(runs, x, accuracy)
    if seed is None:
        yield from _table(columns, rows)
    else:
        yield from _table(columns, over_seeds(rows, alike([run for run in runs if not wrong[run.name]], x, seed)))
    yield f'<p class="about">{escape(_ABOUT)}{f" {ABOUT_SEEDS}" if seed else ""}</p>'
    if seed is not None:
        yield f"<details><summary>Each of the {len(runs)} runs</summary>"
        yield from _table(columns, rows)
        yield "</details>"


def _table(columns: Sequence[str], rows: Sequence[Sequence[Cell | Spread]]) -> Iterator[str]:
    yield '<div class="wide"><table><thead><tr>'
    yield from (f"<th>{escape(column)}</th>" for column in columns)
    yield "</tr></thead><tbody>"
    for row in rows:
        yield f"<tr>{''.join(map(_cell, row, columns))}</tr>"
    yield "</tbody></table></div>"


def _cell(value: Cell | Spread, column: str) -> str:
    if isinstance(value, Spread):
        mean, *within = cell_text(value, column).split(" ", 1)
        return f"<td>{escape(mean)}<small>{escape(''.join(within))}</small></td>"
    is_wrong = isinstance(value, float) and not math.isfinite(value)
    kind = ' class="wrong"' if is_wrong else ""
    return f"<td{kind}>{escape(cell_text(value, column))}</td>"


def _problems(wrong: Mapping[str, Sequence[str]]) -> Iterator[str]:
    named = {name: notes for name, notes in wrong.items() if notes}
    if named:
        yield '<section class="problems"><h2>Not compared</h2><p>In the table and in charts of single runs only:</p><ul>'
        yield from (f"<li><b>{escape(name)}</b>: {escape('; '.join(notes))}</li>" for name, notes in named.items())
        yield "</ul></section>"


def _remarks(runs: Sequence[Run]) -> Iterator[str]:
    odd = [run for run in runs if run.remarks]
    if odd:
        yield '<section class="remarks"><h2>Odd</h2><p>Of itself none of this keeps a run from being compared:</p><ul>'
        yield from (f"<li><b>{escape(run.name)}</b>: {escape('; '.join(run.remarks))}</li>" for run in odd)
        yield "</ul></section>"


def _section(section: Section, of_chart: Mapping[int, str]) -> Iterator[str]:
    yield f'<section><h2>{escape(section.title)}</h2><p class="help">{escape(section.help)}</p>'
    yield from (f'<p class="note">{escape(note)}</p>' for note in section.notes)
    yield from (_chart(chart, of_chart[id(chart)]) for chart in section.charts)
    yield "</section>"


def _chart(chart: Chart, name: str) -> str:
    if not chart.json:
        return f'<p class="missing"><b>{escape(chart.title)}</b>: {escape(chart.missing)}</p>'
    place = f'<div class="chart" data-figure="{name}"></div>'
    return f"<details><summary>{escape(chart.title)}</summary>{place}</details>" if chart.folded else place


def _page(body: Sequence[str], figures: Mapping[str, str]) -> str:
    data = [f'<script type="application/json" id="{name}">{_harmless(text)}</script>' for name, text in figures.items()]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    lines = [
        f'<!doctype html><html lang="en"><head>{head}<title>Ranks of runs</title>',
        f"<style>{_static('report.css')}</style></head><body>",
        *body,
        *data,
        f"<script>{_plotly()}</script><script>{_static('report.js')}</script></body></html>",
    ]
    return "\n".join(lines)


def _harmless(text: str) -> str:
    r"""JSON that cannot end its script element, whatever names hold.

    Example:
        >>> _harmless('"</script>"')
        '"\\u003c/script>"'
    """
    return text.replace("<", r"\u003c")


def _static(name: str) -> str:
    return (_STATIC / name).read_text(encoding="utf-8")


def _plotly() -> str:
    """Plotly's JavaScript from the installed package, found without importing it."""
    package = find_spec("plotly")
    if package is None or package.origin is None:
        raise ImportError("The report draws with plotly. Install it with: pip install plotly")
    return (Path(package.origin).parent / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
