"""Quantization while a model is trained: layers that compute with quantized values of the weights that learn."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from datadreamer_like.compression import Batches, CompressesWhileTraining
from datadreamer_like.compression.method import why_not_finite
from datadreamer_like.compression.while_training import check_training, train_on_batches
from datadreamer_like.errors import MethodMisfit
from datadreamer_like.formats.modules import replace_modules
from datadreamer_like.kernels import group_dequantize, group_quantize, straight_through

from .weights import WeightQuantization

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""A linear map, [..., out], of inputs [..., in], a weight [out, in] and a bias [out] or None."""


class FakeQuantized(nn.Module):
    """Replaces a linear layer while it is trained: it has its parameters, and computes another product."""

    def __init__(self, layer: Any, product: Product) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.is_conv1d, self.product = isinstance(layer, Conv1D), product

    def forward(self, x: Tensor) -> Tensor:
        """Returns [..., out] for [..., in]."""
        return self.product(x, self.weight.T if self.is_conv1d else self.weight, self.bias)

    def plain(self) -> nn.Module:
        """Returns the layer that it replaced, with the parameters as they are now."""
        rows, columns = self.weight.shape
        made: Any
        if self.is_conv1d:
            made = Conv1D(columns, rows)  # type: ignore[no-untyped-call]
        else:
            made = nn.Linear(columns, rows, bias=self.bias is not None, device="meta")
        made.weight, made.bias = self.weight, self.bias
        return made.train(self.training)  # type: ignore[no-any-return]


def put_in(model: nn.Module, layers: Mapping[str, nn.Module], product: Product) -> None:
    """Replaces layers of a model, by name, by `FakeQuantized` ones, in place."""
    replace_modules(model, {name: FakeQuantized(layer, product) for name, layer in layers.items()})


def take_out(model: nn.Module) -> dict[str, nn.Module]:
    """Puts plain layers in the place of the `FakeQuantized` ones of a model, and returns them by name."""
    found = {name: module.plain() for name, module in model.named_modules() if isinstance(module, FakeQuantized)}
    replace_modules(model, found)
    return found


def grouped_product(x: Tensor, weight: Tensor, bias: Tensor | None, bits: int, group_size: int) -> Tensor:
    """Returns `x Ŵᵀ + bias` for Ŵ of `group_quantize`, with straight-through gradients of W."""
    codes, scale = group_quantize(weight, bits, group_size)
    rounded = group_dequantize(codes, scale, group_size).to(weight.dtype)
    return F.linear(x, straight_through(weight, rounded), bias)


@dataclass(frozen=True)
class QuantizesWhileTraining(WeightQuantization, CompressesWhileTraining):
    """Base of methods whose layers compute with quantized values of weights that are trained.

    A subclass defines `product`, and what `WeightQuantization` needs: `coded` must give layers that compute the same.

    Attributes:
        epochs: Passes over the calibration batches in `apply`; a trainer has its own.
        learning_rate: That of `apply`.
        exclude: Patterns of module names to skip, with all modules inside them.
    """

    epochs: int = field(default=3, kw_only=True)
    learning_rate: float = field(default=5e-5, kw_only=True)

    needs_calibration = True
    needs_gradients = True
    learned = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_training(self.epochs, self.learning_rate)

    @abstractmethod
    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Returns [..., out] for [..., in] and a weight [out, in], quantized, with straight-through gradients."""

    def begin(self, model: nn.Module) -> None:
        """Lets the layers compute with quantized values."""
        put_in(model, self.chosen(model), self.product)

    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        """Does nothing: values are quantized anew in each forward pass."""

    def end(self, model: nn.Module) -> None:
        """Stores the layers quantized; raises `MethodMisfit` if the training has diverged."""
        if reason := why_not_finite(model.named_parameters()):
            raise MethodMisfit(f"After the training for {self}, {reason}")
        self.replace(model, take_out(model))

    def change(self, model: nn.Module, calibration: Batches | None) -> None:
        """Trains on the calibration batches, and quantizes, in place."""
        train_on_batches(self, model, calibration, self.epochs, self.learning_rate)
