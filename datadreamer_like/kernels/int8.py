"""Integer products: exact ones in plain PyTorch, PyTorch's int8 engines for CPUs, and a linear layer that uses them.

An engine takes unsigned 8-bit activations and signed 8-bit weights. CPUs without VNNI add pairs of products in 16 bits,
which silently overflow unless activations have at most 7 bits. As engines can be configured to use fewer instructions,
each is tested once with values that would overflow, and gets as many activation bits as it multiplies correctly.
"""

from __future__ import annotations

import platform
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, cast

import torch
from torch import Tensor

from datadreamer_like.errors import DefinitionError

from .absmax import BLOCK, absmax_quantize, absmax_scale
from .backends import Backend, choose

Granularity = Literal["token", "tensor"]
"""Granularity of the activation scales: one per token, or one per call."""

_EXACT_IN_FP32 = 1024  # products of two int8 that can be added in fp32 without rounding: 2^24 / 2^14
_packing = threading.Lock()


def int8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    granularity: Granularity = "token",
    activation_bits: int | None = None,
    packed: PackedInt8Weight | None = None,
    backend: Backend = None,
) -> Tensor:
    """Returns `x Wᵀ + bias`, [..., out] in the dtype of x, as `(s_x s_wᵀ) ⊙ (X_q W_qᵀ) + bias` by AbsMax.

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
            "cpu" for the CPU's int8 instructions; "triton" for a GPU's; None for the fastest available.
    """
    check_int8(x, weight, weight_scale, granularity, activation_bits)
    automatic = torch.compiler.is_compiling() or x.device.type != "cpu" or fastest_engine() is not None
    chosen = choose("int8_linear", backend, x, offered=("reference", "cpu", "triton"), automatic=automatic)
    if chosen == "cpu" and packed is None:
        packed = pack_int8_weight(weight, weight_scale)
        if packed is None:
            raise DefinitionError(
                'backend="cpu" of int8_linear is not available: this build of PyTorch has no int8 engine for this '
                'processor. Use backend="reference", or None for the fastest available.'
            )
    options = (granularity, activation_bits, packed if chosen == "cpu" else None, chosen == "triton")
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return cast(Tensor, _Int8Product.apply(x, weight, weight_scale, bias, *options))  # type: ignore[no-untyped-call]
    return _forward(x, weight, weight_scale, bias, *options)


def _forward(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    granularity: Granularity,
    bits: int | None,
    packed: PackedInt8Weight | None,
    on_gpu: bool,
) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    if packed is not None and rows.shape[0]:
        y = packed_linear(rows, packed, bias, granularity, bits)
        return y.to(x.dtype).view(*x.shape[:-1], weight.shape[0])
    if on_gpu and rows.shape[0]:
        from .triton.int8 import quantize_rows, scaled_product

        if granularity == "token":
            codes, scale = quantize_rows(rows, 2 ** ((bits or 8) - 1) - 1)
        else:
            codes, scale = absmax_quantize(rows.float(), bits or 8, None, backend="reference")
        y = scaled_product(codes, scale, weight, weight_scale, bias)
    else:
        axis = -1 if granularity == "token" else None
        codes, scale = absmax_quantize(rows.float(), bits or 8, axis, backend="reference")
        product = int8_matmul(codes, weight) * weight_scale.flatten()
        y = product.mul_(scale) if bias is None else torch.addcmul(bias.float(), product, scale)
    return y.to(x.dtype).view(*x.shape[:-1], weight.shape[0])


