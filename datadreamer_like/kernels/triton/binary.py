"""The GPU kernel of `binary_matmul`: how many bits of two rows differ."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _OUTPUTS = 4, 64


def differing(a: Tensor, b: Tensor) -> Tensor:
    """Returns in how many bits rows of words differ: int32 [rows, out], for int32 [rows, words] and [out, words]."""
    found = torch.empty(len(a), len(b), dtype=torch.int32, device=a.device)
    _differing_kernel[(triton.cdiv(len(a), _ROWS), triton.cdiv(len(b), _OUTPUTS))](
        a, b, found, len(a), len(b), a.shape[1], ROWS=_ROWS, OUTPUTS=_OUTPUTS
    )
    return found


@triton.jit
def _differing_kernel(a, b, found, rows, outputs, words, ROWS: tl.constexpr, OUTPUTS: tl.constexpr):
    m = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    n = (tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)).to(tl.int64)
    total = tl.zeros([ROWS, OUTPUTS], dtype=tl.int32)
    for word in range(words):
        a_M = tl.load(a + m * words + word, mask=m < rows, other=0)
        b_N = tl.load(b + n * words + word, mask=n < outputs, other=0)
        bits = a_M[:, None] ^ b_N[None, :]
        # Adds up the ones of pairs, of fours, of bytes, and of all bytes; the masks undo the sign's shift.
        bits = bits - ((bits >> 1) & 0x55555555)
        bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
        bits = (bits + (bits >> 4)) & 0x0F0F0F0F
        bits += bits >> 8
        bits += bits >> 16
        total += bits & 63
    tl.store(found + m[:, None] * outputs + n[None, :], total, mask=(m[:, None] < rows) & (n[None, :] < outputs))
