"""The controls of born-again networks: what is left of soft targets without one of their two effects."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from datadreamer_like.errors import MethodMisfit
from datadreamer_like.kernels.divergences import check_temperature

from .losses import IGNORED_LABEL, confidence, confidence_weighted_loss, divergence, permuted_logits
from .objectives import TeacherObjective
from .outputs import Batch, Outputs, WeightedMean, counted, labels_of, logits_of


@dataclass(frozen=True)
class ConfidenceWeighted(TeacherObjective):
    """Cross-entropy with the labels, in which each row weighs as much as the teacher is certain of it.

    The control CWTM of born-again networks, Furlanello et al. 2018, arXiv:1805.04770; see `confidence_weighted_loss`.
    If a student learns as well from this as from soft targets, it did not need the teacher's other classes. The weights
    sum to 1 over a batch. Rows need a label, of one class, without class weights.

    Example:
        `BornAgain("Topics", trainer, ..., objective=ConfidenceWeighted)`
    """

    @property
    def needs_labels(self) -> bool:
        """Always true."""
        return True

    @property
    def fits(self) -> frozenset[str]:
        """Classification."""
        return frozenset({"classification"})

    @property
    def single_label(self) -> bool:
        """Always true."""
        return True

    def loss(self, student: Outputs, teacher: Outputs | None, batch: Batch, modules: nn.Module | None = None) -> Tensor:
        """Returns the weighted mean over the rows with a label."""
        if "targets" in batch or labels_of(batch).is_floating_point():
            raise MethodMisfit(
                "ConfidenceWeighted weighs rows with one label each. Leave class_weights, label smoothing, soft and "
                "multi-label targets out, or choose SoftTargets(teacher)."
            )
        return confidence_weighted_loss(logits_of(student, "student"), logits_of(teacher, "teacher"), batch["labels"])

    def means(
        self,
        student: Outputs,
        teacher: Outputs | None,
        batch: Batch,
        modules: nn.Module | None = None,
        *,
        all_labelled: bool = False,
    ) -> list[WeightedMean]:
        """Returns the loss and the sum of the weights of the rows with a label."""
        loss = self.loss(student, teacher, batch, modules)
        sure = confidence(logits_of(teacher, "teacher"))
        return [WeightedMean(loss, sure[batch["labels"] != IGNORED_LABEL].sum())]


@dataclass(frozen=True)
class PermutedTargets(TeacherObjective):
    """Soft targets in which the probabilities of all but the teacher's most likely class are shuffled in each row.

    The control DKPP of born-again networks, Furlanello et al. 2018, arXiv:1805.04770; see `permuted_logits`. The loss
    is `T² KL(φ(q_T) ‖ p_T)`, φ the permutation; labels are ignored. If a student learns as well from this as from soft
    targets, it did not need to know which classes are similar. With two classes there is nothing to permute.

    Attributes:
        temperature: T, above 0.
        seed: Seed of the permutations.

    Example:
        `BornAgain("Topics", trainer, ..., objective=PermutedTargets)`
    """

    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_temperature(self.temperature)

    @property
    def fits(self) -> frozenset[str]:
        """Classification."""
        return frozenset({"classification"})

    @property
    def single_label(self) -> bool:
        """Always true."""
        return True

    def loss(self, student: Outputs, teacher: Outputs | None, batch: Batch, modules: nn.Module | None = None) -> Tensor:
        """Returns the divergence, the mean over the rows that count; `rows` of the batch number them."""
        if batch["labels"].is_floating_point():
            raise MethodMisfit(
                "PermutedTargets shuffles the classes of single-label rows; each class of a multi-label model is a "
                "decision of its own. Choose SoftTargets(teacher)."
            )
        logits = logits_of(teacher, "teacher")
        rows = batch.get("rows", torch.arange(len(logits), device=logits.device))
        taught = permuted_logits(logits.detach(), rows, self.seed)
        return divergence(logits_of(student, "student"), taught, temperature=self.temperature, mask=counted(batch))
