"""Keeps pruned weights zero while a sparse model is retrained."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from datadreamer_like.errors import DefinitionError
from datadreamer_like.formats.sparse import sparse_names


def masks(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the mask of each pruned parameter, True for non-zero weights; compute them before training."""
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach() != 0 for name in sparse_names(model) if name in parameters}


@torch.no_grad()
def reapply(model: nn.Module, kept: Mapping[str, torch.Tensor]) -> None:
    """Sets all weights outside the masks to zero, in place; call it after each optimizer step, which updates them."""
    parameters = dict(model.named_parameters())
    for name, mask in kept.items():
        parameters[name].mul_(mask.to(parameters[name].device))


def cubic_sparsity(
    step: int, *, final: float, steps: int, initial: float = 0.0, begin: int = 0, every: int = 1
) -> float:
    """Returns the sparsity at a training step of the cubic schedule, which rises fast at first and slowly at the end.

    `s_t = s_f + (s_i - s_f) (1 - (t - t0) / (n dt))^3`. Zhu and Gupta, "To prune, or not to prune", 2017,
    arXiv:1710.01878.

    `step` is t, from 0; `final` and `initial` are s_f and s_i; `steps` is n·dt, its length. It starts
    at `begin`, t0; `every` is dt: between two prunings the sparsity stays.

    Example:
        >>> [round(cubic_sparsity(t, final=0.8, steps=4), 4) for t in range(6)]
        [0.0, 0.4625, 0.7, 0.7875, 0.8, 0.8]
    """
    if steps < 1 or every < 1:
        raise DefinitionError(f"steps={steps} and every={every} must both be at least 1.")
    passed = max(0, step - begin) // every * every
    return final + (initial - final) * (1 - min(1.0, passed / steps)) ** 3
