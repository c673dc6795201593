"""The Hessian of a layer's output error, and the factor of its inverse: what SparseGPT and GPTQ update weights with.

For one output row w of a layer, the error `(1/n) ‖X (w - ŵ)‖²` over n tokens is quadratic in w, and its second
derivative `H = (2/n) XᵀX` is the same for all rows. Removing weight j, and updating the others so that the error grows
least, takes `H⁻¹`; doing so for all columns in order takes the rows of one triangular factor of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError
from datadreamer_like.formats.modules import weight_of

from .calibration import Block, check_measured


def input_hessians(block: Block, layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Runs a block of `walk_blocks` once and returns `H = (2/n) XᵀX` of each layer's inputs: by name, fp32 [in, in].

    X [n, in] are a layer's inputs for all calibration tokens that are not padding; a layer that got no token, such as
    an expert that was never chosen, has zeros. `layers` are linear layers inside the block, by any names. The block is
    as it is at the time of the call: call it before changing the first of its layers.
    """
    weights = {name: weight_of(layer) for name, layer in layers.items()}
    sums = {name: torch.zeros([weight.shape[1]] * 2, device=weight.device) for name, weight in weights.items()}
    counts = dict.fromkeys(layers, 0)
    last: list[tuple[Tensor, Tensor, int]] = []  # an input with its product: query, key and value get the same tensor

    def add(name: str, _layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not last or last[0][0] is not inputs[0]:
            tokens = block.tokens(inputs[0]).float()
            last[:] = [(inputs[0], tokens.T @ tokens, len(tokens))]
        _, product, count = last[0]
        sums[name] += product
        counts[name] += count

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_pre_hook(partial(add, name)))
        block.run()
    return {name: total.mul_(2 / max(1, counts[name])) for name, total in sums.items()}


def inverse_factor(hessian: Tensor, damping: float = 0.01) -> Tensor:
    """Returns the upper triangular U with `H⁻¹ = UᵀU` of a damped Hessian, as fp32 [in, in].

    Row j of U holds what the optimal update needs once the columns before j are fixed: the inverse of the Hessian that
    is left has `U_jj²` as its first entry and `U_jj U_j,j:` as its first row. So the error of setting weight w to q is
    `(w - q)² / U_jj²`, and the remaining weights change by `-(w - q) / U_jj · U_j,j:`.

    An input that is always zero has `H_jj = 0` and gets 1 there, so that it has no effect on the others; its weights
    are arbitrary, and the caller sets them to zero (`weight[:, hessian.diagonal() == 0] = 0`).

    Args:
        hessian: `H` [in, in], symmetric, not changed.
        damping: `damping * mean(diag H)` is added to the diagonal: 0.01 in both papers. It makes H positive definite
            also where there are fewer tokens than inputs.

    Raises:
        DataError: H holds NaN or infinities, or is not positive definite with this damping.
    """
    damped = hessian.float().clone()
    diagonal = damped.diagonal()
    diagonal[diagonal == 0] = 1.0
    diagonal += damping * diagonal.mean()
    check_measured(damped, "The inputs of a layer")
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(damped)
    if not failed:
        factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor), upper=True)
    if failed:
        raise DataError(
            f"The Hessian of a layer's inputs is not positive definite with damping={damping}. Raise damping, or "
            "calibrate on more texts."
        )
    return factor


def check_damping(damping: object) -> None:
    """Raises `ArgumentTypeError` if a damping is not a number, and `DefinitionError` if it is negative or infinite."""
    if not isinstance(damping, int | float):
        raise ArgumentTypeError(f"damping must be a number, not {damping!r}.")
    if not 0 <= damping < float("inf"):
        raise DefinitionError(f"damping is {damping}; it must be a share of the mean diagonal, such as 0.01.")
