"""What every quantization method is: options, a question whether it fits, and `apply`."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import ClassVar, Self, TypeVar

import torch
from torch import nn

from datadreamer_like.errors import DefinitionError, MethodMisfit
from datadreamer_like.formats import foreign

Batches = Iterable[Mapping[str, torch.Tensor]]
"""Calibration data: batches as the model takes them, each a mapping of keyword to tensor."""

ModelT = TypeVar("ModelT", bound=nn.Module)


class QuantizationMethod(ABC):
    """One algorithm that makes a copy of a model in fewer bits.

    A subclass is a frozen dataclass that writes `fits` and `quantize`.

    Attributes:
        needs_calibration: Whether the method looks at activations, so that `apply` needs batches.
    """

    result_version: ClassVar[int] = 1
    """Raised when the same options give another model."""
    needs_calibration: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def example(cls) -> Self:
        """The smallest instance that does something on a model of two layers, for tests and documentation."""

    @abstractmethod
    def fits(self, model: nn.Module) -> str | None:
        """The reason why the method does not fit this model, or None; asked before hours are spent."""

    @abstractmethod
    def quantize(self, model: nn.Module, calibration: Batches | None) -> None:
        """Quantizes the model in place."""

    def apply(self, model: ModelT, calibration: Batches | None = None) -> ModelT:
        """Returns a quantized copy; the model itself is untouched.

        Args:
            model: Any module that `fits` accepts.
            calibration: Batches as the model takes them, for methods that look at activations.

        Raises:
            MethodMisfit: The method does not fit this model.
            DefinitionError: The method needs calibration data and got none.
        """
        reason = foreign(model) or self.fits(model)
        if reason:
            raise MethodMisfit(f"{self} does not fit {type(model).__name__}: {reason}")
        if self.needs_calibration and calibration is None:
            raise DefinitionError(
                f"{self} measures the model on data, and got none. "
                "Pass calibration=batches, an iterable of dicts of tensors as the model takes them."
            )
        quantized = copy.deepcopy(model)
        self.quantize(quantized, calibration)
        return quantized
