"""What a comparison of many runs costs: 200 runs of 100 layers with 200 reports each, four million readings.

Run: ``python -m benchmarks.compare``; prints seconds and the most memory of each step.
"""

from __future__ import annotations

import contextlib
import io
import resource
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import summary_v2
from tensorboard.summary.writer.event_file_writer import EventFileWriter

RUNS, LAYERS, STEPS = 200, 100, 200


def main() -> None:
    """Write a sweep, compare it, print what that took."""
    with tempfile.TemporaryDirectory() as folder:
        with measured("write the logs (not part of the comparison)"):
            write_sweep(Path(folder) / "runs")
        compare(Path(folder))


def compare(folder: Path) -> None:
    """As the command does it, in its steps."""
    from rank_callbacks.cli import main as command
    from rank_callbacks.compare import load

    with measured("load"):
        frame = load(folder / "runs", progress=True)
    print(f"{len(frame):,} rows, {frame.memory_usage(deep=True).sum() / 2**20:.0f} MiB")
    del frame
    with measured("rank-callbacks compare"), contextlib.redirect_stdout(io.StringIO()):
        command(["compare", str(folder / "runs")])
    with measured("rank-callbacks compare --out sweep.csv"), contextlib.redirect_stdout(io.StringIO()):
        command(["compare", str(folder / "runs"), "--out", str(folder / "sweep.csv")])
    with measured("rank-callbacks compare --out report.html"), contextlib.redirect_stdout(io.StringIO()):
        command(["compare", str(folder / "runs"), "--out", str(folder / "report.html")])


def write_sweep(folder: Path) -> None:
    """Event files such as the monitors write: one event a report."""
    for run in range(RUNS):
        weight_decay = 10 ** (-4 + 3 * run / RUNS)
        writer = EventFileWriter(str(folder / f"run={run}"))
        _add(writer, 0, summary_v2.hparams_pb({"weight_decay": weight_decay, "seed": run % 5}))
        for step in range(STEPS):
            value = 100.0 / (1 + step * weight_decay)
            tags = [f"weight_rank/effective_rank/layers.{layer}.weight" for layer in range(LAYERS)]
            _add(writer, 10 * step, Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag in tags]))
        _add(writer, 10 * STEPS, Summary(value=[Summary.Value(tag="accuracy", simple_value=0.9 - weight_decay)]))
        writer.close()


def _add(writer: EventFileWriter, step: int, summary: Summary) -> None:
    from tensorboard.compat.proto.event_pb2 import Event

    writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))


@contextlib.contextmanager
def measured(what: str) -> Generator[None]:
    """Print the seconds of a block, and the most memory that the process has had until then."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds, memory = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{what:<45} {seconds:6.1f} s {memory:6.2f} GiB at most so far", flush=True)


if __name__ == "__main__":
    main()
