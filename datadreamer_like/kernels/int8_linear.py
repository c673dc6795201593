"""A linear layer with int8 weights and dynamically quantized activations."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor

from datadreamer_like.errors import DefinitionError

from .absmax import BLOCK, absmax_quantize, absmax_scale
from .int8_matmul import PackedInt8Weight, fastest_engine, int8_matmul, pack_int8_weight

Granularity = Literal["token", "tensor"]
"""Granularity of the activation scales: one per token, or one per call."""


def int8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    granularity: Granularity = "token",
    activation_bits: int | None = None,
    packed: PackedInt8Weight | None = None,
    backend: Literal["reference", "cpu"] | None = None,
) -> Tensor:
    """Returns `x Wᵀ + bias` with W in int8 and x quantized by AbsMax: `(s_x s_wᵀ) ⊙ (X_q W_qᵀ) + bias`.

    The vector-wise product of LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339), without outlier features. With one
    scale per token, the result for a row does not depend on the other rows of its batch. Gradients of `x` and `bias`
    ignore the rounding (straight-through). A row with an infinity or NaN gives infinities or NaNs.

    Args:
        x: [..., in], of any floating dtype.
        weight: int8 [out, in].
        weight_scale: fp32 [out, 1].
        bias: [out].
        granularity: "token" for one scale per row of x; "tensor" for one in all, which is slightly faster but less
            accurate.
        activation_bits: Bits of x's codes, 2 to 8; None for 8, or 7 on CPUs without VNNI, whose int8 products overflow
            with 8.
        packed: `pack_int8_weight(weight, weight_scale)`, to be reused between calls; otherwise the CPU path packs the
            weight each time, which takes longer than the product.
        backend: "reference" for exact integer products in plain PyTorch, on any device, at the speed of fp32;
            "cpu" for the CPU's int8 instructions; None for the fastest available.

    Returns:
        [..., out] in the dtype of x.
    """
    _check(x, weight, weight_scale, granularity, activation_bits, backend)
    if backend is None:
        use_cpu = x.device.type == "cpu" and weight.device.type == "cpu" and not torch.compiler.is_compiling()
        backend = "cpu" if use_cpu and fastest_engine() is not None else "reference"
    if backend == "cpu" and packed is None:
        packed = pack_int8_weight(weight, weight_scale)
    options = (granularity, activation_bits, packed if backend == "cpu" else None)
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return cast(Tensor, _StraightThrough.apply(x, weight, weight_scale, bias, *options))  # type: ignore[no-untyped-call]
    return _forward(x, weight, weight_scale, bias, *options)


def _forward(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    granularity: Granularity,
    bits: int | None,
    packed: PackedInt8Weight | None,
) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    if packed is not None and rows.shape[0]:
        y = _packed_forward(rows, packed, bias, granularity, bits)
    else:
        axis = -1 if granularity == "token" else None
        codes, scale = absmax_quantize(rows.float(), bits or 8, axis, backend="reference")
        product = int8_matmul(codes, weight) * weight_scale.flatten()
        y = product.mul_(scale) if bias is None else torch.addcmul(bias.float(), product, scale)
    return y.to(x.dtype).view(*x.shape[:-1], weight.shape[0])


def _packed_forward(
    rows: Tensor, packed: PackedInt8Weight, bias: Tensor | None, granularity: Granularity, bits: int | None
) -> Tensor:
    largest = packed.largest if bits is None else min(packed.largest, 2 ** (bits - 1) - 1)
    outputs, inputs = packed.shape
    y = torch.empty(rows.shape[0], outputs, dtype=torch.float32)
    shared = absmax_scale(rows.float(), largest, None) if granularity == "tensor" else None
    bias = None if bias is None else bias.float()
    # Blocks of rows are small enough that intermediate results stay in the CPU's cache.
    step = max(64, BLOCK // (inputs + outputs))
    for part, out in zip(torch.split(rows, step), torch.split(y, step), strict=True):
        part = part.float()
        scale = absmax_scale(part, largest, -1) if shared is None else shared
        product = packed.product(torch.div(part, scale).round_())
        if bias is None:
            torch.mul(product, scale, out=out)
        else:
            torch.addcmul(bias, product, scale, out=out)
    return y


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, *options: Any
    ) -> Tensor:
        ctx.save_for_backward(weight, weight_scale)
        ctx.bias_dtype = None if bias is None else bias.dtype
        return _forward(x, weight, weight_scale, bias, *options)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, weight_scale = ctx.saved_tensors
        (grad,) = grads
        into_x = into_bias = None
        if ctx.needs_input_grad[0]:
            into_x = grad @ (weight * weight_scale).to(grad.dtype)
        if ctx.needs_input_grad[3]:
            into_bias = grad.reshape(-1, grad.shape[-1]).sum(0, dtype=torch.float32).to(ctx.bias_dtype)
        return into_x, None, None, into_bias, None, None, None


def _check(
    x: Tensor, weight: Tensor, weight_scale: Tensor, granularity: str, bits: int | None, backend: str | None
) -> None:
    if weight.dtype != torch.int8 or weight.dim() != 2 or x.shape[-1:] != weight.shape[1:]:
        raise DefinitionError(
            f"int8_linear takes x [..., in] and an int8 weight [out, in], and got {list(x.shape)} and "
            f"{weight.dtype} {list(weight.shape)}. Quantize the weight along its last dimension."
        )
    if weight_scale.numel() != weight.shape[0]:
        raise DefinitionError(
            f"The weight has {weight.shape[0]} rows and {weight_scale.numel()} scales. Pass one scale a row, [out, 1]."
        )
    if granularity not in ("token", "tensor"):
        raise DefinitionError(f'granularity is "{granularity}"; choose "token" or "tensor".')
    if bits is not None and not 2 <= bits <= 8:
        raise DefinitionError(f"activation_bits is {bits}; codes are kept in an int8 each, so it must be from 2 to 8.")
    if backend not in (None, "reference", "cpu"):
        raise DefinitionError(f'There is no backend "{backend}" of int8_linear. Choose "reference" or "cpu".')
    if backend == "cpu" and (x.device.type != "cpu" or weight.device.type != "cpu" or fastest_engine() is None):
        raise DefinitionError(
            f'backend="cpu" is not available for tensors on {x.device}'
            f"{'' if fastest_engine() else ': this build of PyTorch has no int8 engine for this processor'}. "
            'Use backend="reference", or None for the fastest available.'
        )
