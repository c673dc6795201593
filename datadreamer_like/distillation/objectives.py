"""Objectives: the losses that a trainer minimises, as plain objects with their options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from datadreamer_like.errors import MethodMisfit
from datadreamer_like.kernels.divergences import Divergence, check_alpha, check_temperature

from .factored import fused_loss
from .generated import Beams, Completions
from .losses import (
    IGNORED_LABEL,
    hard_target_loss,
    soft_target_loss,
    supervised_loss,
    target_loss,
)
from .outputs import (
    Batch,
    Outputs,
    WeightedMean,
    counted,
    labels_of,
    logits_of,
    number_of_labels,
    number_of_positions,
    only_at,
    questions,
)
from .signals import Sampled, Signals, TopK
from .sparse_losses import check_targets, sparse_and_label_loss
from .teacher import Teacher, TextTeacher, check_teacher


class Objective(ABC):
    """The loss that a trainer minimises. Subclasses, usually frozen dataclasses with their options, implement `loss`.

    The batch has `labels`, -100 for none (0-1 vectors [..., classes] of a floating dtype for multi-label rows);
    `targets`, as of `target_loss`, if labels are soft or weighted; and `mask` [...], True where a position counts.
    Logits are [..., classes]. The mask includes rows without a label, which can still learn from a teacher.
    """

    result_version: ClassVar[int] = 1
    """Incremented when the same options give another loss."""

    teacher: Teacher | TextTeacher | None
    """The model to imitate, or None."""

    @property
    def wants(self) -> frozenset[str]:
        """Fields of the student's `Outputs` that `loss` reads."""
        return frozenset({"logits"})

    @property
    def teacher_wants(self) -> frozenset[str]:
        """Fields of the teacher's `Outputs` that `loss` reads; by default the same as `wants` if there is a teacher."""
        return frozenset() if self.teacher is None else self.wants

    @property
    def needs_labels(self) -> bool:
        """Whether the loss uses labels. If so, a row without a label still counts for the teacher's part."""
        return False

    @property
    def fits(self) -> frozenset[str] | None:
        """Kinds of task (`Task.kind`) that the loss is for, such as "generation"; None for all."""
        return None

    @property
    def single_label(self) -> bool:
        """Whether a classifier's rows must have one label each, as they are, and not several, weighted or smoothed."""
        return False

    @property
    def beams(self) -> Beams | None:
        """How the teacher answers each prompt once, before training, for `target`; None if it does not."""
        return None

    def target(self, reference: str | None, candidates: Sequence[str]) -> str:
        """Returns the answer to learn for a prompt, from its reference and the teacher's beams, the likeliest first."""
        return candidates[0]

    @property
    def completions(self) -> Completions | None:
        """How batches are sampled from the student while it trains; None if they are not."""
        return None

    @property
    def own_tokens(self) -> bool:
        """Whether the teacher reads the texts with its own tokenizer, which may be another than the student's."""
        return False

    @property
    def takes_factors(self) -> bool:
        """Whether `loss` also takes `Outputs.factors`, with logits only where they count, or a part at a time."""
        return False

    @property
    def temperatures(self) -> frozenset[float]:
        """Temperatures at which `loss` compares `targets` of a `StoredTeacher`."""
        return frozenset()

    def check_signals(self, signals: Sequence[Signals], student: nn.Module, teacher: nn.Module) -> None:
        """Raises `MethodMisfit` or `DefinitionError` if `loss` cannot learn from a `StoredTeacher` with these signals.

        Called before any work, with modules that have the configs of student and teacher. By default, an objective that
        reads the teacher's logits needs all of them; one that reads `targets` instead checks them here.
        """
        if "logits" in self.teacher_wants:
            raise MethodMisfit(
                f"{type(self).__name__} needs all logits of its teacher, and a StoredTeacher keeps some of them. Pass "
                "the teacher itself, or learn by SoftTargets."
            )

    def modules(self, student: nn.Module, teacher: nn.Module | None) -> nn.Module | None:
        """Returns extra modules that the objective needs, such as a projection; called once before training.

        They are trained with the student and are in its checkpoints, but not in the saved student. Raises
        `MethodMisfit` if student and teacher do not fit together.
        """
        return None

    @abstractmethod
    def loss(self, student: Outputs, teacher: Outputs | None, batch: Batch, modules: nn.Module | None = None) -> Tensor:
        """Returns a scalar with gradients, the mean over the positions that count.

        The outputs have the fields in `wants` and `teacher_wants`; the teacher's have no gradients and may be stored.
        `modules` is what the method `modules` returned.
        """

    def means(
        self,
        student: Outputs,
        teacher: Outputs | None,
        batch: Batch,
        modules: nn.Module | None = None,
        *,
        all_labelled: bool = False,
    ) -> list[WeightedMean]:
        """Returns the loss as a sum of means, each with the weight of what it is the mean over.

        A trainer adds up batches by it, and the shares of a batch on several devices. By default one mean is of what is
        learned without labels, over the positions that count, and one of what labels add, over the positions with one,
        for which `loss` is called twice; if `all_labelled`, these are the same, and there is one mean. For a batch, it
        is as many as for all others.
        """
        loss = self.loss(student, teacher, batch, modules)
        if all_labelled or not self.needs_labels:
            return [WeightedMean(loss, number_of_positions(batch))]
        if self.teacher is None:
            return [WeightedMean(loss, number_of_labels(batch))]
        none = {**batch, "labels": torch.full_like(batch["labels"], IGNORED_LABEL)}
        taught = self.loss(student, teacher, none, modules)
        return [
            WeightedMean(taught, number_of_positions(batch)), WeightedMean(loss - taught, number_of_labels(batch)),
        ]  # fmt: skip


