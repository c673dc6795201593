"""The GPU kernel of `nf4_linear` for few rows: codes are looked up and scaled in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_OUTPUTS, _BYTES = 16, 128


def matvec(rows: Tensor, packed: Tensor, absmax: Tensor, levels: Tensor, outputs: int, block_size: int) -> Tensor:
    """Returns `x Wᵀ`, [rows, out] in the dtype of x [rows, in], for NF4 codes of W [out, in] with an even `in`."""
    count, inputs = rows.shape
    y = torch.empty(count, outputs, dtype=rows.dtype, device=rows.device)
    _matvec_kernel[(triton.cdiv(outputs, _OUTPUTS), count)](
        rows.contiguous(),
        packed.contiguous(),
        absmax.contiguous(),
        levels,
        y,
        outputs,
        inputs,
        block_size,
        OUTPUTS=_OUTPUTS,
        BYTES=_BYTES,
    )
    return y


@triton.jit
def _matvec_kernel(
    x, packed, absmax, levels, y, outputs, inputs, block_size, OUTPUTS: tl.constexpr, BYTES: tl.constexpr
):
    # A byte (B) has two codes, the first in its high bits; both are in one block, whose size is even.
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row = tl.program_id(1)
    x += row.to(tl.int64) * inputs
    half = inputs // 2
    first_N = n.to(tl.int64) * half
    total = tl.zeros([OUTPUTS], dtype=tl.float32)
    for start in range(0, half, BYTES):
        place = start + tl.arange(0, BYTES)
        mask = (n[:, None] < outputs) & (place[None, :] < half)
        byte = first_N[:, None] + place[None, :]
        codes_NB = tl.load(packed + byte, mask=mask, other=0).to(tl.int32)
        scale_NB = tl.load(absmax + byte * 2 // block_size, mask=mask, other=0.0)
        high_B = tl.load(x + 2 * place, mask=place < half, other=0.0).to(tl.float32)
        low_B = tl.load(x + 2 * place + 1, mask=place < half, other=0.0).to(tl.float32)
        high_NB = tl.load(levels + (codes_NB >> 4)) * high_B[None, :]
        low_NB = tl.load(levels + (codes_NB & 15)) * low_B[None, :]
        total += tl.sum((high_NB + low_NB) * scale_NB, axis=1)
    tl.store(y + row.to(tl.int64) * outputs + n, total.to(y.dtype.element_ty), mask=n < outputs)
