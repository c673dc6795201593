"""Pruning while a model is trained: the base of methods that do so, and the masks that they put on weights.

A mask is a parametrization of a layer's weight (`torch.nn.utils.parametrize`): the layer computes with the masked
weight, and the optimizer sees the weight under it, and in movement pruning the scores. Both are in the model's
`state_dict`, so they are in a trainer's checkpoints, and a killed training resumes with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from datadreamer_like.compression import CompressesWhileTraining
from datadreamer_like.formats import mark_sparse
from datadreamer_like.formats.sparse import sparse_names


class Schedule(Protocol):
    """When a method removes something during a training."""

    def bounds(self, steps: int) -> tuple[int, int]:
        """Returns the steps, of so many, between which something is removed; after the last one nothing is."""


class PrunesWhileTraining(CompressesWhileTraining):
    """Base of methods that can prune while the model is trained, such as in `stages.Prune(retrain=...)`.

    A subclass is a dataclass with a `schedule`, None if weights are to be removed at once, before the training. Its
    `begin` puts masks on the weights to prune, which keep all of them, and `after_step` changes the masks.
    """

    schedule: Schedule | None

    @property
    def needs_training(self) -> bool:
        """Whether there is a schedule."""
        return self.schedule is not None

    def final_from(self, steps: int) -> int:
        """The step at which the last weights are removed."""
        assert self.schedule is not None
        return self.schedule.bounds(steps)[1]

    def end(self, model: nn.Module) -> None:
        """Takes the masks off: what they hide becomes zero, and the model is stored sparse."""
        names = [each.name for each in masked(model)]
        for name in names:
            module_name, _, tensor = name.rpartition(".")
            parametrize.remove_parametrizations(model.get_submodule(module_name), tensor)
        mark_sparse(model, names)


class Mask(nn.Module):
    """Multiplies a weight by a mask, so that what it hides gets no gradient.

    Attributes:
        mask: Bool of the weight's shape, True for weights that are kept.
    """

    mask: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the weight with zeros where the mask is False."""
        return weight * self.mask


class ScoredMask(Mask):
    """A mask that is chosen by scores, which learn from the gradient of the masked weight.

    Attributes:
        scores: fp32 of the weight's shape, from 0.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        self.scores = nn.Parameter(torch.zeros_like(weight, dtype=torch.float32))

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the weight with zeros where the mask is False."""
        return cast(Tensor, _StraightThrough.apply(weight, self.scores, self.mask))  # type: ignore[no-untyped-call]


class _StraightThrough(torch.autograd.Function):
    """`W' = W * mask`, with `∂L/∂S = ∂L/∂W' * W` as if the scores were the mask (Sanh et al. 2020, equation 3)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(weight, mask)
        ctx.dtype = scores.dtype
        return weight * mask

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = grads
        weight, mask = ctx.saved_tensors
        return grad * mask, (grad * weight).to(ctx.dtype), None


class Masked(NamedTuple):
    """A weight under a mask: its name without the mask, its value, and the mask."""

    name: str
    weight: Tensor
    mask: Mask


def put_masks(model: nn.Module, names: list[str], kind: type[Mask]) -> None:
    """Puts a mask of this kind on each of the parameters, by name, in place."""
    for name in names:
        module_name, _, tensor = name.rpartition(".")
        module = model.get_submodule(module_name)
        parametrize.register_parametrization(module, tensor, kind(getattr(module, tensor)))


def masked(model: nn.Module) -> Iterator[Masked]:
    """Finds the weights under masks, in the order of the modules."""
    for module_name, module in model.named_modules():
        for tensor, steps in getattr(module, "parametrizations", {}).items():
            mask = steps[-1]
            if isinstance(mask, Mask):
                yield Masked(f"{module_name}.{tensor}".removeprefix("."), steps.original, mask)


def why_unmaskable(model: nn.Module) -> str | None:
    """The reason why weights of a model cannot be removed while it is trained; None if they can."""
    if sparse_names(model):
        return "it is sparse already, and this method chooses among all weights. Start from the dense model."
    return None
