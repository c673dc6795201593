"""On-policy distillation: the teacher scores what the student writes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from datadreamer_like.kernels.divergences import Divergence, check_divergence

from .factored import fused_loss
from .generated import Completions
from .losses import divergence
from .objectives import TeacherObjective
from .outputs import Batch, Outputs, counted, logits_of
from .word_level import shared_tokens


@dataclass(frozen=True)
class OnPolicy(TeacherObjective):
    """On-policy distillation (GKD): divergence from the teacher on what the student itself writes.

    Agarwal et al. 2023, arXiv:2306.13649. With probability `fraction` the answers of a training batch are replaced by
    answers that the student samples; else they are those of the rows. The loss is the divergence per token, `T² D`,
    over the answers; no gradient flows through sampling. Labels carry no loss: a `Supervised` objective combined with
    it counts only in the other batches. Validation is on the answers of the rows. A killed training resumes with the
    same samples, which depend on the seed, the step and the student. The teacher must have the student's tokenizer and
    runs on each batch.

    MiniLLM's policy gradient (Gu et al. 2023, arXiv:2306.08543) is not offered; `kind="reverse_kl"` with `fraction=1.0`
    minimises the same divergence token by token.

    Attributes:
        fraction: λ, the probability that a batch is sampled from the student, from 0 to 1.
        kind: The divergence; see `divergence`.
        beta: β of "jsd", between 0 and 1.
        skew: λ of the skew divergences.
        temperature: T, above 0, of the divergence and of sampling.
        max_new_tokens: Maximum length of a sampled answer.

    Example:
        `trainer.train(..., objective=OnPolicy(teacher, fraction=0.5, kind="jsd", beta=0.1))`
    """

    fraction: float = 0.5
    kind: Divergence = "jsd"
    beta: float = 0.5
    skew: float = 0.1
    temperature: float = 1.0
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        check_divergence(self.kind, self.temperature, self.beta, self.skew)
        _ = self.completions

    @property
    def fits(self) -> frozenset[str]:
        """Language models."""
        return frozenset({"generation"})

    @property
    def completions(self) -> Completions:
        """The student's samples."""
        return Completions(self.fraction, self.max_new_tokens, self.temperature)

    @property
    def takes_factors(self) -> bool:
        """True, unless a subclass has another loss."""
        return type(self).loss is OnPolicy.loss

    def loss(self, student: Outputs, teacher: Outputs | None, batch: Batch, modules: nn.Module | None = None) -> Tensor:
        """Returns the divergence over the answers, sampled or not."""
        fused = fused_loss(student, teacher, batch, self.kind, self.temperature, 1.0, self.beta, self.skew)
        if fused is not None:
            return fused
        pair = shared_tokens(logits_of(student, "student"), logits_of(teacher, "teacher"), self.kind)
        return divergence(*pair, self.kind, self.temperature, self.beta, self.skew, mask=counted(batch))
