"""Sequence-level distillation of language models: students learn what the teacher writes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor, nn

from datadreamer_like.errors import DefinitionError
from datadreamer_like.kernels.divergences import check_alpha

from .generated import Beams
from .objectives import TeacherObjective, label_loss
from .outputs import Batch, Outputs, labels_of
from .teacher import Teacher, TextTeacher


@dataclass(frozen=True)
class _WrittenAnswers(TeacherObjective):
    """Objectives of language models whose teacher writes the answers to learn, once, before training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.beams

    @classmethod
    def example(cls, teacher: Teacher | TextTeacher) -> Self:
        """The objective with this teacher and short answers, for tests and documentation."""
        return replace(cls(teacher), beam_size=2, max_new_tokens=4)  # type: ignore[call-arg]

    @property
    def fits(self) -> frozenset[str]:
        """Language models."""
        return frozenset({"generation"})

    @property
    def teacher_wants(self) -> frozenset[str]:
        """Nothing: the teacher's answers are in the rows."""
        return frozenset()

    @property
    def takes_factors(self) -> bool:
        """True, unless a subclass has another loss."""
        return type(self).loss in (SequenceLevel.loss, SequenceInterpolation.loss)


@dataclass(frozen=True)
class SequenceLevel(_WrittenAnswers):
    """Sequence-level distillation: `alpha` weighs the likelihood of the teacher's answers, found by beam search.

    Kim and Rush 2016, arXiv:1606.07947: the loss is `alpha NLL(teacher's answer) + (1 - alpha) NLL(reference)`, each
    the mean over its tokens. The teacher answers the prompts of all rows once, before training; its answers are stored
    in the session's cache and found by the next student. The validation rows are treated in the same way, so that the
    best epoch is that of the lowest loss on the teacher's answers. Any teacher that writes text will do, with any
    tokenizer. With `alpha=1` rows need no reference; below, a batch takes twice the memory.

    With word-level distillation of the teacher's answers, as in the paper's best results:
    `Combined([SequenceLevel(teacher), WordLevel(teacher)], [0.5, 0.5])`.

    Attributes:
        beam_size: Number of beams; 1 is greedy decoding. The paper's is 5.
        alpha: Weight of the teacher's answers, from 0 to 1.
        max_new_tokens: Maximum length of an answer in the teacher's tokens; longer ones are cut.

    Example:
        `trainer.train(prompts, None, validation_prompts, None, objective=SequenceLevel(teacher, beam_size=5))`
    """

    beam_size: int = 5
    alpha: float = 1.0
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        super().__post_init__()

    @property
    def needs_labels(self) -> bool:
        """True if `alpha` is below 1."""
        return self.alpha < 1

    @property
    def beams(self) -> Beams | None:
        """The likeliest of the beams; None if `alpha` is 0."""
        both = self.needs_labels
        beams = Beams(self.beam_size, 1, self.max_new_tokens, needs_reference=both, keep_reference=both)
        return beams if self.alpha > 0 else None

    def loss(self, student: Outputs, teacher: Outputs | None, batch: Batch, modules: nn.Module | None = None) -> Tensor:
        """Returns the weighted sum over the rows with references and those with the teacher's answers (`written`)."""
        labels, written = labels_of(batch), batch.get("written")
        if not 0 < self.alpha < 1:
            return label_loss(student, batch)
        if written is None:
            raise DefinitionError(
                f"alpha is {self.alpha}, so the batch must have both answers to each prompt, and the bool `written` "
                "[rows] that says which are the teacher's."
            )

        def likelihood(rows: Tensor) -> Tensor:
            return label_loss(student.at(lambda part: part[rows]), {"labels": labels[rows]})

        return self.alpha * likelihood(written) + (1 - self.alpha) * likelihood(~written)


@dataclass(frozen=True)
class SequenceInterpolation(_WrittenAnswers):
    """Likelihood of the one of the teacher's beams that is closest to the reference.

    Kim and Rush 2016, arXiv:1606.07947, section 3.3: closest is the highest smoothed sentence BLEU, over words split at
    white space; of equals the likelier. It is a fine-tuning method: start from a student that was trained by
    `SequenceLevel`. For the rest see there.

    Attributes:
        beam_size: Number of beams, all of them candidates. The paper's is 35.
        max_new_tokens: Maximum length of an answer in the teacher's tokens.

    Example:
        `trainer.train(..., objective=SequenceInterpolation(teacher, beam_size=10))`
    """

    beam_size: int = 5
    max_new_tokens: int = 128

    @property
    def needs_labels(self) -> bool:
        """Always true: the references choose among the beams."""
        return True

    @property
    def beams(self) -> Beams:
        """All beams."""
        return Beams(self.beam_size, self.beam_size, self.max_new_tokens, needs_reference=True)

    def target(self, reference: str | None, candidates: Sequence[str]) -> str:
        """Returns the candidate with the highest sentence BLEU."""
        return max(candidates, key=lambda candidate: sentence_bleu(candidate, reference or ""))

    def loss(self, student: Outputs, teacher: Outputs | None, batch: Batch, modules: nn.Module | None = None) -> Tensor:
        """Returns the negative log-likelihood of the chosen answers."""
        return label_loss(student, batch)


def sentence_bleu(candidate: str, reference: str, orders: int = 4) -> float:
    """Returns the smoothed BLEU of a text against one reference, from 0 to 1, over words split at white space.

    Lin and Och 2004 ("ORANGE"): 1 is added to the matches and to the number of n-grams for n above 1. Texts shorter
    than the reference are penalised as in BLEU.

    Example:
        >>> sentence_bleu("the cat sat", "the cat sat")
        1.0
        >>> sentence_bleu("a dog", "the cat sat")
        0.0
    """
    ours, theirs = candidate.split(), reference.split()
    logs = 0.0
    for n in range(1, orders + 1):
        found, wanted = (Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in (ours, theirs))
        matches, total, extra = (found & wanted).total(), found.total(), int(n > 1)
        if not matches + extra or not total + extra:
            return 0.0
        logs += math.log((matches + extra) / (total + extra))
    return min(1.0, math.exp(1 - len(theirs) / len(ours))) * math.exp(logs / orders)
