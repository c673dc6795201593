"""Binary weights: `W ≈ α B`, `B = sign(W)` with `sign(0) = +1` and `α = mean|W|` of each output row.

These minimise `‖W - α B‖²` (XNOR-Net, Rastegari et al. 2016, arXiv:1603.05279). Signs are packed one bit each, 1 for
+1, each row padded to whole bytes with zeros.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from datadreamer_like.errors import DefinitionError

from .backends import Backend, choose
from .codebook import codebook_linear, pack_bits, unpack_bits

_PAIRS_A_BLOCK = 1 << 21  # words of a block's exclusive or: 16 MiB


def binary_quantize(w: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the packed signs, uint8 [out, ceil(in / 8)], and the scales, fp32 [out, 1], of a matrix [out, in].

    Example:
        >>> signs, scale = binary_quantize(torch.tensor([[0.5, -1.0, 0.0]]))
        >>> f"{signs.item():03b}", scale.item()
        ('101', 0.5)
    """
    if w.dim() != 2 or not w.is_floating_point() or not w.shape[1]:
        raise DefinitionError(f"binary_quantize takes a floating matrix [out, in], got {w.dtype} {list(w.shape)}.")
    return pack_signs(w), w.detach().abs().mean(1, keepdim=True, dtype=torch.float32)


def pack_signs(x: Tensor) -> Tensor:
    """Packs the signs of numbers [..., n], 0 counting as positive: uint8 [..., ceil(n / 8)]."""
    return pack_bits(x.detach() >= 0, 1)


def unpack_signs(packed: Tensor, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns the signs of `pack_signs` as ±1: [..., count]."""
    return unpack_bits(packed, 1, count).to(dtype).mul_(2).sub_(1)


def binary_matmul(a: Tensor, b: Tensor, count: int, *, backend: Backend = None) -> Tensor:
    """Returns `A Bᵀ`, int32 [rows, out], exactly, for matrices of ±1 whose rows `pack_signs` packed.

    The product of two rows is `count` less twice the number of places where they differ.

    Args:
        a: uint8 [rows, ceil(count / 8)].
        b: uint8 [out, ceil(count / 8)].
        count: Number of signs in a row.
        backend: "reference" multiplies floats; "cpu" counts the bits of exclusive ors of 64 bits at a time; "triton"
            those of 32.
    """
    size = -(-count // 8)
    if a.dtype != torch.uint8 or b.dtype != torch.uint8 or a.shape[1:] != (size,) or b.shape[1:] != (size,):
        raise DefinitionError(
            f"binary_matmul takes rows of {count} signs in {size} bytes (uint8), got {a.dtype} {list(a.shape)} and "
            f"{b.dtype} {list(b.shape)}."
        )
    chosen = choose("binary_matmul", backend, a, offered=("reference", "cpu", "triton"))
    if chosen == "triton":
        from .triton.binary import differing

        return count - 2 * differing(_words(a, 4), _words(b, 4))
    if chosen == "cpu":
        return count - 2 * _differing(_words(a, 8).numpy().view(np.uint64), _words(b, 8).numpy().view(np.uint64))
    dtype = torch.float32 if count < 1 << 24 else torch.float64  # exact
    return (unpack_signs(a, count, dtype) @ unpack_signs(b, count, dtype).T).to(torch.int32)


def binary_linear(x: Tensor, signs: Tensor, scale: Tensor, *, backend: Backend = None) -> Tensor:
    """Returns `x (α B)ᵀ`, [..., out] in the dtype of x [..., in], for signs and scales of `binary_quantize`.

    `backend` is that of `codebook_linear`; no gradients flow through it.
    """
    levels = torch.tensor([-1.0, 1.0], device=x.device)
    return codebook_linear(x, signs, levels, backend=backend) * scale.flatten().to(x.dtype)


def _words(packed: Tensor, size: int) -> Tensor:
    """The bytes of each row padded to words of this many bytes; as int32 words if there are 4 in one."""
    padded = F.pad(packed, (0, -packed.shape[1] % size)).contiguous()
    return padded.view(torch.int32) if size == 4 else padded


def _differing(a: np.ndarray, b: np.ndarray) -> Tensor:
    found = np.empty((len(a), len(b)), dtype=np.int32)
    step = max(1, _PAIRS_A_BLOCK // max(1, b.size))
    for start in range(0, len(a), step):
        different = np.bitwise_count(a[start : start + step, None] ^ b)
        different.sum(-1, dtype=np.int32, out=found[start : start + step])
    return torch.from_numpy(found)
