"""The base of linear layers whose weights are decoded for each product: they save memory, and adapters fit them.

On a CPU decoding takes longer than a product of a few rows. So layers of under a million weights keep what was decoded
in evaluation mode; a model that is trained, such as with adapters, has its codes alone.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layout import CodedModule, version

_SMALL = 1 << 20


class DecodedLinear(CodedModule, nn.Linear):
    """A linear layer with packed codes in `weight`; computes in the dtype of its input.

    It is an `nn.Linear`, so that peft can put adapters on it. Gradients flow to its input and bias; the backward pass
    decodes the weight again instead of keeping it. A subclass defines `dequantized`, and `product` where it can do
    without the whole decoded weight. `shape` is that of the codes, in bytes.
    """

    _kept: tuple[Any, Tensor] | None = None
    """The decoded weight, with what it was decoded from."""

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

    def kept(self, x: Tensor) -> Tensor | None:
        """Returns the decoded weight [out, in] in the dtype of x; None where it is decoded for this product alone."""
        small = 0 < self.in_features * self.out_features < _SMALL
        if self.training or not small or x.device.type != "cpu" or torch.compiler.is_compiling():
            self._kept = None
            return None
        # Not `self.buffers()`, which takes longer than a product of one row.
        now = (x.dtype, version(self.weight), *(version(each) for each in self._buffers.values() if each is not None))
        if self._kept is None or self._kept[0] != now:
            with torch.inference_mode(False):  # gradients may be asked for later
                self._kept = (now, self.dequantized(x.dtype))
        return self._kept[1]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}

    def forward(self, x: Tensor) -> Tensor:
        """Returns [..., out] for [..., in], in the dtype of x or of autocast."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if (weight := self.kept(x)) is not None:
            return F.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))
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
