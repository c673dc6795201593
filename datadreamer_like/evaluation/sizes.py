"""How large a model is: all its weights, and in a sparse one those that are left."""

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
        parameters: All weights, shared ones once; those of quantized layers count as what they stand for.
        nonzero: Those that are not zero, where the model is stored sparse; None elsewhere, since a few zeros that
            happen to be in a dense model save nothing.
    """

    parameters: int
    nonzero: int | None

    def facts(self, after: Size) -> dict[str, str]:
        """Says for a card what became of a model of this size."""
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
