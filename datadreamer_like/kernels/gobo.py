"""GOBO: weights as indices of a few centroids, and the outliers of a Gaussian as they are.

Zadeh et al. 2020, arXiv:2005.03842. A Gaussian is fitted to a weight matrix; weights whose log density under it is low
are outliers and stay fp32. The others are clustered: starting from bins of equal population, each takes the nearest
centroid, and centroids become the means of what they got, until the sum of absolute differences stops falling.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from datadreamer_like.errors import DefinitionError

from .backends import MATVEC_ROWS, Backend, choose
from .codebook import codebook_dequantize, codebook_linear, in_blocks, pack_bits


class GOBOWeight(NamedTuple):
    """A matrix [out, in] quantized by `gobo_quantize`.

    Attributes:
        packed: uint8 [out, ceil(in b / 8)], indices of b bits of `pack_bits`; those of outliers are 0.
        centroids: fp32 [2^b], ascending.
        positions: int32 [outliers], ascending, of outliers in the flattened matrix.
        values: fp32 [outliers].
    """

    packed: Tensor
    centroids: Tensor
    positions: Tensor
    values: Tensor


def gobo_quantize(w: Tensor, bits: int = 3, *, threshold: float = -4.0) -> GOBOWeight:
    """Quantizes a matrix [out, in] of finite floats, computed in fp32; centroids in fp64.

    Args:
        w: [out, in], of any floating dtype.
        bits: 1 to 8; the paper has 3, and 4 for embeddings and sensitive layers.
        threshold: Weights whose natural log density under the fitted Gaussian is below are outliers. As a density it
            depends on the unit: for a standard deviation of 0.04 the value -4 means 3.6 deviations.
    """
    if not 1 <= bits <= 8:
        raise DefinitionError(f"bits is {bits}; an index of a centroid has from 1 to 8.")
    if w.dim() != 2 or not w.is_floating_point() or not w.numel():
        raise DefinitionError(f"gobo_quantize takes a floating matrix [out, in], got {w.dtype} {list(w.shape)}.")
    flat = w.detach().float().flatten()
    outlier = gobo_outliers(flat, threshold)
    positions = outlier.nonzero().flatten()
    centroids, _ = gobo_centroids(flat[~outlier], bits)
    codes = torch.bucketize(flat, ((centroids[:-1].double() + centroids[1:].double()) / 2).float(), out_int32=True)
    codes[positions] = 0
    return GOBOWeight(pack_bits(codes.view(w.shape), bits), centroids, positions.int(), flat[positions])


def gobo_outliers(w: Tensor, threshold: float = -4.0) -> Tensor:
    """Returns which weights have a log density below the threshold under the Gaussian of all: bool, the shape of w."""
    precise = w.double()
    deviation = float(precise.std(correction=0))
    if deviation == 0:
        return torch.zeros_like(w, dtype=torch.bool)
    # log N(w) = -z² / 2 - log(σ √(2π))
    square = ((precise - precise.mean()) / deviation).square_()
    return square > -2 * (threshold + math.log(deviation * math.sqrt(2 * math.pi)))


def gobo_centroids(values: Tensor, bits: int) -> tuple[Tensor, list[float]]:
    """Returns 2^b centroids, fp32 ascending, for numbers [n], and the L1 error of each iteration, which falls.

    Centroids that no number is nearest to keep their place. Without numbers all are 0.
    """
    count = 2**bits
    if not values.numel():
        return torch.zeros(count, device=values.device), []
    numbers = values.double().sort().values
    size = len(numbers)
    sums = F.pad(numbers.cumsum(0), (1, 0))  # of the first i numbers
    edges = (torch.arange(count + 1, device=numbers.device) * size) // count
    # A bin without numbers, where there are fewer of them than bins, starts at the number that follows it.
    start = numbers[edges[:-1].clamp(max=size - 1)]
    centroids = _means(sums, edges, start)
    best, errors = centroids, list[float]()
    while True:
        middles = (centroids[:-1] + centroids[1:]) / 2
        edges = F.pad(torch.searchsorted(numbers, middles, right=False), (1, 1))
        edges[-1] = size
        error = _absolute_error(numbers, sums, edges, centroids)
        if errors and not error < errors[-1]:
            return best.float(), errors
        errors.append(error)
        best, centroids = centroids, _means(sums, edges, centroids)


def gobo_dequantize(weight: GOBOWeight, inputs: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns the matrix [out, in]: centroids, and outliers bit for bit where the dtype holds them."""
    dense = codebook_dequantize(weight.packed, weight.centroids.to(dtype), inputs).contiguous()
    dense.view(-1)[weight.positions.long()] = weight.values.to(dtype)
    return dense


