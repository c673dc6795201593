"""The GPU kernel of `int8_linear`: an int8 product in int32, scaled and shifted before it is stored."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def scaled_product(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, bias: Tensor | None) -> Tensor:
    """Returns `(a bᵀ) ⊙ (a_scale b_scaleᵀ) + bias`, fp32 [rows, out].

    `a` is int8 [rows, in], `a_scale` fp32 [rows, 1] or [1, 1], `b` int8 [out, in], `b_scale` fp32 [out, 1].
    """
    (rows, inputs), outputs = a.shape, len(b)
    y = torch.empty(rows, outputs, dtype=torch.float32, device=a.device)
    # A product of tensor cores has at least 16 rows, and 32 int8 inputs.
    block_m = min(64, max(16, triton.next_power_of_2(rows)))
    block_n, block_k = (32, 256) if block_m == 16 else (64, 128)
    _product_kernel[(triton.cdiv(rows, block_m), triton.cdiv(outputs, block_n))](
        a,
        a_scale.contiguous(),
        b.contiguous(),
        b_scale.contiguous(),
        y if bias is None else bias.contiguous(),
        y,
        rows,
        outputs,
        inputs,
        BY_ROW=a_scale.numel() > 1,
        BIASED=bias is not None,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
    )
    return y


@triton.jit
def _product_kernel(
    a,
    a_scale,
    b,
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
