"""An objective at work: the student's batch goes in, with what the teacher says of it, and a loss comes out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

from datadreamer_like.distillation import Objective
from datadreamer_like.errors import ArgumentTypeError, MethodMisfit
from datadreamer_like.graph import Node
from datadreamer_like.models.trained.model_node import ModelNode
from datadreamer_like.models.trained.trained_model import TrainedModel

from .tasks import Batch, Task, Writing


def check_objective(objective: object) -> Objective:
    """Returns an argument that must be an objective.

    Raises:
        ArgumentTypeError: It is something else.
        NotTrained: Its teacher is a trainer that is not trained yet.
    """
    if isinstance(objective, type) or not isinstance(objective, Objective):
        raise ArgumentTypeError(
            f"objective must be an objective, such as SoftTargets(teacher), not {objective!r}. "
            "See datadreamer_like.distillation."
        )
    teacher = teacher_of(objective)
    if isinstance(teacher, ModelNode):
        _ = teacher.trained
    return objective


def teacher_of(objective: Objective) -> Any:
    """Returns an objective's teacher, None where it has none."""
    return getattr(objective, "teacher", None) if objective.needs_teacher else None


def node_of(teacher: object) -> Node | None:
    """Returns the node that a teacher comes from, if it comes from one."""
    return teacher if isinstance(teacher, Node) else getattr(teacher, "node", None)


@contextmanager
def borrowed(teacher: Any) -> Iterator[None]:
    """Frees the memory of a teacher behind the block, if it was not loaded before."""
    trained = teacher.trained if isinstance(teacher, ModelNode) else teacher
    was_loaded = not isinstance(trained, TrainedModel) or "model" in vars(trained)
    try:
        yield
    finally:
        if not was_loaded:
            trained.unload_model()


def training_loss(model: Any, task: Task, objective: Objective, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs a batch through the student, and through the teacher where that is asked batch by batch.

    Returns:
        The loss, a scalar with gradients, and the student's logits.
    """
    if not isinstance(task, Writing):
        outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return objective.loss(outputs, batch), outputs.logits
    labels = batch["labels"]
    inputs = task.model_inputs(model, batch)
    logits = model(**inputs, use_cache=False).logits
    # What a causal LM gives at a position is its guess of the next token.
    shift = 0 if task.encoder_decoder else 1
    end = labels.shape[1] - shift
    seen = {"labels": labels[:, shift:]}
    if objective.needs_teacher:
        ask: Any = objective
        said = ask.teacher_token_logits({**inputs, "labels": labels}, vocabulary_size=logits.shape[-1])
        seen["teacher_logits"] = said[:, :end]
    return objective.loss(SimpleNamespace(logits=logits[:, :end]), seen), logits


def prepare_token_teacher(objective: Objective, task: Task, device: torch.device) -> None:
    """Makes sure that a teacher of an LM shares its student's tokens, and puts it where the student is trained.

    Raises:
        MethodMisfit: The vocabularies differ, or the teacher is no language model.
    """
    ask: Any = objective
    teacher = teacher_of(objective).model
    if not hasattr(teacher, "generate"):
        raise MethodMisfit(f"The teacher, {type(teacher).__name__}, is no language model, so it cannot teach one.")
    reads_apart = bool(getattr(getattr(teacher, "config", None), "is_encoder_decoder", False))
    if reads_apart != getattr(task, "encoder_decoder", reads_apart):
        kinds = ("an encoder-decoder", "causal") if reads_apart else ("causal", "an encoder-decoder")
        raise MethodMisfit(
            f"The teacher, {type(teacher).__name__}, is {kinds[0]}, and the student is {kinds[1]}: their answers stand "
            "at different places. Take a teacher of the student's kind, or let it write the answers to train on."
        )
    ask.check_vocabulary(task.tokenizer)
    if not getattr(teacher, "is_quantized", False):
        teacher.to(device)
