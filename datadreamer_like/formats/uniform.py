"""Linear layers whose weights are evenly spaced integers, with a scale and maybe a zero point; products are in floats.

    {"kind": "uniform", "format": 1, "bits": 8, "granularity": "row", "affine": false, "modules": {
        "bert.encoder.layer.0.attention.self.query": {}}}

Each module has its codes in `weight`, shifted to be unsigned and packed at `bits` bits (int8 [out, ceil(in bits / 8)];
a `Conv1D` is transposed), its scales in `weight_scale` (fp32) and its unchanged bias in `bias`; if `affine`, its zero
points are in `weight_zero` (int8, of the shape of the scales). That shape is [1, 1] for the granularity "tensor",
[out, 1] for "row", and [1, in] for "column". If the granularity is a number g, groups of g inputs share a scale: fp16
[out, ceil(in / g)], and no zero point.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from datadreamer_like.kernels import (
    absmax_quantize,
    codebook_dequantize,
    group_dequantize,
    group_quantize,
    pack_bits,
    unpack_bits,
    zero_point_quantize,
)

from .decoded import DecodedLinear
from .layout import Entry, LayoutKind, register
from .modules import replace_modules

WeightGranularity = Literal["tensor", "row", "column"]
"""Which weights share a scale: all, those of an output feature, or those of an input feature."""

_AXES = {"tensor": None, "row": -1, "column": 0}


class UniformLinear(DecodedLinear):
    """A linear layer with integer weights of few bits, multiplied as floats."""

    exact = ("weight_scale",)
    weight_scale: Tensor
    weight_zero: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        bits: int = 8,
        granularity: WeightGranularity | int = "tensor",
        affine: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, bias, (out_features, -(-in_features * bits // 8)))
        self.bits, self.granularity, self.affine = bits, granularity, affine
        if isinstance(granularity, int):
            scale = torch.ones(out_features, -(-in_features // granularity), dtype=torch.float16)
        else:
            shape = {"tensor": (1, 1), "row": (out_features, 1), "column": (1, in_features)}[granularity]
            scale = torch.ones(shape, dtype=torch.float32)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("weight_zero", torch.zeros_like(scale, dtype=torch.int8) if affine else None)

    @torch.no_grad()
    def quantize(self, weight: Tensor) -> None:
        """Quantizes a weight [out, in] into this layer."""
        if isinstance(self.granularity, int):
            codes, scale = group_quantize(weight, self.bits, self.granularity)
        elif self.affine:
            codes, scale, self.weight_zero = zero_point_quantize(weight.float(), self.bits, _AXES[self.granularity])
        else:
            codes, scale = absmax_quantize(weight.float(), self.bits, _AXES[self.granularity])
        self.set_quantized(codes, scale)

    @torch.no_grad()
    def set_quantized(self, codes: Tensor, scale: Tensor) -> None:
        """Stores codes, int8 [out, in] from `-2^(bits-1)` on, and their scales."""
        self.weight_scale = scale
        self.set_codes(pack_bits(codes.short() + (1 << (self.bits - 1)), self.bits))

    def signed_codes(self) -> Tensor:
        """Returns the unpacked codes, int8 [out, in], with zero at zero unless there is a zero point."""
        return (unpack_bits(self.codes, self.bits, self.in_features).short() - (1 << (self.bits - 1))).to(torch.int8)

    @torch.no_grad()
    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns the dequantized weight [out, in]."""
        if self.bits == 8:
            unsigned = self.codes.float()
        else:
            levels = torch.arange(1 << self.bits, dtype=torch.float32, device=self.weight.device)
            unsigned = codebook_dequantize(self.codes, levels, self.in_features)
        zero: Tensor | int = 1 << (self.bits - 1)
        if isinstance(self.granularity, int):
            return group_dequantize(unsigned.sub_(zero), self.weight_scale, self.granularity).to(dtype)
        if self.weight_zero is not None:
            zero = self.weight_zero.float() + zero
        return unsigned.sub_(zero).mul_(self.weight_scale).to(dtype)

    def extra_repr(self) -> str:
        """The options, for `print(model)`."""
        return f"{super().extra_repr()}, bits={self.bits}, granularity={self.granularity}, affine={self.affine}"


class Uniform(LayoutKind):
    """Linear layers whose weights are integers of few bits."""

    name = "uniform"
    trainable = False

    def rebuild(self, model: nn.Module, entry: Entry) -> None:
        """Puts empty layers in place."""
        options = entry["bits"], entry["granularity"], entry["affine"]
        found = {name: UniformLinear.like(model.get_submodule(name), *options) for name in entry["modules"]}
        replace_modules(model, found)


register(Uniform())
