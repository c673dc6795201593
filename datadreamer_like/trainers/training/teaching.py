"""A teacher's outputs for a student's batches, computed live or stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from datadreamer_like.distillation import Objective, Outputs, StoredAnswers, Teacher
from datadreamer_like.distillation.stored_answers import StoredRows
from datadreamer_like.errors import ArgumentTypeError
from datadreamer_like.evaluation.columns import Columns
from datadreamer_like.evaluation.tasks.task import Batch, Task, check_attentions
from datadreamer_like.graph import Node, current_session, current_usage
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.models.trained.model_node import ModelNode
from datadreamer_like.models.trained.trained_model import TrainedModel


def check_objective(objective: object) -> Objective:
    """Returns an argument that must be an objective.

    Raises:
        ArgumentTypeError: It is something else.
        NotTrained: Its teacher is a trainer that is not trained yet.
    """
    if not isinstance(objective, Objective):
        raise ArgumentTypeError(
            f"objective must be an objective, such as SoftTargets(teacher), not {objective!r}. "
            "See datadreamer_like.distillation."
        )
    if isinstance(objective.teacher, ModelNode):
        _ = objective.teacher.trained
    return objective


def node_of(teacher: object) -> Node | None:
    """Returns the node that a teacher comes from, if it comes from one."""
    return teacher if isinstance(teacher, Node) else getattr(teacher, "node", None)


@contextmanager
def unload_teacher(teacher: Any) -> Iterator[None]:
    """Frees the memory of a teacher after the block, unless it was loaded before."""
    trained = teacher.trained if isinstance(teacher, ModelNode) else teacher
    was_loaded = not isinstance(trained, TrainedModel) or "model" in vars(trained)
    try:
        yield
    finally:
        if not was_loaded:
            trained.unload_model()


class TeacherAnswers(Protocol):
    """A teacher's outputs for the batches of one dataset, independent of their source."""

    def outputs(self, batch: Batch, student_logits: int) -> Outputs | None:
        """Returns the teacher's outputs for a batch.

        Args:
            batch: The student's batch.
            student_logits: Number of the student's classes or tokens.
        """


@dataclass(frozen=True)
class NoTeacher:
    """Supervised learning."""

    def outputs(self, batch: Batch, student_logits: int) -> None:
        """Returns nothing."""


@dataclass(frozen=True)
class LiveTeacher:
    """A teacher that reads each batch as it comes."""

    task: Task
    teacher: Teacher
    wants: frozenset[str]

    def outputs(self, batch: Batch, student_logits: int) -> Outputs:
        """Returns the outputs of the teacher's model."""
        return self.task.teacher_outputs(self.teacher, batch, self.wants, student_logits)


@dataclass(frozen=True)
class StoredTeacher:
    """A teacher that was asked before the training, once for each text."""

    task: Task
    teacher: Teacher
    rows: StoredRows

    def outputs(self, batch: Batch, student_logits: int) -> Outputs:
        """Returns the stored logits."""
        return Outputs(logits=self.task.aligned(self.teacher, self.rows[batch["rows"]], student_logits))


def prepare_teacher(
    objective: Objective, task: Task, columns: Columns, device: torch.device, max_length: int | None, scratch: Path
) -> Mapping[str, TeacherAnswers]:
    """Checks the teacher, and asks it for all rows where its answers can be stored.

    Stored answers are kept in the session's cache folder, each under its text: the next student finds them.

    Args:
        objective: What is minimised.
        task: The student's task.
        columns: The columns; the teacher reads the first of each split.
        device: Where the student is trained.
        max_length: Tokens at which the teacher cuts a text; None for what it takes.
        scratch: A folder for the answers where the session has no cache folder.

    Returns:
        The teacher's answers for "train" and for "validation".

    Raises:
        MethodMisfit: The teacher does not fit the task, or does not share the student's tokens where it must.
        LabelError: It has other classes.
    """
    teacher = objective.teacher
    if teacher is None:
        return {"train": NoTeacher(), "validation": NoTeacher()}
    wants = objective.teacher_wants
    if "logits" in wants:
        task.check_teacher(teacher)
    if not wants <= task.stored:
        task.check_tokens(teacher)
        check_attentions(teacher.model, wants, "the teacher")
        if not getattr(teacher.model, "is_quantized", False):
            teacher.model.to(device)
        live = LiveTeacher(task, teacher, wants)
        return {"train": live, "validation": live}
    session = current_session()
    cache = (session.cache_folder if session is not None else None) or scratch
    store = StoredAnswers(cache / "teachers" / fingerprint([teacher, max_length], "the objective's teacher"))
    usage, asked = current_usage(), 0

    def say(rows: int) -> None:
        nonlocal asked
        asked += rows
        usage.note = f"asking the teacher, {asked:,} rows so far"

    def ask(texts: Sequence[str]) -> torch.Tensor:
        return task.answers(teacher, texts, max_length=max_length, device=device, on_rows=say)

    found: dict[str, TeacherAnswers] = {}
    for split, each in (("train", columns.train), ("validation", columns.validation)):
        texts = next(iter(each.values())).values()
        found[split] = StoredTeacher(task, teacher, store.rows(texts, ask))
    return found
