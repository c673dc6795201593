"""What a model gives for a batch, as objectives read it: of a student or a teacher, computed now or stored."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor


@dataclass(frozen=True)
class Outputs:
    """A model's outputs for one batch; what an objective did not ask for is None.

    Attributes:
        logits: [..., classes], position by position as the batch's `labels` [...].
        hidden_states: Of the embeddings and of each layer, [batch, seq, hidden].
        attentions: Attention weights of each layer, [batch, heads, seq, seq].
        values: Value vectors of each layer, [batch, heads, seq, head].
        mask: Bool [batch, seq], True where a position of the three above holds a token.
    """

    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    values: tuple[Tensor, ...] | None = None
    mask: Tensor | None = None

    def replaced(self, **fields: Any) -> Self:
        """Returns a copy with other values in some fields."""
        return dataclasses.replace(self, **fields)
