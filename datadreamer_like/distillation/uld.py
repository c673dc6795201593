"""Distillation between language models with different tokenizers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datadreamer_like.errors import DefinitionError, check_number
from datadreamer_like.kernels.divergences import check_temperature

from .losses import supervised_loss
from .objectives import TeacherObjective
from .outputs import Batch, Outputs, counted, labels_of, logits_of


@dataclass(frozen=True)
class ULD(TeacherObjective):
    """Universal logit distillation: from a language model with any tokenizer, also an encoder-decoder.

    Boizard et al. 2024, arXiv:2402.12030: `CE(labels) + weight W(q, p)`. `W` is the Wasserstein distance of
    `universal_logit_loss`, which compares probabilities by their rank and not by their token. The teacher reads prompt
    and answer with its own tokenizer and chat template, and runs on each batch.

    Attributes:
        weight: Weight of the distance, above 0. The paper's is 1.5.
        temperature: Divides the logits of both sides, above 0.

    Example:
        `trainer.train(..., objective=ULD(TrainedModel("teacher-of-another-family")))`
    """

    weight: float = 1.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.weight, "weight", over=True)
        check_temperature(self.temperature)

    @property
    def fits(self) -> frozenset[str]:
        """Language models."""
        return frozenset({"generation"})

    @property
    def own_tokens(self) -> bool:
        """Always true."""
        return True

    @property
    def needs_labels(self) -> bool:
        """Always true."""
        return True

    def loss(self, student: Outputs, teacher: Outputs | None, batch: Batch, modules: nn.Module | None = None) -> Tensor:
        """Returns the cross-entropy plus the weighted distance."""
        ours, theirs = logits_of(student, "student"), logits_of(teacher, "teacher")
        mask, positions = counted(batch), None if teacher is None else teacher.positions
        apart = universal_logit_loss(ours, theirs, mask, positions, temperature=self.temperature)
        return supervised_loss(ours, labels_of(batch)) + self.weight * apart


def universal_logit_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_mask: Tensor | None = None,
    teacher_mask: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Distance of sorted probabilities: `Σ_i |q_(i) - p_(i)|`, from 0 to 2, averaged over the positions compared.

    Boizard et al. 2024, arXiv:2402.12030. Logits are [batch, seq, classes]; both sizes may differ between student and
    teacher. In each row the positions that the masks [batch, seq] keep are compared in order, the first with the first;
    those of the longer side that are left over are not compared. The smaller vocabulary is padded with probability 0.
    No gradient flows into the teacher's logits. Without positions the loss is 0.
    """
    sides = (student_logits, student_mask), (teacher_logits.detach(), teacher_mask)
    keeps = [torch.ones_like(z[..., 0], dtype=torch.bool) if mask is None else mask.bool() for z, mask in sides]
    for (logits, _), keep in zip(sides, keeps, strict=True):
        if logits.dim() != 3 or keep.shape != logits.shape[:-1] or len(keep) != len(keeps[0]):
            raise DefinitionError(
                f"Logits are of shape {tuple(logits.shape)} and their mask of {tuple(keep.shape)}. Pass logits [batch, "
                "seq, classes] with masks [batch, seq], and the same rows for student and teacher."
            )
    shorter = torch.minimum(*(keep.sum(1) for keep in keeps))
    p, q = (logits[keep & (keep.cumsum(1) <= shorter[:, None])] for (logits, _), keep in zip(sides, keeps, strict=True))
    dtype = torch.float64 if torch.float64 in (p.dtype, q.dtype) else torch.float32
    width = max(p.shape[-1], q.shape[-1])
    ranked = [
        F.pad((z.to(dtype) / temperature).softmax(-1).sort(-1, descending=True).values, (0, width - z.shape[-1]))
        for z in (p, q)
    ]
    return (ranked[0] - ranked[1]).abs().sum() / max(len(p), 1)
