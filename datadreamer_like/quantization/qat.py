"""QAT: quantization-aware training, in which a model learns to work with rounded weights and activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datadreamer_like.errors import DefinitionError
from datadreamer_like.formats import CodedModule, Entry
from datadreamer_like.formats.int8 import Int8Linear
from datadreamer_like.formats.modules import weight_of
from datadreamer_like.formats.uniform import UniformLinear
from datadreamer_like.kernels import absmax_dequantize, absmax_quantize, straight_through

from .uniform import check_groups, uniform_layout
from .while_training import QuantizesWhileTraining, grouped_product


@dataclass(frozen=True)
class QAT(QuantizesWhileTraining):
    """Trains a model while its linear layers compute with rounded values, as they will when it is quantized.

    Jacob et al. 2017, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
    arXiv:1712.05877. Weights are kept as floats and rounded in each forward pass; gradients go straight through the
    rounding (Bengio et al. 2013, arXiv:1308.3432). At the end the layers are stored in their real codes, which give the
    logits of the last forward pass. Scales follow the weights; weights that were pruned before stay zero.

    Use it with a trainer: `Quantize("...", model, QAT(4), retrain={...})`, where the objective, such as distillation
    from the model before, the learning rate and the number of epochs are the trainer's. A killed training resumes.
    `apply` alone trains on the calibration batches.

    The linear layers inside the blocks are quantized, or all of a model without blocks, but for output heads.

    Attributes:
        bits: 8: int8 weights with a scale for each output feature, and activations rounded to int8 with a scale for
            each token, as by `DynamicInt8` (CPUs without VNNI round activations to 7 bits when they run it). 4: weights
            with a scale for each group of inputs, as by `AbsMax(4, granularity=group_size)`; activations are floats.
        group_size: Inputs that share a scale at 4 bits; not used at 8.
        epochs: Passes over the calibration batches in `apply`; a trainer has its own.
        learning_rate: That of `apply`.
        exclude: Patterns of module names to skip, with all modules inside them, for instance ("*.down_proj",).
    """

    bits: Literal[8, 4] = 8
    group_size: int = 32

    papers = ("1712.05877", "1308.3432")
    result_version = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits not in (8, 4):
            raise DefinitionError(f"bits is {self.bits!r}; QAT has 8, for weights and activations, or 4, for weights.")
        check_groups(self.bits, self.group_size)

    @classmethod
    def example(cls) -> Self:
        """4 bits."""
        return cls(bits=4, group_size=16, learning_rate=1e-3)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Returns [..., out] for [..., in] and a weight [out, in], both rounded at 8 bits, else the weight alone."""
        if self.bits == 4:
            return grouped_product(x, weight, bias, self.bits, self.group_size)
        return F.linear(_int8(x), _int8(weight), bias)

    def coded(self, name: str, module: nn.Module) -> CodedModule:
        """Returns the layer with int8 or 4-bit codes."""
        if self.bits == 4:
            grouped = UniformLinear.like(module, self.bits, self.group_size)
            grouped.quantize(weight_of(module))
            return grouped
        made = Int8Linear.like(module, "token")
        codes, made.weight_scale = absmax_quantize(weight_of(module).detach().float(), axis=-1)
        made.weight = nn.Parameter(codes.contiguous(), requires_grad=False)
        return made

    def layout(self, made: Mapping[str, Any]) -> Entry:
        """Returns a "uniform" or an "int8" entry."""
        if self.bits == 4:
            return uniform_layout(made, self.bits, self.group_size)
        return {"kind": "int8", "granularity": "token", "modules": {name: {} for name in made}}


def _int8(x: Tensor) -> Tensor:
    """Rounds the rows of a tensor to int8, with straight-through gradients."""
    with torch.no_grad():
        rounded = absmax_dequantize(*absmax_quantize(x.detach().float(), axis=-1, backend="reference"))
    return straight_through(x, rounded.to(x.dtype))
