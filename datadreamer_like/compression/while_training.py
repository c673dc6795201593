"""Compression while a model is trained: the base of methods that do so, and their training without a trainer."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import nn

from datadreamer_like.errors import DefinitionError

from .calibration import Batches, as_list, loss_on
from .method import CompressionMethod


class CompressesWhileTraining(CompressionMethod):
    """Base of methods that can change a model while it is trained, such as in a stage with `retrain`.

    A loop calls `begin` before the optimizer is made, `after_step` after each step of it, and `end`. What `begin` adds
    to a model is in its `state_dict`, so that a killed training resumes with it.
    """

    @property
    def needs_training(self) -> bool:
        """Whether the method, with its options, works while a model is trained; if not, `apply` is all of it."""
        return True

    def final_from(self, steps: int) -> int:
        """The step, in a training of so many, from which on the model has its final size and may be the best."""
        return 0

    @abstractmethod
    def begin(self, model: nn.Module) -> None:
        """Prepares a model for training, in place."""

    @abstractmethod
    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        """Changes the model after optimizer step `step`, from 1, of `steps`."""

    @abstractmethod
    def end(self, model: nn.Module) -> None:
        """Gives the trained model its small form, in place, and records how it is stored."""


def train_on_batches(
    method: CompressesWhileTraining, model: nn.Module, calibration: Batches | None, epochs: int, learning_rate: float
) -> None:
    """Trains a model in place by AdamW, without weight decay, on calibration batches, while the method changes it."""
    batches = as_list(calibration, method)
    method.begin(model)
    training, trainable = model.training, [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trainable, learning_rate, weight_decay=0.0)
    model.eval()  # dropout would make the result depend on the state of the random generator
    steps = epochs * len(batches)
    for step in range(1, steps + 1):
        loss_on(model, batches[(step - 1) % len(batches)]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(model, step, steps)
    method.end(model)
    model.train(training)


def check_training(epochs: object, learning_rate: object) -> None:
    """Raises `DefinitionError` if the options of `train_on_batches` are out of range."""
    is_rate = isinstance(learning_rate, int | float) and 0 < learning_rate < float("inf")
    if type(epochs) is not int or epochs < 1 or not is_rate:
        raise DefinitionError(
            f"epochs={epochs!r} and learning_rate={learning_rate!r} must be a number of passes and above 0."
        )
