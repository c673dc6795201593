"""Linear layers whose weights are signs, one bit each, with a scale per output feature.

    {"kind": "binary", "format": 1, "modules": {"bert.encoder.layer.0.attention.self.query": {}}}

Each module has its signs in `weight` (int8 [out, ceil(in / 8)], the lowest bit of a byte first, 1 for +1; a `Conv1D` is
transposed), its scales in `weight_scale` (fp32 [out, 1]) and its unchanged bias in `bias`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datadreamer_like.kernels import binary_linear, binary_quantize, unpack_signs

from .decoded import DecodedLinear
from .layout import Entry, LayoutKind, register
from .modules import replace_modules


class BinaryLinear(DecodedLinear):
    """A linear layer with weights of ±1 times a scale per output feature; activations are floats."""

    exact = ("weight_scale",)
    weight_scale: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias, (out_features, -(-in_features // 8)))
        self.register_buffer("weight_scale", torch.ones(out_features, 1, dtype=torch.float32))

    @torch.no_grad()
    def quantize(self, weight: Tensor) -> None:
        """Quantizes a weight [out, in] into this layer."""
        codes, self.weight_scale = binary_quantize(weight)
        self.set_codes(codes)

    @torch.no_grad()
    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns the dequantized weight [out, in]."""
        return (unpack_signs(self.codes, self.in_features) * self.weight_scale).to(dtype)

    def product(self, x: Tensor) -> Tensor:
        """Returns [..., out] for [..., in], without bias."""
        return binary_linear(x, self.codes, self.weight_scale)


class Binary(LayoutKind):
    """Linear layers whose weights are signs with a scale per output feature."""

    name = "binary"
    trainable = False

    def rebuild(self, model: nn.Module, entry: Entry) -> None:
        """Puts empty layers in place."""
        replace_modules(model, {name: BinaryLinear.like(model.get_submodule(name)) for name in entry["modules"]})


register(Binary())
