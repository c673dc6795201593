"""The hard concrete distribution: gates in [0, 1] that are exactly 0 or 1 with a probability that learns.

Louizos, Welling and Kingma 2018, "Learning Sparse Neural Networks through L0 Regularization", arXiv:1712.01312. With
`u ~ U(0, 1)`, `s = σ((log u - log(1 - u) + log α) / β)` and `z = clip(s (r - l) + l, 0, 1)`. A model has some ten
thousand gates against millions of weights, so plain PyTorch is all that these functions need, on a GPU too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from datadreamer_like.errors import DefinitionError

TEMPERATURE = 2 / 3
"""β."""
STRETCH = (-0.1, 1.1)
"""l and r."""
_SHARPNESS = 0.8


def hard_concrete_sample(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """Returns gates z in [0, 1], with gradients for `log_alpha`.

    Args:
        log_alpha: [...], of any floating dtype; higher ones are more often 1.
        uniform: Numbers of the same shape, drawn from (0, 1).

    Raises:
        DefinitionError: The shapes differ.

    Example:
        >>> hard_concrete_sample(torch.tensor([-3.0, 0.0, 3.0]), torch.tensor([0.5, 0.5, 0.5])).tolist()
        [0.0, 0.5, 1.0]
    """
    if log_alpha.shape != uniform.shape:
        raise DefinitionError(
            f"hard_concrete_sample takes one random number for each gate, got {list(uniform.shape)} for "
            f"{list(log_alpha.shape)}."
        )
    low, high = STRETCH
    s = torch.sigmoid((torch.logit(uniform) + log_alpha) / TEMPERATURE)
    return (s * (high - low) + low).clamp(0, 1)


def hard_concrete_keep_probability(log_alpha: Tensor) -> Tensor:
    """Returns the probability [...] that a gate is not 0: `1 - σ(β logit(-l / (r - l)) - log α)`.

    Their sum is the expected L0 norm of the gates.

    Example:
        >>> [round(p, 3) for p in hard_concrete_keep_probability(torch.tensor([-10.0, 0.0, 10.0])).tolist()]
        [0.0, 0.832, 1.0]
    """
    low, high = STRETCH
    share = -low / (high - low)
    return torch.sigmoid(log_alpha - TEMPERATURE * math.log(share / (1 - share)))


def hard_concrete_mask(log_alpha: Tensor) -> Tensor:
    """Returns the gates of one group after training, without chance: [gates].

    As many of the smallest are 0 as are expected to be, rounded, the first ones among equals; the others are
    `σ(0.8 log α / β)`. Wang, Wohlwend and Lei 2020, arXiv:1910.04732.

    Example:
        >>> [round(z, 3) for z in hard_concrete_mask(torch.tensor([4.6, -4.6, 4.6])).tolist()]
        [0.996, 0.0, 0.996]
    """
    if log_alpha.dim() != 1:
        raise DefinitionError(f"hard_concrete_mask takes the gates of one group, [gates], got {list(log_alpha.shape)}.")
    expected = hard_concrete_keep_probability(log_alpha).sum()
    zeros = round(len(log_alpha) - float(expected))
    return hard_concrete_kept_value(log_alpha).index_fill(0, log_alpha.argsort(stable=True)[:zeros], 0.0)


def hard_concrete_kept_value(log_alpha: Tensor) -> Tensor:
    """Returns what gates [...] are after training if they are kept: `σ(0.8 log α / β)`."""
    return torch.sigmoid(_SHARPNESS * log_alpha / TEMPERATURE)
