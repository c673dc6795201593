"""Word-level distillation of language models: the teacher's distribution of each next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from datadreamer_like.kernels.divergences import Divergence, check_alpha, check_divergence

from .factored import fused_loss
from .losses import divergence
from .objectives import TeacherObjective, check_temperatures, label_loss, two_means
from .outputs import Batch, Outputs, WeightedMean, counted, logits_of, only_at
from .signals import Signals
from .sparse_losses import sparse_and_label_loss


@dataclass(frozen=True)
class WordLevel(TeacherObjective):
    """Word-level distillation: `alpha` weighs the divergence from the teacher's next-token distributions.

    The loss is `(1 - alpha) NLL + alpha T² D(q_T, p_T)`, each the mean over the tokens of the answers: prompts and
    padding carry none. With `kind="forward_kl"` it is that of Kim and Rush 2016, arXiv:1606.07947 (their cross-entropy
    differs by the teacher's entropy, a constant), and the same as `SoftTargets` on tokens; for the other kinds see
    `divergence`. The teacher must have the student's tokenizer. Output heads may be padded to different sizes: a
    teacher's is cut to the student's tokens, and tokens that it lacks have probability 0. Since the reverse KL to a
    teacher that lacks tokens would be infinite, it is taken over the tokens of both.

    Attributes:
        temperature: T, above 0, for student and teacher. Higher values give unlikely tokens more weight.
        alpha: Weight of the divergence, from 0 to 1; 1 needs no reference other than the tokens to read.
        kind: The divergence.
        beta: β of "jsd", between 0 and 1.
        skew: λ of "skew_kl" and "skew_reverse_kl", from 0 to less than 1.

    Example:
        `trainer.train(..., objective=WordLevel(teacher, kind="reverse_kl", alpha=0.9))`
    """

    temperature: float = 1.0
    alpha: float = 0.5
    kind: Divergence = "forward_kl"
    beta: float = 0.5
    skew: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_alpha(self.alpha)
        check_divergence(self.kind, self.temperature, self.beta, self.skew)

    @property
    def fits(self) -> frozenset[str]:
        """Language models, also masked ones."""
        return frozenset({"generation", "masked"})

    @property
    def needs_labels(self) -> bool:
        """True if `alpha` is below 1."""
        return self.alpha < 1

    @property
    def takes_factors(self) -> bool:
        """True, unless a subclass has another loss."""
        return type(self).loss is WordLevel.loss

    @property
    def temperatures(self) -> frozenset[float]:
        """The one temperature."""
        return frozenset({self.temperature})

    def check_signals(self, signals: Sequence[Signals], student: nn.Module, teacher: nn.Module) -> None:
        """Refuses targets that were stored for other temperatures, or whose tail does not fit the divergence."""
        check_temperatures(signals, self.temperature, self.kind)

    def loss(self, student: Outputs, teacher: Outputs | None, batch: Batch, modules: nn.Module | None = None) -> Tensor:
        """Returns the weighted sum of the negative log-likelihood and the divergence."""
        fused = fused_loss(student, teacher, batch, self.kind, self.temperature, self.alpha, self.beta, self.skew)
        if fused is not None:
            return fused
        apart, likelihood = self._terms(student, teacher, batch)
        return self.alpha * apart + (1 - self.alpha) * likelihood

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
        if all_labelled or not self.needs_labels or type(self).loss is not WordLevel.loss:
            return super().means(student, teacher, batch, modules, all_labelled=all_labelled)
        return two_means(*self._terms(student, teacher, batch), self.alpha, batch)

    def _terms(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> tuple[Tensor, Tensor]:
        student, teacher, batch = only_at(counted(batch), student, teacher, batch)
        if teacher is not None and teacher.targets is not None:
            return sparse_and_label_loss(
                logits_of(student, "student"), teacher.targets, batch["labels"] if self.needs_labels else None,
                self.kind, self.temperature, self.beta, self.skew, counted(batch),
            )  # fmt: skip
        likelihood = label_loss(student, batch) if self.needs_labels else None
        if self.alpha == 0 and likelihood is not None:
            return likelihood.new_zeros(()), likelihood
        apart = fused_loss(student, teacher, batch, self.kind, self.temperature, 1.0, self.beta, self.skew)
        if apart is None:
            pair = shared_tokens(logits_of(student, "student"), logits_of(teacher, "teacher"), self.kind)
            apart = divergence(*pair, self.kind, self.temperature, self.beta, self.skew, mask=counted(batch))
        return apart, apart.new_zeros(()) if likelihood is None else likelihood


def shared_tokens(student: Tensor, teacher: Tensor, kind: Divergence) -> tuple[Tensor, Tensor]:
    """Returns the logits of both sides, the student's cut to the teacher's tokens if the divergence would be infinite.

    Only the reverse KL is infinite where the teacher's head lacks tokens of the student's.
    """
    return (student[..., : teacher.shape[-1]] if kind == "reverse_kl" else student), teacher
