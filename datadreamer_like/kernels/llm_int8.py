"""LLM.int8: int8 products of most features, and products in higher precision of the few with large activations.

Dettmers et al. 2022, arXiv:2208.07339.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from datadreamer_like.errors import ArgumentTypeError, DefinitionError

from .backends import Backend
from .int8 import PackedInt8Weight, check_int8, int8_linear, packed_linear

# Where int8 with outliers is faster than fp32 on a CPU: with weights of so many values; with fewer, in calls of so many
# products, unless there are few products for each value that is read or written.
_WEIGHTS = 2**20
_PRODUCTS = 2**24
_PRODUCTS_A_VALUE = 256


def llm_int8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    threshold: float | None = 6.0,
    packed: PackedInt8Weight | None = None,
    dense: Tensor | None = None,
    backend: Backend = None,
) -> Tensor:
    """Returns `x Wᵀ + bias`, [..., out] in the dtype of x, with outlier features taken out of the int8 product.

    Features (columns) of x with a magnitude of at least the threshold in any row are multiplied in fp32 with their
    dequantized weights. The scales of the others leave them out. Since a feature is an outlier for all rows of a call,
    the result for a row depends on the other rows, within the rounding of int8.

    Args:
        x: [..., in], of any floating dtype.
        weight: int8 [out, in].
        weight_scale: fp32 [out, 1].
        bias: [out].
        threshold: 6.0 in the paper. 0 multiplies everything in fp32; None, or infinity, nothing: pure `int8_linear`.
            (bitsandbytes writes that as 0.)
        packed: As in `int8_linear`, which also describes gradients.
        dense: The dequantized weight in fp32, transposed, [in, out]. All features are multiplied by it, as with a
            threshold of 0: for calls of which `dense_is_faster` is true.
        backend: As in `int8_linear`.
    """
    check_threshold(threshold)
    if dense is not None and backend is None and threshold is not None:
        return _dense_product(x, dense, bias)
    check_int8(x, weight, weight_scale)
    columns = outlier_features(x, threshold)
    if not len(columns):
        return int8_linear(x, weight, weight_scale, bias, packed=packed, backend=backend)
    rows = x.reshape(-1, x.shape[-1])
    precise = (weight.index_select(1, columns) * weight_scale).T
    trained = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
    on_cpu = x.device.type == "cpu" and backend in (None, "cpu") and not torch.compiler.is_compiling()
    if packed is not None and on_cpu and not trained:
        # In blocks of rows that stay in the cache: in whole passes the outliers took as long as the product.
        y = packed_linear(rows, packed, bias, outliers=(columns, precise))
    else:
        y = int8_linear(rows.index_fill(1, columns, 0.0), weight, weight_scale, bias, packed=packed, backend=backend)
        with torch.autocast(x.device.type, enabled=False):
            y = torch.addmm(y.float(), rows[:, columns].float(), precise)
    return y.to(x.dtype).view(*x.shape[:-1], len(weight))


def dense_is_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether x [..., in] on a CPU is multiplied by a weight [out, in] faster in fp32 than in int8 with outliers.

    Quantizing activations takes time per call and per element, which few rows, and small weights, do not earn back.
    Measured by `benchmarks/int8.py --layers`. Never true of weights of a million values or more.
    """
    count = weight.numel()
    if x.device.type != "cpu" or count >= _WEIGHTS or torch.compiler.is_compiling():
        return False
    return count < _PRODUCTS_A_VALUE * sum(weight.shape) or x.numel() * weight.shape[0] < _PRODUCTS


def _dense_product(x: Tensor, dense: Tensor, bias: Tensor | None) -> Tensor:
    if torch.is_autocast_enabled(x.device.type):
        with torch.autocast(x.device.type, enabled=False):
            return _dense_product(x, dense, bias)
    rows = x.reshape(-1, x.shape[-1]).float()
    # With the weight in this order few rows take two thirds of the time of `functional.linear`.
    y = rows @ dense if bias is None else torch.addmm(bias.float(), rows, dense)
    return y.to(x.dtype).view(*x.shape[:-1], dense.shape[1])


def outlier_features(x: Tensor, threshold: float | None) -> Tensor:
    """Returns the indices, int64 ascending, of the features of x [..., in] that reach the threshold in any row."""
    if threshold is None or math.isinf(threshold) or not x.numel():
        return torch.empty(0, dtype=torch.int64, device=x.device)
    rows = x.detach().reshape(-1, x.shape[-1])
    return (rows.abs().amax(0) >= threshold).nonzero().flatten()


def check_threshold(threshold: float | None) -> None:
    """Raises `DefinitionError` if a threshold is negative or NaN, and `ArgumentTypeError` if it is not a number."""
    if threshold is not None and not isinstance(threshold, int | float):
        raise ArgumentTypeError(f"threshold must be a number or None, not {threshold!r:.100}.")
    if threshold is not None and not threshold >= 0:
        raise DefinitionError(
            f"threshold is {threshold}; it is the magnitude from which a feature is an outlier, so at least 0, or None "
            "for no outliers."
        )
