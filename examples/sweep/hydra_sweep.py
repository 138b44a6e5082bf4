"""A sweep with Hydra: the same command on one machine and on a cluster.

One run after the other in this process:

    python -m examples.sweep.hydra_sweep -m weight_decay=0,1e-4,1e-3,1e-2 seed=0,1,2

The same, each run a process of its own and all at once, and as a job array on a SLURM cluster whose nodes see this folder:

    ... hydra/launcher=submitit_local
    ... hydra/launcher=submitit_slurm hydra.launcher.timeout_min=10 hydra.launcher.partition=NAME

Every run has a folder below ``runs/sweep`` with its settings in the name; ``rank-callbacks compare runs/sweep`` reads them.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from examples.sweep.train import Setting, train

ConfigStore.instance().store(name="setting", node=Setting)


@hydra.main(version_base="1.3", config_path=".", config_name="hydra_sweep")
def main(config: DictConfig) -> float:
    """One run; Hydra calls it for each."""
    return train(setting_of(config), Path(HydraConfig.get().runtime.output_dir))


def setting_of(config: DictConfig) -> Setting:
    return Setting(**{field.name: config[field.name] for field in fields(Setting)})


if __name__ == "__main__":
    main()
