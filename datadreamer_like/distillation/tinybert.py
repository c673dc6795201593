"""TinyBERT: embeddings, hidden states, attention scores and predictions of the teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from datadreamer_like.errors import check_number

from .hidden_states import HiddenStates, check_layers, even_layers
from .losses import soft_target_loss
from .objectives import TeacherObjective
from .outputs import Batch, Outputs, counted, logits_of, questions
from .relations import AttentionScores, projections_of


@dataclass(frozen=True)
class TinyBERT(TeacherObjective):
    """TinyBERT's loss: the sum of the distances of embeddings, hidden states, attention scores and predictions.

    Jiao et al. 2019, arXiv:1909.10351. For M student layers and the layer map g:
    `MSE(E W, E') + Σ_m [MSE(H_m W, H'_g(m)) + MSE(A_m, A'_g(m))] + prediction · KL(q ‖ p)`. One projection W is shared;
    there is none if the hidden sizes are equal. A are attention scores before the softmax, see `AttentionScores`. The
    soft cross-entropy of predictions differs from the KL by a constant. The paper trains in two stages: first with
    `prediction=0.0`, on plain text or the task's, then the predictions: `SoftTargets(teacher, temperature=1.0,
    alpha=1.0)`. Both losses at once need less time. Rows need no labels.

    Attributes:
        layers: g, from layers of the student to layers of the teacher, counted from 1; None spreads the teacher's
            layers evenly, as in the paper.
        prediction: Weight of the predictions, at least 0.

    Example:
        `student.train(..., objective=TinyBERT(teacher, layers={1: 3, 2: 6, 3: 9, 4: 12}))`
    """

    layers: Mapping[int, int] | None = None
    prediction: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None:
            check_layers(self.layers, least=1)
        check_number(self.prediction, "prediction")

    @property
    def wants(self) -> frozenset[str]:
        """Hidden states, queries and keys, and logits if predictions count."""
        return frozenset({"hidden_states", "projections", *(("logits",) if self.prediction else ())})

    def modules(self, student: nn.Module, teacher: nn.Module | None) -> nn.Module | None:
        """Returns the projection; raises `MethodMisfit` if the models cannot be compared."""
        AttentionScores(self.teacher, self.layers).modules(student, teacher)
        return HiddenStates(self.teacher, layers=self.layers).modules(student, teacher)

    def loss(self, student: Outputs, teacher: Outputs | None, batch: Batch, modules: nn.Module | None = None) -> Tensor:
        """Returns the sum of all distances."""
        depths = len(projections_of(student, "student")), len(projections_of(teacher, "teacher"))
        layers = dict(even_layers(*depths) if self.layers is None else self.layers)
        states = HiddenStates(self.teacher, layers={0: 0, **layers})
        scores = AttentionScores(self.teacher, layers)
        # Both are means over layers.
        loss = states.loss(student, teacher, batch, modules) * (len(layers) + 1)
        loss = loss + scores.loss(student, teacher, batch) * len(layers)
        if not self.prediction:
            return loss
        logits = logits_of(student, "student"), logits_of(teacher, "teacher")
        soft = soft_target_loss(*logits, questions(batch), temperature=1.0, alpha=1.0, mask=counted(batch))
        return loss + self.prediction * soft
