"""Integers with a scale for each group of inputs: `s = max|w| / (2^(bits-1) - 1/2)`, `q = round(w / s)`, `ŵ = s q`.

All `2^bits` codes are used, from `-2^(bits-1)` to `2^(bits-1) - 1`, with zero at zero: the symmetric grid of GPTQ
(Frantar et al. 2022, arXiv:2210.17323), whose step at 3 bits is a seventh smaller than `absmax_quantize`'s. The largest
magnitude of a group lies half a step outside if it is positive, and is clipped.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from datadreamer_like.errors import DefinitionError

_SMALLEST = 2.0**-24  # of fp16, subnormal ones included


def group_scales(w: Tensor, bits: int, group_size: int) -> Tensor:
    """Returns the scales of a weight [out, in] for groups of `group_size` inputs: fp16 [out, ceil(in / group_size)].

    They are rounded to fp16, as 4-bit layouts store them, and at least its smallest number, 2^-24; the last group may
    be shorter. Raises `DefinitionError` for weights whose scales fp16 cannot hold: 491,000 and more at 4 bits.
    """
    if not 2 <= bits <= 8:
        raise DefinitionError(f"bits is {bits}; codes are kept in an int8 each, so it must be from 2 to 8.")
    if w.dim() != 2 or not w.is_floating_point() or group_size < 1:
        raise DefinitionError(
            f"group_scales takes a floating matrix [out, in] and at least one input a group, got {w.dtype} "
            f"{list(w.shape)} and group_size={group_size}."
        )
    groups = F.pad(w.detach().float(), (0, -w.shape[1] % group_size)).reshape(len(w), -1, group_size)
    # Subnormal scales have fewer digits, which costs far less than a scale that is too large: 8 bits need them for
    # weights below 0.008.
    scales = groups.abs().amax(-1).div_(2 ** (bits - 1) - 0.5).clamp_(min=_SMALLEST).half()
    if scales.isinf().any() and w.isfinite().all():
        raise DefinitionError(
            f"The largest weight is {float(w.detach().abs().max()):.3g}, and the scales of groups are fp16, to 65,504. "
            'Scale the weights down, or use a granularity of fp32 scales, as AbsMax(granularity="row").'
        )
    return scales


def group_quantize(w: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor]:
    """Rounds a weight [out, in] to the nearest codes: int8 [out, in], and fp16 scales of `group_scales`.

    Example:
        >>> codes, scale = group_quantize(torch.tensor([[0.5, -3.75, 1.0, 7.5]]), bits=4, group_size=2)
        >>> codes.tolist(), scale.tolist()
        ([[1, -8, 1, 7]], [[0.5, 1.0]])
    """
    scale, half = group_scales(w, bits, group_size), 2 ** (bits - 1)
    steps = w.detach().float() / _by_input(scale, group_size, w.shape[1])
    return steps.round_().clamp_(-half, half - 1).to(torch.int8), scale


def group_dequantize(codes: Tensor, scale: Tensor, group_size: int) -> Tensor:
    """Returns `s q` for codes [out, in], of any dtype, and scales [out, groups]: fp32 [out, in]."""
    return codes.float() * _by_input(scale, group_size, codes.shape[1])


def _by_input(scale: Tensor, group_size: int, inputs: int) -> Tensor:
    return scale.float().repeat_interleave(group_size, dim=1)[:, :inputs]
