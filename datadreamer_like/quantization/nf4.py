"""NF4: weights in 4 bits, to run or to train adapters on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from datadreamer_like.errors import DefinitionError, check_flag
from datadreamer_like.formats import Entry
from datadreamer_like.formats.modules import weight_of
from datadreamer_like.formats.nf4 import NF4Linear

from .weights import WeightQuantization

_BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class NF4(WeightQuantization):
    """Linear layers in 4 bits: an eighth of the size of fp32; adapters can be trained on them.

    Each weight is rounded to one of 16 levels, the quantiles of a normal distribution, with a scale for each block
    (QLoRA, Dettmers et al. 2023, arXiv:2305.14314); no calibration data are needed. Codes and scales are bit-identical
    to those of bitsandbytes. Products are of dequantized weights, in the dtype of the activations: this saves bytes,
    not time.

    The linear layers inside the blocks are quantized; in a model without blocks, all but output heads. Embeddings,
    heads, norms and biases are not. To fine-tune, pass the quantized model and a `peft_config` to a trainer, which
    merges the adapter into dequantized weights.

    Attributes:
        block_size: Weights that share a scale.
        double_quant: Whether the scales are quantized too: 4.127 bits per weight on disk instead of 4.5.
        exclude: Patterns of module names to skip, with all modules inside them, for instance ("*.down_proj",).

    Example:
        >>> from torch import nn
        >>> small = NF4().apply(nn.Sequential(nn.Linear(64, 8)))
        >>> small[0].weight.dtype, small[0].weight.numel()
        (torch.int8, 256)
    """

    block_size: int = 64
    double_quant: bool = True

    papers = ("2305.14314",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block_size not in _BLOCK_SIZES:
            sizes = ", ".join(map(str, _BLOCK_SIZES))
            raise DefinitionError(f"block_size is {self.block_size}; it must be one of {sizes}.")
        check_flag(self.double_quant, "double_quant")

    def coded(self, name: str, module: nn.Module) -> NF4Linear:
        """Returns the layer with NF4 weights."""
        made = NF4Linear.like(module, self.block_size, self.double_quant)
        made.quantize(weight_of(module))
        return made

    def layout(self, made: Mapping[str, Any]) -> Entry:
        """Returns an "nf4" entry."""
        options = {"block_size": self.block_size, "double_quant": self.double_quant}
        return {"kind": "nf4", **options, "modules": {name: {} for name in made}}
