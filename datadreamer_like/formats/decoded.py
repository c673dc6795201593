"""The base of linear layers whose weights are decoded for each product: they save memory, and adapters fit them."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layout import CodedModule


class DecodedLinear(CodedModule, nn.Linear):
    """A linear layer with packed codes in `weight`; computes in the dtype of its input.

    It is an `nn.Linear`, so that peft can put adapters on it. Gradients flow to its input and bias; the backward pass
    decodes the weight again instead of keeping it. A subclass defines `dequantized`, and `product` where it can do
    without the whole decoded weight. `shape` is that of the codes, in bytes.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, shape: tuple[int, ...]) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        # The kernels' uint8 as int8: T5 casts activations to the weight's dtype unless that is a float or int8.
        self.weight = nn.Parameter(torch.zeros(shape, dtype=torch.int8), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(out_features), requires_grad=False) if bias else None  # type: ignore[assignment]

    @property
    def codes(self) -> Tensor:
        """The packed codes as the kernels take them, uint8."""
        return self.weight.view(torch.uint8)

    def set_codes(self, codes: Tensor) -> None:
        """Replaces the packed codes, uint8."""
        self.weight = nn.Parameter(codes.view(torch.int8), requires_grad=False)

    def quantize(self, weight: Tensor) -> None:
        """Quantizes a weight [out, in] into this layer."""
        raise NotImplementedError(f"{type(self).__name__} does not define `quantize`, which encodes a weight.")

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns the dequantized weight [out, in]."""
        raise NotImplementedError(f"{type(self).__name__} does not define `dequantized`, which decodes its weight.")

    def product(self, x: Tensor) -> Tensor:
        """Returns [..., out] for [..., in], without bias; needs no gradient."""
        return F.linear(x, self.dequantized(x.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Returns [..., out] for [..., in], in the dtype of x or of autocast."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        y = cast(Tensor, _Product.apply(x, self))  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _Product(torch.autograd.Function):
    """`x Wᵀ` with a backward pass that decodes W again, so that no full weight is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: DecodedLinear) -> Tensor:
        ctx.linear = linear
        return linear.product(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        (grad,) = grads
        return grad @ ctx.linear.dequantized(grad.dtype), None
