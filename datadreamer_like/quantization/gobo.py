"""GOBO: weights as indices of a few centroids, with the outliers of a Gaussian exact."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from datadreamer_like.errors import DefinitionError, MethodMisfit, check_number
from datadreamer_like.formats import Entry
from datadreamer_like.formats.gobo import GOBOEmbedding, GOBOLinear, gobo_like
from datadreamer_like.formats.modules import matches, token_embeddings, weight_of

from .weights import WeightQuantization

_MOST_OUTLIERS = 0.1  # share; each costs 8 bytes, so that more would undo what the indices save


@dataclass(frozen=True)
class GOBO(WeightQuantization):
    """Weights as indices of 8 or 16 centroids, about a tenth of the size of fp32; outliers stay as they are.

    A Gaussian is fitted to the weights of each layer; those with a log density below `threshold` are outliers, about
    one in a thousand, and stay fp32. The others share `2^bits` centroids, which start as the means of bins of equal
    population, and are the means of what is nearest to them until the L1 error stops falling (GOBO, Zadeh et al. 2020,
    arXiv:2005.03842). No data are needed. Products are of decoded weights: this saves bytes, not time.

    Attributes:
        bits: 3 or 4 bits per index; the paper needs 4 in sensitive layers.
        embedding_bits: 3 or 4 also stores the token embeddings so (4 in the paper); None leaves them as they are. An
            embedding that is tied to the output head cannot be stored so.
        threshold: Natural log of the density below which a weight is an outlier.
        exclude: Patterns of module names to skip, with all modules inside them, for instance ("*.down_proj",).

    Example:
        >>> from torch import nn
        >>> small = GOBO(bits=3).apply(nn.Sequential(nn.Linear(64, 8)))
        >>> small[0].weight.shape, small[0].weight_centroids.shape
        (torch.Size([8, 24]), torch.Size([8]))
    """

    bits: int = 3
    embedding_bits: int | None = None
    threshold: float = -4.0

    papers = ("2005.03842",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.threshold, "threshold", -math.inf)
        if type(self.bits) is not int or self.bits not in (3, 4):
            raise DefinitionError(f"bits is {self.bits!r}; GOBO has 3 or 4.")
        if self.embedding_bits not in (None, 3, 4):
            raise DefinitionError(f"embedding_bits is {self.embedding_bits!r}; GOBO has 3 or 4, or None for none.")

    def chosen(self, model: nn.Module) -> dict[str, nn.Module]:
        """Returns the layers to quantize, by name, and the embeddings if they are asked for."""
        found = token_embeddings(model) if self.embedding_bits else {}
        return {name: one for name, one in found.items() if not matches(name, self.exclude)} | super().chosen(model)

    def coded(self, name: str, module: nn.Module) -> GOBOLinear | GOBOEmbedding:
        """Returns the layer or embedding with indices, centroids and outliers."""
        bits = self.embedding_bits if isinstance(module, nn.Embedding) else self.bits
        assert bits is not None
        made = gobo_like(module, bits)
        weight = weight_of(module)
        made.quantize(weight, self.threshold)
        share = len(made.get_buffer("weight_values")) / weight.numel()
        if share > _MOST_OUTLIERS:
            raise MethodMisfit(
                f'{100 * share:.0f} % of the weights of "{name}" have a log density below {self.threshold:g}, so they '
                "would be "
                f"stored as outliers: their standard deviation is {float(weight.float().std()):.3g}, and the wider the "
                f"weights, the lower their density. Pass a lower threshold, or exclude the layer."
            )
        return made

    def layout(self, made: Mapping[str, Any]) -> Entry:
        """Returns a "gobo" entry."""
        facts = {name: {"bits": m.bits, "outliers": len(m.weight_values)} for name, m in made.items()}
        return {"kind": "gobo", "modules": facts}
