"""What a report of the weights of a model with 70 billion parameters would cost on up to 1,024 processes, on paper.

Run ``python -m benchmarks.scale``. Nothing of that size is run: the costs of one matrix are those of ``spectrum_cost``, fitted
on one 2.1 GHz core, and of products with a block that read memory at the rate measured here first; the network is taken at
25 GB/s and 30 microseconds a collective operation. Spectra are shared out by ``owners`` as in a training. A process is one
core: with more of them, or a GPU, each figure of time falls by what that is faster.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping
from typing import NamedTuple

import torch

from benchmarks.timing import print_row
from rank_callbacks.callbacks.gathering import sends_gram
from rank_callbacks.callbacks.sharing import owners
from rank_callbacks.functional import spectrum_cost

NETWORK, LATENCY = 25e9, 30e-6
BLOCK, DEPTH = 16, 3
PROCESSES = (1, 8, 64, 256, 1024)


class Report(NamedTuple):
    """Seconds of computing on the busiest process and of the network, and bytes that a process receives."""

    computing: float
    network: float
    received: float


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--quick", action="store_true", help="two layers")
    chosen = options.parse_args(arguments)
    torch.set_num_threads(1)
    shapes = transformer_shapes(layers=2 if chosen.quick else 80)
    rate = product_rate(quick=chosen.quick)
    numbers = sum(math.prod(shape) for shape in shapes.values())
    print(f"{len(shapes)} matrices, {numbers / 1e9:.1f} billion numbers; a product reads {rate / 1e9:.1f} GB/s here")
    for title, report in (("all spectra", spectra), ("one spectrum in turn", turn), ("leading values", leading)):
        print_row(f"\n{title}", ["computing, s", "network, s", "received, GB"])
        for processes in PROCESSES:
            cost = report(shapes, processes, rate)
            print_row(f"{processes}", [f"{cost.computing:.3g}", f"{cost.network:.3g}", f"{cost.received / 1e9:.3g}"])


def transformer_shapes(layers: int, width: int = 8192, inner: int = 28672, keys: int = 1024) -> dict[str, tuple[int, int]]:
    """The matrices of a decoder with grouped queries and gated networks, as of the usual 70-billion-parameter models."""
    shapes = {"embedding": (128256, width), "head": (128256, width)}
    for place in range(layers):
        of_layer = {"q": (width, width), "k": (keys, width), "v": (keys, width), "o": (width, width)}
        of_layer |= {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}
        shapes |= {f"{place}.{name}": shape for name, shape in of_layer.items()}
    return shapes


def product_rate(quick: bool) -> float:
    """Bytes a second at which a product with a block of 16 columns reads a matrix that no cache holds."""
    matrix, block = torch.randn(512 if quick else 8192, 4096), torch.randn(4096, BLOCK)
    seconds = []
    for _ in range(5):
        began = time.thread_time()
        matrix @ block
        seconds.append(time.thread_time() - began)
    return 4 * matrix.numel() / sorted(seconds)[2]


def spectra(shapes: Mapping[str, tuple[int, int]], processes: int, rate: float) -> Report:
    """Every exact spectrum, each on the process that owns it, after its shards have come there."""
    costs = {name: spectrum_cost(shape) for name, shape in shapes.items()}
    owner = owners(costs, processes)
    busiest = max(sum(costs[name] for name in shapes if owner[name] == one) for one in set(owner.values()))
    grams = {name: shape for name, shape in shapes.items() if sends_gram(shape, torch.float32, processes)}
    # A Gram matrix is summed by all, each on its rows.
    busiest += sum(2 * math.prod(shape) * shape[1] for shape in grams.values()) / processes / 70e9 if processes > 1 else 0
    received = max(
        sum(_bytes(shapes[name], processes) for name in shapes if owner[name] == one) for one in set(owner.values())
    )
    return Report(busiest, received / NETWORK + LATENCY * len(shapes) * (processes > 1), received)


def turn(shapes: Mapping[str, tuple[int, int]], processes: int, rate: float) -> Report:
    """The dearest single spectrum: what a report does beyond leading values when a layer's turn has come."""
    dearest = max(shapes, key=lambda name: spectrum_cost(shapes[name]))
    return spectra({dearest: shapes[dearest]}, processes, rate)


def leading(shapes: Mapping[str, tuple[int, int]], processes: int, rate: float) -> Report:
    """Leading singular values of every matrix from its shards, warm: five products, three sums over processes."""
    reads = 2 * DEPTH - 1
    computing = sum(4 * reads * math.prod(shape) for shape in shapes.values()) / rate / processes
    # Beyond a process's share, what each does alike: the thin blocks' orthonormal bases.
    alike = sum(6 * shape[1] * (BLOCK * DEPTH) ** 2 for shape in shapes.values()) / 70e9
    sent = sum((DEPTH - 1) * 4 * shape[1] * BLOCK + 8 * (BLOCK * DEPTH) ** 2 for shape in shapes.values())
    received = 2 * sent * (processes - 1) / processes
    sums = (DEPTH + 1) * len(shapes) * (processes > 1)
    return Report(computing + alike, received / NETWORK + LATENCY * math.ceil(math.log2(max(processes, 2))) * sums, received)


def _bytes(shape: tuple[int, int], processes: int) -> float:
    width = shape[1]
    whole = 4 * math.prod(shape) * (processes - 1) / processes
    return min(4.0 * width * (width + 1), whole) if sends_gram(shape, torch.float32, processes) else whole


if __name__ == "__main__":
    main()
