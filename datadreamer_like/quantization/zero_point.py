"""Zero-point: weights as integers of few bits that use their whole range, also where it is not around zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from datadreamer_like.formats import Entry
from datadreamer_like.formats.modules import weight_of
from datadreamer_like.formats.uniform import UniformLinear, WeightGranularity

from .uniform import check_uniform, uniform_layout
from .weights import WeightQuantization


@dataclass(frozen=True)
class ZeroPoint(WeightQuantization):
    """Weights as `s (code - z)`: affine quantization, whose codes span the range from the least to the largest weight.

    `s = (max - min) / (2^bits - 1)` and `z = round(-min / s) - 2^(bits-1)`, with the range widened to hold zero, which
    is exact (Jacob et al. 2017, arXiv:1712.05877). Better than `AbsMax` by up to a bit where weights lie mostly on one
    side of zero, and hardly different elsewhere. Only weights are quantized, as by `AbsMax`: this saves bytes,
    not time.

    Attributes:
        bits: 2 to 8.
        granularity: Which weights share a scale and a zero point: "tensor" (all of a layer), "row" (those of an output
            feature) or "column" (those of an input feature).
        exclude: Patterns of module names to skip, with all modules inside them, for instance ("*.down_proj",).

    Example:
        >>> from torch import nn
        >>> small = ZeroPoint().apply(nn.Sequential(nn.Linear(64, 8)))
        >>> small[0].weight.dtype, small[0].weight_zero.dtype
        (torch.int8, torch.int8)
    """

    bits: int = 8
    granularity: WeightGranularity = "tensor"

    papers = ("1712.05877",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_uniform(self.bits, self.granularity)

    def coded(self, name: str, module: nn.Module) -> UniformLinear:
        """Returns the layer with integer weights and zero points."""
        made = UniformLinear.like(module, self.bits, self.granularity, True)
        made.quantize(weight_of(module))
        return made

    def layout(self, made: Mapping[str, Any]) -> Entry:
        """Returns a "uniform" entry."""
        return uniform_layout(made, self.bits, self.granularity, affine=True)
