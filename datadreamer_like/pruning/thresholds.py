"""What unstructured methods share: the smallest scores with a fixed order among equal ones, and N:M patterns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from datadreamer_like.compression.method import check_share
from datadreamer_like.errors import DefinitionError

Pattern = tuple[int, int]
"""(n, m): of every m consecutive inputs n are kept, as in (2, 4)."""


def smallest(scores: Sequence[Tensor], share: float) -> list[Tensor]:
    """Returns which scores are the `round(share * n)` smallest of all n, as bool tensors of their shapes.

    Among equal scores the first ones count as smaller, in the order of the tensors and of the positions in them.
    """
    if not scores:
        return []
    flat = torch.cat([(score.float() if score.itemsize < 4 else score).flatten() for score in scores])
    count = round(share * flat.numel())
    drop = torch.zeros_like(flat, dtype=torch.bool)
    if count:
        threshold = torch.kthvalue(flat, count).values
        drop = flat < threshold
        ties = (flat == threshold).nonzero().squeeze(1)
        drop[ties[: count - int(drop.sum())]] = True
    parts = torch.split(drop, [score.numel() for score in scores])
    return [part.view(score.shape) for part, score in zip(parts, scores, strict=True)]


def check_amount(method: str, sparsity: float | None, pattern: object) -> Pattern | None:
    """Returns the pattern as a tuple; raises `DefinitionError` unless exactly one of both is given and makes sense."""
    if (sparsity is None) == (pattern is None):
        raise DefinitionError(f"{method} takes either sparsity or pattern: {method}(0.5), or {method}(pattern=(2, 4)).")
    if sparsity is not None:
        check_share("sparsity", sparsity)
        return None
    counts = tuple(pattern) if isinstance(pattern, Sequence) else ()
    if list(map(type, counts)) != [int, int] or not 0 < counts[0] <= counts[1]:
        raise DefinitionError(f"pattern={pattern} must be (n, m): n of every m weights are kept, n <= m.")
    return counts


def why_indivisible(weights: Mapping[str, Tensor], pattern: Pattern | None) -> str | None:
    """The reason why weights [out, in], by name, cannot have this pattern; None if they can."""
    for name, weight in weights.items():
        if pattern is not None and weight.shape[-1] % pattern[1]:
            return (
                f"the {weight.shape[-1]} inputs of {name} are not a multiple of {pattern[1]}. "
                "Exclude it, or choose another pattern."
            )
    return None
