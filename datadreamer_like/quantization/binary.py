"""Binary: weights as signs with a scale per output feature, after training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from datadreamer_like.formats import Entry
from datadreamer_like.formats.binary import BinaryLinear
from datadreamer_like.formats.modules import weight_of

from .weights import WeightQuantization


@dataclass(frozen=True)
class Binary(WeightQuantization):
    """Weights as `α sign(W)`, one bit each, with `α = mean|W|` of each output feature and `sign(0) = +1`.

    That is the closest such matrix to W (XNOR-Net, Rastegari et al. 2016, arXiv:1603.05279): a thirty-second of the
    size of fp32, at an error of about 60 % of a Gaussian weight's norm. Models that were not trained with binary
    weights seldom stay useful. Activations stay floats: this saves bytes, not time.

    Attributes:
        exclude: Patterns of module names to skip, with all modules inside them, for instance ("*.down_proj",).

    Example:
        >>> from torch import nn
        >>> small = Binary().apply(nn.Sequential(nn.Linear(64, 8)))
        >>> small[0].weight.shape, small[0].weight_scale.shape
        (torch.Size([8, 8]), torch.Size([8, 1]))
    """

    papers = ("1603.05279",)

    def coded(self, name: str, module: nn.Module) -> BinaryLinear:
        """Returns the layer with signs and scales."""
        made = BinaryLinear.like(module)
        made.quantize(weight_of(module))
        return made

    def layout(self, made: Mapping[str, Any]) -> Entry:
        """Returns a "binary" entry."""
        return {"kind": "binary", "modules": {name: {} for name in made}}
