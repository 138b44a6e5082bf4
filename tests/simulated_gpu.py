"""A GPU in name: tensors that say they are elsewhere, mix with none of the CPU's, and count what the host waits for.

Their numbers lie in the CPU's memory and the CPU's kernels compute them. Within ``SimulatedGPU()`` tensors can be made on and
moved to ``DEVICE``; PyTorch knows it for good from the first on, which is why tests run it in a process of its own. Not
simulated: time, streams, random numbers, ``inference_mode`` and ``torch.func``.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

__all__ = ["DEVICE", "SimulatedGPU"]


class Backend(_DummyBackendModule):
    """What PyTorch asks of a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


DEVICE, HOST = torch.device("privateuseone", 0), torch.device("cpu")
# For these a host waits for its GPU: a number that it asks for, a shape that depends on numbers, and LAPACK.
WAITS = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "_linalg_eigh", "_linalg_svd"}
Generator = torch.Generator


class AnyGenerator(Generator):
    """A generator that says it is wherever it is asked to be."""

    def __new__(cls, device: object = "cpu") -> AnyGenerator:
        return super().__new__(cls)


class OnGPU(Tensor):
    """A tensor that says it is on the GPU, around one on the CPU."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> OnGPU:
        tensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            numbers.size(),
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=DEVICE,
        )
        tensor.numbers = numbers
        return tensor

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnGPU({self.numbers})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert SimulatedGPU.current is not None
        return SimulatedGPU.current.run(function, args, kwargs or {})


class SimulatedGPU(TorchDispatchMode):
    """Within it there is a GPU; ``waits`` counts, by operation, what the host waited for."""

    current: SimulatedGPU | None = None

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __enter__(self) -> SimulatedGPU:
        if SimulatedGPU.current is None:
            _setup_privateuseone_for_python_backend("gpu", Backend())
        SimulatedGPU.current = self
        torch.Generator = AnyGenerator  # type: ignore[misc]
        torch._C._set_only_lift_cpu_tensors(True)  # so that torch.tensor(..., device=) comes by here
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(False)
        torch.Generator = Generator  # type: ignore[misc]

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(function, args, kwargs or {})

    def run(self, function: Any, args: Any, kwargs: Any) -> Any:
        name = function.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [tensor for tensor in tensors if isinstance(tensor, OnGPU)]
        here = [tensor for tensor in tensors if not isinstance(tensor, OnGPU) and tensor.dim() > 0]
        copies = name in {"_to_copy", "copy_"}
        if there and here and not copies:
            raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got some on gpu:0 and some on cpu.")
        goes = _goes_there(name, args, kwargs.get("device"), bool(there))
        if there and (name in WAITS or (copies and not goes)):
            self.waits[name] += 1
        inner_args, inner_kwargs = tree_map_only(OnGPU, lambda tensor: tensor.numbers, (args, kwargs))
        out = function(*inner_args, **(inner_kwargs | {"device": HOST} if inner_kwargs.get("device") else inner_kwargs))
        if not goes:
            return args[0] if name == "copy_" else out
        out = tree_map_only(Tensor, lambda tensor: tensor if isinstance(tensor, OnGPU) else OnGPU(tensor), out)
        # A view or an update of a tensor that is there already.
        return return_and_correct_aliasing(function, args, kwargs, out) if there else out


def _goes_there(name: str, args: Any, device: torch.device | str | None, has_some_there: bool) -> bool:
    """Whether what an operation returns is on the GPU."""
    if name == "copy_":
        return isinstance(args[0], OnGPU)
    if name == "_local_scalar_dense":
        return False
    return torch.device(device).type == DEVICE.type if device is not None else has_some_there
