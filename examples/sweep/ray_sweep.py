"""A sweep with Ray Tune: on this machine, or on the Ray cluster that it belongs to or ``RAY_ADDRESS`` names.

    python -m examples.sweep.ray_sweep --weight_decay 0 1e-4 1e-3 1e-2 --seed 0 1 2

Nodes of a cluster see this folder. As many runs are under way at once as there are cores. ``rank-callbacks compare runs/ray``
reads them; what Tune notes for itself is in a folder beside it, for it would look like more runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import ray
from ray import tune

from examples.sweep.grid import grid_options
from examples.sweep.train import Setting, run_name, train

RUNS = Path("runs/ray")
CORES = 1  # of each run


def sweep(folder: Path, weight_decays: Sequence[float], seeds: Sequence[int], epochs: int) -> tune.ResultGrid:
    """Run every point of a grid.

    Args:
        folder: With the runs.
        weight_decays: One side of the grid.
        seeds: The other.
        epochs: Of each run.
    """
    runs = folder.absolute()  # workers have folders of their own

    def run(point: Mapping[str, float]) -> dict[str, float]:
        setting = Setting(weight_decay=point["weight_decay"], seed=int(point["seed"]), epochs=epochs)
        return {"accuracy": train(setting, runs / run_name(setting))}

    grid = {"weight_decay": tune.grid_search(list(weight_decays)), "seed": tune.grid_search(list(seeds))}
    config = tune.RunConfig(name=f"{runs.name}-tune", storage_path=str(runs.parent))
    return tune.Tuner(tune.with_resources(run, {"cpu": CORES}), param_space=grid, run_config=config).fit()


def main() -> None:
    options = grid_options(__doc__, RUNS)
    ray.init(include_dashboard=False)
    results = sweep(options.folder, options.weight_decay, options.seed, options.epochs)
    if results.errors:
        raise SystemExit(f"{len(results.errors)} of {len(results)} runs failed.")


if __name__ == "__main__":
    main()
