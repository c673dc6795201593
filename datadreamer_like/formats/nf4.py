"""Linear layers in NF4: 4 bits per weight, and a scale for each block of weights.

    {"kind": "nf4", "format": 1, "block_size": 64, "double_quant": true, "modules": {
        "model.layers.0.self_attn.q_proj": {}}}

Each module has its codes in `weight` (int8 [ceil(out * in / 2)], two per byte over the flattened [out, in]; a `Conv1D`
is transposed), its scales in `weight_absmax` (fp32 [blocks]) and its unchanged bias in `bias`. With double quantization
the scales are codes too (uint8), with `weight_absmax_scale` (fp32 [ceil(blocks / 256)]) and `weight_absmax_offset`
(fp32 []).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datadreamer_like.kernels import (
    absmax_from_dynamic8,
    absmax_to_dynamic8,
    nf4_dequantize,
    nf4_linear,
    nf4_quantize,
)

from .decoded import DecodedLinear
from .layout import Entry, LayoutKind, register
from .modules import replace_modules

_SCALES_A_BLOCK = 256


class NF4Linear(DecodedLinear):
    """A linear layer whose weights are NF4 codes.

    `block_size` weights share a scale; with `double_quant` the scales are quantized to 8 bits.
    """

    exact = ("weight_absmax", "weight_absmax_scale", "weight_absmax_offset")
    weight_absmax: Tensor
    weight_absmax_scale: Tensor
    weight_absmax_offset: Tensor

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, block_size: int = 64, double_quant: bool = True
    ) -> None:
        count = in_features * out_features
        super().__init__(in_features, out_features, bias, (-(-count // 2),))
        self.block_size, self.double_quant = block_size, double_quant
        blocks = -(-count // block_size)
        self.register_buffer("weight_absmax", torch.zeros(blocks, dtype=torch.uint8 if double_quant else torch.float32))
        scales = torch.zeros(-(-blocks // _SCALES_A_BLOCK), dtype=torch.float32) if double_quant else None
        self.register_buffer("weight_absmax_scale", scales)
        self.register_buffer("weight_absmax_offset", torch.zeros((), dtype=torch.float32) if double_quant else None)

    @torch.no_grad()
    def quantize(self, weight: Tensor) -> None:
        """Quantizes a weight [out, in] into this layer."""
        codes, absmax = nf4_quantize(weight, self.block_size)
        self.set_codes(codes)
        if self.double_quant:
            self.weight_absmax, self.weight_absmax_scale, self.weight_absmax_offset = absmax_to_dynamic8(absmax)
        else:
            self.weight_absmax = absmax

    @torch.no_grad()
    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns the dequantized weight [out, in]."""
        shape = (self.out_features, self.in_features)
        return nf4_dequantize(self.codes, self._absmax(), shape, block_size=self.block_size, dtype=dtype)

    def product(self, x: Tensor) -> Tensor:
        """Returns [..., out] for [..., in], without bias."""
        return nf4_linear(x, self.codes, self._absmax(), self.out_features, block_size=self.block_size)

    def _absmax(self) -> Tensor:
        if not self.double_quant:
            return self.weight_absmax
        return absmax_from_dynamic8(self.weight_absmax, self.weight_absmax_scale, self.weight_absmax_offset)

    def extra_repr(self) -> str:
        """The options, for `print(model)`."""
        return f"{super().extra_repr()}, block_size={self.block_size}, double_quant={self.double_quant}"


class NF4(LayoutKind):
    """Linear layers whose weights are NF4 codes; adapters can be trained on them."""

    name = "nf4"
    trainable = False

    def rebuild(self, model: nn.Module, entry: Entry) -> None:
        """Puts empty NF4 layers in place."""
        options = entry["block_size"], entry["double_quant"]
        replace_modules(model, {name: NF4Linear.like(model.get_submodule(name), *options) for name in entry["modules"]})


register(NF4())
