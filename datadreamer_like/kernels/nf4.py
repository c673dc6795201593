"""NF4: 16 levels at the quantiles of a normal distribution, with one absmax scale per block of weights.

Dettmers et al. 2023 (QLoRA), arXiv:2305.14314; bit-identical to bitsandbytes 0.50. Double quantization stores the
scales in 8 bits: minus their mean, in blocks of 256, with a signed dynamic map (Dettmers 2016, arXiv:1511.04561), at
0.127 bits per weight instead of 0.5.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from datadreamer_like.errors import DefinitionError

from .backends import MATVEC_ROWS, Backend, choose
from .codebook import in_blocks

NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The values of the codes 0 to 15, as fractions of their block's absmax."""

_TINY = 1e-38  # lower bound of absmax as a divisor
_SCALES_A_BLOCK = 256
_CELLS = 1 << 16


def nf4_quantize(w: Tensor, block_size: int = 64, *, backend: Backend = None) -> tuple[Tensor, Tensor]:
    """Quantizes a tensor to 4 bits per number, in blocks over the flattened tensor.

    Args:
        w: A floating tensor of any shape and dtype; computed in fp32.
        block_size: Numbers that share a scale; an even number. The last block may be shorter.
        backend: "reference" or "cpu": on a CPU both are the same here.

    Returns:
        Codes (uint8 [ceil(n / 2)], two to a byte, the first in the high four bits; an odd last one is padded with the
        code of zero) and absmax (fp32 [ceil(n / block_size)]). Values are rounded to the nearest level, ties to the
        lower one. An infinity or NaN invalidates its block: check for it beforehand.

    Example:
        >>> packed, absmax = nf4_quantize(torch.tensor([0.0, 2.0, -2.0, 0.9]))
        >>> [f"{byte:08b}" for byte in packed.tolist()], absmax.tolist()
        (['01111111', '00001100'], [2.0])
    """
    _check("nf4_quantize", block_size, backend, w)
    if not w.is_floating_point() or not w.numel():
        raise DefinitionError(f"nf4_quantize takes a floating tensor that is not empty, got {w.dtype} {list(w.shape)}.")
    flat = w.detach().reshape(-1).float()
    full = len(flat) - len(flat) % block_size
    blocks = flat[:full].view(-1, block_size)
    absmax = blocks.abs().amax(1)
    # As in bitsandbytes, whole blocks are multiplied by a reciprocal and the short one is divided, which rounds
    # differently; so codes are bit-identical.
    scaled = (blocks * (1.0 / absmax.clamp(min=_TINY))[:, None]).view(-1)
    if full < len(flat):
        rest = flat[full:]
        last = rest.abs().amax().clamp(min=_TINY)
        absmax = torch.cat([absmax, last[None]])
        scaled = torch.cat([scaled, rest / last])
    if len(scaled) % 2:
        scaled = F.pad(scaled, (0, 1))
    codes = torch.bucketize(scaled, _levels(w.device)[1], out_int32=True).to(torch.uint8)
    return (codes[::2] << 4) | codes[1::2], absmax