def packed_linear(
    rows: Tensor,
    packed: PackedInt8Weight,
    bias: Tensor | None,
    granularity: Granularity = "token",
    bits: int | None = None,
    outliers: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Returns the product of `int8_linear` by a CPU's engine for rows [rows, in], at least one: fp32 [rows, out].

    `outliers` are the numbers of features that are taken out of it, and their weights in fp32 [outliers, out].
    """
    largest = packed.largest if bits is None else min(packed.largest, 2 ** (bits - 1) - 1)
    shared = absmax_scale(rows.float(), largest, None) if granularity == "tensor" else None
    bias = None if bias is None else bias.float()

    def multiply(part: Tensor, out: Tensor | None) -> Tensor:
        part = part.float()
        rest = part if outliers is None else part.index_fill(1, outliers[0], 0.0)
        scale = absmax_scale(rest, largest, -1) if shared is None else shared
        product = packed.product(torch.div(rest, scale).round_())
        y = torch.mul(product, scale, out=out) if bias is None else torch.addcmul(bias, product, scale, out=out)
        return y if outliers is None else y.addmm_(part.index_select(1, outliers[0]), outliers[1])

    # Blocks of rows are small enough that intermediate results stay in the CPU's cache.
    outputs, inputs = packed.shape
    step = max(64, BLOCK // (inputs + outputs))
    if rows.shape[0] <= step:
        return multiply(rows, None)
    y = torch.empty(rows.shape[0], outputs, dtype=torch.float32)
    for part, out in zip(torch.split(rows, step), torch.split(y, step), strict=True):
        multiply(part, out)
    return y


class _Int8Product(torch.autograd.Function):
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
        return into_x, None, None, into_bias, None, None, None, None


def check_int8(
    x: Tensor, weight: Tensor, weight_scale: Tensor, granularity: str = "token", bits: int | None = None
) -> None:
    """Raises `DefinitionError` if the arguments of `int8_linear` do not fit together."""
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


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Returns `a bᵀ`, exactly: int32 [..., out] for a in int8 [..., in] and b in int8 [out, in].

    The reference: fp32 products of parts short enough to be exact, so it runs at the speed of fp32 on any device.
    """
    if a.dtype != torch.int8 or b.dtype != torch.int8 or b.dim() != 2 or a.shape[-1] != b.shape[1]:
        raise DefinitionError(
            f"int8_matmul takes int8 [..., in] and int8 [out, in], and got {a.dtype} {list(a.shape)} and "
            f"{b.dtype} {list(b.shape)}. Quantize both along their last dimension."
        )
    total = torch.zeros(*a.shape[:-1], b.shape[0], dtype=torch.int32, device=a.device)
    with torch.autocast(a.device.type, enabled=False):
        for start in range(0, a.shape[-1], _EXACT_IN_FP32):
            part = slice(start, start + _EXACT_IN_FP32)
            total += (a[..., part].float() @ b[:, part].float().T).int()
    return total


@dataclass(frozen=True)
class PackedInt8Weight:
    """An int8 weight [out, in] and its scales [out, 1], packed for an engine for CPUs; cannot be pickled.

    Attributes:
        largest: Largest magnitude of activations that the engine multiplies without overflow: 127 or 63.
        product: Returns `codes weightᵀ scaleᵀ`, fp32 [rows, out]. `codes`, fp32 [rows, in], are whole numbers of
            magnitude up to `largest`; at least one row.
    """

    shape: torch.Size
    largest: int
    product: Callable[[Tensor], Tensor]


def _fbgemm(weight: Tensor, scale: Tensor, largest: int) -> PackedInt8Weight:
    """The fastest for few rows on all CPUs; uses quantized tensors, which PyTorch plans to remove."""
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    with _packing, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
        scales = scale.double().flatten()
        quantized = torch._make_per_channel_quantized_tensor(weight.contiguous(), scales, zeros, 0)
        engine = torch.backends.quantized.engine
        torch.backends.quantized.engine = "fbgemm"
        try:
            packed: Any = torch.ops.quantized.linear_prepack(quantized, None)
        finally:
            torch.backends.quantized.engine = engine
    linear = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
    return PackedInt8Weight(weight.shape, largest, lambda codes: linear(codes, 1.0, largest + 1, packed))


def _onednn(weight: Tensor, scale: Tensor, largest: int) -> PackedInt8Weight:
    packed: Any = torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)
    scales, zeros = scale.float().flatten(), torch.zeros(len(weight), dtype=torch.int64)
    # Activations are shifted to be unsigned. Subtracting the shift's part here saves a pass over the weights per call.
    shift = -(largest + 1) * weight.sum(1) * scales

    def product(codes: Tensor) -> Tensor:
        unsigned, linear = (codes + (largest + 1)).to(torch.uint8), torch.ops.onednn.qlinear_pointwise
        found: Tensor = linear(unsigned, 1.0, 0, packed, scales, zeros, shift, 1.0, 0, torch.float32, "none", [], "")
        return found

    return PackedInt8Weight(weight.shape, largest, product)


Engine = Callable[[Tensor, Tensor], PackedInt8Weight]

ENGINES: list[Engine] = [partial(pack, largest=largest) for pack in (_fbgemm, _onednn) for largest in (127, 63)]


def pack_int8_weight(weight: Tensor, scale: Tensor) -> PackedInt8Weight | None:
    """Packs an int8 weight [out, in] on the CPU and its scale, fp32 [out, 1], for this machine's `fastest_engine`."""
    engine = fastest_engine()
    return None if engine is None else engine(weight, scale)


@cache
def fastest_engine() -> Engine | None:
    """The fastest engine that multiplies right here, with as many bits as it does; None if there is none."""
    # On other architectures oneDNN falls back on loops that are slower than fp32.
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    for engine in ENGINES:
        # An engine may not be built in, or be removed.
        with suppress(RuntimeError, AttributeError, NotImplementedError):
            if is_exact(engine):
                return engine
    return None


def is_exact(engine: Engine) -> bool:
    """Whether an engine multiplies right on this processor, with the largest activations too."""
    features, outputs = 192, 96
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (outputs, features), generator=generator, dtype=torch.int8)
    weight[:4] = torch.tensor([127, -127, 127, -127], dtype=torch.int8)[:, None]
    packed = engine(weight, torch.ones(outputs, 1))
    # Engines have other loops for one row than for few, and for many.
    for rows in (1, 5, 64):
        codes = torch.randint(-packed.largest, packed.largest + 1, (rows, features), generator=generator).float()
        codes[: (rows + 1) // 2] = packed.largest
        if not torch.allclose(packed.product(codes), codes @ weight.float().T, rtol=1e-5, atol=1.0):
            return False
    return True
