"""What all charts share: colours, axes, and text that stays text."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median
from typing import Any, NamedTuple, TypeAlias

__all__ = [
    "COLOURS",
    "GREY",
    "OLD",
    "READ",
    "VIRIDIS",
    "Figure",
    "Reach",
    "axis",
    "finite",
    "layout",
    "log_axis",
    "noted_title",
    "pale",
    "plain",
    "ramp",
    "reach",
    "run_look",
    "words",
]

# A plotly figure as plain data: "data", "layout" and, where it moves, "frames".
Figure: TypeAlias = "dict[str, Any]"

# Okabe and Ito's colours, which the colour-blind can tell apart; grey in place of black, which a dark page would swallow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
_DASHES = ("solid", "dash", "dot", "dashdot")
# Seen on white and on black.
GREY = "#888888"
_FAINT = "rgba(128, 128, 128, 0.25)"
# Plotly's numbers of a full circle and of a hollow one: a reading of the report that is shown, and one of an earlier report.
READ, OLD = 0, 100
_FEW_DECADES = 3
_FAR = 1000.0
_NOTHING = "rgba(0, 0, 0, 0)"
# Height of a line under the title.
_NOTE = 18
# Equal steps look equal, in print and to the colour-blind (Smith and van der Walt, 2015).
VIRIDIS = ("#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725")
# The first is lost on black, the last two on white.
_SEEN = VIRIDIS[1:8]


def run_look(place: int) -> dict[str, str]:
    """Colour and dash of a run's line: 28 runs can be told apart.

    Example:
        >>> run_look(0), run_look(8)
        ({'color': '#0072B2', 'dash': 'solid'}, {'color': '#D55E00', 'dash': 'dash'})
    """
    return {"color": COLOURS[place % len(COLOURS)], "dash": _DASHES[place // len(COLOURS) % len(_DASHES)]}


def pale(colour: str) -> str:
    """A quarter of a colour, through which the page is seen.

    Example:
        >>> pale("#0072B2")
        'rgba(0, 114, 178, 0.25)'
    """
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.25)"


def ramp(place: int, many: int) -> str:
    """The colour of the ``place``-th of ``many`` values in order, from dark to light.

    Example:
        >>> ramp(0, 3), ramp(2, 3)
        ('#482878', '#6ece58')
    """
    return _SEEN[round(place * (len(_SEEN) - 1) / max(1, many - 1))]


def plain(text: str) -> str:
    """Text that plotly shows as it is written, where it would take ``<b>`` for markup.

    Example:
        >>> plain("<b>R&D</b>")
        '&lt;b&gt;R&amp;D&lt;/b&gt;'
    """
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def words(name: str) -> str:
    """A measure or a group as it stands in a title.

    Example:
        >>> words("effective_rank")
        'effective rank'
    """
    return plain(name.replace("_", " "))


def finite(value: float | None) -> float | None:
    """A number that JSON knows; None, a gap in the chart, for NaN and infinity."""
    return float(value) if value is not None and math.isfinite(value) else None


def axis(title: str = "", **more: object) -> dict[str, Any]:
    """An axis that can be read on a light and on a dark page."""
    line = {"showline": True, "linecolor": GREY, "ticks": "outside", "tickcolor": GREY, "gridcolor": _FAINT}
    return {"title": {"text": title}, "zeroline": False, "automargin": True, **line, **more}


class Reach(NamedTuple):
    """How far up an axis goes.

    Args:
        top: The largest value of a line that is not far beyond the others.
        beyond: How many lines are.
    """

    top: float
    beyond: int

    def told(self, title: str) -> str:
        """A title that says so."""
        return f"{title}, {self.beyond} beyond the axis" if self.beyond else title


def reach(lines: Iterable[Iterable[float | None]]) -> Reach:
    """How far up an axis goes for the lines on it: not to one whose peak is a thousand times the median of their peaks.

    So is the exponent of the power law of a layer as good as orthogonal, 10¹⁵ where others have 3: up to there an axis would
    show nothing of them. A median below 1 counts as 1, for shares and distances are near 0 in most layers and rightly seen.

    Args:
        lines: The values of each line; None is passed over.

    Example:
        >>> reach([[2.0, 3.0], [4.0], [3.0, 2e15]]), reach([[2.0], [60.0], [1.0]]), reach([[1e-6], [1e-7], [0.5]])
        (Reach(top=4.0, beyond=1), Reach(top=60.0, beyond=0), Reach(top=0.5, beyond=0))
    """
    drawn = [[value for value in line if value is not None] for line in lines]
    peaks = [max(line) for line in drawn if line]
    limit = _FAR * max(1.0, median(peaks or [1.0]))
    near = [peak for peak in peaks if peak <= limit]
    return Reach(max(near, default=1.0), len(peaks) - len(near))


def log_axis(title: str, values: Iterable[float | None], **more: object) -> dict[str, Any]:
    """A logarithmic axis with as few labels as its values need: powers of ten, and 2 and 5 between them over a short range.

    Args:
        title: Of the axis.
        values: What is drawn along it; None is passed over.
        more: Of plotly's options.
    """
    drawn = [value for value in values if value]
    decades = math.log10(max(drawn) / min(drawn)) if drawn else 0.0
    ticks = {} if decades < 1 else {"dtick": "D2" if decades < _FEW_DECADES else 1}
    return axis(title, type="log", exponentformat="power", **ticks, **more)


def noted_title(title: str, note: str = "") -> str:
    """A title, and in small letters under it what a reader must know of the chart.

    Example:
        >>> noted_title("effective rank"), noted_title("stable rank", "upper bound")
        ('effective rank', 'stable rank<br><span style="font-size: 12px">upper bound</span>')
    """
    # Of plotly's own subtitle older versions know nothing.
    return f'{title}<br><span style="font-size: 12px">{note}</span>' if note else title


def layout(title: str, note: str = "", **more: object) -> dict[str, Any]:
    """What is around a chart: nothing behind it, the colour of text left to the page.

    Args:
        title: Of the chart.
        note: Under it, in small letters.
        more: Of plotly's options.
    """
    return {
        "title": {
            "text": noted_title(title, note),
            "x": 0,
            "xref": "paper",
            "xanchor": "left",
            "y": 0.97,
            "yanchor": "top",
            "font": {"size": 17},
        },
        "paper_bgcolor": _NOTHING,
        "plot_bgcolor": _NOTHING,
        "margin": {"l": 70, "r": 30, "t": 60 + (_NOTE if note else 0), "b": 60},
        "hoverlabel": {"namelength": -1, "align": "left"},
        "hovermode": "closest",
        **more,
    }
