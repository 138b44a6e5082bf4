"""Every engine is run for real, and ``load`` reads exactly its grid from what it leaves."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from threading import Barrier, Thread

import numpy as np
import pytest
import scipy.stats
import yaml
from hydra import compose, initialize_config_module
from hydra.errors import ConfigCompositionException
from optuna.trial import TrialState
from pandas import DataFrame
from wandb.sdk.launch.sweeps import utils as wandb_sweeps

from examples.sweep import hydra_sweep, optuna_sweep
from examples.sweep.train import Setting, run_name, train
from rank_callbacks.cli import main as rank_callbacks
from rank_callbacks.compare import load

ROOT = Path(__file__).parents[1]
STEPS = 32  # an epoch: 4,000 images in batches of 128


def started(*command: str, **environment: str) -> subprocess.Popen[str]:
    env = {**os.environ, **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=ROOT, text=True, env=env, start_new_session=True, **pipes)


def finished(process: subprocess.Popen[str], seconds: int = 300) -> None:
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, output


def run(module: str, *arguments: str) -> None:
    finished(started(sys.executable, "-m", module, *arguments))


def check_grid(frame: DataFrame, weight_decays: list[float], seeds: list[int], epochs: int = 1):
    """Each point of the grid was run once, to its end, and tells its settings."""
    settings = frame.groupby("run", observed=True)[[f"hyperparameter.{field.name}" for field in fields(Setting)]].first()
    assert sorted(settings.itertuples(index=False, name=None)) == [
        (decay, seed, 0.05, 128.0, epochs) for decay, seed in product(weight_decays, seeds)
    ]
    assert frame.attrs["notes"] == {}
    assert set(frame.groupby("run", observed=True).step.max()) == {epochs * STEPS}
    of_the_end = frame[(frame.group == "truncation") & (frame.measure == "accuracy")]
    assert of_the_end.run.tolist() == settings.index.tolist()


def test_a_run_replaces_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_NTASKS", "2")  # SLURM's tasks are no concern of a run, which is one process
    monkeypatch.setenv("SLURM_JOB_NAME", "sweep")
    accuracies = [train(Setting(0.01, seed=3, epochs=1), tmp_path / "run") for _ in range(2)]
    assert accuracies[0] == accuracies[1]
    assert len(list(tmp_path.rglob("*tfevents*"))) == 1
    check_grid(load(tmp_path), [0.01], [3])


# Hydra


def test_hydra_runs_a_grid(tmp_path: Path):
    run("examples.sweep.hydra_sweep", "-m", "weight_decay=0,1e-2", "seed=0,1", "epochs=1", f"hydra.sweep.dir={tmp_path}")
    frame = load(tmp_path)
    check_grid(frame, [0, 0.01], [0, 1])
    assert list(frame.run.cat.categories) == [f"seed={seed},weight_decay={decay}" for seed in (0, 1) for decay in (0, 0.01)]


def test_hydra_runs_a_grid_in_processes_of_their_own(tmp_path: Path):
    points = ("weight_decay=0,1e-2", "seed=1", "epochs=1", "hydra/launcher=submitit_local")
    run("examples.sweep.hydra_sweep", "-m", *points, f"hydra.sweep.dir={tmp_path}")
    check_grid(load(tmp_path), [0, 0.01], [1])
    assert len(list((tmp_path / ".submitit").glob("*/*_result.pkl"))) == 2


def test_hydra_knows_the_settings_and_the_cluster():
    cluster = ("hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=10", "hydra.launcher.partition=NAME")
    with initialize_config_module("examples.sweep", version_base="1.3"):
        composed = compose("hydra_sweep", ["weight_decay=1e-3", *cluster], return_hydra_config=True)
        assert hydra_sweep.setting_of(composed) == Setting(weight_decay=0.001)
        assert composed.hydra.launcher._target_.endswith("SlurmLauncher")
        with pytest.raises(ConfigCompositionException, match="wieght_decay"):
            compose("hydra_sweep", ["wieght_decay=0"])
        with pytest.raises(ConfigCompositionException, match="much"):
            compose("hydra_sweep", ["weight_decay=much"])


# Optuna


def test_two_optuna_workers_share_a_grid(tmp_path: Path):
    grid = ("--weight_decay", "0", "0.01", "--seed", "0", "1", "--epochs", "1", "--folder", str(tmp_path))
    workers = [started(sys.executable, "-m", "examples.sweep.optuna_sweep", *grid) for _ in range(2)]
    for worker in workers:
        finished(worker)
    frame = load(tmp_path)
    check_grid(frame, [0, 0.01], [0, 1])
    trained = optuna_sweep.study_of(tmp_path, [], []).get_trials(states=[TrialState.COMPLETE])
    assert len(trained) == 4
    accuracies = {(trial.params["weight_decay"], trial.params["seed"]): trial.value for trial in trained}
    logged = frame[frame.measure == "accuracy"].groupby("run", observed=True)
    assert accuracies == {
        (rows["hyperparameter.weight_decay"].iloc[0], rows["hyperparameter.seed"].iloc[0]): rows.value.iloc[-1]
        for _, rows in logged
    }


def test_workers_that_start_at_once_add_each_point_once(tmp_path: Path):
    workers, decays = 6, [place / 100 for place in range(8)]
    together = Barrier(workers)

    def start():
        together.wait()
        optuna_sweep.study_of(tmp_path, decays, [0, 1])

    threads = [Thread(target=start) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    points = [trial.system_attrs["fixed_params"] for trial in optuna_sweep.study_of(tmp_path, decays, [1, 2]).trials]
    assert [(point["weight_decay"], point["seed"]) for point in points] == [
        *product(decays, [0, 1]),
        *product(decays, [2]),
    ]


# Ray and W&B


@pytest.mark.slow
def test_ray_runs_a_grid(tmp_path: Path):
    pytest.importorskip("ray", reason="Ray is heavy, and in the extra sweep alone: pip install 'rank-callbacks[sweep]'.")
    grid = ("--weight_decay", "0", "0.01", "--seed", "0", "1", "--epochs", "1", "--folder", str(tmp_path / "runs"))
    alone = {"RAY_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    finished(started(sys.executable, "-m", "examples.sweep.ray_sweep", *grid, **alone))
    check_grid(load(tmp_path / "runs"), [0, 0.01], [0, 1])


def wandb_command(**point: float) -> list[str]:
    """What W&B's agent would start for a point of the grid."""
    sweep = wandb_sweeps.load_sweep_config(str(ROOT / "examples/sweep/wandb_sweep.yaml"))
    made = wandb_sweeps.create_sweep_command_args({"args": {name: {"value": value} for name, value in point.items()}})
    made["env"] = ["/usr/bin/env"]
    chunks = [made[chunk[2:-1]] if chunk.startswith("${") else [chunk] for chunk in sweep["command"]]
    return [word for words in chunks for word in words]


