"""BinaryNetwork: training with weights and activations of ±1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datadreamer_like.errors import check_flag
from datadreamer_like.formats import Entry
from datadreamer_like.formats.binary import BinaryLinear
from datadreamer_like.formats.modules import stacks, weight_of
from datadreamer_like.kernels import binary_sign, pack_signs

from .while_training import FakeQuantized, QuantizesWhileTraining


@dataclass(frozen=True)
class BinaryNetwork(QuantizesWhileTraining):
    """Trains a model whose layers multiply signs by signs: one bit a weight, and products that count equal bits.

    Courbariaux, Hubara, Soudry, El-Yaniv and Bengio 2016, "Binarized Neural Networks", arXiv:1602.02830. In each
    forward pass `sign(x)` is multiplied by `sign(W)`, with `sign(0) = +1`; the gradients of both go straight through,
    and are cancelled where the number is beyond ±1. The real weights that learn are clipped to [-1, 1] after each step.
    At the end signs are packed, and products computed by exclusive or and counting bits are exactly those of training.

    The layers inside the blocks of a transformer are binary; in a model without blocks, all linear layers but the first
    and the last. Embeddings, heads and norms stay real. Outputs of a layer are as large as the square root of its
    inputs, so what follows must normalise them, as batch norm does in the paper; or set `scaled`.

    Train long and with a learning rate far above that of fine-tuning, by `Quantize("...", model, BinaryNetwork(),
    retrain={...})`: a pretrained model does not stay useful by itself.

    Attributes:
        scaled: Multiply outputs by the mean magnitude of their real weights, without a gradient of its own, as
            XNOR-Net does (Rastegari et al. 2016, arXiv:1603.05279); not in the paper.
        epochs: Passes over the calibration batches in `apply`; a trainer has its own.
        learning_rate: That of `apply`.
        exclude: Patterns of module names to skip, with all modules inside them, for instance ("*.down_proj",).
    """

    scaled: bool = False

    papers = ("1602.02830", "1603.05279")
    result_version = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag(self.scaled, "scaled")

    @classmethod
    def example(cls) -> Self:
        """A short training."""
        return cls(learning_rate=1e-3)

    def chosen(self, model: nn.Module) -> dict[str, nn.Module]:
        """Returns the layers to quantize, by name."""
        found = super().chosen(model)
        return found if stacks(model) else {name: found[name] for name in list(found)[1:-1]}

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Returns [..., out] for the signs of [..., in] and of a weight [out, in]."""
        y = F.linear(binary_sign(x), binary_sign(weight))
        if self.scaled:
            y = y * _scale(weight).flatten().to(y.dtype)
        return y if bias is None else y + bias

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        """Clips the real weights to [-1, 1]."""
        for module in model.modules():
            if isinstance(module, FakeQuantized):
                module.weight.clamp_(-1, 1)

    def coded(self, name: str, module: nn.Module) -> BinaryLinear:
        """Returns the layer with packed signs."""
        made = BinaryLinear.like(module, True)
        weight = weight_of(module)
        made.set_codes(pack_signs(weight))
        if self.scaled:
            made.weight_scale = _scale(weight)
        return made

    def layout(self, made: Mapping[str, Any]) -> Entry:
        """Returns a "binary" entry."""
        return {"kind": "binary", "inputs": "binary", "modules": {name: {} for name in made}}


def _scale(weight: Tensor) -> Tensor:
    return weight.detach().abs().mean(1, keepdim=True, dtype=torch.float32)
