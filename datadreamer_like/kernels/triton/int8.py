"""The GPU kernels of `int8_linear`: codes of activations, and an int8 product in int32, scaled and shifted."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import PTX

_BLOCK = 4096
_OUTPUTS, _WORDS, _WARPS = 8, 512, 8


def quantize_rows(x: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """Returns the codes, int8 [rows, in], and scales, fp32 [rows, 1], of `absmax_quantize` for codes up to `largest`.

    A row with an infinity or NaN has the scale NaN.
    """
    rows, inputs = x.shape
    codes = torch.empty(rows, inputs, dtype=torch.int8, device=x.device)
    scale = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    block = min(_BLOCK, triton.next_power_of_2(inputs))
    _quantize_kernel[(rows,)](x.contiguous(), codes, scale, inputs, float(largest), BLOCK=block, num_warps=8)
    return codes, scale


@triton.jit
def _quantize_kernel(x, codes, scale, inputs, largest, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    x += row * inputs
    codes += row * inputs
    top = 0.0
    invalid = 0.0
    for start in range(0, inputs, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        values = tl.load(x + offsets, mask=offsets < inputs, other=0.0).to(tl.float32)
        top = tl.maximum(top, tl.max(tl.abs(values), axis=0))
        invalid += tl.sum(values * 0.0, axis=0)  # NaN, which a maximum ignores
    step = tl.maximum(tl.div_rn(top, largest), 1.1754943508222875e-38) + invalid
    for start in range(0, inputs, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        values = tl.load(x + offsets, mask=offsets < inputs, other=0.0).to(tl.float32)
        # Adding and subtracting 1.5 * 2^23 rounds to the nearest whole number, ties to even.
        rounded = (tl.div_rn(values, step) + 12582912.0) - 12582912.0
        tl.store(codes + offsets, rounded.to(tl.int8), mask=offsets < inputs)
    tl.store(scale + row, step)


def scaled_product(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, bias: Tensor | None) -> Tensor:
    """Returns `(a bᵀ) ⊙ (a_scale b_scaleᵀ) + bias`, fp32 [rows, out].

    `a` is int8 [rows, in], `a_scale` fp32 [rows, 1] or [1, 1], `b` int8 [out, in], `b_scale` fp32 [out, 1].
    """
    (rows, inputs), outputs = a.shape, len(b)
    a, b = a.contiguous(), b.contiguous()
    y = torch.empty(rows, outputs, dtype=torch.float32, device=a.device)
    scales = (a_scale.contiguous(), b_scale.contiguous(), y if bias is None else bias.contiguous())
    if rows == 1 and inputs % 4 == 0 and a.storage_offset() % 4 == 0 and b.storage_offset() % 4 == 0:
        words = inputs // 4
        _row_kernel[(triton.cdiv(outputs, _OUTPUTS),)](
            a.view(torch.int32),
            b.view(torch.int32),
            *scales,
            y,
            outputs,
            words,
            BIASED=bias is not None,
            PTX=PTX,
            OUTPUTS=_OUTPUTS,
            WORDS=_WORDS,
            num_warps=_WARPS,
        )
        return y
    # A product of tensor cores has at least 16 rows, and 32 int8 inputs.
    block_m = min(64, max(16, triton.next_power_of_2(rows)))
    block_n, block_k, warps, stages = (16, 512, 2, 4) if block_m == 16 else (64, 128, 4, 3)
    _product_kernel[(triton.cdiv(rows, block_m), triton.cdiv(outputs, block_n))](
        a,
        b,
        *scales,
        y,
        rows,
        outputs,
        inputs,
        BY_ROW=a_scale.numel() > 1,
        BIASED=bias is not None,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        num_warps=warps,
        num_stages=stages,
    )
    return y


@triton.jit
def _row_kernel(
    a,
    b,
    a_scale,
    b_scale,
    bias,
    y,
    outputs,
    words,
    BIASED: tl.constexpr,
    PTX: tl.constexpr,
    OUTPUTS: tl.constexpr,
    WORDS: tl.constexpr,
):
    # A word (W) has four numbers of int8.
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    w = tl.arange(0, WORDS)
    n_NW = n[:, None]
    first_NW = n_NW.to(tl.int64) * words
    total_NW = tl.zeros([OUTPUTS, WORDS], dtype=tl.int32)
    for start in range(0, words, WORDS):
        place_W = start + w
        mask = (n_NW < outputs) & (place_W < words)[None, :]
        words_NW = tl.load(b + first_NW + place_W[None, :], mask=mask, other=0)
        words_W = tl.load(a + place_W, mask=place_W < words, other=0)[None, :]
        if PTX:
            total_NW = tl.inline_asm_elementwise(
                "dp4a.s32.s32 $0, $1, $2, $3;",
                "=r,r,r,r",
                [words_W, words_NW, total_NW],
                tl.int32,
                is_pure=True,
                pack=1,
            )
        else:
            for place in tl.static_range(4):
                total_NW += ((words_W << (24 - 8 * place)) >> 24) * ((words_NW << (24 - 8 * place)) >> 24)
    found = (
        tl.sum(total_NW, axis=1).to(tl.float32) * tl.load(a_scale) * tl.load(b_scale + n, mask=n < outputs, other=0.0)
    )
    if BIASED:
        found += tl.load(bias + n, mask=n < outputs, other=0.0).to(tl.float32)
    tl.store(y + n, found, mask=n < outputs)


@triton.jit
def _product_kernel(
    a,
    b,
    a_scale,
    b_scale,
    bias,
    y,
    rows,
    outputs,
    inputs,
    BY_ROW: tl.constexpr,
    BIASED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    total = tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.int32)
    for start in range(0, inputs, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a_MK = tl.load(a + m[:, None] * inputs + k[None, :], mask=(m[:, None] < rows) & (k[None, :] < inputs), other=0)
        b_KN = tl.load(
            b + n[None, :] * inputs + k[:, None], mask=(n[None, :] < outputs) & (k[:, None] < inputs), other=0
        )
        total += tl.dot(a_MK, b_KN, out_dtype=tl.int32)
    scale_M = tl.load(a_scale + (m if BY_ROW else m * 0), mask=m < rows, other=0.0)
    scale_N = tl.load(b_scale + n, mask=n < outputs, other=0.0)
    found = total.to(tl.float32) * scale_M[:, None] * scale_N[None, :]
    if BIASED:
        found += tl.load(bias + n, mask=n < outputs, other=0.0).to(tl.float32)[None, :]
    tl.store(y + m[:, None] * outputs + n[None, :], found, mask=(m[:, None] < rows) & (n[None, :] < outputs))
