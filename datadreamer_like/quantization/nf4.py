"""NF4: weights in 4 bits, to run or to train adapters on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from datadreamer_like.compression import Batches, CompressionMethod
from datadreamer_like.compression.method import check_finite, check_patterns, why_unquantizable
from datadreamer_like.errors import DefinitionError
from datadreamer_like.formats import add_layout
from datadreamer_like.formats.modules import block_linears, linears, output_heads, replace_modules, stacks, weight_of
from datadreamer_like.formats.nf4 import NF4Linear

_BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class NF4(CompressionMethod):
    """Linear layers in 4 bits: an eighth of the size of fp32; adapters can be trained on them.

    Each weight is rounded to one of 16 levels, the quantiles of a normal distribution, with a scale for each block
    (QLoRA, Dettmers et al. 2023, arXiv:2305.14314); no calibration data are needed. Codes and scales are bit-identical
    to those of bitsandbytes. Weights are dequantized for each product, in the dtype of the activations: this saves
    memory, not time.

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
    exclude: tuple[str, ...] = ()

    kind = "quantization"
    papers = ("2305.14314",)

    def __post_init__(self) -> None:
        if self.block_size not in _BLOCK_SIZES:
            sizes = ", ".join(map(str, _BLOCK_SIZES))
            raise DefinitionError(f"block_size is {self.block_size}; it must be one of {sizes}.")
        check_patterns(self.exclude)

    def fits(self, model: nn.Module) -> str | None:
        """Any module with linear layers that are not quantized yet, its adapters merged."""
        return why_unquantizable(model, self._chosen(model), "nn.Linear or Conv1D")

    def change(self, model: nn.Module, calibration: Batches | None) -> None:
        """Replaces the layers in place; calibration data are not used."""
        made: dict[str, NF4Linear] = {}
        for name, module in self._chosen(model).items():
            check_finite(name, weight_of(module), "NF4")
            made[name] = NF4Linear.like(module, self.block_size, self.double_quant)
            made[name].quantize(weight_of(module))
        replace_modules(model, made)
        options = {"block_size": self.block_size, "double_quant": self.double_quant}
        add_layout(model, {"kind": "nf4", **options, "modules": {name: {} for name in made}})

    def _chosen(self, model: nn.Module) -> dict[str, nn.Module]:
        heads = output_heads(model)
        found = block_linears if stacks(model) else linears
        return {k: m for k, m in found(model, self.exclude).items() if k not in heads and weight_of(m).numel()}
