"""Word-level distillation of language models: the teacher's distribution of each next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from datadreamer_like.kernels.divergences import Divergence, check_alpha, check_divergence

from .losses import divergence
from .objectives import AlphaObjective, check_temperatures
from .outputs import Batch, counted
from .signals import Signals


@dataclass(frozen=True)
class WordLevel(AlphaObjective):
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
    def temperatures(self) -> frozenset[float]:
        """The one temperature."""
        return frozenset({self.temperature})

    @property
    def divergence_options(self) -> tuple[Divergence, float, float, float]:
        """The divergence with its options."""
        return self.kind, self.temperature, self.beta, self.skew

    def check_signals(self, signals: Sequence[Signals], student: nn.Module, teacher: nn.Module) -> None:
        """Refuses targets that were stored for other temperatures, or whose tail does not fit the divergence."""
        check_temperatures(signals, self.temperature, self.kind)

    def soft_loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Returns the divergence over the tokens that both have."""
        student, teacher = shared_tokens(student, teacher, self.kind)
        return divergence(student, teacher, *self.divergence_options, mask=counted(batch))


def shared_tokens(student: Tensor, teacher: Tensor, kind: Divergence) -> tuple[Tensor, Tensor]:
    """Returns the logits of both sides, the student's cut to the teacher's tokens if the divergence would be infinite.

    Only the reverse KL is infinite where the teacher's head lacks tokens of the student's.
    """
    return (student[..., : teacher.shape[-1]] if kind == "reverse_kl" else student), teacher
