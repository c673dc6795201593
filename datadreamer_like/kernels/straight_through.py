"""Rounding that trains: forward passes compute with quantized values, and gradients go straight through.

The derivative of a rounding is zero almost everywhere; the straight-through estimator (Bengio et al. 2013,
arXiv:1308.3432) uses that of the identity instead, and for signs that of the hard tanh.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """Returns `value`, exactly, with the gradient of `x`: `∂L/∂x = ∂L/∂value`.

    `value` is computed from x, has its shape, and needs no gradient.
    """
    return cast(Tensor, _StraightThrough.apply(x, value))  # type: ignore[no-untyped-call]


def binary_sign(x: Tensor) -> Tensor:
    """Returns the signs of numbers as ±1, 0 counting as positive, with the gradient `∂L/∂x = ∂L/∂sign · 1_{|x| ≤ 1}`.

    Courbariaux et al. 2016, arXiv:1602.02830, equation 4: the gradient is cancelled where |x| > 1, as that of
    `hardtanh(x) = clip(x, -1, 1)` is.

    Example:
        >>> x = torch.tensor([-2.0, -0.5, 0.0], requires_grad=True)
        >>> binary_sign(x).sum().backward()
        >>> binary_sign(x).tolist(), x.grad.tolist()
        ([-1.0, -1.0, 1.0], [0.0, 1.0, 1.0])
    """
    return cast(Tensor, _Sign.apply(x))  # type: ignore[no-untyped-call]


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return cast(Tensor, grads[0] * (x.abs() <= 1))