@dataclass(frozen=True)
class Supervised(Objective):
    """Cross-entropy with the labels: learning without a teacher."""

    teacher: ClassVar[None] = None  # type: ignore[misc]

    @classmethod
    def example(cls, teacher: Teacher | TextTeacher | None = None) -> Self:
        """The objective, for tests and documentation."""
        return cls()

    @property
    def needs_labels(self) -> bool:
        """Always true."""
        return True

    @property
    def takes_factors(self) -> bool:
        """True, unless a subclass has another loss."""
        return type(self).loss is Supervised.loss

    def loss(self, student: Outputs, teacher: Outputs | None, batch: Batch, modules: nn.Module | None = None) -> Tensor:
        """Returns the cross-entropy of the student's logits with `batch["labels"]`."""
        return label_loss(student, batch)


@dataclass(frozen=True)
class TeacherObjective(Objective):
    """The base of objectives with a teacher.

    It is a trainer, stage, `TrainedModel`, or `TeacherModel(model, tokenizer)`; for the logits of classes also a
    `TextTeacher`.
    """

    teacher: Teacher | TextTeacher

    def __post_init__(self) -> None:
        check_teacher(self.teacher)

    @classmethod
    def example(cls, teacher: Teacher | TextTeacher) -> Self:
        """The objective with this teacher, for tests and documentation."""
        return cls(teacher)


@dataclass(frozen=True)
class HardTargets(TeacherObjective):
    """Cross-entropy with the class, or token, that the teacher finds most likely; labels are ignored.

    Hinton, Vinyals and Dean 2015, arXiv:1503.02531. Equivalent to relabelling the data with the teacher, and so the
    baseline for soft targets. Rows need no labels.
    """

    @property
    def takes_factors(self) -> bool:
        """True, unless a subclass has another loss."""
        return type(self).loss is HardTargets.loss

    def check_signals(self, signals: Sequence[Signals], student: nn.Module, teacher: nn.Module) -> None:
        """Refuses samples, among which the most likely token may be missing."""
        if any(isinstance(each, Sampled) for each in signals):
            raise MethodMisfit("HardTargets needs the teacher's most likely token; use TopK(1) instead of Sampled.")

    def loss(self, student: Outputs, teacher: Outputs | None, batch: Batch, modules: nn.Module | None = None) -> Tensor:
        """Returns the cross-entropy with the teacher's choice at the positions that count."""
        student, teacher, batch = only_at(counted(batch), student, teacher, batch)
        if teacher is not None and teacher.targets is not None:
            return supervised_loss(logits_of(student, "student"), teacher.targets.ids[..., 0], counted(batch))
        logits = logits_of(student, "student"), logits_of(teacher, "teacher")
        return hard_target_loss(*logits, questions(batch), counted(batch))


