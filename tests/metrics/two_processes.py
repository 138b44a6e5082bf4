"""One of two processes, each with its share of the samples: ``python -m tests.metrics.two_processes FOLDER PROCESS``."""

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.metrics.cases import CASES, CLASSES, linear, samples
from tests.metrics.feature_cases import FEATURE_CASES, objects

# What the second process gets: few samples and not of every class, all but one sample, none at all.
SHARES = ("few", "most", "none")


def second_share(name: str, labels: Tensor) -> Tensor:
    """Which samples are the second process's."""
    if name == "few":
        return (labels == CLASSES - 1) | ((labels == 0) & (torch.arange(len(labels)) % 3 == 0))
    return torch.full(labels.shape, name == "most") & (torch.arange(len(labels)) > 0)


def measured(process: int, share: str, **options: Any) -> dict[str, dict[str, Any]]:
    """Of each metric: the synced value twice, a later value of more samples, and whether the local state came back."""
    features, labels = samples()
    mine = second_share(share, labels) == bool(process)
    found = {}
    for name, case in CASES.items():
        metric = case.metric(linear(), **options)
        for part in torch.arange(len(labels))[mine].split(7) if mine.any() else ():
            metric.update(features[part], labels[part])
        before = {key: [torch.as_tensor(part).clone() for part in state] for key, state in metric.metric_state.items()}
        value = metric.compute()
        state = metric.metric_state
        restored = all(
            len(state[key]) == len(kept) and all(map(torch.equal, state[key], kept)) for key, kept in before.items()
        )
        metric.update(features[:5] + process, labels[:5])
        found[name] = {"value": value, "restored": restored, "later": metric.compute()}
    return found


def measured_features(process: int, share: str) -> dict[str, dict[str, Any]]:
    """The same of each metric of features; the second process gets the first 7 objects, all but one, or none."""
    views = objects()
    second = torch.arange(len(views)) < {"few": 7, "most": len(views) - 1, "none": 0}[share]
    mine = views[second if process else ~second]
    found = {}
    for name, case in FEATURE_CASES.items():
        metric = case.metric()
        for part in mine.split(5) if len(mine) else ():
            metric.update(part)
        before = metric.moments.clone()
        value = metric.compute()
        restored = torch.equal(metric.moments, before)
        metric.update(views[:5] + process)
        found[name] = {"value": value, "restored": restored, "later": metric.compute()}
    return found


def main(folder: Path, process: int) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", store, rank=process, world_size=2, timeout=timedelta(seconds=60))
    found: dict[str, Any] = {share: measured(process, share) for share in SHARES}
    found["of features"] = {share: measured_features(process, share) for share in SHARES}
    metric = CASES["nc1_pinv"].metric(linear(), dist_sync_on_step=True)
    features, labels = samples()
    mine = torch.arange(len(labels)) % 2 == process
    found["forward"] = metric(features[mine], labels[mine])
    torch.save(found, folder / f"{process}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
