"""Linear layers and embeddings in int8 with a scale per row; activations are quantized dynamically.

    {"kind": "int8", "format": 1, "granularity": "token", "modules": {
        "bert.embeddings.word_embeddings": {},
        "bert.encoder.layer.0.attention.self.query": {},
        "lm_head": {"tied": true}}}
    {"kind": "llm_int8", "format": 1, "threshold": 6.0, "modules": {"model.layers.0.self_attn.q_proj": {}}}

Each module has its codes in `weight` (int8, [out, in] or [rows, size]; a `Conv1D` is transposed), its scales in
`weight_scale` (fp32, [out, 1]) and its unchanged bias in `bias`. Sizes are those of the replaced modules. A head that
is tied to the embedding has the same codes: they are stored once, and transformers ties them on loading. Layers of
"llm_int8" multiply features whose activations reach the threshold (null: none) in higher precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datadreamer_like.kernels import (
    Granularity,
    PackedInt8Weight,
    absmax_dequantize,
    int8_linear,
    llm_int8_linear,
    pack_int8_weight,
)
from datadreamer_like.kernels.llm_int8 import dense_is_faster

from .layout import CodedModule, Entry, LayoutKind, register, version
from .modules import replace_modules


class _Int8Rows(CodedModule):
    """A matrix of int8 codes with a scale per row, which stays fp32 when the model is cast."""

    exact = ("weight_scale",)
    weight_scale: Tensor

    def __init__(self, rows: int, size: int) -> None:
        super().__init__()
        # A parameter, since only parameters can be tied, but not trainable.
        self.weight = nn.Parameter(torch.zeros(rows, size, dtype=torch.int8), requires_grad=False)
        self.register_buffer("weight_scale", torch.ones(rows, 1, dtype=torch.float32))

    def dequantized(self) -> Tensor:
        """Returns the dequantized weight, fp32 [rows, size]."""
        return absmax_dequantize(self.weight, self.weight_scale)


class Int8Linear(_Int8Rows):
    """A linear layer with int8 weights [out, in] and activations quantized dynamically by AbsMax; see `int8_linear`."""

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, granularity: Granularity = "token"
    ) -> None:
        super().__init__(out_features, in_features)
        self.in_features, self.out_features = in_features, out_features
        self.granularity: Granularity = granularity
        self.bias = nn.Parameter(torch.zeros(out_features), requires_grad=False) if bias else None
        self._packed: tuple[Any, PackedInt8Weight | None] = (None, None)

    def forward(self, x: Tensor) -> Tensor:
        """Returns [..., out] for [..., in], in the dtype of x."""
        packed = self.packed(x)
        return int8_linear(x, self.weight, self.weight_scale, self.bias, granularity=self.granularity, packed=packed)

    def packed(self, x: Tensor) -> PackedInt8Weight | None:
        """Returns the weight packed for the CPU's int8 engine; None for inputs that it does not multiply."""
        packed = None
        if x.device.type == self.weight.device.type == "cpu" and not torch.compiler.is_compiling():
            # Packed at the first use, and again after the weight changed.
            now = (version(self.weight), version(self.weight_scale))
            if self._packed[0] != now:
                self._packed = (now, pack_int8_weight(self.weight, self.weight_scale))
            packed = self._packed[1]
        return packed

    def __getstate__(self) -> dict[str, Any]:
        # The packed weight cannot be copied or pickled; it is packed again.
        return {**self.__dict__, "_packed": (None, None)}

    def extra_repr(self) -> str:
        """The options, for `print(model)`."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, granularity={self.granularity}"


class LLMInt8Linear(Int8Linear):
    """An `Int8Linear` that multiplies outlier features of its input in fp32; see `llm_int8_linear`."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, threshold: float | None = 6.0) -> None:
        super().__init__(in_features, out_features, bias)
        self.threshold = threshold
        self._dense: tuple[Any, Tensor | None] = (None, None)

    def forward(self, x: Tensor) -> Tensor:
        """Returns [..., out] for [..., in], in the dtype of x."""
        dense = self._dequantized() if self.threshold is not None and dense_is_faster(x, self.weight) else None
        packed = self.packed(x) if dense is None else None
        options: dict[str, Any] = {"threshold": self.threshold, "packed": packed, "dense": dense}
        return llm_int8_linear(x, self.weight, self.weight_scale, self.bias, **options)

    def _dequantized(self) -> Tensor | None:
        # Only small layers keep their weight in fp32 too.
        now = (version(self.weight), version(self.weight_scale))
        if self._dense[0] != now:
            with torch.inference_mode(False):  # gradients may be asked for later
                self._dense = (now, self.dequantized().T.contiguous())
        return self._dense[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_dense": (None, None)}

    def extra_repr(self) -> str:
        """The options, for `print(model)`."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, threshold={self.threshold}"


class Int8Embedding(_Int8Rows):
    """An embedding with int8 codes [rows, size] and a scale per row; `dtype` is that of its output."""

    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(num_embeddings, embedding_dim)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx, self.dtype = padding_idx, dtype

    def forward(self, ids: Tensor) -> Tensor:
        """Returns [..., size] for row numbers [...]."""
        codes = F.embedding(ids, self.weight)
        return absmax_dequantize(codes, F.embedding(ids, self.weight_scale), self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # The dtype changes when the model is cast.
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        """The options, for `print(model)`."""
        return f"{self.num_embeddings}, {self.embedding_dim}, padding_idx={self.padding_idx}"


class Int8(LayoutKind):
    """Modules with int8 codes and a scale per row."""

    name = "int8"
    trainable = False
    takes_adapters = False

    def rebuild(self, model: nn.Module, entry: Entry) -> None:
        """Puts empty int8 modules in place."""
        found = {name: int8_like(model.get_submodule(name), entry["granularity"]) for name in entry["modules"]}
        replace_modules(model, found)

    def pack(self, model: nn.Module, state: dict[str, Tensor], entry: Entry) -> None:
        """Leaves out the codes of a tied head."""
        for name, facts in entry["modules"].items():
            if facts.get("tied"):
                state.pop(f"{name}.weight", None)

    def unpack(self, model: nn.Module, state: dict[str, Tensor], entry: Entry) -> None:
        """Adds a tied head's current codes to the state; the embedding loads the new ones."""
        for name, facts in entry["modules"].items():
            if facts.get("tied") and f"{name}.weight_scale" in state:
                state.setdefault(f"{name}.weight", cast(Int8Linear, model.get_submodule(name)).weight)


class LLMInt8(LayoutKind):
    """Linear layers with int8 codes whose outlier features are multiplied in higher precision."""

    name = "llm_int8"
    trainable = False
    takes_adapters = False

    def rebuild(self, model: nn.Module, entry: Entry) -> None:
        """Puts empty layers in place."""
        found = {name: LLMInt8Linear.like(model.get_submodule(name), entry["threshold"]) for name in entry["modules"]}
        replace_modules(model, found)


def int8_like(module: nn.Module, granularity: Granularity) -> Int8Linear | Int8Embedding:
    """An int8 module of zeros with the sizes and device of a linear layer, `Conv1D` or embedding."""
    if not isinstance(module, nn.Embedding):
        return Int8Linear.like(module, granularity)
    with torch.device(module.weight.device):
        found = Int8Embedding(module.num_embeddings, module.embedding_dim, module.padding_idx, module.weight.dtype)
    return found.train(module.training)


register(Int8())
register(LLMInt8())
