"""Magnitude pruning: removes the weights nearest to zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from datadreamer_like.compression import Batches
from datadreamer_like.compression.method import already_quantized, check_patterns, check_share
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, check_sequence
from datadreamer_like.formats import mark_sparse
from datadreamer_like.formats.modules import matches
from datadreamer_like.kernels import nm_mask

from .retraining import Cubic
from .thresholds import Pattern, check_amount, smallest, why_indivisible
from .while_training import Mask, PrunesWhileTraining, masked, put_masks, why_unmaskable

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Linear, nn.Bilinear, nn.RNNBase, nn.RNNCellBase, Conv1D, *_CONVOLUTIONS)
Scope = Literal["model", "layer", "distribution"]
Part = Literal["embeddings", "biases", "norms"]


@dataclass(frozen=True)
class Magnitude(PrunesWhileTraining):
    """Sets the weights of smallest magnitude to zero, and stores the rest sparse.

    Han et al. 2015, arXiv:1506.02626; the scopes are those of See, Luong and Manning 2016, arXiv:1606.09274. Exactly
    `round(sparsity * n)` of the eligible weights are set to zero; among equal magnitudes the first in parameter order.
    The result is smaller on disk (one bit per position, and the non-zero values); memory and speed are those of the
    dense model. To retrain, keep the zeros with `masks` and `reapply`, or prune while a trainer trains, by a schedule
    (Zhu and Gupta 2017, arXiv:1710.01878): `Prune("...", model, Magnitude(0.9, schedule=Cubic()), retrain={...})`.

    Attributes:
        sparsity: Share of the weights that become zero, in [0, 1). Leave it out if a pattern is given.
        scope: How thresholds are chosen. "model": one threshold for all weights (class-blind, the best in See et al.).
            "layer": each weight matrix loses the same share (class-uniform). "distribution": each matrix's threshold
            is the same multiple of its standard deviation (class-distribution).
        pattern: (n, m): of every m consecutive inputs of each weight matrix n are kept, as in (2, 4).
        schedule: How the share rises during training, so that the model adapts; None to prune at once.
        include: Parts to prune too, from "embeddings", "biases", "norms". Positions, class tokens and biases that are
            parameters of their own count as embeddings and biases by their names.
        exclude: Patterns of names of modules or parameters that are never pruned, for instance ("classifier",).
        others: Another sparsity for modules or parameters whose names match a pattern, each parameter pruned by
            itself, for instance (("classifier", 0.2),).

    Example:
        >>> from torch import nn
        >>> small = Magnitude(sparsity=0.75).apply(nn.Linear(8, 8))
        >>> int((small.weight == 0).sum()), int((small.bias == 0).sum())
        (48, 0)
    """

    sparsity: float | None = None
    scope: Scope = "model"
    include: tuple[Part, ...] = ()
    exclude: tuple[str, ...] = ()
    pattern: Pattern | None = None
    schedule: Cubic | None = None
    others: tuple[tuple[str, float], ...] = ()

    kind = "pruning"
    papers = ("1506.02626", "1606.09274", "1710.01878")
    result_version = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", check_amount("Magnitude", self.sparsity, self.pattern))
        check_patterns(self.exclude)
        if self.scope not in get_args(Scope):
            raise DefinitionError(f'scope is "{self.scope}"; it must be one of {", ".join(get_args(Scope))}.')
        check_sequence(self.include, "include", "parts")
        unknown = sorted(set(map(str, self.include)) - set(get_args(Part)))
        if unknown:
            raise DefinitionError(f"include names {', '.join(unknown)}; it may name {', '.join(get_args(Part))}.")
        for pair in self.others if isinstance(self.others, list | tuple) else [self.others]:
            if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
                raise ArgumentTypeError(
                    "others must be pairs of a pattern and a sparsity, as in "
                    f'(("classifier", 0.2),), not {pair!r:.100}.'
                )
            check_share("A sparsity in others", pair[1])
        if self.pattern is not None and (self.scope != "model" or self.include or self.others):
            raise DefinitionError("A pattern is that of each weight matrix. Leave scope, include and others out.")
        if self.schedule is not None and (not isinstance(self.schedule, Cubic) or self.pattern or self.include):
            raise DefinitionError(
                "schedule must be a pruning.Cubic, for a sparsity of weight matrices. Leave pattern and include out."
            )

    @classmethod
    def example(cls) -> Self:
        """Half of all weights."""
        return cls(sparsity=0.5)

    def fits(self, model: nn.Module) -> str | None:
        """Any module with floating-point weights, unquantized."""
        if reason := already_quantized(model):
            return reason
        found = self._weights(model)
        if not found:
            return "it has no floating-point weight that this method may prune (biases, norms and embeddings are kept)."
        if self.schedule is not None and (reason := why_unmaskable(model)):
            return reason
        return why_indivisible({name: _rows(model, name, weight) for name, weight in found.items()}, self.pattern)

    def change(self, model: nn.Module, calibration: Batches | None) -> None:
        """Zeroes the smallest weights in place; calibration data are not used.

        Raises:
            DefinitionError: The method has a schedule, which only a training can follow.
        """
        if self.schedule is not None:
            raise DefinitionError(
                f"{self} removes weights during a training, and there is none. Pass it to stages.Prune with "
                "retrain={...}, or leave schedule out."
            )
        found = self._weights(model)
        for name, dropped in self._dropped(model, found).items():
            found[name].masked_fill_(dropped, 0.0)
        mark_sparse(model, found)

    def begin(self, model: nn.Module) -> None:
        """Puts masks on the weights, in place; they keep all of them."""
        put_masks(model, list(self._weights(model)), Mask)

    @torch.no_grad()
    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        """Removes the smallest weights that are left, as many as the schedule says."""
        assert self.schedule is not None
        assert self.sparsity is not None
        if self.schedule.is_due(step, steps):
            share = self.schedule.sparsity(step, steps, self.sparsity)
            found = {each.name: each for each in masked(model)}
            values = {name: each.mask(each.weight) for name, each in found.items()}
            for name, dropped in self._by_share(values, share).items():
                found[name].mask.mask.copy_(~dropped)

    def _dropped(self, model: nn.Module, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Which weights to remove, bool of their shapes, by name."""
        if self.pattern is None:
            assert self.sparsity is not None
            return self._by_share(found, self.sparsity)
        dropped = {}
        for name, weight in found.items():
            rows = ~nm_mask(_rows(model, name, weight).abs(), self.pattern)
            dropped[name] = rows.T if _is_transposed(model, name) else rows.view(weight.shape)
        return dropped

    def _by_share(self, weights: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
        """Which weights to remove at a share that may be below the final one, which `others` are then below as well."""
        scores = {name: weight.detach().abs() for name, weight in weights.items()}
        dropped = {}
        for name in weights:
            if other := [own for pattern, own in self.others if matches(name, (pattern,))]:
                (dropped[name],) = smallest([scores.pop(name)], other[0] * (share / (self.sparsity or 1)))
        if self.scope == "layer":
            return dropped | {name: smallest([score], share)[0] for name, score in scores.items()}
        if self.scope == "distribution":  # one threshold for magnitudes relative to the matrix's standard deviation
            for name, score in scores.items():
                scores[name] = score / weights[name].detach().std(correction=0).clamp_min(1e-30)
        return dropped | dict(zip(scores, smallest(list(scores.values()), share), strict=True))

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
            elif not isinstance(model.get_submodule(name.rpartition(".")[0]), _LAYERS):
                part = _part_by_name(name.rpartition(".")[2], parameter)
            kept = matches(name, self.exclude)
            if parameter.is_floating_point() and parameter.numel() and not kept and (not part or part in self.include):
                found[name] = parameter
        return found


def _part_by_name(name: str, parameter: Tensor) -> Part | None:
    """What a parameter that no layer of PyTorch has is: ViT's `position_embeddings`, Mamba's `A_log`, a weight norm."""
    if "emb" in name or "token" in name:
        return "embeddings"
    if "bias" in name:
        return "biases"
    return "norms" if name.endswith("_log") or parameter.numel() == max(parameter.shape) else None


def _rows(model: nn.Module, name: str, weight: Tensor) -> Tensor:
    """A weight as [out, in]: transposed in a `Conv1D`, flattened in a convolution."""
    if weight.dim() < 2:
        return weight
    return weight.T if _is_transposed(model, name) else weight.flatten(1)


def _is_transposed(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_submodule(name.rpartition(".")[0]), Conv1D)
