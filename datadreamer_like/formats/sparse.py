"""Sparse tensors on disk: one bit per position, and the non-zero values.

    {"kind": "sparse", "format": 1, "modules": {"encoder.layer.0.output.dense": {"weight": 117964}}}

means that the module's `weight` has 117,964 non-zero values and is stored as `weight_bits` (uint8, little-endian bits
over the flattened tensor) and `weight_values`. In memory it is dense: no kernel here makes sparse products faster. The
count is updated when saving, so a model retrained without its masks loses nothing; null marks a tensor that is stored
dense because that is smaller, or because it is shared with another one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from datadreamer_like.errors import StorageError

from .layout import Entry, LayoutKind, register
from .quantizer import add_layout, layouts

_BITS, _VALUES = "_bits", "_values"


class Sparse(LayoutKind):
    """Tensors with zeros, stored as a bitmask and values; any dtype, so int8 codes too."""

    name = "sparse"
    storage_only = True

    def rebuild(self, model: nn.Module, entry: Entry) -> None:
        """Replaces tensors by buffers for bits and values."""
        for module_name, name, count in _tensors(entry):
            if count is None:
                continue
            module: Any = model.get_submodule(module_name)
            tensor = getattr(module, name)
            module.__dict__.setdefault("_sparse_shapes", {})[name] = tensor.shape, name in module._parameters
            delattr(module, name)
            # Parents that initialise missing weights may look at it, and must skip it.
            module.__dict__[name] = torch.empty(0)
            module.__dict__[name]._is_hf_initialized = True
            module.register_buffer(name + _BITS, torch.zeros(math.ceil(tensor.numel() / 8), dtype=torch.uint8))
            module.register_buffer(name + _VALUES, torch.zeros(count, dtype=tensor.dtype))
            module._is_hf_initialized = True

    def finish(self, model: nn.Module, entry: Entry) -> None:
        """Makes the loaded tensors dense."""
        for module_name in entry["modules"]:
            module: Any = model.get_submodule(module_name)
            for name, (shape, is_parameter) in module.__dict__.pop("_sparse_shapes", {}).items():
                bits, values = module._buffers.pop(name + _BITS), module._buffers.pop(name + _VALUES)
                del module.__dict__[name]
                dense = from_sparse(bits, values, shape)
                if is_parameter:
                    module.register_parameter(name, nn.Parameter(dense, dense.is_floating_point()))
                else:
                    module.register_buffer(name, dense)

    def pack(self, model: nn.Module, state: dict[str, torch.Tensor], entry: Entry) -> None:
        """Stores each tensor sparse where that takes fewer bytes.

        Not those of modules with buffers of the same names, as the outliers' values of `gobo`, and of modules with
        buffers that are not saved: what fills them when a model is loaded skips modules with missing tensors.
        """
        shared = Counter(tensor.untyped_storage().data_ptr() for tensor in state.values())
        for module_name, name, _ in _tensors(entry):
            key = _key(module_name, name)
            tensor, count = state.get(key), None
            is_taken = not state.keys().isdisjoint((key + _BITS, key + _VALUES))
            is_taken = is_taken or bool(model.get_submodule(module_name)._non_persistent_buffers_set)
            if tensor is not None and not is_taken and shared[tensor.untyped_storage().data_ptr()] == 1:
                values = int(torch.count_nonzero(tensor))
                if values * tensor.element_size() + math.ceil(tensor.numel() / 8) < tensor.nbytes:
                    count = values
                    state[key + _BITS], state[key + _VALUES] = to_sparse(state.pop(key))
            entry["modules"][module_name][name] = count

    def unpack(self, model: nn.Module, state: dict[str, torch.Tensor], entry: Entry) -> None:
        """Makes a checkpoint's sparse tensors dense, in the shapes of the model."""
        for module_name, name, _ in _tensors(entry):
            key = _key(module_name, name)
            if key + _BITS in state:
                shape = getattr(model.get_submodule(module_name), name).shape
                state[key] = from_sparse(state.pop(key + _BITS), state.pop(key + _VALUES), shape)


def sparse_names(model: nn.Module) -> list[str]:
    """Returns the full names of the tensors that are stored sparse."""
    entries = [entry for entry in layouts(model) if entry["kind"] == Sparse.name]
    return [_key(module_name, name) for entry in entries for module_name, name, _ in _tensors(entry)]


def mark_sparse(model: nn.Module, names: Iterable[str]) -> None:
    """Records that these parameters or buffers, such as "encoder.layer.0.output.dense.weight", are stored sparse."""
    entry = next((entry for entry in layouts(model) if entry["kind"] == Sparse.name), None)
    modules: dict[str, dict[str, int | None]] = {} if entry is None else entry["modules"]
    for name in names:
        module, _, tensor = name.rpartition(".")
        modules.setdefault(module, {}).setdefault(tensor, None)
    if entry is None:
        add_layout(model, {"kind": Sparse.name, "modules": modules})


def _tensors(entry: Entry) -> list[tuple[str, str, int | None]]:
    """Module name, tensor name and count of each tensor."""
    modules = entry["modules"].items()
    return [(module_name, name, count) for module_name, counts in modules for name, count in counts.items()]


def _key(module_name: str, name: str) -> str:
    return f"{module_name}.{name}".removeprefix(".")


def to_sparse(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the bits (uint8, one a position) and the values that are not zero, of a tensor of any shape."""
    mask = (tensor != 0).flatten()
    bits = torch.from_numpy(np.packbits(mask.cpu().numpy(), bitorder="little"))
    return bits, tensor.flatten()[mask]


def from_sparse(bits: torch.Tensor, values: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Returns the dense tensor of this shape, on the device of the values; `StorageError` if the bits are others."""
    mask = torch.from_numpy(np.unpackbits(bits.cpu().numpy(), count=math.prod(shape), bitorder="little"))
    if (count := int(mask.sum())) != len(values):
        raise StorageError(
            f"A sparse tensor of shape {list(shape)} has {len(values):,} values for {count:,} positions: its file was "
            "changed. Make the model again, or restore the file."
        )
    dense = torch.zeros(math.prod(shape), dtype=values.dtype, device=values.device)
    dense[mask.bool().to(values.device)] = values
    return dense.view(shape)


register(Sparse())
