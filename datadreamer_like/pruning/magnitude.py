"""Magnitude pruning: removes the weights nearest to zero."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Literal, Self, get_args

import torch
from torch import nn

from datadreamer_like.compression import Batches, CompressionMethod
from datadreamer_like.compression.method import already_quantized, check_patterns, check_share
from datadreamer_like.errors import DefinitionError
from datadreamer_like.formats import mark_sparse

Scope = Literal["model", "layer", "distribution"]
Part = Literal["embeddings", "biases", "norms"]


@dataclass(frozen=True)
class Magnitude(CompressionMethod):
    """Sets the weights of smallest magnitude to zero, and stores the rest sparse.

    Han et al. 2015, arXiv:1506.02626; the scopes are those of See, Luong and Manning 2016, arXiv:1606.09274. Exactly
    `round(sparsity * n)` of the eligible weights are set to zero; among equal magnitudes the first in parameter order.
    The result is smaller on disk (one bit per position, and the non-zero values); memory and speed are those of the
    dense model. To retrain, keep the zeros with `masks` and `reapply`.

    Attributes:
        sparsity: Share of the weights that become zero, in [0, 1).
        scope: How thresholds are chosen. "model": one threshold for all weights (class-blind, the best in See et al.).
            "layer": each weight matrix loses the same share (class-uniform). "distribution": each matrix's threshold
            is the same multiple of its standard deviation (class-distribution).
        include: Parts to prune too, from "embeddings", "biases", "norms".
        exclude: Patterns of parameter names that are never pruned, for instance ("classifier.*",).

    Example:
        >>> from torch import nn
        >>> small = Magnitude(sparsity=0.75).apply(nn.Linear(8, 8))
        >>> int((small.weight == 0).sum()), int((small.bias == 0).sum())
        (48, 0)
    """

    sparsity: float
    scope: Scope = "model"
    include: tuple[Part, ...] = ()
    exclude: tuple[str, ...] = ()

    kind = "pruning"
    papers = ("1506.02626", "1606.09274")

    def __post_init__(self) -> None:
        check_share("sparsity", self.sparsity)
        check_patterns(self.exclude)
        if self.scope not in get_args(Scope):
            raise DefinitionError(f'scope is "{self.scope}"; it must be one of {", ".join(get_args(Scope))}.')
        unknown = sorted(set(self.include) - set(get_args(Part)))
        if unknown:
            raise DefinitionError(f"include names {', '.join(unknown)}; it may name {', '.join(get_args(Part))}.")

    @classmethod
    def example(cls) -> Self:
        """Half of all weights."""
        return cls(sparsity=0.5)

    def fits(self, model: nn.Module) -> str | None:
        """Any module with floating-point weights, unquantized."""
        if reason := already_quantized(model):
            return reason
        if not self._weights(model):
            return "it has no floating-point weight that this method may prune (biases, norms and embeddings are kept)."
        return None

    def change(self, model: nn.Module, calibration: Batches | None) -> None:
        """Zeroes the smallest weights in place; calibration data are not used."""
        found = self._weights(model)
        weights = list(found.values())
        for group in [[weight] for weight in weights] if self.scope == "layer" else [weights]:
            _zero_smallest(group, self.sparsity, relative=self.scope == "distribution")
        mark_sparse(model, found)

    def _weights(self, model: nn.Module) -> dict[str, nn.Parameter]:
        # A head tied to the embeddings counts as an embedding, so parameters are compared by identity.
        embeddings = {
            id(parameter)
            for module in model.modules()
            if isinstance(module, nn.Embedding | nn.EmbeddingBag)
            for parameter in module.parameters(recurse=False)
        }
        found: dict[str, nn.Parameter] = {}
        for name, parameter in model.named_parameters():
            part: Part | None = None
            if id(parameter) in embeddings:
                part = "embeddings"
            elif parameter.dim() < 2:
                part = "biases" if name.endswith("bias") else "norms"
            kept = any(fnmatch(name, pattern) for pattern in self.exclude)
            if parameter.is_floating_point() and parameter.numel() and not kept and (not part or part in self.include):
                found[name] = parameter
        return found


def _zero_smallest(weights: list[nn.Parameter], share: float, relative: bool) -> None:
    """Zeroes the `round(share * n)` weights of lowest magnitude, `relative` to their tensor's standard deviation."""
    scores = [weight.abs().flatten() for weight in weights]
    if relative:
        deviations = [weight.std(correction=0).clamp_min(1e-30) for weight in weights]
        scores = [score / deviation for score, deviation in zip(scores, deviations, strict=True)]
    flat = torch.cat([score.float() if score.itemsize < 4 else score for score in scores])
    count = round(share * flat.numel())
    if count == 0:
        return
    threshold = torch.kthvalue(flat, count).values
    drop = flat < threshold
    ties = (flat == threshold).nonzero().squeeze(1)
    drop[ties[: count - int(drop.sum())]] = True
    for weight, part in zip(weights, torch.split(drop, [weight.numel() for weight in weights]), strict=True):
        weight.masked_fill_(part.view_as(weight), 0.0)
