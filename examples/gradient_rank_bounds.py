"""How low must the rank of a gradient be? Five figures of Baker et al. (2024), in seconds, without training.

Run it as ``python -m examples.gradient_rank_bounds``; it prints tables and writes a chart.

Auto-encoders at initialisation pass one batch of 256 rows forward and backward in float64. The rank of every gradient is
counted from its singular values, and stands beside the bound that ``gradient_rank_bounds`` gives for the same batch.

Reference:
    Low-rank learning by design: the role of network architecture and activation linearity in gradient rank collapse (Baker,
    Pearlmutter, Miller, Calhoun and Plis, 2024), https://arxiv.org/abs/2402.06751
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from plotly.graph_objects import Bar, Figure, Scatter
from plotly.subplots import make_subplots
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from rank_callbacks import gradient_rank_bounds
from rank_callbacks.functional import leaky_relu_threshold, numerical_rank, rounding_rtol, singular_values

BATCH = 256
WIDTH = 128
BOTTLENECK = 16
NARROW = 2
STEPS = (1, 2, 4, 8, 16, 32, 50)
SLOPES = (*(i / 10 for i in range(10)), 0.99, 1.0)
DRAWS = 10

# Told apart also by the colour-blind (Okabe and Ito).
BLUE, SKY, ORANGE, RED, BLACK = "#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#000000"
TITLES = (
    "<b>Fig. 1: linear auto-encoder</b><br>no bottleneck: full rank everywhere",
    f"<b>Fig. 1: with a bottleneck of {BOTTLENECK}</b><br>no gradient exceeds it, before or after",
    f"<b>Fig. S1: fed {BOTTLENECK}-dimensional data</b><br>nothing exceeds the data",
    f"<b>Fig. 2: linear RNN, bottleneck of {NARROW}</b><br>every step adds {NARROW}",
    f"<b>Fig. 4: leaky ReLU, bottleneck of {NARROW}</b><br>2 beside it; elsewhere any nonlinearity lifts the rank",
    "<b>Fig. 3: what rounds away behind leaky ReLU</b><br>the estimate lies above the truth",
)
SIZE = {"width": 1500, "height": 980, "margin": {"t": 170, "l": 70, "r": 30, "b": 70}}
LEGENDS = {
    "legend": {"orientation": "h", "x": 0, "y": 1.13},
    "legend2": {"x": 0.01, "y": 0.385, "yanchor": "top"},
    "legend3": {"x": 0.51, "y": 0.18, "xanchor": "center", "yanchor": "middle"},
    "legend4": {"x": 0.99, "y": 0.2, "xanchor": "right", "yanchor": "middle"},
}
HEADING = (
    "<b>How low must the rank of a gradient be?</b>  In colour: measured at initialisation, in float64. Black: the bound."
)


class Ranks(NamedTuple):
    """Measured ranks at one weight, and the bound of its gradient.

    Args:
        layer: Qualified name of the layer.
        shape: Of the weight, outputs by inputs.
        activation: Rank of the layer's inputs.
        delta: Rank of the gradients of its outputs.
        gradient: Rank of the weight's gradient.
        bound: What that cannot exceed.
    """

    layer: str
    shape: tuple[int, ...]
    activation: int
    delta: int
    gradient: int
    bound: int


class Threshold(NamedTuple):
    """Below which a singular value is lost behind leaky ReLU: exactly, and as Baker et al. estimate it beforehand."""

    slope: float
    true: float
    estimate: float


class Figures(NamedTuple):
    """The numbers of every figure: layers in the order of the model, by number of steps or by slope where those vary."""

    wide: list[Ranks]
    bottleneck: list[Ranks]
    narrow_data: list[Ranks]
    recurrent: dict[int, list[Ranks]]
    leaky: dict[float, list[Ranks]]
    thresholds: list[Threshold]


class Elman(nn.Module):
    """A linear recurrent layer, h_t = U x_t + V h_{t−1}; an orthogonal V keeps the directions of all steps in sight."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.i2h = linear(inputs, outputs)
        self.h2h = linear(outputs, outputs)
        nn.init.orthogonal_(self.h2h.weight)

    def forward(self, sequences: Tensor) -> Tensor:
        states = [sequences.new_zeros(len(sequences), self.h2h.in_features)]
        for step in sequences.unbind(1):
            states.append(self.i2h(step) + self.h2h(states[-1]))
        return torch.stack(states[1:], dim=1)


