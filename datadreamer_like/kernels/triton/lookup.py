"""The GPU kernel of `nf4_linear` and `codebook_linear` for few rows: codes become levels by shuffles within a warp.

A lookup of a level in memory, or in shared memory, takes more instructions than the product that it is for. Here each
lane of a warp keeps one level in a register, and reads the level of a code from the lane of that number: a shift, a
shuffle and a product per weight. Elsewhere than on NVIDIA's GPUs, levels are read from memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from . import PTX

_OUTPUTS = 4
_WORDS_OF_A_WARP = 128
_MANY_OUTPUTS = 8192  # from here on, a warp for each few of them keeps a large GPU busy


def matvec(
    rows: Tensor,
    packed: Tensor,
    levels: Tensor,
    bits: int,
    outputs: int,
    *,
    scales: Tensor | None = None,
    codes_per_scale: int = 0,
    high_first: bool = False,
) -> Tensor:
    """Returns `x Wᵀ`, [rows, out] in the dtype of x [rows, in], for `W = levels[codes]`, times its scales if given.

    Args:
        rows: x, of any floating dtype; products are added in fp32.
        packed: uint8, contiguous: codes of 1 to 4 bits, those of a row of W in whole bytes. With scales, in whole words
            of 32 bits.
        levels: fp32 [2^bits].
        bits: Bits of a code.
        outputs: Number of rows of W.
        scales: fp32, one for every `codes_per_scale` codes, which divides `in` and is a multiple of 8.
        codes_per_scale: Codes that share a scale.
        high_first: The first code of two is in the high bits of its byte, instead of in the low ones.
    """
    count, inputs = rows.shape
    whole = inputs * bits % 32 == 0 and 32 % bits == 0 and packed.storage_offset() % 4 == 0
    codes = 32 // bits if whole else 8
    words = triton.cdiv(inputs, codes)
    # [rows, codes, words]: values for the same place of neighbouring words are neighbours.
    values = torch.empty(count, codes, words, dtype=torch.float32, device=rows.device)
    values.copy_(F.pad(rows, (0, words * codes - inputs)).view(count, words, codes).transpose(1, 2))
    y = torch.empty(count, outputs, dtype=rows.dtype, device=rows.device)
    warps = 1 if outputs >= _MANY_OUTPUTS or words <= _WORDS_OF_A_WARP else 2
    tile = min(warps * _WORDS_OF_A_WARP, max(32, triton.next_power_of_2(words)))
    _matvec_kernel[(triton.cdiv(outputs, _OUTPUTS), count)](
        values,
        packed.view(torch.int32) if whole else packed,
        levels.float().contiguous(),
        levels if scales is None else scales.contiguous(),
        y,
        outputs,
        words,
        words if whole else packed.numel() // outputs,
        BITS=bits,
        CODES=codes,
        WHOLE=whole,
        SCALE_WORDS=codes_per_scale // codes,
        HIGH_FIRST=high_first,
        PTX=PTX,
        EVEN=words % tile == 0,
        OUTPUTS=_OUTPUTS,
        WORDS=tile,
        num_warps=warps,
    )
    return y


@triton.jit
def _matvec_kernel(
    x,
    packed,
    levels,
    scales,
    y,
    outputs,
    words,
    row_items,
    BITS: tl.constexpr,
    CODES: tl.constexpr,
    WHOLE: tl.constexpr,
    SCALE_WORDS: tl.constexpr,
    HIGH_FIRST: tl.constexpr,
    PTX: tl.constexpr,
    EVEN: tl.constexpr,
    OUTPUTS: tl.constexpr,
    WORDS: tl.constexpr,
):
    # A word (W) has the CODES codes of its places.
    first = tl.program_id(0) * OUTPUTS
    row = tl.program_id(1).to(tl.int64)
    n_NW = tl.arange(0, OUTPUTS)[:, None]
    w = tl.arange(0, WORDS)
    here = n_NW < outputs - first
    x_W = x + row * CODES * words + w
    packed += first.to(tl.int64) * row_items
    if SCALE_WORDS > 0:
        blocks = words // SCALE_WORDS
        scales += first.to(tl.int64) * blocks
    own_level = levels
    if PTX:
        lane = tl.inline_asm_elementwise("mov.u32 $0, %laneid;", "=r,r", [row_items], tl.int32, is_pure=True, pack=1)
        own_level = tl.load(levels + (lane & ((1 << BITS) - 1)))
    total_NW = tl.zeros([OUTPUTS, WORDS], dtype=tl.float32)
    # The next words are on their way while these are multiplied.
    next_NW = read_words(packed, n_NW, w, here & (w < words)[None, :], row_items, BITS, WHOLE)
    for start in range(0, words, WORDS):
        word_NW = next_NW
        later = start + WORDS + w
        next_NW = read_words(packed, n_NW, later, here & (later < words)[None, :], row_items, BITS, WHOLE)
        inside_W = w < words - start
        part_NW = tl.zeros([OUTPUTS, WORDS], dtype=tl.float32)
        for place in tl.static_range(CODES):
            shift = (place // 2) * 8 + 4 - (place % 2) * 4 if HIGH_FIRST else place * BITS
            v_W = tl.load(x_W + place * words) if EVEN else tl.load(x_W + place * words, mask=inside_W, other=0.0)
            part_NW += _level(levels, own_level, word_NW >> shift, BITS, PTX) * v_W[None, :]
        if SCALE_WORDS > 0:
            total_NW += part_NW * scales_of_words(
                scales, n_NW, blocks, start, here, words, SCALE_WORDS, EVEN, OUTPUTS, WORDS
            )
        else:
            total_NW += part_NW
        x_W += WORDS
    n = first + tl.arange(0, OUTPUTS)
    tl.store(y + row * outputs + n, tl.sum(total_NW, axis=1).to(y.dtype.element_ty), mask=n < outputs)


@triton.jit
def read_words(packed, n_NW, w, mask, row_items, BITS: tl.constexpr, WHOLE: tl.constexpr):
    """Words of 32 bits, or of BITS bytes; read once, so they need not stay in the first cache."""
    if WHOLE:
        return tl.load(packed + n_NW * row_items + w[None, :], mask=mask, other=0, cache_modifier=".cg")
    word_NW = tl.zeros(mask.shape, dtype=tl.int32)
    for place in tl.static_range(BITS):
        item = w[None, :] * BITS + place
        byte_NW = tl.load(packed + n_NW * row_items + item, mask=mask & (item < row_items), other=0)
        word_NW |= byte_NW.to(tl.int32) << (8 * place)
    return word_NW


@triton.jit
def scales_of_words(
    scales,
    n_NW,
    blocks,
    start,
    here,
    words,
    SCALE_WORDS: tl.constexpr,
    EVEN: tl.constexpr,
    OUTPUTS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """The scales of the words from `start`, [OUTPUTS, WORDS]; neighbours of a group (G) have the same, read once."""
    group: tl.constexpr = 4 if SCALE_WORDS % 4 == 0 else (2 if SCALE_WORDS % 2 == 0 else 1)
    groups: tl.constexpr = WORDS // group
    g = start + tl.arange(0, groups) * group
    inside = here if EVEN else here & (g < words)[None, :]
    s_NG = tl.load(scales + n_NW * blocks + (g // SCALE_WORDS)[None, :], mask=inside, other=0.0)
    return tl.reshape(tl.broadcast_to(s_NG[:, :, None], [OUTPUTS, groups, group]), [OUTPUTS, WORDS])


@triton.jit
def _level(levels, own_level, index, BITS: tl.constexpr, PTX: tl.constexpr):
    """The levels of the codes in the low BITS bits."""
    if PTX:
        # The number of a lane is taken from five bits; lanes have the same level if their low BITS bits are the same.
        return tl.inline_asm_elementwise(
            "shfl.sync.idx.b32 $0, $1, $2, 0x1f, 0xffffffff;",
            "=f,f,r",
            [own_level, index],
            tl.float32,
            is_pure=True,
            pack=1,
        )
    return tl.load(levels + (index & ((1 << BITS) - 1)))
