"""LLM.int8: int8 weights and activations, except for the features whose activations are large."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from datadreamer_like.formats import Entry
from datadreamer_like.formats.int8 import LLMInt8Linear
from datadreamer_like.formats.modules import weight_of
from datadreamer_like.kernels import absmax_quantize
from datadreamer_like.kernels.llm_int8 import check_threshold

from .weights import WeightQuantization


@dataclass(frozen=True)
class LLMInt8(WeightQuantization):
    """Linear layers in int8, with the input features that have large activations multiplied in fp32.

    Weights are stored in int8 with a scale per output feature, activations are quantized at each call with a scale per
    token. Features with a magnitude of at least `threshold` in any token of the call are left out of the int8 product,
    and multiplied in fp32 with their dequantized weights (LLM.int8, Dettmers et al. 2022, arXiv:2208.07339). Large
    models have a few such features, which would otherwise take the precision of all others. `DynamicInt8` is the form
    without them, and also stores embeddings in int8. No calibration data are needed.

    A token's result depends on the others of its call, within the rounding of int8, as they decide which features are
    outliers.

    On a CPU, calls with few tokens, and those of small layers, are multiplied in fp32 by the dequantized weight, where
    int8 is slower. Layers of under a million weights then keep that weight in memory too.

    Attributes:
        threshold: 6.0 in the paper; None takes no feature out. (bitsandbytes writes that as `threshold=0.0`; here 0
            multiplies everything in fp32.)
        exclude: Patterns of module names to skip, with all modules inside them, for instance ("*.down_proj",).

    Example:
        >>> from torch import nn
        >>> small = LLMInt8().apply(nn.Sequential(nn.Linear(64, 8)))
        >>> small[0].weight.dtype, small[0].threshold
        (torch.int8, 6.0)
    """

    threshold: float | None = 6.0

    papers = ("2208.07339",)
    result_version = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_threshold(self.threshold)

    def coded(self, name: str, module: nn.Module) -> LLMInt8Linear:
        """Returns the layer with int8 weights."""
        made = LLMInt8Linear.like(module, self._threshold)
        codes, made.weight_scale = absmax_quantize(weight_of(module).detach().float(), axis=-1)
        made.weight = nn.Parameter(codes.contiguous(), requires_grad=False)
        return made

    def layout(self, made: Mapping[str, Any]) -> Entry:
        """Returns an "llm_int8" entry."""
        return {"kind": "llm_int8", "threshold": self._threshold, "modules": {name: {} for name in made}}

    @property
    def _threshold(self) -> float | None:
        """JSON has no infinity."""
        return None if self.threshold is None or math.isinf(self.threshold) else float(self.threshold)
