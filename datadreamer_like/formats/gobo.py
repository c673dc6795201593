"""Linear layers and embeddings whose weights are indices of a few centroids, with their outliers exact.

    {"kind": "gobo", "format": 1, "modules": {
        "bert.embeddings.word_embeddings": {"bits": 4, "outliers": 90},
        "bert.encoder.layer.0.attention.self.query": {"bits": 3, "outliers": 211}}}

Each module has its indices in `weight` (int8 [out, ceil(in bits / 8)] or [rows, ceil(size bits / 8)], see
`kernels.pack_bits`; a `Conv1D` is transposed), its centroids in `weight_centroids` (fp32 [2^bits]), and its outliers in
`weight_positions` (int32, ascending, in the flattened matrix) and `weight_values` (fp32). A linear layer has its
unchanged bias in `bias`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datadreamer_like.kernels import GOBOWeight, codebook_dequantize, gobo_dequantize, gobo_linear, gobo_quantize

from .decoded import DecodedLinear
from .layout import CodedModule, Entry, LayoutKind, register
from .modules import replace_modules

_EXACT = ("weight_centroids", "weight_values")


class GOBOLinear(DecodedLinear):
    """A linear layer whose weights are centroids of `bits` bits and fp32 outliers."""

    exact = _EXACT

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, bits: int = 3, outliers: int = 0
    ) -> None:
        super().__init__(in_features, out_features, bias, (out_features, -(-in_features * bits // 8)))
        _add_buffers(self, bits, outliers)

    @torch.no_grad()
    def quantize(self, weight: Tensor, threshold: float = -4.0) -> None:
        """Quantizes a weight [out, in] into this layer; it may have another number of outliers than before."""
        self.set_codes(_quantized_into(self, weight, threshold))

    @torch.no_grad()
    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns the dequantized weight [out, in]."""
        return gobo_dequantize(_weight_of(self, self.codes), self.in_features, dtype)

    def product(self, x: Tensor) -> Tensor:
        """Returns [..., out] for [..., in], without bias."""
        return gobo_linear(x, _weight_of(self, self.codes))

    def extra_repr(self) -> str:
        """The options, for `print(model)`."""
        return f"{super().extra_repr()}, bits={self.bits}, outliers={len(self.get_buffer('weight_values'))}"


class GOBOEmbedding(CodedModule):
    """An embedding whose rows are centroids of `bits` bits and fp32 outliers; `dtype` is that of its output."""

    exact = _EXACT

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None,
        dtype: torch.dtype = torch.float32,
        bits: int = 4,
        outliers: int = 0,
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx, self.dtype = padding_idx, dtype
        codes = torch.zeros(num_embeddings, -(-embedding_dim * bits // 8), dtype=torch.int8)
        self.weight = nn.Parameter(codes, requires_grad=False)
        _add_buffers(self, bits, outliers)

    @torch.no_grad()
    def quantize(self, weight: Tensor, threshold: float = -4.0) -> None:
        """Quantizes a matrix [rows, size] into this embedding; it may have another number of outliers than before."""
        codes = _quantized_into(self, weight, threshold)
        self.weight = nn.Parameter(codes.view(torch.int8), requires_grad=False)

    @torch.no_grad()
    def dequantized(self) -> Tensor:
        """Returns the dequantized matrix, fp32 [rows, size]."""
        return gobo_dequantize(_weight_of(self, self.weight.view(torch.uint8)), self.embedding_dim)

    @torch.no_grad()
    def forward(self, ids: Tensor) -> Tensor:
        """Returns [..., size] for row numbers [...]; decodes these rows alone."""
        weight, size = _weight_of(self, self.weight.view(torch.uint8)), self.embedding_dim
        rows = ids.reshape(-1)
        found = codebook_dequantize(F.embedding(rows, weight.packed), weight.centroids, size).contiguous()
        # Outliers are in order, so those of a row are neighbours: from `first`, `counts` of them.
        edges = torch.stack([rows, rows + 1]) * size
        first, last = torch.searchsorted(weight.positions, edges.to(torch.int32))
        counts = last - first
        owner = torch.arange(len(rows), device=ids.device).repeat_interleave(counts)
        place = torch.arange(len(owner), device=ids.device) - (counts.cumsum(0) - counts)[owner] + first[owner]
        found[owner, (weight.positions[place] % size).long()] = weight.values[place]
        return found.view(*ids.shape, size).to(self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # The dtype changes when the model is cast.
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        """The options, for `print(model)`."""
        return f"{self.num_embeddings}, {self.embedding_dim}, padding_idx={self.padding_idx}, bits={self.bits}"


def _add_buffers(module: Any, bits: int, outliers: int) -> None:
    module.bits = bits
    module.register_buffer("weight_centroids", torch.zeros(2**bits, dtype=torch.float32))
    module.register_buffer("weight_positions", torch.zeros(outliers, dtype=torch.int32))
    module.register_buffer("weight_values", torch.zeros(outliers, dtype=torch.float32))


def _quantized_into(module: Any, weight: Tensor, threshold: float) -> Tensor:
    codes, module.weight_centroids, module.weight_positions, module.weight_values = gobo_quantize(
        weight, module.bits, threshold=threshold
    )
    return codes


def _weight_of(module: Any, codes: Tensor) -> GOBOWeight:
    return GOBOWeight(codes, module.weight_centroids, module.weight_positions, module.weight_values)


class GOBO(LayoutKind):
    """Linear layers and embeddings whose weights are centroids and outliers."""

    name = "gobo"
    trainable = False

    def rebuild(self, model: nn.Module, entry: Entry) -> None:
        """Puts empty modules in place."""
        facts = entry["modules"].items()
        found = {name: gobo_like(model.get_submodule(name), how["bits"], how["outliers"]) for name, how in facts}
        replace_modules(model, found)


def gobo_like(module: nn.Module, bits: int, outliers: int = 0) -> GOBOLinear | GOBOEmbedding:
    """An empty module with the sizes and device of a linear layer, `Conv1D` or embedding."""
    if not isinstance(module, nn.Embedding):
        return GOBOLinear.like(module, bits, outliers)
    sizes = module.num_embeddings, module.embedding_dim, module.padding_idx, module.weight.dtype
    with torch.device(module.weight.device):
        return GOBOEmbedding(*sizes, bits, outliers).train(module.training)


register(GOBO())