def gobo_linear(x: Tensor, weight: GOBOWeight, *, backend: Backend = None) -> Tensor:
    """Returns `x Wᵀ`, [..., out] in the dtype of x [..., in]; no gradients flow through it.

    `backend` is that of `codebook_linear`; "triton" adds the outliers' part to its product.
    """
    outputs, inputs = len(weight.packed), x.shape[-1]
    rows = x.reshape(-1, inputs)
    few = not x.is_cuda or len(rows) <= MATVEC_ROWS
    chosen = choose("gobo_linear", backend, x, offered=("reference", "cpu", "triton"), automatic=few)
    if chosen == "reference":
        return F.linear(x, gobo_dequantize(weight, inputs, x.dtype))
    if chosen == "cpu":
        return in_blocks(rows, outputs, _decoder(weight, inputs, x.dtype)).view(*x.shape[:-1], outputs)
    y = codebook_linear(x, weight.packed, weight.centroids, backend="triton")
    if not len(weight.positions):
        return y
    owners, columns = weight.positions // inputs, (weight.positions % inputs).long()
    # The product took an outlier for the first centroid.
    parts = rows.T[columns].float() * (weight.values - weight.centroids[0])[:, None]
    counts = torch.bincount(owners, minlength=outputs)
    added = torch.segment_reduce(parts, "sum", lengths=counts, axis=0, initial=0.0).T
    return (y.float() + added.view(y.shape)).to(x.dtype)


def _decoder(weight: GOBOWeight, inputs: int, dtype: torch.dtype) -> Callable[[slice], Tensor]:
    """Decodes a block of rows; outliers are in order, so those of a block are neighbours."""
    starts = torch.arange(len(weight.packed) + 1, device=weight.packed.device, dtype=torch.int32) * inputs
    edges = torch.searchsorted(weight.positions, starts)

    def decoded(part: slice) -> Tensor:
        found = slice(int(edges[part.start]), int(edges[part.stop]))
        positions = weight.positions[found] - part.start * inputs
        block = GOBOWeight(weight.packed[part], weight.centroids, positions, weight.values[found])
        return gobo_dequantize(block, inputs, dtype)

    return decoded


def _means(sums: Tensor, edges: Tensor, otherwise: Tensor) -> Tensor:
    """The mean of each bin of sorted numbers, given by its edges; of an empty one what it was."""
    sizes = edges.diff()
    return torch.where(sizes > 0, sums[edges].diff() / sizes.clamp(min=1), otherwise)


def _absolute_error(numbers: Tensor, sums: Tensor, edges: Tensor, centroids: Tensor) -> float:
    """`Σ |number - centroid|`, in 2^b steps: below a centroid the differences are `centroid - number`."""
    middle = torch.minimum(torch.maximum(torch.searchsorted(numbers, centroids), edges[:-1]), edges[1:])
    below = centroids * (middle - edges[:-1]) - (sums[middle] - sums[edges[:-1]])
    above = (sums[edges[1:]] - sums[middle]) - centroids * (edges[1:] - middle)
    return float((below + above).sum())