class AlphaObjective(TeacherObjective):
    """Base of objectives in which `alpha` weighs a divergence from the teacher, and `1 - alpha` the labels' loss."""

    alpha: float

    @property
    @abstractmethod
    def divergence_options(self) -> tuple[Divergence, float, float, float]:
        """Kind, temperature, beta and skew of the divergence."""

    @abstractmethod
    def soft_loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Returns the mean divergence between the logits of both at the positions that count, times T²."""

    @property
    def needs_labels(self) -> bool:
        """True if `alpha` is below 1."""
        return self.alpha < 1

    @property
    def takes_factors(self) -> bool:
        """True, unless a subclass has another loss."""
        return type(self).loss is AlphaObjective.loss

    def loss(self, student: Outputs, teacher: Outputs | None, batch: Batch, modules: nn.Module | None = None) -> Tensor:
        """Returns the weighted sum of the divergence and the labels' loss."""
        kind, temperature, beta, skew = self.divergence_options
        fused = fused_loss(student, teacher, batch, kind, temperature, self.alpha, beta, skew)
        if fused is not None:
            return fused
        soft, hard = self._terms(student, teacher, batch)
        return self.alpha * soft + (1 - self.alpha) * hard

    def means(
        self,
        student: Outputs,
        teacher: Outputs | None,
        batch: Batch,
        modules: nn.Module | None = None,
        *,
        all_labelled: bool = False,
    ) -> list[WeightedMean]:
        """Returns the two terms, each computed once; see `Objective.means`."""
        if all_labelled or not self.needs_labels or type(self).loss is not AlphaObjective.loss:
            return super().means(student, teacher, batch, modules, all_labelled=all_labelled)
        soft, hard = self._terms(student, teacher, batch)
        taught = WeightedMean(self.alpha * soft, number_of_positions(batch))
        return [taught, WeightedMean((1 - self.alpha) * hard, number_of_labels(batch))]

    def _terms(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> tuple[Tensor, Tensor]:
        kind, temperature, beta, skew = self.divergence_options
        student, teacher, batch = only_at(counted(batch), student, teacher, batch)
        if teacher is not None and teacher.targets is not None:
            return sparse_and_label_loss(
                logits_of(student, "student"), teacher.targets, labels_of(batch) if self.needs_labels else None,
                kind, temperature, beta, skew, counted(batch),
            )  # fmt: skip
        hard = label_loss(student, batch) if self.needs_labels else None
        if self.alpha == 0 and hard is not None:
            return hard.new_zeros(()), hard
        soft = fused_loss(student, teacher, batch, kind, temperature, 1.0, beta, skew)
        if soft is None:
            soft = self.soft_loss(logits_of(student, "student"), logits_of(teacher, "teacher"), batch)
        return soft, soft.new_zeros(()) if hard is None else hard


@dataclass(frozen=True)
class SoftTargets(AlphaObjective):
    """Distillation in which `alpha` weighs the soft term, the teacher's probabilities; `1 - alpha` weighs the labels.

    The loss is `alpha T² KL(q_T ‖ p_T) + (1 - alpha) CE(labels, p)`: Hinton, Vinyals and Dean 2015, arXiv:1503.02531.
    `alpha=0` is supervised learning; `alpha=1` learns from the teacher alone and needs no labels. The soft term covers
    the positions that the batch's `mask` keeps (without one, those with a label), as a trainer's batches all rows; the
    cross-entropy only those with a label. A teacher from `Calibrate` teaches calibrated probabilities.

    Attributes:
        temperature: T, above 0. Higher values give unlikely classes more weight.
        alpha: Weight of the soft term, from 0 to 1.

    Example:
        `student.train(..., objective=SoftTargets(teacher, temperature=2.0, alpha=0.5))`
    """

    temperature: float = 2.0
    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)
        check_alpha(self.alpha)

    @property
    def temperatures(self) -> frozenset[float]:
        """The one temperature."""
        return frozenset({self.temperature})

    @property
    def divergence_options(self) -> tuple[Divergence, float, float, float]:
        """The forward KL at the temperature."""
        return "forward_kl", self.temperature, 0.5, 0.1

    def check_signals(self, signals: Sequence[Signals], student: nn.Module, teacher: nn.Module) -> None:
        """Refuses targets that were stored for other temperatures."""
        check_temperatures(signals, self.temperature)

    def soft_loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Returns the soft term, also of several yes-or-no questions a row."""
        return soft_target_loss(student, teacher, questions(batch), self.temperature, alpha=1.0, mask=counted(batch))


def check_temperatures(signals: Sequence[Signals], temperature: float, kind: Divergence = "forward_kl") -> None:
    """Raises `DefinitionError` if a divergence at this temperature cannot be computed from stored signals."""
    for each in signals:
        if isinstance(each, Sampled | TopK):
            check_targets(each.rule, each.temperatures, temperature, kind)


def label_loss(student: Outputs, batch: Batch) -> Tensor:
    """Cross-entropy with the batch's targets, which are soft or weighted, or with its labels, where there is one."""
    student, _, batch = only_at(labels_of(batch) != IGNORED_LABEL, student, None, batch)
    logits, targets, labels = logits_of(student, "student"), batch.get("targets"), batch["labels"]
    if targets is None:
        return supervised_loss(logits, labels)
    missing = labels == IGNORED_LABEL
    return target_loss(logits, targets, ~(missing.any(-1) if missing.dim() == logits.dim() else missing))
