"""What every pruning method is: options, a question whether it fits, and `apply`."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import nn

from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, MethodMisfit
from datadreamer_like.formats import foreign
from datadreamer_like.formats.int8 import Int8Embedding, Int8Linear

Batches = Iterable[Mapping[str, torch.Tensor]]
"""Calibration data: batches as the model takes them, each a mapping of keyword to tensor."""

ModelT = TypeVar("ModelT", bound=nn.Module)


class PruningMethod(ABC):
    """One algorithm that makes a smaller copy of a model.

    A subclass is a frozen dataclass that writes `fits` and `prune`. `sparsity` is always the share removed.
    """

    changes_tokenizer: ClassVar[bool] = False
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
    def prune(self, model: nn.Module, calibration: Batches | None) -> None:
        """Prunes the model in place."""

    def apply(self, model: ModelT, calibration: Batches | None = None) -> ModelT:
        """Returns a pruned copy; the model itself is untouched.

        Args:
            model: Any module that `fits` accepts.
            calibration: Batches as the model takes them, for methods that look at activations or gradients.

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
        pruned = copy.deepcopy(model)
        self.prune(pruned, calibration)
        return pruned


def quantized(model: nn.Module) -> str | None:
    """Says so if layers of the model are quantized, for the methods that need their weights as they were."""
    if any(isinstance(module, Int8Linear | Int8Embedding) for module in model.modules()):
        return "it is quantized already. Prune first, quantize what is left: start from the model as it was before."
    return None


def check_share(name: str, value: float) -> None:
    """Refuses a share outside [0, 1).

    Raises:
        DefinitionError: It is outside.
        ArgumentTypeError: It is no number.
    """
    if not isinstance(value, int | float):
        raise ArgumentTypeError(f"{name} must be a number, not {value!r}.")
    if not 0 <= value < 1:
        raise DefinitionError(f"{name} is {value}; it is the share removed, so it must be at least 0 and under 1.")


def on_device(batch: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """The batch where the model's parameters are.

    Raises:
        ArgumentTypeError: It is no mapping, as where one batch is passed in place of a list of them.
    """
    if not isinstance(batch, Mapping):
        raise ArgumentTypeError(
            f"A calibration batch is of type {type(batch).__name__}. Pass an iterable of dicts of tensors as the model "
            "takes them, such as [tokenizer(texts, padding=True, return_tensors='pt')]."
        )
    device = next(model.parameters()).device
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def loss_on(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The model's loss on a batch, also where the batch has no labels.

    Without labels a causal LM is measured on its own input, and a classifier on the class that it holds most likely:
    the question then is which parts its present answers hang on, not which parts serve the task.

    Returns:
        A scalar that carries gradients.

    Raises:
        DataError: The model gives neither a loss nor logits, as a bare encoder does.
    """
    batch = on_device(batch, model)
    if "labels" not in batch and "input_ids" in batch and type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")):
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        batch["labels"] = batch["input_ids"].masked_fill(mask == 0, -100)
    outputs: Any = model(**batch)
    loss = getattr(outputs, "loss", None)
    if loss is None and getattr(outputs, "logits", None) is not None:
        logits: torch.Tensor = outputs.logits
        loss = nn.functional.cross_entropy(logits.flatten(0, -2), logits.argmax(-1).flatten())
    if not isinstance(loss, torch.Tensor):
        raise DataError(
            f"{type(model).__name__} gave neither a loss nor logits on the calibration batch "
            f"({', '.join(batch)}). Load the model with its head, and give each batch its labels."
        )
    return loss
