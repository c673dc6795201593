"""Linear layers whose weights are signs, one bit each, with a scale per output feature.

    {"kind": "binary", "format": 1, "modules": {"bert.encoder.layer.0.attention.self.query": {}}}

Each module has its signs in `weight` (int8 [out, ceil(in / 8)], the lowest bit of a byte first, 1 for +1; a `Conv1D` is
transposed), its scales in `weight_scale` (fp32 [out, 1]) and its unchanged bias in `bias`. With "inputs": "binary" the
layers multiply the signs of their inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datadreamer_like.kernels import (
    binary_linear,
    binary_matmul,
    binary_quantize,
    binary_sign,
    pack_signs,
    unpack_signs,
)

from .decoded import DecodedLinear
from .layout import Entry, LayoutKind, register
from .modules import replace_modules


class BinaryLinear(DecodedLinear):
    """A linear layer with weights of ±1 times a scale per output feature; activations are floats, or signs as well."""

    exact = ("weight_scale",)
    weight_scale: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool = True, binary_inputs: bool = False) -> None:
        super().__init__(in_features, out_features, bias, (out_features, -(-in_features // 8)))
        self.binary_inputs = binary_inputs
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

    def kept(self, x: Tensor) -> Tensor | None:
        """Returns None where activations are signs: their products are counts of bits."""
        return None if self.binary_inputs else super().kept(x)

    def product(self, x: Tensor) -> Tensor:
        """Returns [..., out] for [..., in], without bias."""
        if self.binary_inputs:
            equal = binary_matmul(pack_signs(x.reshape(-1, self.in_features)), self.codes, self.in_features)
            return (equal.to(x.dtype) * self.weight_scale.flatten().to(x.dtype)).view(*x.shape[:-1], self.out_features)
        return binary_linear(x, self.codes, self.weight_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Returns [..., out] for [..., in], in the dtype of x or of autocast."""
        return super().forward(binary_sign(x) if self.binary_inputs else x)

    def extra_repr(self) -> str:
        """The options, for `print(model)`."""
        return super().extra_repr() + (", binary_inputs=True" if self.binary_inputs else "")


class Binary(LayoutKind):
    """Linear layers whose weights are signs with a scale per output feature."""

    name = "binary"
    trainable = False

    def rebuild(self, model: nn.Module, entry: Entry) -> None:
        """Puts empty layers in place."""
        signs = entry.get("inputs") == "binary"
        found = {name: BinaryLinear.like(model.get_submodule(name), signs) for name in entry["modules"]}
        replace_modules(model, found)


register(Binary())
