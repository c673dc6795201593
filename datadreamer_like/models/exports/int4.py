"""Round-to-nearest 4-bit codes with a scale for each group of inputs: what the 4-bit layouts of other tools store."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from datadreamer_like.formats.modules import weight_of

GROUP_SIZES = (128, 64, 32)
"""Group sizes that kernels elsewhere have, the usual one first."""


def group_codes(weight: Tensor, group_size: int, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns codes in −8..7 (int8 [out, in]) and scales [out, in / group_size] of a weight [out, in].

    The scale is `max|w| / 7.5`, rounded to `scale_dtype` before the codes are computed.
    """
    groups = weight.detach().float().reshape(len(weight), -1, group_size)
    scale = (groups.abs().amax(-1) / 7.5).clamp(min=torch.finfo(torch.float16).tiny).to(scale_dtype)
    codes = (groups / scale.float()[..., None]).round().clamp(-8, 7).to(torch.int8)
    return codes.flatten(1), scale


def packed(nibbles: Tensor) -> Tensor:
    """Returns values 0..15 [rows, columns] as int32 [rows, columns / 8], the first value in the lowest four bits."""
    eights = nibbles.to(torch.int64).reshape(len(nibbles), -1, 8)
    words = (eights << (4 * torch.arange(8))).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def unpacked(words: Tensor) -> Tensor:
    """Undoes `packed`."""
    return ((words.to(torch.int64)[..., None] >> (4 * torch.arange(8))) & 15).flatten(1)


def inputs_of(layers: Iterable[nn.Module]) -> list[int]:
    """Returns the number of inputs of each linear layer."""
    return [weight_of(layer).shape[1] for layer in layers]


def chosen_group(group_size: int | None, inputs: Iterable[int]) -> tuple[int, str | None]:
    """Returns the group size, the largest usual one that divides all `inputs` for None, and why it does not fit."""
    sizes = sorted(set(inputs))
    fitting = [size for size in GROUP_SIZES if all(each % size == 0 for each in sizes)]
    wanted = group_size or (fitting[0] if fitting else GROUP_SIZES[-1])
    misfit = next((each for each in sizes if each % wanted), None)
    if misfit is None:
        return wanted, None
    advice = f"group_size={fitting[0]} divides all of them" if fitting else 'export it as "onnx", which pads groups'
    return wanted, f"a layer has {misfit} inputs, which {wanted} (group_size) does not divide: {advice}."
