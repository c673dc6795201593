"""AbsMax quantization: `s = max|X| / (2^(bits-1) - 1)`, `X_q = round(X / s)` (half to even), `X̂ = s X_q`.

It is symmetric, so zero stays zero, and off by `s / 2` at most. The vector-wise form, one scale per row, is that of
LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from datadreamer_like.errors import DefinitionError

Axis = int | tuple[int, ...] | None

BLOCK = 1 << 18  # elements; 1 MiB in fp32, which stays in a core's cache from the first pass to the last


def absmax_quantize(
    x: Tensor, bits: int = 8, axis: Axis = None, *, backend: Literal["reference", "cpu"] | None = None
) -> tuple[Tensor, Tensor]:
    """Quantizes a tensor to signed integers, with one scale per tensor, row or column.

    Args:
        x: A floating tensor of any shape and dtype; computed in fp32 (fp64 for fp64).
        bits: 2 to 8: codes are in [-(2^(bits-1) - 1), 2^(bits-1) - 1].
        axis: The dimensions over which a maximum is taken, as in `torch.amax`: None for one scale in all, -1 for a
            scale a row of a matrix, 0 for one a column.
        backend: "reference", or "cpu", which works in cache-sized blocks instead of five passes over the whole tensor
            and gives the same codes.

    Returns:
        Codes (int8, the shape of `x`) and the scale (fp32 or fp64), which has size 1 in the dimensions of `axis`
        and so broadcasts against the codes. All-zero values get a tiny scale and codes 0. A scale is infinite or NaN
        where `x` is.

    Example:
        >>> codes, scale = absmax_quantize(torch.tensor([0.5, 20.0, -0.0001, -0.01, -0.1]))
        >>> codes.tolist()
        [3, 127, 0, 0, -1]
    """
    if not 2 <= bits <= 8:
        raise DefinitionError(f"bits is {bits}; codes are kept in an int8 each, so it must be from 2 to 8.")
    if not x.is_floating_point():
        raise DefinitionError(f"Only floating tensors are quantized, and this one is {x.dtype}. Convert it first.")
    if backend not in (None, "reference", "cpu"):
        raise DefinitionError(f'There is no backend "{backend}" of absmax_quantize. Choose "reference" or "cpu".')
    blocked = x.device.type == "cpu" and not x.requires_grad
    if backend == "cpu" and not blocked:
        raise DefinitionError(
            f'backend="cpu" takes tensors on the CPU that need no gradient, and this one is on {x.device}. '
            'Move and detach it, or use backend="reference".'
        )
    largest = 2 ** (bits - 1) - 1
    if blocked and backend != "reference" and x.numel() > BLOCK and axis in (None, -1, x.dim() - 1):
        return _quantize_in_blocks(x, largest, by_row=axis is not None)
    precise = x if x.dtype == torch.float64 else x.float()
    scale = absmax_scale(precise, largest, axis)
    return torch.div(precise, scale).round_().to(torch.int8), scale


def absmax_dequantize(codes: Tensor, scale: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Returns `scale * codes` for int8 codes, in the dtype of the scale unless another is named."""
    return (codes * scale).to(dtype or scale.dtype)


def absmax_scale(x: Tensor, largest: int, axis: Axis) -> Tensor:
    """The scale that makes the largest magnitude along `axis` the code `largest`; never zero.

    A subnormal scale would round codes badly, or be flushed to zero where the processor does that.
    """
    dims = tuple(range(x.dim())) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    tiny = torch.finfo(x.dtype).tiny
    if x.numel() == 0:
        reduced = {dim % x.dim() for dim in dims}
        return x.new_full([1 if dim in reduced else size for dim, size in enumerate(x.shape)], tiny)
    return x.abs().amax(dim=dims, keepdim=True).div_(largest).clamp_min_(tiny)


def _quantize_in_blocks(x: Tensor, largest: int, by_row: bool) -> tuple[Tensor, Tensor]:
    rows = x.reshape(-1, x.shape[-1])
    size = max(1, BLOCK // rows.shape[1])
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    codes = torch.empty(rows.shape, dtype=torch.int8)
    scale = torch.empty(len(rows) if by_row else 1, 1, dtype=dtype)
    if not by_row:
        maxima = torch.stack([part.abs().amax() for part in torch.split(rows, size)]).to(dtype)
        scale[0] = absmax_scale(maxima, largest, None)
    split = [torch.split(tensor, size) for tensor in (rows, codes, scale.expand(len(rows), 1))]
    for part, part_codes, part_scale in zip(*split, strict=True):
        precise = part.to(dtype)
        if by_row:
            part_scale.copy_(absmax_scale(precise, largest, -1))
        part_codes.copy_(torch.div(precise, part_scale).round_())
    return codes.view(x.shape), scale.view(*x.shape[:-1], 1) if by_row else scale.view([1] * x.dim())
