"""An objective at work: the student's batch goes in, with what the teacher says of it, and a loss comes out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from datadreamer_like.distillation import Objective, Supervised
from datadreamer_like.errors import MethodMisfit
from datadreamer_like.models.model_node import as_trained_model
from datadreamer_like.models.trained_model import TrainedModel

from .labels import LabelSet
from .tasks import Batch, Classification, Task, Writing


def teacher_of(objective: Objective) -> TrainedModel | None:
    """Returns an objective's teacher, None where it has none.

    Raises:
        NotTrained: The teacher is a trainer that is not trained yet.
        ArgumentTypeError: The teacher is no model.
    """
    return as_trained_model(objective.teacher, "teacher") if objective.needs_teacher else None


def teacher_logits_of_texts(
    teacher: TrainedModel, texts: list[str], labels: LabelSet
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Asks a classifier, and puts its classes in the student's order.

    Args:
        teacher: The classifier.
        texts: The texts.
        labels: The student's classes.

    Returns:
        Logits [texts, classes], in the order of `labels`.

    Raises:
        MethodMisfit: The teacher does not know one of the classes.
    """
    position = teacher.label2id
    unknown = [name for name in labels.names if name not in position]
    if unknown:
        raise MethodMisfit(
            f"{teacher!r} does not know {len(unknown)} of the student's classes ({', '.join(unknown[:5])}); it knows: "
            f"{', '.join(list(position)[:20])}. A teacher must have been trained on all of them."
        )
    return teacher.logits(texts)[:, [position[name] for name in labels.names]]


def training_loss(model: Any, task: Task, objective: Objective, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs a batch through the student, and the teacher where it is asked batch by batch.

    Returns:
        The loss, a scalar with gradients, and the student's logits.

    Raises:
        MethodMisfit: The objective does not fit the task.
    """
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    labels = batch["labels"]
    if isinstance(task, Classification):
        outputs = model(**inputs)
        if task.labels.multi:
            if not isinstance(objective, Supervised):
                raise MethodMisfit(f"{objective!r} does not fit a model of several labels a row. Use Supervised().")
            return F.binary_cross_entropy_with_logits(outputs.logits.float(), labels), outputs.logits
        return objective.loss(outputs, batch), outputs.logits
    assert isinstance(task, Writing)
    if task.encoder_decoder:
        inputs["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=labels)
    outputs = model(**inputs, use_cache=False)
    seen: Batch = {"labels": labels}
    logits = outputs.logits
    if objective.needs_teacher:
        with torch.no_grad():
            seen["teacher_logits"] = _teacher_on(objective, logits)(**inputs, use_cache=False).logits
    if not task.encoder_decoder:
        # What stands at a position is the guess of the next token.
        seen = {"labels": labels[:, 1:], **{k: v[:, :-1] for k, v in seen.items() if k != "labels"}}
        logits = logits[:, :-1]
    return objective.loss(SimpleNamespace(logits=logits), seen), outputs.logits


def _teacher_on(objective: Objective, like: torch.Tensor) -> Any:
    teacher = as_trained_model(objective.teacher).model
    return teacher if teacher.device == like.device else teacher.to(like.device)
