"""What the spectrum of a gradient costs when its rank is known to be small.

Run ``python -m benchmarks.gradients``. It prints a table, and the bars that it is held to: a gradient of 1024 x 1024 that is
a sum of b outer products, in float32. ``factors`` is ``outer_product_spectrum`` from the b rows; ``sketch`` is
``low_rank_singular_values`` from the gradient alone; ``full`` is ``singular_values``; all against ``torch.linalg.svdvals`` of
the gradient. ``error`` is the largest distance of a singular value from float64 ``svdvals`` of the float64 product, over the
largest singular value.

Times are CPU time on one thread, the median over rounds with the interquartile range in per cent.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from benchmarks.timing import in_turn, print_row
from rank_callbacks.functional import low_rank_singular_values, outer_product_spectrum, singular_values

# Speed-ups over svdvals by route and b.
BARS = {("factors", 64): 100.0, ("factors", 128): 35.0, ("sketch", 128): 14.0}
LARGEST_ERROR = 1e-7


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(prog="python -m benchmarks.gradients", description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--rounds", type=int, default=15, help="after the warm-up; default: %(default)s")
    options.add_argument("--quick", action="store_true", help="one round of small sizes")
    chosen = options.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    width, rounds = (64, 1) if chosen.quick else (1024, chosen.rounds)
    lines = print_spectra(width, [width // 16, width // 8, width // 4], rounds)
    print("\nBars" + ("" if lines else ": none, with --quick") + "".join(f"\n{line}" for line in lines))


def print_spectra(width: int, batches: list[int], rounds: int) -> list[str]:
    """Print the first table; return how its bars are met."""
    print_row(
        f"Gradient {width}x{width}", ["svdvals", "factors", "sketch", "full", "x factors", "x sketch", "x full", "error"], 13
    )
    bars = []
    for batch in batches:
        deltas, inputs = torch.randn(batch, width), torch.randn(batch, width)
        calls = routes(deltas, inputs)
        timings = in_turn(calls, rounds)
        gains = {name: timings["svdvals"].median / timing.median for name, timing in timings.items()}
        worst = largest_error(calls, deltas, inputs)
        cells = [*timings.values(), *(f"{gains[name]:.1f}" for name in ("factors", "sketch", "full")), f"{worst:.0e}"]
        print_row(f"b = {batch}", cells, 13)
        bars += [bar(f"{name}, b = {batch}, x svdvals", gains[name], least) for (name, b), least in BARS.items() if b == batch]
        bars += [bar(f"error, b = {batch}", worst, LARGEST_ERROR, most=True)] if width == 1024 else []
    return bars


def routes(deltas: Tensor, inputs: Tensor) -> dict[str, Callable[[], Tensor]]:
    gradient = deltas.mT @ inputs
    generator = torch.Generator().manual_seed(0)
    return {
        "svdvals": partial(torch.linalg.svdvals, gradient),
        "factors": lambda: outer_product_spectrum(deltas, inputs).singular_values,
        "sketch": lambda: low_rank_singular_values(gradient, len(deltas), generator).singular_values,
        "full": partial(singular_values, gradient),
    }


def largest_error(calls: Mapping[str, Callable[[], Tensor]], deltas: Tensor, inputs: Tensor) -> float:
    truth = torch.linalg.svdvals(deltas.double().mT @ inputs.double())
    return max(float((calls[name]() - truth).abs().max() / truth[0]) for name in ("factors", "sketch"))


def bar(name: str, measured: float, limit: float, most: bool = False) -> str:
    met = measured <= limit if most else measured >= limit
    direction, verdict = "at most" if most else "at least", "ok" if met else "MISSED"
    return f"{name.ljust(44)} {direction} {limit:<8g} measured {measured:<10.3g} {verdict}"


if __name__ == "__main__":
    main()
