"""Draws the charts of docs/images from the examples: ``python docs/pictures.py``; needs kaleido and Chrome or Chromium."""

from __future__ import annotations

from pathlib import Path

from examples import gradient_rank_bounds, gradient_ranks

IMAGES = Path(__file__).with_name("images")


def main() -> None:
    """Run the examples and write a picture of each."""
    gradient_ranks.quiet()
    charts = {
        "gradient_rank_bounds": gradient_rank_bounds.figure(gradient_rank_bounds.all_figures()),
        "gradient_ranks": gradient_ranks.figure(*gradient_ranks.sweeps()),
    }
    for name, chart in charts.items():
        chart.write_image(IMAGES / f"{name}.png", scale=1.5)


if __name__ == "__main__":
    main()
