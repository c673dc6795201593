"""Model sizes: all weights, and the non-zero ones of a sparse model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from datadreamer_like.formats import count_zeros, layouts
from datadreamer_like.models.trained.model_facts import count_parameters

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Size:
    """Counts of weights.

    Attributes:
        parameters: All weights, shared ones once; quantized layers count their dequantized weights.
        nonzero: Non-zero weights of a model that is stored sparse; None for others, whose zeros save nothing.
    """

    parameters: int
    nonzero: int | None

    def facts(self, after: Size) -> dict[str, str]:
        """Returns the change from this size to `after`, for a model card."""
        facts = {"Parameters": f"{self.parameters:,} → {after.parameters:,}"}
        if after.nonzero is not None:
            before = self.parameters if self.nonzero is None else self.nonzero
            facts["Non-zero parameters"] = f"{before:,} → {after.nonzero:,}"
        return facts


def size_of(model: nn.Module) -> Size:
    """Counts a model's weights."""
    parameters = count_parameters(model)
    sparse = any(entry["kind"] == "sparse" for entry in layouts(model))
    return Size(parameters, parameters - count_zeros(model) if sparse else None)
