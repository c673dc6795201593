"""A model's outputs for a batch: a student's or a teacher's, computed or stored."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor


@dataclass(frozen=True)
class Outputs:
    """A model's outputs for one batch; fields that no objective needs are None.

    Attributes:
        logits: [..., classes], at the positions of the batch's `labels` [...].
        hidden_states: Of the embeddings and of each layer, [batch, seq, hidden].
        attentions: Attention weights of each layer, [batch, heads, seq, seq].
        values: Value vectors of each layer, [batch, heads, seq, head].
        mask: Bool [batch, seq], False for padding in the three above.
    """

    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    values: tuple[Tensor, ...] | None = None
    mask: Tensor | None = None

    def replaced(self, **fields: Any) -> Self:
        """Returns a copy with other values in some fields."""
        return dataclasses.replace(self, **fields)
