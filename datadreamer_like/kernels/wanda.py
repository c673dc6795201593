"""Wanda's mask: `S_ij = |W_ij| * ||X_j||_2`, compared within each output row (Sun et al. 2023, arXiv:2306.11695)."""

from __future__ import annotations

from torch import Tensor

from datadreamer_like.errors import DefinitionError

from .nm_mask import Backend, nm_mask


def wanda_mask(
    weight: Tensor,
    input_norm: Tensor,
    sparsity: float | None = None,
    *,
    pattern: tuple[int, int] | None = None,
    backend: Backend = None,
) -> Tensor:
    """Returns which weights to keep, bool [out, in]; pass either `sparsity` or `pattern`.

    Args:
        weight: [out, in], of any floating dtype; scores are computed in fp32.
        input_norm: [in], the l2 norm of each input feature over all calibration tokens.
        sparsity: Share of each row that is removed, in [0, 1): exactly `round(sparsity * in)` weights. Among equal
            scores the first in the row are removed.
        pattern: (n, m): of every m consecutive inputs the n with the highest scores are kept.
        backend: That of `nm_mask`, which compares the scores.

    Example:
        >>> import torch
        >>> wanda_mask(torch.tensor([[3.0, 2.0, 1.0, 1.0]]), torch.tensor([0.1, 1.0, 1.0, 4.0]), 0.5).tolist()
        [[False, True, False, True]]
    """
    if weight.dim() != 2 or input_norm.shape != weight.shape[1:]:
        raise DefinitionError(
            f"wanda_mask takes a weight [out, in] and a norm [in], got {list(weight.shape)} and "
            f"{list(input_norm.shape)}."
        )
    if (sparsity is None) == (pattern is None):
        raise DefinitionError("wanda_mask takes either sparsity or pattern. Pass one of them.")
    inputs = weight.shape[1]
    if pattern is None:
        assert sparsity is not None
        if not 0 <= sparsity < 1:
            raise DefinitionError(f"sparsity is {sparsity}; it is the share removed, so it must be in [0, 1).")
        pattern = inputs - round(sparsity * inputs), inputs
    scores = weight.detach().abs().float() * input_norm.float()
    return nm_mask(scores, pattern, backend=backend)
