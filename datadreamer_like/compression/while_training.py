"""Compression while a model is trained: the base of methods that do so, and their training without a trainer."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from datadreamer_like.distillation import Objective, Outputs, Teacher
from datadreamer_like.errors import DefinitionError, MethodMisfit

from .calibration import Batches, as_list, loss_on, on_device
from .method import CompressionMethod, why_not_finite
from .zeros import masks, reapply


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

    def objective(self, teacher: Teacher) -> Objective | None:
        """The objective of a training that names none, with the model as it was as `teacher`; None for labels."""
        return None

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
    """Trains a model in place by AdamW, without weight decay, on calibration batches, while the method changes it.

    If the method has an objective, the model as it was is the teacher. Weights that were pruned before stay zero.

    Raises:
        MethodMisfit: The model has nothing that learns, is in fp16, or became infinite or NaN.
    """
    if any(each.requires_grad and each.dtype == torch.float16 for each in model.parameters()):
        raise MethodMisfit(
            f"{method} trains {type(model).__name__}, whose weights are fp16: the optimizer's small numbers are 0 in "
            "it. Train a copy in another dtype, model.float() or model.bfloat16(), and cast the result."
        )
    batches, training = as_list(calibration, model, method), model.training
    model.eval()  # dropout would make the result depend on the state of the random generator
    loss, modules = _loss_of(method, model)
    kept = masks(model)
    method.begin(model)
    trainable = [each for each in (*model.parameters(), *modules.parameters()) if each.requires_grad]
    if not trainable:
        raise MethodMisfit(
            f"{method} trains {type(model).__name__}, and all of its parameters are frozen. Let some learn: "
            "model.requires_grad_(True)."
        )
    optimizer = torch.optim.AdamW(trainable, learning_rate, weight_decay=0.0)
    steps = epochs * len(batches)
    for step in range(1, steps + 1):
        try:
            found = loss(model, batches[(step - 1) % len(batches)])
        except DefinitionError as error:
            if step == 1:
                raise
            # The last step made weights so large that no scale holds them.
            raise _diverged(method, step, steps, str(error), learning_rate) from error
        found.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        reapply(model, kept)
        optimizer.zero_grad()
        if not found.isfinite() or why_not_finite(model.named_parameters()):
            said = f"the loss was {float(found.detach()):.3g}, and the weights then held infinities or NaN."
            raise _diverged(method, step, steps, said, learning_rate)
        method.after_step(model, step, steps)
    method.end(model)
    model.train(training)


def _diverged(method: object, step: int, steps: int, said: str, learning_rate: float) -> MethodMisfit:
    return MethodMisfit(
        f"The training of {method} diverged in step {step} of {steps}: {said} Lower learning_rate, which was "
        f"{learning_rate:g}."
    )


class _Before(NamedTuple):
    """The model as it was, as a teacher that sees the student's own batches and so needs no tokenizer."""

    model: nn.Module
    tokenizer: Any = None


def _loss_of(
    method: CompressesWhileTraining, model: nn.Module
) -> tuple[Callable[[nn.Module, Mapping[str, Tensor]], Tensor], nn.Module]:
    """Returns the loss on a batch, and the layers of its own that learn with the model."""
    if method.objective(_Before(model)) is None:
        return loss_on, nn.Identity()
    teacher = copy.deepcopy(model)
    objective = method.objective(_Before(teacher))
    assert objective is not None
    modules = (objective.modules(model, teacher) or nn.Identity()).to(next(model.parameters()).device)

    def loss(student: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        batch = on_device(batch, student)
        with torch.no_grad():
            theirs = _outputs(teacher, batch)
        return objective.loss(_outputs(student, batch), theirs, _counted(student, batch, theirs), modules)

    return loss, modules


def _outputs(model: nn.Module, batch: Mapping[str, Tensor]) -> Outputs:
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    found: Any = model(**inputs, output_hidden_states=True)
    mask = batch.get("attention_mask")
    return Outputs(logits=found.logits, hidden_states=found.hidden_states, mask=None if mask is None else mask.bool())


def _counted(model: Any, batch: Mapping[str, Tensor], outputs: Outputs) -> dict[str, Tensor]:
    """What an objective needs for a batch: which tokens are padding, and whether each class is a decision."""
    assert outputs.logits is not None
    if model.config.problem_type == "multi_label_classification":
        return {"labels": torch.zeros_like(outputs.logits)}
    return {"mask": outputs.mask} if outputs.logits.dim() == 3 and outputs.mask is not None else {}


def check_training(epochs: object, learning_rate: object) -> None:
    """Raises `DefinitionError` if the options of `train_on_batches` are out of range."""
    is_rate = isinstance(learning_rate, int | float) and 0 < learning_rate < float("inf")
    if type(epochs) is not int or epochs < 1 or not is_rate:
        raise DefinitionError(
            f"epochs={epochs!r} and learning_rate={learning_rate!r} must be a number of passes and above 0."
        )