def nf4_dequantize(
    packed: Tensor,
    absmax: Tensor,
    shape: Sequence[int],
    *,
    block_size: int = 64,
    dtype: torch.dtype = torch.float32,
    backend: Backend = None,
) -> Tensor:
    """Dequantizes the results of `nf4_quantize`: `level[code] * absmax`, computed in fp32.

    `shape` and `block_size` are those of the quantized tensor. `backend="reference"` unpacks each code; "cpu" looks up
    two at once and gives the same numbers.
    """
    _check("nf4_dequantize", block_size, backend, packed)
    count = math.prod(shape)
    if packed.numel() != -(-count // 2) or absmax.numel() != -(-count // block_size):
        raise DefinitionError(
            f"{count} numbers in blocks of {block_size} are {-(-count // 2)} bytes and {-(-count // block_size)} "
            f"scales, got {packed.numel()} and {absmax.numel()}. Pass the shape and block_size of quantizing."
        )
    levels = _levels(packed.device)[0]
    if backend == "reference":
        codes = torch.stack([packed.reshape(-1) >> 4, packed.reshape(-1) & 15], dim=1)
        values = levels[codes.long()].view(-1)
    else:
        values = F.embedding(packed.reshape(-1).int(), _pairs(packed.device)).view(-1)
    values = values[:count]
    if count % block_size == 0:
        return (values.view(-1, block_size) * absmax.view(-1, 1)).to(dtype).view(tuple(shape))
    return (values * absmax.repeat_interleave(block_size)[:count]).to(dtype).view(tuple(shape))


def nf4_linear(
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    outputs: int,
    *,
    block_size: int = 64,
    backend: Backend = None,
) -> Tensor:
    """Returns `x Wᵀ`, [..., out] in the dtype of x, for codes and scales of W [out, in]; no gradients flow through it.

    Args:
        x: [..., in], of any floating dtype.
        packed: uint8 [ceil(out in / 2)], of `nf4_quantize`, as is `absmax`.
        absmax: fp32 [ceil(out in / block_size)].
        outputs: Number of rows of W.
        block_size: That of quantizing.
        backend: "reference" dequantizes the whole weight; "cpu" a cache-sized block of rows at a time; "triton" decodes
            in registers, where `block_size` divides `in` and is a multiple of 8; "triton-pairs" by a table of pairs of
            levels in fp16, for x of 16 bits: fewer instructions a weight, its speed not yet measured on a GPU. None
            chooses "triton" on a GPU for up to 8 rows of x, and "cpu" on a CPU.
    """
    inputs = x.shape[-1]
    rows = x.reshape(-1, inputs)
    whole = block_size % 8 == 0 and inputs % block_size == 0
    chosen = choose(
        "nf4_linear", backend, x, offered=("reference", "cpu", "triton", "triton-pairs"),
        automatic=not x.is_cuda or (whole and 0 < len(rows) <= MATVEC_ROWS),
    )  # fmt: skip
    if chosen in ("triton", "triton-pairs"):
        if not whole:
            raise DefinitionError(
                f'backend="{chosen}" of nf4_linear takes rows of whole blocks of a multiple of 8, not {inputs} inputs '
                f"in blocks of {block_size}."
            )
        scaled: Any = {"scales": absmax, "codes_per_scale": block_size, "high_first": True}
        levels = _levels(x.device)[0]
        if chosen == "triton-pairs":
            from .triton import pairs

            y = pairs.matvec(rows, packed, levels, outputs, **scaled)
        else:
            from .triton import lookup

            y = lookup.matvec(rows, packed.contiguous(), levels, 4, outputs, **scaled)
        return y.view(*x.shape[:-1], outputs)
    if chosen == "reference":
        shape = (outputs, inputs)
        options: Any = {"block_size": block_size, "dtype": x.dtype, "backend": None if x.is_cuda else "reference"}
        return F.linear(x, nf4_dequantize(packed, absmax, shape, **options))

    def decoded(part: slice) -> Tensor:
        first, last = part.start * inputs, part.stop * inputs
        codes, scales = packed[first // 2 : -(-last // 2)], absmax[first // block_size : -(-last // block_size)]
        shape = (part.stop - part.start, inputs)
        return nf4_dequantize(codes, scales, shape, block_size=block_size, dtype=x.dtype)

    # Blocks of rows begin with a block of weights, and so with a byte.
    multiple = math.lcm(inputs, block_size) // inputs if inputs else 1
    return in_blocks(rows, outputs, decoded, multiple).view(*x.shape[:-1], outputs)


def absmax_to_dynamic8(absmax: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantizes the scales [blocks] of `nf4_quantize` (double quantization).

    Returns codes (uint8 [blocks]), their scales (fp32 [ceil(blocks / 256)]), and the subtracted mean (fp32 []).
    """
    offset = absmax.mean()
    centred = absmax - offset
    parts = torch.split(centred, _SCALES_A_BLOCK)
    scale = torch.stack([part.abs().amax() for part in parts])
    # A block without differences gives 0 times infinity, which counts as the lowest cell; its scale is 0.
    shares = torch.cat([part * (1.0 / one) for part, one in zip(parts, scale, strict=True)])
    shares = shares.nan_to_num(nan=-1.0).clamp(-1.0, 1.0)
    cells = ((shares + 1.0) * ((_CELLS - 1) * 0.5) + 0.5).long()
    return _dynamic8_cells(absmax.device)[cells], scale, offset


def absmax_from_dynamic8(codes: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """Dequantizes the codes of `absmax_to_dynamic8` to scales, fp32 [blocks]."""
    shares = _dynamic8_map(codes.device)[codes.long()]
    return shares * scale.repeat_interleave(_SCALES_A_BLOCK)[: len(codes)] + offset


def _check(operation: str, block_size: int, backend: Backend, x: Tensor) -> None:
    if block_size < 2 or block_size % 2:
        raise DefinitionError(f"block_size is {block_size}; it must be an even number from 2.")
    choose(operation, backend, x, offered=("reference", "cpu"))


@functools.cache
def _levels(device: torch.device) -> tuple[Tensor, Tensor]:
    """The levels [16], and the midpoints [15] between them."""
    levels = torch.tensor(NF4_LEVELS, device=device)
    return levels, (levels[:-1] + levels[1:]) / 2


@functools.cache
def _pairs(device: torch.device) -> Tensor:
    """The two levels of each byte [256, 2]."""
    levels = _levels(device)[0]
    return torch.stack([levels.repeat_interleave(16), levels.repeat(16)], dim=1)


@functools.cache
def _dynamic8_map(device: torch.device) -> Tensor:
    """The signed dynamic map [256]: seven decades, each with twice the fractions of the one below; 0, and 1."""
    values = [torch.tensor([0.0, 1.0])]
    for exponent in range(7):
        borders = torch.linspace(0.1, 1, 2**exponent + 1)
        values.append((10.0 ** (exponent - 6)) * ((borders[:-1] + borders[1:]) / 2))
        values.append(-values[-1])
    return torch.cat(values).sort().values.to(device)


@functools.cache
def _dynamic8_cells(device: torch.device) -> Tensor:
    """The nearest code of each of 65,536 evenly spaced shares from -1 to 1, by which bitsandbytes finds codes."""
    shares = torch.arange(_CELLS) * (2.0 / (_CELLS - 1)) - 1.0
    values = _dynamic8_map(torch.device("cpu"))
    return torch.bucketize(shares, (values[:-1] + values[1:]) / 2).to(torch.uint8).to(device)