def test_the_wandb_sweep_has_the_grid_of_the_others():
    sweep = yaml.safe_load((ROOT / "examples/sweep/wandb_sweep.yaml").read_text())
    values = {name: parameter["values"] for name, parameter in sweep["parameters"].items()}
    assert values == {"weight_decay": [0.0, 1e-4, 1e-3, 1e-2], "seed": [0, 1, 2]}
    assert values.keys() <= {field.name for field in fields(Setting)}
    assert all(isinstance(value, float) for value in values["weight_decay"])


@pytest.mark.slow
def test_what_a_wandb_agent_starts_runs_and_logs_to_both(tmp_path: Path):
    command = wandb_command(weight_decay=0.01, seed=2)
    assert command[0] == "/usr/bin/env"
    here = {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path / "wandb"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    (tmp_path / "wandb").mkdir()
    finished(started(*command, "--epochs=1", f"--folder={tmp_path / 'run'}", **here))
    check_grid(load(tmp_path / "run"), [0.01], [2])
    check_grid(load(tmp_path / "wandb"), [0.01], [2])


# The ranks of the sweep

DECAYS, SEEDS, EPOCHS = (0.0, 5e-4, 2e-3, 5e-3, 1e-2), (0, 1, 2), 60
LAYER = "net.hidden{}.0.weight"
RANK, NUMERICAL_RANK = ("weight_rank", "effective_rank"), ("weight_rank", "numerical_rank_1e-2")
DISTANCE, TCV = ("rank_collapse", "relative_distance_to_rank_k"), ("rank_collapse", "tcv_ratio_input")
# What another program read of the same networks, of one run a weight decay, and the last digit that it gives. Without
# standardised images a sweep misses them by far: its third layer has rank 74 and not 86 at a weight decay of 5e-3.
KNOWN = {
    ("", "accuracy", ""): ([0.964, 0.951, 0.952, 0.955, 0.953], 0.001),
    (*RANK, LAYER.format(3)): ([199, 197, 178, 86, 12.5], [1, 1, 1, 1, 0.1]),
    (*NUMERICAL_RANK, LAYER.format(3)): ([250, 249, 245, 204, 9], 1),
    (*DISTANCE, LAYER.format(3)): ([0.866, 0.847, 0.676, 0.219, 0.019], 0.001),
    (*TCV, LAYER.format(3)): ([0.310, 0.292, 0.243, 0.228, 0.230], 0.001),
    # Of the run with the largest decay alone.
    (*DISTANCE, LAYER.format(1)): ([math.nan] * 4 + [0.593], 0.001),
    (*DISTANCE, LAYER.format(2)): ([math.nan] * 4 + [0.039], 0.001),
    (*TCV, LAYER.format(1)): ([math.nan] * 4 + [0.786], 0.001),
    (*TCV, LAYER.format(2)): ([math.nan] * 4 + [0.519], 0.001),
}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs of five weight decays and three seeds."""
    folder = tmp_path_factory.mktemp("sweep")
    settings = [Setting(decay, seed, epochs=EPOCHS) for decay, seed in product(DECAYS, SEEDS)]
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as processes:
        list(processes.map(train, settings, [folder / run_name(setting) for setting in settings]))
    return folder


def final(frame: DataFrame, tag: tuple[str, str, str]) -> np.ndarray:
    """The last readings of a tag: a row a weight decay, a column a seed."""
    rows = frame[(frame.group == tag[0]) & (frame.measure == tag[1]) & (frame.layer == tag[2])].sort_values("step")
    last = rows.groupby(["hyperparameter.weight_decay", "hyperparameter.seed"], observed=True).value.last().unstack()
    assert last.index.tolist() == list(DECAYS)
    return last.to_numpy()


def excess(readings: np.ndarray, known: np.ndarray, digit: np.ndarray) -> np.ndarray:
    """By how much each known value leaves its tolerance, relative to that; below 1 it agrees.

    A known value is one more run. It differs from the mean of n by a variance of s²(1 + 1/n), s² being that of a run, which
    the seeds estimate: over them and the weight decays together, on a log scale, for the spread grows with the value. So 95 in
    100 are within t·s·√(1 + 1/n), t being the quantile for as many degrees of freedom as s² has; half a digit is rounding.
    """
    logs = np.log(readings)
    runs = readings.shape[1]
    spread = math.sqrt(logs.var(axis=1, ddof=1).mean())
    quantile = scipy.stats.t.ppf(0.975, readings.shape[0] * (runs - 1))
    tolerance = quantile * spread * math.sqrt(1 + 1 / runs) + digit / 2 / known
    return np.abs(np.log(known) - logs.mean(axis=1)) / tolerance


@pytest.mark.slow
def test_the_sweep_reads_what_is_known_of_its_networks(sweep: Path):
    frame = load(sweep)
    check_grid(frame, list(DECAYS), list(SEEDS), EPOCHS)
    found = {tag: excess(final(frame, tag), np.array(known), np.array(digit)) for tag, (known, digit) in KNOWN.items()}
    assert {tag: values for tag, values in found.items() if np.nanmax(values) > 1} == {}


@pytest.mark.slow
def test_the_report_says_and_draws_what_the_runs_have_logged(sweep: Path, capsys: pytest.CaptureFixture[str]):
    rank_callbacks(["compare", str(sweep), "--seed", "--quiet", "--out", str(sweep / "report.html")])
    capsys.readouterr()
    page, frame = (sweep / "report.html").read_text(encoding="utf-8"), load(sweep)
    means = {tag: final(frame, tag).mean(axis=1) for tag in [*KNOWN, (*RANK, "mean_over_layers")]}
    ranks, layer, accuracies = (
        means[tag] for tag in ((*RANK, "mean_over_layers"), (*RANK, LAYER.format(3)), ("", "accuracy", ""))
    )
    moved = re.search(r"mean over layers, falls from (\S+) to (\S+) \(most in (\S+): (\S+) to (\S+)\)", page)
    assert moved.groups() == tuple(f"{ranks[0]:.3g} {ranks[-1]:.3g} {LAYER.format(3)} {layer[0]:.3g} {layer[-1]:.3g}".split())
    verb = "falls" if accuracies[-1] < accuracies[0] else "rises"
    assert f"while the accuracy {verb} from {accuracies[0]:.3g} to {accuracies[-1]:.3g}." in page
    drawn = [json.loads(text) for text in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page)]
    (trace,) = [trace for trace in drawn[0]["data"] if trace["name"] == "hidden3.0"]
    assert [height for height in trace["y"] if height is not None] == pytest.approx(layer)
