"""Linear layers in NF4: 4 bits per weight, and a scale for each block of weights.

    {"kind": "nf4", "format": 1, "block_size": 64, "double_quant": true, "modules": {
        "model.layers.0.self_attn.q_proj": {}}}

Each module has its codes in `weight` (int8 [ceil(out * in / 2)], two per byte over the flattened [out, in]; a `Conv1D`
is transposed), its scales in `weight_absmax` (fp32 [blocks]) and its unchanged bias in `bias`. With double quantization
the scales are codes too (uint8), with `weight_absmax_scale` (fp32 [ceil(blocks / 256)]) and `weight_absmax_offset`
(fp32 []).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datadreamer_like.kernels import absmax_from_dynamic8, absmax_to_dynamic8, nf4_dequantize, nf4_quantize

from .layout import CodedModule, Entry, LayoutKind, register
from .modules import replace_modules

_SCALES_A_BLOCK = 256


class NF4Linear(CodedModule, nn.Linear):
    """A linear layer whose weights are NF4 codes; computes in the dtype of its input.

    It is an `nn.Linear`, so that peft can put adapters on it. Gradients flow to its input and bias; the backward pass
    dequantizes the codes again instead of keeping the weights. `block_size` weights share a scale; with `double_quant`
    the scales are quantized to 8 bits.
    """

    exact = ("weight_absmax", "weight_absmax_scale", "weight_absmax_offset")
    weight_absmax: Tensor
    weight_absmax_scale: Tensor
    weight_absmax_offset: Tensor

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, block_size: int = 64, double_quant: bool = True
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        self.block_size, self.double_quant = block_size, double_quant
        count = in_features * out_features
        blocks = -(-count // block_size)
        # The kernels' uint8 as int8: T5 casts activations to the weight's dtype unless that is a float or int8.
        self.weight = nn.Parameter(torch.zeros(-(-count // 2), dtype=torch.int8), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(out_features), requires_grad=False) if bias else None  # type: ignore[assignment]
        self.register_buffer("weight_absmax", torch.zeros(blocks, dtype=torch.uint8 if double_quant else torch.float32))
        scales = torch.zeros(-(-blocks // _SCALES_A_BLOCK)) if double_quant else None
        self.register_buffer("weight_absmax_scale", scales)
        self.register_buffer("weight_absmax_offset", torch.zeros(()) if double_quant else None)

    @torch.no_grad()
    def quantize(self, weight: Tensor) -> None:
        """Quantizes a weight [out, in] into this layer."""
        codes, absmax = nf4_quantize(weight, self.block_size)
        self.weight = nn.Parameter(codes.view(torch.int8), requires_grad=False)
        if self.double_quant:
            self.weight_absmax, self.weight_absmax_scale, self.weight_absmax_offset = absmax_to_dynamic8(absmax)
        else:
            self.weight_absmax = absmax

    @torch.no_grad()
    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns the dequantized weight [out, in]."""
        absmax = self.weight_absmax
        if self.double_quant:
            absmax = absmax_from_dynamic8(absmax, self.weight_absmax_scale, self.weight_absmax_offset)
        shape = (self.out_features, self.in_features)
        codes = self.weight.view(torch.uint8)
        return nf4_dequantize(codes, absmax, shape, block_size=self.block_size, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Returns [..., out] for [..., in], in the dtype of x or of autocast."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        y = cast(Tensor, _Product.apply(x, self))  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        """The options, for `print(model)`."""
        return f"{super().extra_repr()}, block_size={self.block_size}, double_quant={self.double_quant}"


class _Product(torch.autograd.Function):
    """`x Wᵀ` with a backward pass that dequantizes W again, so that no full weight is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: NF4Linear) -> Tensor:
        ctx.linear = linear
        return F.linear(x, linear.dequantized(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        (grad,) = grads
        return grad @ ctx.linear.dequantized(grad.dtype), None


class NF4(LayoutKind):
    """Linear layers whose weights are NF4 codes; adapters can be trained on them."""

    name = "nf4"
    trainable = False

    def rebuild(self, model: nn.Module, entry: Entry) -> None:
        """Puts empty NF4 layers in place."""
        options = entry["block_size"], entry["double_quant"]
        replace_modules(model, {name: NF4Linear.like(model.get_submodule(name), *options) for name in entry["modules"]})


register(NF4())
