"""A teacher's outputs for a student's batches, computed live or stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from datadreamer_like.distillation import Objective, Outputs, StoredAnswers, Supervised
from datadreamer_like.distillation.teacher import (
    check_same_vocabulary,
    eval_mode,
    teacher_logits_for_texts,
    tokens_teacher,
)
from datadreamer_like.errors import ArgumentTypeError
from datadreamer_like.evaluation.columns import Columns
from datadreamer_like.evaluation.tasks.examples import Examples
from datadreamer_like.evaluation.tasks.task import Batch, Task, check_attentions
from datadreamer_like.graph import Node, current_session, current_usage
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.models.trained.model_node import ModelNode
from datadreamer_like.models.trained.trained_model import TrainedModel

from .own_tokens import own_tokens_teacher

TeacherAnswers = Callable[[Batch, int], Outputs | None]
"""Returns a teacher's outputs for a batch of a student that has this number of classes or tokens; None if untaught."""


def check_objective(objective: object) -> Objective:
    """Returns an argument that must be an objective with a trained teacher, if any; `Supervised()` for None."""
    if objective is None:
        return Supervised()
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


def is_live(objective: Objective, task: Task) -> bool:
    """Whether the objective's teacher must run on each batch, since its answers cannot be stored."""
    return objective.own_tokens or not objective.teacher_wants <= task.stored


def prepare_teacher(
    objective: Objective,
    task: Task,
    columns: Columns,
    examples: Mapping[str, Examples],
    device: torch.device,
    max_length: int | None,
    scratch: Path,
) -> Mapping[str, TeacherAnswers]:
    """Checks the teacher, and returns its answers by split, after asking it for all rows if they can be stored.

    Stored answers are kept in the session's cache folder (in `scratch` if there is none), each under its text: the next
    student finds them. The teacher reads the first column of each split, cut at `max_length` tokens (None for its own
    limit). `examples` are the student's rows, by split, and `device` is the student's.

    Raises:
        MethodMisfit: The teacher does not fit the task, or must share the student's tokens and does not.
        LabelError: It has other classes.
    """
    teacher, wants = objective.teacher, objective.teacher_wants
    if teacher is None or not wants:
        return dict.fromkeys(("train", "validation"), lambda batch, student_logits: None)
    if objective.own_tokens:
        reader = tokens_teacher(teacher, "next-token logits")
        return own_tokens_teacher(reader, task, columns, examples, device, max_length, scratch)
    if "logits" in wants:
        task.check_teacher(teacher)
    if is_live(objective, task):
        teacher = tokens_teacher(teacher, " and ".join(sorted(wants)).replace("_", " "))
        check_same_vocabulary(teacher, task.tokenizer)
        check_attentions(teacher.model, wants, "the teacher")
        if not getattr(teacher.model, "is_quantized", False):
            teacher.model.to(device)

        def live(batch: Batch, student_logits: int) -> Outputs:
            with torch.no_grad(), eval_mode(teacher.model):
                found = task.forward(teacher.model, batch, wants)
            if found.logits is None:
                return found
            return replace(found, logits=task.aligned(teacher, found.logits, student_logits))

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
        return teacher_logits_for_texts(teacher, texts, max_length=max_length, device=device, on_rows=say)

    def stored(split: Mapping[str, Any]) -> TeacherAnswers:
        rows = store.rows(next(iter(split.values())).values(), ask)
        return lambda batch, student_logits: Outputs(logits=task.aligned(teacher, rows[batch["rows"]], student_logits))

    return {split: stored(each) for split, each in columns.items()}
