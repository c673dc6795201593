"""Objectives: what a trainer minimises, as plain objects with their options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from datadreamer_like.errors import DefinitionError

from .losses import check_alpha, check_temperature, hard_target_loss, soft_target_loss, supervised_loss
from .teacher import (
    Teacher,
    align_labels,
    check_same_vocabulary,
    check_teacher,
    label_order,
    teacher_logits_for_texts,
    teacher_logits_for_tokens,
)


@runtime_checkable
class Objective(Protocol):
    """What a trainer minimises: one method, from what the student gave for a batch to a scalar.

    `loss` finds `logits` [..., classes] in the student's outputs and `labels` [...] in the batch, position by
    position: a trainer of causal LMs has shifted them. Positions labelled -100 carry no loss; labels of a floating
    dtype [..., classes] are 0-1 vectors of rows that may have several classes.

    Attributes:
        needs_teacher: Whether `loss` wants `teacher_logits` [..., classes] in the batch. The trainer puts them there,
            having asked the objective's `teacher_logits` (texts) or `teacher_token_logits` (batches of token ids).
    """

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher's logits must be in the batch."""

    def loss(self, student_outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Returns a scalar, the mean over the positions that count, which carries the student's gradient."""


@dataclass(frozen=True)
class Supervised:
    """Cross-entropy with the labels: learning without a teacher."""

    result_version: ClassVar[int] = 1
    needs_teacher: ClassVar[bool] = False

    @classmethod
    def example(cls, teacher: Teacher) -> Self:
        """The objective, which has no use for a teacher, for tests and documentation."""
        return cls()

    def loss(self, student_outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Returns the cross-entropy of the student's logits with `batch["labels"]`."""
        return supervised_loss(_logits(student_outputs), batch["labels"])


@dataclass(frozen=True)
class _FromTeacher:
    teacher: Teacher

    result_version: ClassVar[int] = 1
    needs_teacher: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_teacher(self.teacher)

    def teacher_logits(
        self,
        texts: Sequence[str],
        *,
        label2id: Mapping[str, int] | None = None,
        batch_size: int = 32,
        max_length: int | None = None,
        device: torch.device | str | None = None,
        on_rows: Callable[[int], None] | None = None,
    ) -> Tensor:
        """What the teacher, a classifier, says of texts, in the order of the student's classes.

        Args:
            texts: The texts.
            label2id: The student's classes and their positions, by which the teacher's are put in order; None leaves
                them in the teacher's.
            batch_size: Texts in a batch.
            max_length: Tokens at which a text is cut; None for what the teacher takes.
            device: Where to compute; None for where the teacher is.
            on_rows: Called after each batch with its number of rows.

        Returns:
            Logits [rows, classes], fp32 on the CPU.

        Raises:
            LabelError: Teacher and student know different classes; said before anything is computed.
            MethodMisfit: The teacher is no classifier.
        """
        theirs = None if label2id is None else dict(self.teacher.model.config.label2id)
        if theirs is not None and label2id is not None:
            label_order(theirs, label2id)
        found = teacher_logits_for_texts(
            self.teacher, texts, batch_size=batch_size, max_length=max_length, device=device, on_rows=on_rows
        )
        return found if theirs is None or label2id is None else align_labels(found, theirs, label2id)

    def teacher_token_logits(self, batch: Mapping[str, Tensor], vocabulary_size: int | None = None) -> Tensor:
        """What the teacher, an LM, says at each position of a batch of token ids; see `teacher_logits_for_tokens`.

        Args:
            batch: The student's batch, on the teacher's device.
            vocabulary_size: Number of the student's logits.

        Returns:
            Logits [batch, seq or target, vocabulary], unshifted.
        """
        return teacher_logits_for_tokens(self.teacher, batch, vocabulary_size=vocabulary_size)

    def check_vocabulary(self, tokenizer: Any) -> None:
        """Refuses a student's tokenizer that gives other ids to tokens than the teacher's; for LMs, before training.

        Raises:
            MethodMisfit: The vocabularies differ.
        """
        check_same_vocabulary(self.teacher, tokenizer)


@dataclass(frozen=True)
class HardTargets(_FromTeacher):
    """Cross-entropy with the class, or token, that the teacher holds most likely; the labels are not looked at.

    Hinton, Vinyals and Dean 2015, arXiv:1503.02531. What a plain relabelling of the data by the teacher gives, and so
    the measure of what soft targets add.

    Attributes:
        teacher: A trainer, a stage, a `TrainedModel`, or `TeacherModel(model, tokenizer)`.

    Raises:
        ArgumentTypeError: The teacher has no model or tokenizer.
    """

    @classmethod
    def example(cls, teacher: Teacher) -> Self:
        """The objective with this teacher, for tests and documentation."""
        return cls(teacher)

    def loss(self, student_outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Returns the cross-entropy with the teacher's choice; positions labelled -100 are left out."""
        return hard_target_loss(_logits(student_outputs), _teacher_logits(batch), batch.get("labels"))


@dataclass(frozen=True)
class SoftTargets(_FromTeacher):
    """Distillation in which `alpha` weighs the soft term, the teacher's probabilities; `1 - alpha` weighs the labels.

    The loss is `alpha T² KL(q_T ‖ p_T) + (1 - alpha) CE(labels, p)`: Hinton, Vinyals and Dean 2015, arXiv:1503.02531.
    `alpha=0` is supervised learning, `alpha=1` learns from the teacher alone: labels do not count.

    Attributes:
        teacher: A trainer, a stage, a `TrainedModel`, or `TeacherModel(model, tokenizer)`.
        temperature: T, above 0. The higher, the more the unlikely classes count.
        alpha: Weight of the soft term, from 0 to 1.

    Raises:
        DefinitionError: An option is out of its range.
        ArgumentTypeError: The teacher has no model or tokenizer.

    Example:
        `student.train(..., objective=SoftTargets(teacher, temperature=2.0, alpha=0.5))`
    """

    temperature: float = 2.0
    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)
        check_alpha(self.alpha)

    @classmethod
    def example(cls, teacher: Teacher) -> Self:
        """The objective with this teacher, for tests and documentation."""
        return cls(teacher)

    def loss(self, student_outputs: Any, batch: Mapping[str, Tensor]) -> Tensor:
        """Returns the weighted sum of the soft term and the cross-entropy with the labels."""
        return soft_target_loss(
            _logits(student_outputs),
            _teacher_logits(batch),
            batch.get("labels"),
            temperature=self.temperature,
            alpha=self.alpha,
        )


def _logits(student_outputs: Any) -> Tensor:
    logits = student_outputs["logits"] if isinstance(student_outputs, Mapping) else student_outputs.logits
    if not isinstance(logits, Tensor):
        raise DefinitionError(f"The student's outputs ({type(student_outputs).__name__}) hold no tensor named logits.")
    return logits


def _teacher_logits(batch: Mapping[str, Tensor]) -> Tensor:
    if "teacher_logits" not in batch:
        raise DefinitionError(
            f'This objective needs "teacher_logits" in the batch, which has {", ".join(batch)}. Put there what '
            "`objective.teacher_logits(texts)` or `objective.teacher_token_logits(batch)` returns."
        )
    return batch["teacher_logits"]
