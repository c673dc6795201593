"""AbsMax: weights as integers of few bits, with zero at zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from datadreamer_like.formats import Entry
from datadreamer_like.formats.modules import weight_of
from datadreamer_like.formats.uniform import UniformLinear, WeightGranularity

from .uniform import check_groups, check_uniform, uniform_layout
from .weights import WeightQuantization


@dataclass(frozen=True)
class AbsMax(WeightQuantization):
    """Weights rounded to multiples of `s = max|W| / (2^(bits-1) - 1)`, half to even, and stored in `bits` bits.

    Only weights are quantized: products are computed with their dequantized values, in the dtype of the activations, so
    this saves bytes, not time. `DynamicInt8` has the same int8 codes with a scale per row, quantizes activations too,
    and multiplies integers. The vector-wise form with a scale per row is that of LLM.int8 (Dettmers et al. 2022,
    arXiv:2208.07339).

    Attributes:
        bits: 2 to 8. Without data to round by, 4 bits and fewer cost much; compare with `GOBO` and `NF4`.
        granularity: Which weights share a scale: "tensor" (all of a layer), "row" (those of an output feature) or
            "column" (those of an input feature). The finer ones never have a larger error, and cost 4 bytes a scale. A
            number g: those of g consecutive inputs of an output feature, as in GPTQ (Frantar et al. 2022,
            arXiv:2210.17323); the scale is then `max|W| / (2^(bits-1) - 1/2)` in fp16, and all `2^bits` codes are used.
        exclude: Patterns of module names to skip, with all modules inside them, for instance ("*.down_proj",).

    Example:
        >>> from torch import nn
        >>> small = AbsMax(bits=4, granularity="row").apply(nn.Sequential(nn.Linear(64, 8)))
        >>> small[0].weight.shape, small[0].weight_scale.shape
        (torch.Size([8, 32]), torch.Size([8, 1]))
    """

    bits: int = 8
    granularity: WeightGranularity | int = "tensor"

    papers = ("2208.07339", "2210.17323")
    result_version = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.granularity, int):
            check_groups(self.bits, self.granularity, "granularity")
        else:
            check_uniform(self.bits, self.granularity)

    def coded(self, name: str, module: nn.Module) -> UniformLinear:
        """Returns the layer with integer weights."""
        made = UniformLinear.like(module, self.bits, self.granularity)
        made.quantize(weight_of(module))
        return made

    def layout(self, made: Mapping[str, Any]) -> Entry:
        """Returns a "uniform" entry."""
        return uniform_layout(made, self.bits, self.granularity)
