"""A sweep with Optuna: a grid that any number of workers share through a file, with no server.

Start the same command as often as you like, on every machine that sees the folder:

    python -m examples.sweep.optuna_sweep --weight_decay 0 1e-4 1e-3 1e-2 --seed 0 1 2

Each worker takes the next point that none has taken, and ends when all are. Another call with more values adds the points that
are new. ``rank-callbacks compare runs/optuna`` reads the runs; the study, for Optuna's own dashboards, is in ``study.journal``
beside them. A point whose worker is killed stays taken: ``compare`` names its run as one that ends early.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from examples.sweep.grid import grid_options
from examples.sweep.train import Setting, run_name, train

RUNS = Path("runs/optuna")
# Marks the trials that are points of the grid: once it is used up, Optuna goes on with trials of its own making.
OF_GRID = "of_grid"


def work(folder: Path, weight_decays: Sequence[float], seeds: Sequence[int], epochs: int) -> None:
    """Add a grid to the study of a folder, and run points of it until every one is taken.

    Args:
        folder: With the study and the runs of all workers.
        weight_decays: One side of the grid.
        seeds: The other.
        epochs: Of each run.
    """

    def accuracy(trial: optuna.Trial) -> float:
        if OF_GRID not in trial.user_attrs:
            trial.study.stop()
            raise optuna.TrialPruned
        setting = Setting(trial.suggest_float("weight_decay", 0, 1), trial.suggest_int("seed", 0, 2**31), epochs=epochs)
        return train(setting, folder / run_name(setting))

    folder.mkdir(parents=True, exist_ok=True)
    study_of(folder, weight_decays, seeds).optimize(accuracy)


def study_of(folder: Path, weight_decays: Sequence[float], seeds: Sequence[int]) -> optuna.Study:
    """The study of a folder, with each point of the grid in it once.

    Args:
        folder: That all workers see.
        weight_decays: One side of the grid.
        seeds: The other.
    """
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    lock = JournalFileOpenLock(str(folder / "grid"))  # else two workers that start at once could both add a point
    lock.acquire()
    try:
        study = optuna.create_study(storage=storage, study_name="weight_decay", direction="maximize", load_if_exists=True)
        for weight_decay, seed in product(weight_decays, seeds):
            point = {"weight_decay": weight_decay, "seed": seed}
            study.enqueue_trial(point, user_attrs={OF_GRID: True}, skip_if_exists=True)
    finally:
        lock.release()
    return study


def main() -> None:
    options = grid_options(__doc__, RUNS)
    work(options.folder, options.weight_decay, options.seed, options.epochs)


if __name__ == "__main__":
    main()
