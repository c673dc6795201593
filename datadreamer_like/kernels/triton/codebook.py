"""The GPU kernel of `codebook_linear` for few rows: indices are unpacked and looked up in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_OUTPUTS, _GROUPS = 16, 64


def matvec(rows: Tensor, packed: Tensor, levels: Tensor, bits: int) -> Tensor:
    """Returns `x Wᵀ`, [rows, out] in the dtype of x [rows, in], for `W = levels[codes]` of 1 to 4 bits."""
    (count, inputs), outputs = rows.shape, len(packed)
    y = torch.empty(count, outputs, dtype=rows.dtype, device=rows.device)
    _matvec_kernel[(triton.cdiv(outputs, _OUTPUTS), count)](
        rows.contiguous(),
        packed.contiguous(),
        levels.float().contiguous(),
        y,
        outputs,
        inputs,
        packed.shape[1],
        BITS=bits,
        OUTPUTS=_OUTPUTS,
        GROUPS=_GROUPS,
    )
    return y


@triton.jit
def _matvec_kernel(
    x,
    packed,
    levels,
    y,
    outputs,
    inputs,
    row_bytes,
    BITS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    # Eight indices are BITS bytes: a group (G).
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row = tl.program_id(1)
    x += row.to(tl.int64) * inputs
    start_N = packed + n.to(tl.int64) * row_bytes
    total = tl.zeros([OUTPUTS], dtype=tl.float32)
    for start in range(0, tl.cdiv(inputs, 8), GROUPS):
        group = start + tl.arange(0, GROUPS)
        word_NG = tl.zeros([OUTPUTS, GROUPS], dtype=tl.int32)
        for place in tl.static_range(BITS):
            byte = group * BITS + place
            mask = (n[:, None] < outputs) & (byte[None, :] < row_bytes)
            loaded = tl.load(start_N[:, None] + byte[None, :], mask=mask, other=0).to(tl.int32)
            word_NG |= loaded << (8 * place)
        for place in tl.static_range(8):
            column = group * 8 + place
            x_G = tl.load(x + column, mask=column < inputs, other=0.0).to(tl.float32)
            w_NG = tl.load(levels + ((word_NG >> (BITS * place)) & ((1 << BITS) - 1)))
            total += tl.sum(w_NG * x_G[None, :], axis=1)
    tl.store(y + row.to(tl.int64) * outputs + n, total.to(y.dtype.element_ty), mask=n < outputs)
