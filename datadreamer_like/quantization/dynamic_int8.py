"""Dynamic int8: weights are quantized once, activations at each call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from torch import nn

from datadreamer_like.compression import Batches, CompressionMethod
from datadreamer_like.compression.method import check_patterns, why_unquantizable
from datadreamer_like.errors import DefinitionError, check_flag
from datadreamer_like.formats import add_layout
from datadreamer_like.formats.int8 import Int8, int8_like
from datadreamer_like.formats.modules import (
    linears,
    matches,
    output_heads,
    replace_modules,
    token_embeddings,
    weight_of,
)
from datadreamer_like.kernels import Granularity, absmax_quantize


@dataclass(frozen=True)
class DynamicInt8(CompressionMethod):
    """Linear layers in int8, weights and activations, and token embeddings stored in int8: a quarter of the bytes.

    AbsMax, vector-wise: `s = max|row| / 127` for each output feature of a weight and each token of the activations,
    as in LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339) without its outlier features; activation scales are computed
    at each call, so that no calibration data are needed. CPUs with int8 instructions use them; on other CPUs and GPUs
    the products are exact and as slow as fp32.

    Every `nn.Linear` and transformers' `Conv1D` is quantized, classification heads too. The output head of a language
    model is not, because its rounding directly affects the logits, unless `lm_head` is set or it is tied to a quantized
    embedding, whose codes it then shares. Norms, biases and position embeddings are small and are not quantized.
    Neither are layers whose weights are read outside their own `forward`, as in `nn.MultiheadAttention`.

    Attributes:
        embeddings: Also store the token embeddings in int8, with a scale per row. They are half of a small encoder. In
            a plain `nn.Module` every `nn.Embedding` counts as one.
        lm_head: Also quantize the untied output head of a language model.
        granularity: "token": a row's result does not depend on its batch. "tensor": one scale for all activations of a
            call, which is slightly faster but less accurate.
        exclude: Patterns of module names to skip, with all modules inside them, for instance ("classifier",).

    Example:
        >>> from torch import nn
        >>> small = DynamicInt8().apply(nn.Sequential(nn.Linear(8, 4)))
        >>> small[0].weight.dtype
        torch.int8
    """

    embeddings: bool = True
    lm_head: bool = False
    granularity: Granularity = "token"
    exclude: tuple[str, ...] = ()

    kind = "quantization"
    layer_by_layer = True
    papers = ("2208.07339",)

    def __post_init__(self) -> None:
        if self.granularity not in get_args(Granularity):
            raise DefinitionError(f'granularity is "{self.granularity}"; choose "token" or "tensor".')
        check_patterns(self.exclude)
        check_flag(self.embeddings, "embeddings")
        check_flag(self.lm_head, "lm_head")

    def fits(self, model: nn.Module) -> str | None:
        """Any module with linear layers that are not quantized yet, its adapters merged."""
        chosen = self._chosen(model)
        if reason := why_unquantizable(model, chosen, "nn.Linear, Conv1D or nn.Embedding"):
            return reason
        embedded = {id(module.weight) for module in chosen.values() if isinstance(module, nn.Embedding)}
        tied = getattr(model, "all_tied_weights_keys", None) or ()
        for name, module in chosen.items():
            if f"{name}.weight" in tied and id(module.weight) not in embedded:
                return (
                    f'"{name}" is tied to the embedding, so the two are quantized together or not at all. '
                    "Set embeddings=True and exclude neither, or lm_head=False."
                )
        return None

    def change(self, model: nn.Module, calibration: Batches | None) -> None:
        """Replaces the layers in place; calibration data are not used."""
        tied = getattr(model, "all_tied_weights_keys", None) or ()
        codes: dict[int, nn.Parameter] = {}
        made: dict[str, nn.Module] = {}
        facts: dict[str, dict[str, Any]] = {}
        for name, module in self._chosen(model).items():
            made[name] = new = int8_like(module, self.granularity)
            found, scale = absmax_quantize(weight_of(module).detach(), bits=8, axis=-1)
            new.weight_scale = scale.float()
            # Modules with a shared weight share its codes.
            new.weight = codes.setdefault(id(module.weight), nn.Parameter(found.contiguous(), requires_grad=False))
            facts[name] = {"tied": True} if f"{name}.weight" in tied else {}
        replace_modules(model, made)
        add_layout(model, {"kind": Int8.name, "granularity": self.granularity, "modules": facts})

    def _chosen(self, model: nn.Module) -> dict[str, nn.Module]:
        """The modules to quantize, by name; a linear layer that shares a chosen embedding's weight is one."""
        embeddings = token_embeddings(model) if self.embeddings else {}
        chosen: dict[str, nn.Module] = {k: module for k, module in embeddings.items() if not matches(k, self.exclude)}
        shared = {id(module.weight) for module in chosen.values()}
        heads = set() if self.lm_head else set(output_heads(model))
        for name, module in linears(model).items():
            if id(module.weight) in shared or not (matches(name, self.exclude) or name in heads):
                chosen[name] = module
        return chosen
