"""Draws the charts of docs/images from the examples: ``python docs/pictures.py``; needs kaleido and Chrome or Chromium."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from examples import (
    gradient_rank_bounds,
    gradient_ranks,
    neural_rank_collapse,
    rank_diminishing,
    sgd_weight_decay_rank,
    ssl_collapse,
)

IMAGES = Path(__file__).with_name("images")


def main() -> None:
    """Run the examples and write a picture of each."""
    gradient_ranks.quiet()
    with TemporaryDirectory() as logs:
        by_weight_decay = neural_rank_collapse.mnist(neural_rank_collapse.EPOCHS, Path(logs))
    charts = {
        "gradient_rank_bounds": gradient_rank_bounds.figure(gradient_rank_bounds.all_figures()),
        "gradient_ranks": gradient_ranks.figure(*gradient_ranks.sweeps()),
        "neural_rank_collapse": neural_rank_collapse.figure(by_weight_decay),
        "rank_diminishing": rank_diminishing.figure(rank_diminishing.sweep()),
        "ssl_collapse": ssl_collapse.figure(ssl_collapse.pairs()),
        "sgd_weight_decay_rank": sgd_weight_decay_rank.figure(sgd_weight_decay_rank.sweeps()),
    }
    for name, chart in charts.items():
        chart.write_image(IMAGES / f"{name}.png", scale=1.5)


if __name__ == "__main__":
    main()
