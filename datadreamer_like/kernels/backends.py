"""The choice of a kernel's implementation, by device, dtype and what is installed; `backend=` forces one."""

from __future__ import annotations

import os
from collections.abc import Collection
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from datadreamer_like.errors import DefinitionError

Chosen = Literal["reference", "cpu", "triton", "triton-pairs"]
Backend = Chosen | None

MATVEC_ROWS = 8
"""Up to this many rows, decoding inside the product is faster on a GPU than decoding the whole weight before it."""


def choose(
    operation: str, backend: Backend, x: Tensor, *, offered: Collection[Chosen], automatic: bool = True
) -> Chosen:
    """Returns the implementation of an operation for a tensor: the forced one, or the fastest of those offered.

    On a GPU that is "triton", if Triton is installed and the dtype is one that it takes; on a CPU "cpu"; elsewhere, and
    while PyTorch compiles the model, "reference". With `automatic=False` neither of the first two is chosen unless it
    is forced: the caller knows that it would be slower for these shapes.

    Raises:
        DefinitionError: The forced one is not offered, or cannot run on this tensor.
    """
    if backend is None:
        fastest: Chosen = "triton" if x.is_cuda else "cpu"
        usable = automatic and fastest in offered and not torch.compiler.is_compiling() and _why_not(fastest, x) is None
        return fastest if usable else "reference"
    if backend not in offered:
        names = " or ".join(f'"{name}"' for name in offered)
        raise DefinitionError(f'{operation} has no backend "{backend}". Choose {names}.')
    if reason := _why_not(backend, x):
        raise DefinitionError(
            f'backend="{backend}" of {operation} {reason}. Use backend="reference", or None for the fastest available.'
        )
    return backend


def _why_not(backend: Chosen, x: Tensor) -> str | None:
    """The reason why a backend cannot run on this tensor; None if it can."""
    if backend == "cpu" and x.device.type != "cpu":
        return f"takes tensors on the CPU, and this one is on {x.device}"
    if backend.startswith("triton"):
        if not _has_triton():
            return "needs the package triton, which is not installed"
        if not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
            return f"takes tensors on a GPU, and this one is on {x.device}"
        if x.dtype == torch.float64:
            return "takes floats of at most 32 bits, and this tensor is torch.float64"
    if backend == "triton-pairs" and x.element_size() != 2:
        return f"takes fp16 or bf16, and this tensor is {x.dtype}"
    return None


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
