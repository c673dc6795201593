"""A GPU kernel of `nf4_linear` and `codebook_linear` for 4 bits: one look into a table gives the levels of two codes.

The table is in shared memory: for each byte its two levels in fp16, once for each lane of a warp, so that 32 lanes read
it at once. Two weights take a look, two instructions that find its place, and one product in fp16; `lookup` takes two
looks. The eight products of a word are added in fp16, words in fp32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import PTX
from .lookup import read_words, scales_of_words

_BLOCK = 4096
_WARPS = 8
_MANY_OUTPUTS = 8192  # from here on, blocks of more outputs keep a large GPU busy


def matvec(
    rows: Tensor,
    packed: Tensor,
    levels: Tensor,
    outputs: int,
    *,
    scales: Tensor | None = None,
    codes_per_scale: int = 0,
    high_first: bool = False,
) -> Tensor:
    """Returns `x Wᵀ`, [rows, out] in the dtype of x [rows, in], for `W = levels[codes]`, times its scales if given.

    Args:
        rows: x, in fp16 or bf16; `in` is a multiple of 8. A row is scaled by a power of two before it is
            rounded to fp16. A row with an infinity or NaN gives NaN.
        packed: uint8, codes of 4 bits.
        levels: fp32 [16].
        outputs: Number of rows of W.
        scales: fp32, one for every `codes_per_scale` codes, which divides `in` and is a multiple of 8.
        codes_per_scale: Codes that share a scale.
        high_first: The first code of two is in the high bits of its byte, instead of in the low ones.
    """
    count, inputs = rows.shape
    words = inputs // 8
    rows, packed = rows.contiguous(), packed.contiguous()
    if packed.storage_offset() % 4:
        packed = packed.clone()  # words are read whole
    halves = torch.empty(count, 4, words, dtype=torch.int32, device=rows.device)
    x_scales = torch.empty(count, dtype=torch.float32, device=rows.device)
    block = min(_BLOCK, triton.next_power_of_2(inputs))
    _halves_kernel[(count,)](rows, halves.view(torch.float16), x_scales, inputs, BLOCK=block, num_warps=8)
    y = torch.empty(count, outputs, dtype=rows.dtype, device=rows.device)
    block_outputs, tile = (32, 128) if outputs >= _MANY_OUTPUTS else (16, 256)
    _pairs_kernel[(triton.cdiv(outputs, block_outputs), count)](
        halves,
        x_scales,
        packed.view(torch.int32),
        levels.float().contiguous(),
        x_scales if scales is None else scales.contiguous(),
        y,
        outputs,
        words,
        SCALE_WORDS=codes_per_scale // 8,
        HIGH_FIRST=high_first,
        PTX=PTX,
        EVEN=words % tile == 0,
        OUTPUTS=block_outputs,
        WORDS=tile,
        WARPS=_WARPS,
        num_warps=_WARPS,
    )
    return y


@triton.jit
def _power(top):
    """The power of two at or below a positive number (within 2^-126 and 2^126), and its inverse."""
    exponent = top.to(tl.int32, bitcast=True) & 0x7F800000
    exponent = tl.minimum(tl.maximum(exponent, 1 << 23), 253 << 23)
    return exponent.to(tl.float32, bitcast=True), ((254 << 23) - exponent).to(tl.float32, bitcast=True)


@triton.jit
def _halves_kernel(x, halves, x_scales, inputs, BLOCK: tl.constexpr):
    """A row as fp16: a word of W has the eight numbers of four pairs, and those of a pair lie side by side."""
    row = tl.program_id(0).to(tl.int64)
    x += row * inputs
    halves += row * inputs
    top = 0.0
    invalid = 0.0
    for start in range(0, inputs, BLOCK):
        i = start + tl.arange(0, BLOCK)
        values = tl.load(x + i, mask=i < inputs, other=0.0).to(tl.float32)
        top = tl.maximum(top, tl.max(tl.abs(values), axis=0))
        invalid += tl.sum(values * 0.0, axis=0)  # NaN, which a maximum ignores
    scale, inverse = _power(top)
    for start in range(0, inputs, BLOCK):
        i = start + tl.arange(0, BLOCK)
        values = tl.load(x + i, mask=i < inputs, other=0.0).to(tl.float32) * inverse
        place = (i % 8 // 2) * (inputs // 4) + i // 8 * 2 + i % 2
        tl.store(halves + place, values.to(tl.float16), mask=i < inputs)
    tl.store(x_scales + row, scale + invalid)


@triton.jit
def _pairs_kernel(
    x,
    x_scales,
    packed,
    levels,
    scales,
    y,
    outputs,
    words,
    SCALE_WORDS: tl.constexpr,
    HIGH_FIRST: tl.constexpr,
    PTX: tl.constexpr,
    EVEN: tl.constexpr,
    OUTPUTS: tl.constexpr,
    WORDS: tl.constexpr,
    WARPS: tl.constexpr,
):
    # A word (W) has four pairs of codes.
    first = tl.program_id(0) * OUTPUTS
    row = tl.program_id(1).to(tl.int64)
    n_NW = tl.arange(0, OUTPUTS)[:, None]
    w = tl.arange(0, WORDS)
    here = n_NW < outputs - first
    x_W = x + row * 4 * words + w
    packed += first.to(tl.int64) * words
    if SCALE_WORDS > 0:
        blocks = words // SCALE_WORDS
        scales += first.to(tl.int64) * blocks
    level_scale, inverse = _power(tl.max(tl.abs(tl.load(levels + tl.arange(0, 16))), axis=0))
    # The first words are on their way while the table is made, the next ones while these are multiplied.
    next_NW = read_words(packed, n_NW, w, here & (w < words)[None, :], words, 4, True)
    table = words
    if PTX:
        table = _table(levels, inverse, words, HIGH_FIRST, WARPS)
    total_NW = tl.zeros([OUTPUTS, WORDS], dtype=tl.float32)
    for start in range(0, words, WORDS):
        word_NW = next_NW
        later = start + WORDS + w
        next_NW = read_words(packed, n_NW, later, here & (later < words)[None, :], words, 4, True)
        inside_W = w < words - start
        a = tl.load(x_W) if EVEN else tl.load(x_W, mask=inside_W, other=0)
        b = tl.load(x_W + words) if EVEN else tl.load(x_W + words, mask=inside_W, other=0)
        c = tl.load(x_W + 2 * words) if EVEN else tl.load(x_W + 2 * words, mask=inside_W, other=0)
        d = tl.load(x_W + 3 * words) if EVEN else tl.load(x_W + 3 * words, mask=inside_W, other=0)
        if PTX:
            part_NW = _products(word_NW, table, a[None, :], b[None, :], c[None, :], d[None, :])
        else:
            part_NW = _pair(levels, inverse, word_NW, a[None, :], HIGH_FIRST)
            part_NW += _pair(levels, inverse, word_NW >> 8, b[None, :], HIGH_FIRST)
            part_NW += _pair(levels, inverse, word_NW >> 16, c[None, :], HIGH_FIRST)
            part_NW += _pair(levels, inverse, word_NW >> 24, d[None, :], HIGH_FIRST)
        if SCALE_WORDS > 0:
            total_NW += part_NW * scales_of_words(
                scales, n_NW, blocks, start, here, words, SCALE_WORDS, EVEN, OUTPUTS, WORDS
            )
        else:
            total_NW += part_NW
        x_W += WORDS
    n = first + tl.arange(0, OUTPUTS)
    found = tl.sum(total_NW, axis=1) * (tl.load(x_scales + row) * level_scale)
    tl.store(y + row * outputs + n, found.to(y.dtype.element_ty), mask=n < outputs)


@triton.jit
def _half(levels, inverse, code):
    level = tl.load(levels + (code & 15)) * inverse
    return level.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF


@triton.jit
def _table(levels, inverse, some, HIGH_FIRST: tl.constexpr, WARPS: tl.constexpr):
    """Fills the table; returns the address of the lane's column of it, in which a byte's pair is at 128 times the byte.

    A thread writes the whole rows of its bytes, four columns at a time; neighbouring threads begin at other columns.
    """
    thread = tl.inline_asm_elementwise("mov.u32 $0, %tid.x;", "=r,r", [some], tl.int32, is_pure=True, pack=1)
    table = tl.inline_asm_elementwise(
        "{ .shared .align 128 .b8 pairs[32768]; mov.u32 $0, pairs; }", "=r,r", [some], tl.int32, is_pure=False, pack=1
    )
    for start in tl.static_range(0, 256, 32 * WARPS):
        byte = start + thread
        low, high = _half(levels, inverse, byte), _half(levels, inverse, byte >> 4)
        pair = (low << 16) | high if HIGH_FIRST else (high << 16) | low
        for turn in tl.static_range(8):
            tl.inline_asm_elementwise(
                "st.shared.v4.b32 [$1], {$2, $2, $2, $2}; mov.u32 $0, 0;",
                "=r,r,r",
                [table + 128 * byte + 16 * ((thread + turn) & 7), pair],
                tl.int32,
                is_pure=False,
                pack=1,
            )
    tl.debug_barrier()
    return table + 4 * (thread & 31)


@triton.jit
def _products(word, table, a, b, c, d):
    """The sum of a word's eight products, fp32; a to d are the pairs of x of its bytes."""
    return tl.inline_asm_elementwise(
        """
        {
        .reg .b32 i0, i1, i2, i3, sum;
        .reg .b16 low, high;
        .reg .f32 other;
        prmt.b32 i0, $1, 0, 0x4440;
        prmt.b32 i1, $1, 0, 0x4441;
        prmt.b32 i2, $1, 0, 0x4442;
        prmt.b32 i3, $1, 0, 0x4443;
        mad.lo.u32 i0, i0, 128, $2;
        mad.lo.u32 i1, i1, 128, $2;
        mad.lo.u32 i2, i2, 128, $2;
        mad.lo.u32 i3, i3, 128, $2;
        ld.shared.b32 i0, [i0];
        ld.shared.b32 i1, [i1];
        ld.shared.b32 i2, [i2];
        ld.shared.b32 i3, [i3];
        mul.rn.f16x2 sum, i0, $3;
        fma.rn.f16x2 sum, i1, $4, sum;
        fma.rn.f16x2 sum, i2, $5, sum;
        fma.rn.f16x2 sum, i3, $6, sum;
        mov.b32 {low, high}, sum;
        cvt.f32.f16 $0, low;
        cvt.f32.f16 other, high;
        add.f32 $0, $0, other;
        }
        """,
        "=f,r,r,r,r,r,r",
        [word, table, a, b, c, d],
        tl.float32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _pair(levels, inverse, byte, x, HIGH_FIRST: tl.constexpr):
    """The sum of the two products of a byte, with levels from memory."""
    low = _half(levels, inverse, byte).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    high = _half(levels, inverse, byte >> 4).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    x_first = (x & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    x_second = (x >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return (high * x_first + low * x_second) if HIGH_FIRST else (low * x_first + high * x_second)
