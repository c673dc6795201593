"""Zero-point (affine) quantization: `s = (max - min) / (2^b - 1)`, `z = round(-min / s) - 2^(b-1)`.

Codes are `X_q = clip(round(X / s) + z, -2^(b-1), 2^(b-1) - 1)` and stand for `X̂ = s (X_q - z)`. The range is widened to
hold zero, so that zero is exact, and all codes are used where values lie on one side of it (Jacob et al. 2017,
arXiv:1712.05877).
"""

from __future__ import annotations

import torch
from torch import Tensor

from datadreamer_like.errors import DefinitionError

from .absmax import Axis


def zero_point_quantize(x: Tensor, bits: int = 8, axis: Axis = None) -> tuple[Tensor, Tensor, Tensor]:
    """Quantizes a tensor to integers, with a scale and a zero point per tensor, row or column.

    Args:
        x: A floating tensor of any shape and dtype; computed in fp32 (fp64 for fp64).
        bits: 2 to 8.
        axis: The dimensions over which minimum and maximum are taken, as in `absmax_quantize`.

    Returns:
        Codes (int8, the shape of `x`), scale (fp32 or fp64) and zero point (int8), both of size 1 in the dimensions of
        `axis`. All-zero values get a tiny scale; a scale is infinite or NaN where `x` is.

    Example:
        >>> codes, scale, zero = zero_point_quantize(torch.tensor([0.0, 1.0, 2.55]))
        >>> codes.tolist(), zero.item()
        ([-128, -28, 127], -128)
    """
    if not 2 <= bits <= 8:
        raise DefinitionError(f"bits is {bits}; codes are kept in an int8 each, so it must be from 2 to 8.")
    if not x.is_floating_point() or not x.numel():
        raise DefinitionError(f"zero_point_quantize takes floats, at least one, got {x.dtype} {list(x.shape)}.")
    precise = x if x.dtype == torch.float64 else x.float()
    dims = tuple(range(x.dim())) if axis is None else axis
    low = precise.amin(dim=dims, keepdim=True).clamp_max_(0)
    high = precise.amax(dim=dims, keepdim=True).clamp_min_(0)
    half = 2 ** (bits - 1)
    steps = 2 * half - 1
    scale = (high / steps - low / steps).clamp_min_(torch.finfo(precise.dtype).tiny)
    zero = (low / -scale).round_() - half
    codes = (precise / scale).round_().add_(zero).clamp_(-half, half - 1)
    return codes.to(torch.int8), scale, zero.to(torch.int8)


def zero_point_dequantize(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Returns `scale (codes - zero)` for int8 codes, in the dtype of the scale."""
    return (codes.to(scale.dtype) - zero) * scale
