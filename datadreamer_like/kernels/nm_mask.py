"""N:M masks: of every m consecutive scores in a row the n highest are kept."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from datadreamer_like.errors import DefinitionError

Backend = Literal["reference", "triton"] | None

# The GPU kernel compares each score with all others of its group, so for large groups sorting is faster.
_LARGEST_COMPARED = 32


def nm_mask(scores: Tensor, pattern: tuple[int, int], *, backend: Backend = None) -> Tensor:
    """Returns which of the scores to keep, bool of their shape: of every m consecutive ones the n highest.

    Args:
        scores: [..., in], of any floating dtype; higher is kept, such as `|W|`. Among equal scores the first are
            removed.
        pattern: (n, m); m divides `in`, so (n, in) keeps n scores of each row.
        backend: "reference" sorts each group, on any device; "triton" is a GPU kernel. Both give the same mask. None
            chooses "triton" on a GPU if it is installed, for groups of up to 32 scores, and "reference" elsewhere.

    Example:
        >>> nm_mask(torch.tensor([[0.3, 0.1, 0.2, 0.4]]), (2, 4)).tolist()
        [[True, False, False, True]]
    """
    kept, group = pattern
    inputs = scores.shape[-1] if scores.dim() else 0
    if not 0 <= kept <= group or group < 1 or inputs % group:
        raise DefinitionError(
            f"pattern={pattern} keeps {kept} of every {group} inputs, which must divide the {inputs} inputs."
        )
    if backend not in (None, "reference", "triton"):
        raise DefinitionError(f'nm_mask has no backend "{backend}". Choose "reference" or "triton".')
    if backend is None:
        on_gpu = scores.is_cuda and find_spec("triton") is not None
        backend = "triton" if on_gpu and group <= _LARGEST_COMPARED else "reference"
    grouped = scores.detach().reshape(*scores.shape[:-1], -1, group)
    if backend == "triton":
        from .triton.nm_mask import nm_mask_of_groups

        return nm_mask_of_groups(grouped.contiguous(), group - kept).view(scores.shape)
    order = grouped.argsort(dim=-1, stable=True)
    mask = torch.ones(grouped.shape, dtype=torch.bool, device=scores.device)
    return mask.scatter_(-1, order[..., : group - kept], False).view(scores.shape)
