"""AbsMax: weights as integers of few bits, with zero at zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from torch import nn

from datadreamer_like.errors import DefinitionError
from datadreamer_like.formats import Entry
from datadreamer_like.formats.modules import weight_of
from datadreamer_like.formats.uniform import UniformLinear, WeightGranularity

from .weights import WeightQuantization


@dataclass(frozen=True)
class AbsMax(WeightQuantization):
    """Weights rounded to multiples of `s = max|W| / (2^(bits-1) - 1)`, half to even, and stored in `bits` bits.

    Only weights are quantized: products are computed with their dequantized values, in the dtype of the activations, so
    this saves memory, not time. `DynamicInt8` has the same int8 codes with a scale per row, quantizes activations too,
    and multiplies integers. The vector-wise form with a scale per row is that of LLM.int8 (Dettmers et al. 2022,
    arXiv:2208.07339).

    Attributes:
        bits: 2 to 8. Without data to round by, 4 bits and fewer cost much; compare with `GOBO` and `NF4`.
        granularity: Which weights share a scale: "tensor" (all of a layer), "row" (those of an output feature) or
            "column" (those of an input feature). The finer ones never have a larger error, and cost 4 bytes a scale.
        exclude: Patterns of module names to skip, with all modules inside them, for instance ("*.down_proj",).

    Example:
        >>> from torch import nn
        >>> small = AbsMax(bits=4, granularity="row").apply(nn.Sequential(nn.Linear(64, 8)))
        >>> small[0].weight.shape, small[0].weight_scale.shape
        (torch.Size([8, 32]), torch.Size([8, 1]))
    """

    bits: int = 8
    granularity: WeightGranularity = "tensor"

    papers = ("2208.07339",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_uniform(self.bits, self.granularity)

    def coded(self, name: str, module: nn.Module) -> UniformLinear:
        """Returns the layer with integer weights."""
        made = UniformLinear.like(module, self.bits, self.granularity)
        made.quantize(weight_of(module))
        return made

    def layout(self, made: Mapping[str, Any]) -> Entry:
        """Returns a "uniform" entry."""
        options = {"bits": self.bits, "granularity": self.granularity, "affine": False}
        return {"kind": "uniform", **options, "modules": {name: {} for name in made}}


def check_uniform(bits: object, granularity: object) -> None:
    """Raises `DefinitionError` for bits other than 2 to 8, or an unknown granularity."""
    if type(bits) is not int or not 2 <= bits <= 8:
        raise DefinitionError(f"bits is {bits!r}; it must be a whole number from 2 to 8.")
    if granularity not in get_args(WeightGranularity):
        raise DefinitionError(f'granularity is {granularity!r}; choose "tensor", "row" or "column".')
