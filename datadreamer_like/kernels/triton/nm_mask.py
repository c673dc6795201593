"""The GPU kernel of `nm_mask`: each score counts the scores of its group that rank below it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


def nm_mask_of_groups(scores: Tensor, removed: int) -> Tensor:
    """Returns the mask of scores [..., groups, group], contiguous: False for the `removed` lowest of each group."""
    mask = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    count = scores.numel()
    _mask_kernel[(triton.cdiv(count, _BLOCK),)](scores, mask, count, removed, GROUP=scores.shape[-1], BLOCK=_BLOCK)
    return mask


@triton.jit
def _load(pointers, inside):
    """The values, of 16 bits as fp32, which is exact: the interpreter compares bf16 by its bits."""
    values = tl.load(pointers, mask=inside, other=0.0)
    if values.dtype.primitive_bitwidth < 32:
        values = values.to(tl.float32)
    return values


@triton.jit
def _mask_kernel(scores, mask, count, removed, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < count
    place = offsets % GROUP
    score = _load(scores + offsets, inside)
    rank = tl.zeros([BLOCK], dtype=tl.int32)
    for index in range(GROUP):
        other = _load(scores + offsets - place + index, inside)
        below = (other < score) | ((other == score) & (index < place))
        rank += below.to(tl.int32)
    tl.store(mask + offsets, rank >= removed, mask=inside)
