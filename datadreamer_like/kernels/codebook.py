"""Weights as indices of b bits into a small table of levels, packed without gaps within each row.

The bits of index i of a row are bits `b i` to `b i + b - 1` of the row, the lowest bit of the first byte being bit 0; a
row is padded with zero bits to whole bytes. Methods differ in their levels: centroids (GOBO), evenly spaced integers
(AbsMax, zero-point), or the two signs (binary).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from datadreamer_like.errors import DefinitionError

from .absmax import BLOCK
from .backends import MATVEC_ROWS, Backend, choose

_TRITON_BITS = (1, 2, 3, 4)


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Packs codes [..., n], of any integer dtype and from 0 to `2^bits - 1`: uint8 [..., ceil(n bits / 8)].

    Example:
        >>> [f"{byte:08b}" for byte in pack_bits(torch.tensor([1, 2, 7, 0, 5]), 3).tolist()]
        ['11010001', '01010001']
    """
    _check_bits(bits)
    count = codes.shape[-1]
    if bits == 8:
        return codes.to(torch.uint8)
    groups = _grouped(codes.to(torch.int64), 8)
    words = (groups << _shifts(bits, 8, codes.device)).sum(-1, keepdim=True)
    packed = ((words >> _shifts(8, bits, codes.device)) & 255).to(torch.uint8).flatten(-2)
    return packed[..., : -(-count * bits // 8)].contiguous()


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """Returns the `count` codes of each row, uint8 [..., count], that `pack_bits` packed into [..., bytes]."""
    _check_bits(bits)
    _check_bytes(packed, bits, count)
    if bits == 8:
        return packed
    groups = _grouped(packed, bits).to(torch.int64)
    words = (groups << _shifts(8, bits, packed.device)).sum(-1, keepdim=True)
    codes = ((words >> _shifts(bits, 8, packed.device)) & ((1 << bits) - 1)).to(torch.uint8)
    return codes.flatten(-2)[..., :count].contiguous()


def codebook_dequantize(packed: Tensor, levels: Tensor, inputs: int, *, backend: Backend = None) -> Tensor:
    """Returns `levels[code]` of each packed code: [rows, inputs] in the dtype of the levels.

    Args:
        packed: uint8 [rows, ceil(inputs b / 8)], of `pack_bits`.
        levels: [2^b], b from 1 to 8.
        inputs: Number of codes in a row.
        backend: "reference" unpacks each code; "cpu" looks up the levels of 8 or 12 bits at once, and gives the same
            numbers.
    """
    bits = _bits_of(levels)
    _check_bytes(packed, bits, inputs)
    chosen = choose("codebook_dequantize", backend, packed, offered=("reference", "cpu"))
    if bits == 8 or chosen == "reference" or 12 % bits:
        return levels[unpack_bits(packed, bits, inputs).int()]
    if 8 % bits == 0:
        return F.embedding(packed.int(), _table(levels, 8)).flatten(-2)[..., :inputs]
    first, middle, last = _grouped(packed, 3).to(torch.int16).unbind(-1)
    index = torch.stack([first | ((middle & 15) << 8), (middle >> 4) | (last << 4)], dim=-1)
    return F.embedding(index.int(), _table(levels, 12)).flatten(-3)[..., :inputs]


def codebook_linear(x: Tensor, packed: Tensor, levels: Tensor, *, backend: Backend = None) -> Tensor:
    """Returns `x Wᵀ` for `W = levels[codes]`: [..., out] in the dtype of x. No gradients flow through it.

    Args:
        x: [..., in], of any floating dtype.
        packed: uint8 [out, ceil(in b / 8)], of `pack_bits`.
        levels: fp32 [2^b].
        backend: "reference" decodes the whole weight; "cpu" a cache-sized block of rows at a time; "triton" decodes in
            registers, at up to 4 bits; "triton-pairs" is that of `nf4_linear`, for 4 bits and a multiple of 8 inputs.
            None chooses "triton" on a GPU for up to 8 rows of x, and "cpu" on a CPU.
    """
    bits, inputs = _bits_of(levels), x.shape[-1]
    _check_bytes(packed, bits, inputs)
    rows = x.reshape(-1, inputs)
    chosen = choose(
        "codebook_linear", backend, x, offered=("reference", "cpu", "triton", "triton-pairs"),
        automatic=not x.is_cuda or (bits in _TRITON_BITS and 0 < len(rows) <= MATVEC_ROWS),
    )  # fmt: skip
    if chosen == "triton":
        if bits not in _TRITON_BITS:
            raise DefinitionError(f'backend="triton" of codebook_linear takes 1 to 4 bits, not {bits}.')
        from .triton import lookup

        y = lookup.matvec(rows, packed.contiguous(), levels, bits, len(packed))
    elif chosen == "triton-pairs":
        if bits != 4 or inputs % 8:
            raise DefinitionError(
                'backend="triton-pairs" of codebook_linear takes 4 bits and a multiple of 8 inputs, not '
                f"{bits} and {inputs}."
            )
        from .triton import pairs

        y = pairs.matvec(rows, packed, levels, len(packed))
    elif chosen == "cpu":
        levels = levels.to(x.dtype)
        y = in_blocks(rows, len(packed), lambda part: codebook_dequantize(packed[part], levels, inputs))
    else:
        y = rows @ codebook_dequantize(packed, levels.to(x.dtype), inputs, backend="reference").T
    return y.view(*x.shape[:-1], len(packed))


def in_blocks(rows: Tensor, outputs: int, decoded: Callable[[slice], Tensor], multiple: int = 1) -> Tensor:
    """Returns `x Wᵀ`, [rows, out], for x [rows, in] and a function that decodes a block of the rows of W [out, in].

    A block stays in a core's cache between decoding and multiplying; it begins at a multiple of `multiple` rows.
    """
    inputs = rows.shape[1]
    step = multiple * max(1, BLOCK // max(1, multiple * inputs))
    if step >= outputs:
        return F.linear(rows, decoded(slice(0, outputs)))
    y = rows.new_empty(len(rows), outputs)
    for start in range(0, outputs, step):
        part = slice(start, min(start + step, outputs))
        torch.mm(rows, decoded(part).T, out=y[:, part])
    return y


def _grouped(x: Tensor, size: int) -> Tensor:
    """The last dimension, padded with zeros, in groups: [..., groups, size]."""
    padded = F.pad(x, (0, -x.shape[-1] % size))
    return padded.view(*x.shape[:-1], padded.shape[-1] // size, size)


def _table(levels: Tensor, index_bits: int) -> Tensor:
    """The levels of the codes in each number of `index_bits` bits: [2^index_bits, index_bits / b]."""
    bits = _bits_of(levels)
    numbers = torch.arange(2**index_bits, device=levels.device)[:, None]
    return levels[(numbers >> _shifts(bits, index_bits // bits, levels.device)) & ((1 << bits) - 1)]


def _shifts(step: int, count: int, device: torch.device) -> Tensor:
    return step * torch.arange(count, device=device)


def _bits_of(levels: Tensor) -> int:
    bits = levels.numel().bit_length() - 1
    if levels.dim() != 1 or levels.numel() != 2**bits or not 1 <= bits <= 8:
        raise DefinitionError(f"levels have the shape {list(levels.shape)}; they must be [2^b] for b from 1 to 8.")
    return bits


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise DefinitionError(f"bits is {bits}; a code has from 1 to 8.")


def _check_bytes(packed: Tensor, bits: int, count: int) -> None:
    size = -(-count * bits // 8)
    if packed.dtype != torch.uint8 or packed.shape[-1] != size:
        raise DefinitionError(
            f"{count} codes of {bits} bits are a row of {size} bytes (uint8), got {packed.dtype} {list(packed.shape)}."
        )
