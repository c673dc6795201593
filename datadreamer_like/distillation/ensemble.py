"""Several teachers as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from datadreamer_like.errors import DefinitionError, MethodMisfit, check_number, check_sequence

from .probabilities import logits_of_probabilities
from .teacher import (
    Teacher,
    TextTeacher,
    check_teacher,
    classes_of,
    is_multi_label,
    label_order,
    scaled_logits,
    teacher_logits_for_texts,
)


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Several classifiers as one teacher: the weighted mean of their probabilities, classes matched by name.

    Each reads the texts with its own tokenizer, or is a `TextTeacher`; the temperature of a `Calibrate` counts. The
    mean of probabilities is that of Hinton, Vinyals and Dean 2015, arXiv:1503.02531, and of born-again networks
    (Furlanello et al. 2018, arXiv:1805.04770).

    Args:
        teachers: Trainers, stages, `TrainedModel`s, `TeacherModel`s or `TextTeacher`s of the same classes.
        weights: One number above 0 for each, divided by their sum; None for equal ones.

    Raises:
        DefinitionError: There is no teacher, or a weight does not fit.
        LabelError, MethodMisfit: The teachers have different classes, or only some are multi-label; raised at the first
            use.

    Example:
        `SoftTargets(Ensemble([first, second], weights=[2.0, 1.0]))`
    """

    result_version: ClassVar[int] = 1

    teachers: Sequence[Teacher | TextTeacher]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        check_sequence(self.teachers, "teachers", "teachers")
        if not self.teachers:
            raise DefinitionError("An Ensemble needs at least one teacher.")
        for teacher in self.teachers:
            check_teacher(teacher)
        weights = [1.0] * len(self.teachers) if self.weights is None else self.weights
        check_sequence(weights, "weights", "numbers")
        if len(weights) != len(self.teachers):
            raise DefinitionError(f"There are {len(self.teachers)} teachers and {len(weights)} weights. Pass one each.")
        for place, weight in enumerate(weights):
            check_number(weight, f"weights[{place}]", over=True)
        object.__setattr__(self, "weights", tuple(weight / sum(weights) for weight in weights))

    @classmethod
    def example(cls, teacher: Teacher | TextTeacher) -> Self:
        """An ensemble of this teacher alone, for tests and documentation."""
        return cls([teacher])

    @property
    def classes(self) -> Sequence[str]:
        """The classes of the first teacher, in its order."""
        found = classes_of(self.teachers[0])
        return sorted(found, key=found.__getitem__)

    @property
    def multi_label(self) -> bool:
        """Whether the teachers are multi-label classifiers."""
        kinds = {is_multi_label(teacher) for teacher in self.teachers}
        if len(kinds) > 1:
            raise MethodMisfit("Some of the ensemble's teachers are multi-label classifiers, others are not.")
        return kinds.pop()

    def class_logits(self, texts: Sequence[str], *, batch_size: int = 32, max_length: int | None = None) -> Tensor:
        """Returns log-probabilities [texts, classes], of multi-label classifiers log-odds.

        Texts are cut at `max_length` tokens of each teacher, or its own limit.
        """
        options: Any = {"batch_size": batch_size, "max_length": max_length}
        own, multi_label = {name: place for place, name in enumerate(self.classes)}, self.multi_label
        device: Any = "cuda" if torch.cuda.is_available() else None
        mean = torch.zeros(len(texts), len(own), dtype=torch.float64)
        for teacher, weight in zip(self.teachers, self.weights or (), strict=True):
            options["called"] = f"the ensemble's teacher {teacher!r:.100}"
            logits = teacher_logits_for_texts(teacher, texts, device=device, **options).double()
            logits = scaled_logits(teacher, logits)
            logits = logits[:, label_order(classes_of(teacher), own, ("the ensemble's other teacher", "its first"))]
            mean += weight * (torch.sigmoid(logits) if multi_label else F.softmax(logits, dim=-1))
        return logits_of_probabilities(mean.numpy(), multi_label)
