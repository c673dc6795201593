"""4-bit codes with a scale for each group of inputs: what the 4-bit layouts of other tools store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from datadreamer_like.errors import check_number
from datadreamer_like.formats.modules import weight_of
from datadreamer_like.formats.uniform import UniformLinear
from datadreamer_like.kernels import group_quantize

GROUP_SIZES = (128, 64, 32)
"""Group sizes that kernels elsewhere have, the usual one first."""


Codes = Mapping[str, UniformLinear]
"""Layers of a model, by name, whose codes are written as they are where a format has them."""


def group_codes(codes: Codes, name: str, weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Returns codes in −8..7 (int8 [out, in]) and scales (fp16 [out, in / group_size]) of a weight [out, in].

    They are the layer's own if it has some in these groups; else those of `group_quantize`.
    """
    own = codes.get(name)
    if own is not None and own.bits == 4 and own.granularity == group_size:
        return own.signed_codes(), own.weight_scale
    return group_quantize(weight, 4, group_size)


def packed(nibbles: Tensor) -> Tensor:
    """Returns values 0..15 [rows, columns] as int32 [rows, columns / 8], the first value in the lowest four bits."""
    eights = nibbles.to(torch.int64).reshape(len(nibbles), -1, 8)
    words = (eights << (4 * torch.arange(8))).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def unpacked(words: Tensor) -> Tensor:
    """Undoes `packed`."""
    return ((words.to(torch.int64)[..., None] >> (4 * torch.arange(8))) & 15).flatten(1)


def check_group_size(group_size: object) -> None:
    """Raises `DefinitionError` or `ArgumentTypeError` unless it is a number of inputs, or None."""
    check_number(group_size, "group_size", 1, whole=True, optional=True)


def inputs_of(layers: Iterable[nn.Module]) -> list[int]:
    """Returns the number of inputs of each linear layer."""
    return [weight_of(layer).shape[1] for layer in layers]


def chosen_group(group_size: int | None, inputs: Iterable[int], codes: Codes | None = None) -> tuple[int, str | None]:
    """Returns the group size, and why it does not fit.

    For None it is that of the codes, if that divides all `inputs`, or the largest usual one that does.
    """
    sizes = sorted(set(inputs))
    own = {layer.granularity for layer in (codes or {}).values() if layer.bits == 4}
    tried = [size for size in (*own, *GROUP_SIZES) if isinstance(size, int)]
    fitting = [size for size in tried if all(each % size == 0 for each in sizes)]
    wanted = group_size or (fitting[0] if fitting else GROUP_SIZES[-1])
    misfit = next((each for each in sizes if each % wanted), None)
    if misfit is None:
        return wanted, None
    advice = f"group_size={fitting[0]} divides all of them" if fitting else 'export it as "onnx", which pads groups'
    return wanted, f"a layer has {misfit} inputs, which {wanted} (group_size) does not divide: {advice}."