class Watched:
    """Keeps what passes through a layer, of all its calls."""

    def __init__(self, layer: nn.Linear) -> None:
        self.weight = layer.weight
        self.shape = tuple(layer.weight.shape)
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []
        layer.register_forward_hook(self.keep)

    def keep(self, layer: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        output.retain_grad()
        self.inputs.append(args[0])
        self.outputs.append(output)

    def ranks(self) -> tuple[int, int, int]:
        """Of activation, delta and gradient; a row a sample and step."""
        deltas = [gradient_of(output) for output in self.outputs]
        return exact_rank(torch.cat(self.inputs)), exact_rank(torch.cat(deltas)), exact_rank(gradient_of(self.weight))


def linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False, dtype=torch.float64)


def gaussian(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def auto_encoder(bottleneck: int = WIDTH, rank_of_data: int = WIDTH) -> list[Ranks]:
    """Figure 1 and, for data of lower rank, S1: four linear layers, a bottleneck between the second and the third."""
    torch.manual_seed(0)
    widths = (WIDTH, WIDTH, bottleneck, WIDTH, WIDTH)
    data = gaussian(BATCH, rank_of_data) @ gaussian(rank_of_data, WIDTH)
    return ranks(nn.Sequential(*[linear(*pair) for pair in pairwise(widths)]), data)


def recurrent_auto_encoder(steps: int) -> list[Ranks]:
    """Figure 2: four linear recurrent layers with a bottleneck of 2, over sequences of so many steps."""
    torch.manual_seed(0)
    widths = (WIDTH, WIDTH, NARROW, WIDTH, WIDTH)
    return ranks(nn.Sequential(*[Elman(*pair) for pair in pairwise(widths)]), gaussian(BATCH, steps, WIDTH))


def leaky_auto_encoder(slope: float) -> list[Ranks]:
    """Figure 4: six layers with a bottleneck of 2 and leaky ReLU between them, from ReLU at 0 to linear at 1."""
    torch.manual_seed(0)
    widths = (WIDTH, WIDTH, WIDTH, NARROW, WIDTH, WIDTH, WIDTH)
    layers = [layer for pair in pairwise(widths) for layer in (linear(*pair), nn.LeakyReLU(slope))]
    return ranks(nn.Sequential(*layers[:-1]), gaussian(BATCH, WIDTH))


def threshold(slope: float) -> Threshold:
    """Figure 3: ε·σ₁ of leaky ReLU of a random matrix of rank 16, and what bounds it; a mean over random matrices."""
    torch.manual_seed(0)
    matrices = [gaussian(WIDTH, BOTTLENECK) @ gaussian(BOTTLENECK, WIDTH) for _ in range(DRAWS)]
    eps = torch.finfo(torch.float64).eps
    true = [eps * float(singular_values(nn.functional.leaky_relu(matrix, slope))[0]) for matrix in matrices]
    estimates = [float(leaky_relu_threshold(matrix, slope)) for matrix in matrices]
    return Threshold(slope, sum(true) / DRAWS, sum(estimates) / DRAWS)


def ranks(model: nn.Module, batch: Tensor) -> list[Ranks]:
    """Every layer's ranks in one pass of an auto-encoder, and the bounds on the same batch."""

    def loss(output: Tensor) -> Tensor:
        return nn.functional.mse_loss(output, batch)

    bounds = {row.layer: row.bound for row in gradient_rank_bounds(model, batch, loss) if row.bound is not None}
    layers = {name: Watched(module) for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    loss(model(batch)).backward()
    return [Ranks(name, layer.shape, *layer.ranks(), bounds[f"{name}.weight"]) for name, layer in layers.items()]


def gradient_of(tensor: Tensor) -> Tensor:
    if tensor.grad is None:
        raise ValueError("Expected every layer to take part in the loss.")
    return tensor.grad


def exact_rank(matrix: Tensor) -> int:
    """Singular values above max(m, n)·ε·σ₁."""
    return int(numerical_rank(singular_values(matrix.detach()), rounding_rtol(tuple(matrix.shape), matrix.dtype)))


def all_figures(steps: Iterable[int] = STEPS, slopes: Iterable[float] = SLOPES) -> Figures:
    slopes = list(slopes)
    return Figures(
        wide=auto_encoder(),
        bottleneck=auto_encoder(bottleneck=BOTTLENECK),
        narrow_data=auto_encoder(rank_of_data=BOTTLENECK),
        recurrent={number: recurrent_auto_encoder(number) for number in steps},
        leaky={slope: leaky_auto_encoder(slope) for slope in slopes},
        thresholds=[threshold(slope) for slope in slopes],
    )


def tables(figures: Figures) -> list[Table]:
    return [
        layers_table("Figure 1, without a bottleneck: linear auto-encoder", figures.wide),
        layers_table(f"Figure 1, with a bottleneck of {BOTTLENECK}", figures.bottleneck),
        layers_table(f"Figure S1: data of {BOTTLENECK} dimensions, embedded in {WIDTH}", figures.narrow_data),
        sweep_table("Figure 2: linear Elman auto-encoder, rank of the gradient ≤ bound", "steps", figures.recurrent),
        sweep_table("Figure 4: leaky-ReLU auto-encoder, rank of the gradient ≤ bound", "slope", figures.leaky),
        threshold_table(figures.thresholds),
    ]


def layers_table(title: str, rows: Sequence[Ranks]) -> Table:
    table = Table("weight", "activation", "delta", "gradient", "bound", title=title, title_justify="left")
    for row in rows:
        table.add_row(in_words(row), *map(str, (row.activation, row.delta, row.gradient, row.bound)))
    return table


def sweep_table(title: str, variable: str, sweep: dict[Any, list[Ranks]]) -> Table:
    first = next(iter(sweep.values()))
    table = Table(variable, *[f"{row.layer}\n{in_words(row)}" for row in first], title=title, title_justify="left")
    for value, rows in sweep.items():
        table.add_row(f"{value:g}", *[f"{row.gradient} ≤ {row.bound}" for row in rows])
    return table


def threshold_table(rows: Sequence[Threshold]) -> Table:
    title = f"Figure 3: threshold behind leaky ReLU of rank {BOTTLENECK}"
    table = Table("slope", "ε·σ₁(D ⊙ Z)", "estimate, equation (9)", "ratio", title=title, title_justify="left")
    for row in rows:
        table.add_row(f"{row.slope:g}", f"{row.true:.2e}", f"{row.estimate:.2e}", f"{row.estimate / row.true:.1f}")
    return table


def in_words(row: Ranks) -> str:
    outputs, inputs = row.shape
    return f"{inputs} → {outputs}"


def figure(figures: Figures) -> Figure:
    """The charts of all figures: what is measured in colour, bounds in black."""
    chart = make_subplots(2, 3, subplot_titles=TITLES, vertical_spacing=0.21, horizontal_spacing=0.07)
    for column, rows in enumerate((figures.wide, figures.bottleneck, figures.narrow_data), start=1):
        chart.add_traces(bars(rows, legend=column == 1), rows=1, cols=column)
    chart.add_traces(recurrent_curves(figures.recurrent), rows=2, cols=1)
    chart.add_traces(leaky_curves(figures.leaky), rows=2, cols=2)
    chart.add_traces(threshold_curves(figures.thresholds), rows=2, cols=3)
    return laid_out(chart)


def bars(rows: Sequence[Ranks], legend: bool) -> list[Bar | Scatter]:
    layers = [f"{place}<br>{in_words(row)}" for place, row in enumerate(rows, start=1)]
    looks = {"activation": SKY, "delta": ORANGE, "gradient": BLUE}
    traces = [
        Bar(x=layers, y=[getattr(row, name) for row in rows], name=f"rank of {name}", marker_color=colour, showlegend=legend)
        for name, colour in looks.items()
    ]
    dash = {"symbol": "line-ew", "size": 62, "line": {"width": 3, "color": BLACK}}
    bound = [row.bound for row in rows]
    name = "bound of the gradient"
    return [*traces, Scatter(x=layers, y=bound, name=name, mode="markers", marker=dash, showlegend=legend)]


def recurrent_curves(sweep: dict[int, list[Ranks]]) -> list[Scatter]:
    """A curve a kind of matrix: those of one kind have the same ranks."""
    looks = {
        "input to hidden, 128 → 128: 2T": ("0.i2h", BLUE, "circle"),
        "hidden to hidden, 128 → 128: 2(T − 1)": ("0.h2h", ORANGE, "square"),
        "at the bottleneck, 128 → 2 and 2 → 128": ("1.i2h", RED, "diamond"),
    }
    return [trace for name, look in looks.items() for trace in dots_and_line(sweep, name, *look, legend="legend2")]


def leaky_curves(sweep: dict[float, list[Ranks]]) -> list[Scatter]:
    looks = {
        "last layer": ("10", SKY, "square"),
        "first and second": ("0", BLUE, "circle-open"),
        "fifth": ("8", ORANGE, "triangle-up"),
        "next to the bottleneck": ("4", RED, "diamond"),
    }
    return [trace for name, look in looks.items() for trace in dots_and_line(sweep, name, *look, legend="legend3")]


def dots_and_line(
    sweep: dict[Any, list[Ranks]], name: str, layer: str, colour: str, symbol: str, legend: str
) -> list[Scatter]:
    """Bound and measured rank of one layer."""
    rows = [next(row for row in rows if row.layer == layer) for rows in sweep.values()]
    look = {"color": colour, "size": 14 if "open" in symbol else 9, "symbol": symbol, "line_width": 2 * ("open" in symbol)}
    values = [row.gradient for row in rows]
    return [
        Scatter(
            x=list(sweep), y=[row.bound for row in rows], mode="lines", line_color=BLACK, line_width=1.5, showlegend=False
        ),
        Scatter(x=list(sweep), y=values, mode="markers", marker=look, name=name, legend=legend),
    ]


def threshold_curves(rows: Sequence[Threshold]) -> list[Scatter]:
    slopes = [row.slope for row in rows]
    looks = {"estimate": ("estimate, ε·min(c₁, r₁)·σ₁(Z)", BLACK), "true": ("truth, ε·σ₁(leaky ReLU(Z))", BLUE)}
    return [
        Scatter(x=slopes, y=[getattr(row, field) for row in rows], name=name, line_color=colour, legend="legend4")
        for field, (name, colour) in looks.items()
    ]


def laid_out(chart: Figure) -> Figure:
    legends = {name: place | {"bgcolor": "rgba(0, 0, 0, 0)"} for name, place in LEGENDS.items()}
    chart.update_layout(
        template="plotly_white", font_size=14, title={"text": HEADING, "x": 0.03, "y": 0.97}, **SIZE, **legends
    )
    chart.update_xaxes(showgrid=False, zeroline=False, showline=True, linecolor="grey")
    chart.update_yaxes(range=[0, 1.08 * WIDTH], tickvals=[0, BOTTLENECK, 32, 64, 96, WIDTH])
    chart.update_yaxes(title_text="rank", col=1)
    chart.update_xaxes(title_text="weight, from input to output", row=1)
    chart.update_xaxes(title_text="steps of the sequence, T", tickvals=[1, 8, 16, 32, 50], row=2, col=1)
    for column in (2, 3):
        chart.update_xaxes(title_text="slope of leaky ReLU, from ReLU to linear", range=[-0.04, 1.04], row=2, col=column)
    decades = {"tickvals": [1e-14, 1e-13, 1e-12], "ticktext": ["10⁻¹⁴", "10⁻¹³", "10⁻¹²"]}
    chart.update_yaxes(title_text="singular value", type="log", range=[-14, -12], **decades, row=2, col=3)
    return chart


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--folder", type=Path, default=Path("runs/gradient_rank_bounds"))
    options = arguments.parse_args()
    torch.set_num_threads(1)  # the matrices are too small to share between cores
    figures = all_figures()
    for table in tables(figures):
        Console(width=127).print(table, "")
    options.folder.mkdir(parents=True, exist_ok=True)
    page = options.folder / "gradient_rank_bounds.html"
    figure(figures).write_html(page)
    print(f"Chart: {page}")


if __name__ == "__main__":
    main()
