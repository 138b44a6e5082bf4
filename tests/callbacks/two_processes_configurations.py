"""Trains in two processes as configured: ``python -m tests.callbacks.two_processes_configurations FOLDER default``, or slow.

Each process saves what became of each monitor, by configuration.
"""

import sys
from pathlib import Path

import torch

from tests.callbacks.two_processes_sharded import start
from tests.configurations import Configuration, verdicts

TWO = {
    "default": [
        Configuration(strategy="ddp"),
        Configuration("bf16-mixed", 3, "ddp", optimizer="foreach Adam"),
        Configuration("16-mixed", strategy="ddp", optimizer="fused AdamW"),
        Configuration(strategy="fsdp2"),
        Configuration("bf16-true", 3, "fsdp2", optimizer="fused AdamW"),
    ],
    "slow": [
        *(Configuration(precision, 3, "ddp") for precision in ("32-true", "64-true", "bf16-true", "16-mixed")),
        *(Configuration(precision, strategy="ddp", optimizer="fused AdamW") for precision in ("bf16-mixed", "bf16-true")),
        Configuration(strategy="ddp", compiled="network", backend="aot_eager"),
        Configuration(strategy="ddp", compiled="model", backend="aot_eager"),
        *(Configuration("32-true", 3, "fsdp2", optimizer=optimizer) for optimizer in ("SGD", "foreach Adam")),
        Configuration("bf16-mixed", strategy="fsdp2"),
        Configuration(strategy="fsdp2", compiled="network in place", backend="aot_eager"),
    ],
}


def train(folder: Path, rank: int) -> None:
    found = {str(configuration): verdicts(configuration) for configuration in TWO[sys.argv[2]]}
    plain = {name: {"of": one.of, "errors": one.errors, "warned": one.watched.warned} for name, one in found.items()}
    torch.save(plain, folder / f"{sys.argv[2]}-{rank}.pt")


if __name__ == "__main__":
    start(Path(sys.argv[1]), 2, train)
