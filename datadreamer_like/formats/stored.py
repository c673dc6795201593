"""Queries about a model with layouts: codes, zeros, bytes on disk, and whether it can be trained."""

from __future__ import annotations

import torch
from torch import nn

from .layout import CodedModule, kind_of
from .modules import replace_modules
from .quantizer import LayoutQuantizer, attach, layouts, packed_state


def has_codes(model: nn.Module) -> bool:
    """Whether some weights of the model are stored as codes of few bits."""
    return any(isinstance(module, CodedModule) for module in model.modules())


def count_zeros(model: nn.Module) -> int:
    """Counts zero weights, including those of quantized layers; shared ones once."""
    coded = {id(module.weight): module for module in model.modules() if isinstance(module, CodedModule)}
    zeros = sum(int((module.dequantized() == 0).sum()) for module in coded.values())
    return zeros + sum(int((tensor == 0).sum()) for tensor in model.parameters() if id(tensor) not in coded)


def stored_bytes(model: nn.Module) -> int:
    """Returns the bytes of the model's tensors as they are written to disk: packed, shared ones once."""
    state = packed_state(model).values()
    tensors = {tensor.data_ptr() if tensor.numel() else id(tensor): tensor for tensor in state}
    return sum(tensor.nbytes for tensor in tensors.values())


def untrainable(model: nn.Module, adapters: bool = False) -> str | None:
    """The reason why the weights of a model, or adapters on them, cannot be trained; None if they can."""
    kinds = {kind.name: kind for kind in map(kind_of, layouts(model))}
    frozen = [name for name, kind in kinds.items() if not (kind.takes_adapters if adapters else kind.trainable)]
    if not frozen:
        return None
    what = "no adapter can be trained on them" if adapters else "they cannot be trained"
    return f"the weights of this {type(model).__name__} are quantized ({', '.join(frozen)}), so {what}."


def dequantize(model: nn.Module) -> None:
    """Replaces quantized layers by dequantized ones in place; adapters on them can be merged afterwards."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    weights: dict[int, nn.Parameter] = {}
    plain: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, CodedModule):
            plain[name] = made = module.plain(dtype)
            made.weight = weights.setdefault(id(module.weight), made.weight)  # type: ignore[arg-type]
    replace_modules(model, plain)
    entries = layouts(model)
    entries[:] = [entry for entry in entries if kind_of(entry).trainable]
    for module in model.modules():
        if isinstance(quantizer := vars(module).get("hf_quantizer"), LayoutQuantizer):
            attach(module, quantizer)
