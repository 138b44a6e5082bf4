"""Products in the precision of their type, whatever the training run has allowed."""

from __future__ import annotations

import contextlib
from collections.abc import Generator

import torch

__all__ = ["full_precision"]


@contextlib.contextmanager
def full_precision(device: torch.device | str = "cpu") -> Generator[None]:
    """Within it float32 is multiplied as float32: no autocast on that device, no TF32 and no bfloat16 in its place.

    ``set_float32_matmul_precision("medium")`` makes a product of float32 wrong by 2e-3, on a CPU too, and autocast makes
    bfloat16 of it. Both are as they were afterwards, also after an exception. The precision belongs to the process: a
    product that another thread starts meanwhile has it as well.

    Args:
        device: Where the products are.

    Example:
        >>> with torch.autocast("cpu", torch.bfloat16), full_precision():
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.float32
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(torch.device(device).type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
