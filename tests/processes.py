"""Scripts that train in several processes, and what each of these saved."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]


def run_script(module: str, *arguments: object, seconds: float = 100) -> None:
    """Run a module as a script, since forking a process with threads can hang; none of its processes outlives this."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as script:
        try:
            _, errors = script.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(script.pid, signal.SIGKILL)
            raise
    assert script.returncode == 0, errors


def seen(folder: Path, name: str) -> list[dict[str, Any]]:
    """What each process saved, the first process first."""
    return [torch.load(path, weights_only=False) for path in sorted(folder.glob(f"{name}-*.pt"))]
