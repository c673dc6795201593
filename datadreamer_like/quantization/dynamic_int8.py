"""Dynamic int8: weights quantized once, activations as they come."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, Self, cast, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from datadreamer_like.errors import DefinitionError, MethodMisfit
from datadreamer_like.formats import add_layout
from datadreamer_like.formats.int8 import Int8, Int8Embedding, Int8Linear, int8_like, replace
from datadreamer_like.kernels import Granularity, absmax_quantize

from .method import Batches, QuantizationMethod

_LINEAR = (nn.Linear, Conv1D)


@dataclass(frozen=True)
class DynamicInt8(QuantizationMethod):
    """Linear layers in int8, weights and activations, and token embeddings stored in int8: a quarter of the bytes.

    AbsMax, vector-wise: `s = max|row| / 127` for each output feature of a weight and each token of the activations,
    as in LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339) without its outlier features; the scales of activations
    are computed on the way, so that no calibration data are needed. On CPUs the products are those of the processor's
    int8 instructions; where it has none for them, and on GPUs, they are exact and as slow as fp32.

    What is quantized: every `nn.Linear` and transformers' `Conv1D`, classification heads too. The output head of a
    language model is left alone unless asked for, because its rounding goes straight into the logits, or unless it is
    tied to an embedding that is quantized: then it uses the same codes. Norms, biases and position embeddings are
    small and stay as they are. Layers whose weights are read by other code than their own `forward`, as in
    `nn.MultiheadAttention`, are left alone.

    Attributes:
        embeddings: Also store the token embeddings in int8, a scale a row. They are half of a small encoder. In a
            plain `nn.Module` every `nn.Embedding` counts as one.
        lm_head: Also quantize the output head of a language model that is not tied.
        granularity: "token": what a row gives does not hang on its batch. "tensor": one scale for all activations of
            a call, which is a little faster and rounds worse.
        exclude: Patterns of module names that are left alone with all that is in them, for instance ("classifier",).

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

    def __post_init__(self) -> None:
        if self.granularity not in get_args(Granularity):
            raise DefinitionError(f'granularity is "{self.granularity}"; choose "token" or "tensor".')
        if isinstance(cast(object, self.exclude), str):
            raise DefinitionError(f'exclude is the text "{self.exclude}"; pass a tuple of patterns.')

    @classmethod
    def example(cls) -> Self:
        """The method with its defaults."""
        return cls()

    def fits(self, model: nn.Module) -> str | None:
        """Any module with linear layers that are not quantized yet, its adapters merged."""
        if hasattr(model, "peft_config"):
            return "it has adapters beside its weights. Merge them first: model.merge_and_unload()."
        chosen = dict(self._chosen(model))
        embedded = {id(module.weight) for module in chosen.values() if isinstance(module, nn.Embedding)}
        tied = _tied_names(model)
        for name, module in chosen.items():
            if f"{name}.weight" in tied and id(module.weight) not in embedded:
                return (
                    f'"{name}" is tied to the embedding, so the two are quantized together or not at all. '
                    "Set embeddings=True and exclude neither, or lm_head=False."
                )
        if not chosen:
            if any(isinstance(module, Int8Linear | Int8Embedding) for module in model.modules()):
                return "it is quantized already. Start from the model as it was before."
            return "it has no nn.Linear, Conv1D or nn.Embedding that this method may quantize."
        return None

    @torch.no_grad()
    def quantize(self, model: nn.Module, calibration: Batches | None) -> None:
        """Replaces the layers in place; calibration data are not used."""
        tied = _tied_names(model)
        codes: dict[int, nn.Parameter] = {}
        made: dict[str, nn.Module] = {}
        facts: dict[str, dict[str, Any]] = {}
        for name, module in self._chosen(model):
            weight = cast(Tensor, module.weight)
            made[name] = new = int8_like(module, self.granularity)
            found, new.weight_scale = _rows_in_int8(weight.T if isinstance(module, Conv1D) else weight, name)
            # Modules that shared a weight share its codes.
            new.weight = codes.setdefault(id(weight), nn.Parameter(found, requires_grad=False))
            if isinstance(new, Int8Linear) and new.bias is not None:
                new.bias = nn.Parameter(cast(Tensor, module.bias).detach(), requires_grad=False)
            facts[name] = {"tied": True} if f"{name}.weight" in tied else {}
        replace(model, made)
        for module in model.modules():
            if isinstance(module, nn.TransformerEncoderLayer):
                # PyTorch's fused path for these reads the layers' weights itself, and takes none but float.
                module.activation_relu_or_gelu = 0
        add_layout(model, {"kind": Int8.name, "granularity": self.granularity, "modules": facts})

    def _chosen(self, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        embeddings = _token_embeddings(model) if self.embeddings else set()
        heads = _head_names(model)
        chosen_weights = set()
        for name, module in model.named_modules():
            if type(module) is nn.Embedding and name in embeddings and not self._excluded(name):
                chosen_weights.add(id(module.weight))
                yield name, module
        for name, module in model.named_modules():
            if type(module) not in _LINEAR or not cast(Tensor, module.weight).is_floating_point():
                continue
            shared = id(module.weight) in chosen_weights
            if shared or not (self._excluded(name) or (name in heads and not self.lm_head)):
                yield name, module

    def _excluded(self, name: str) -> bool:
        return any(fnmatch(name, pattern) or fnmatch(name, f"{pattern}.*") for pattern in self.exclude)


def _rows_in_int8(weight: Tensor, name: str) -> tuple[Tensor, Tensor]:
    codes, scale = absmax_quantize(weight.detach(), bits=8, axis=-1)
    scale = scale.float()
    if not bool(scale.isfinite().all()):
        raise MethodMisfit(
            f'The weight of "{name}" holds infinities or NaN, which have no int8 code. '
            "The training that made it has diverged: train again with a lower learning rate."
        )
    return codes.contiguous(), scale


def _token_embeddings(model: nn.Module) -> set[str]:
    """Names of the embeddings that hold tokens: of a transformers model those that it says, else all."""
    owners = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    weights = set()
    for owner in owners:
        try:
            weights.add(id(owner.get_input_embeddings().weight))
        except (AttributeError, NotImplementedError):
            continue
    return {
        name
        for name, module in model.named_modules()
        if type(module) is nn.Embedding
        and module.max_norm is None
        and module.weight.is_floating_point()
        and (not owners or id(module.weight) in weights)
    }


def _head_names(model: nn.Module) -> set[str]:
    """Names of the output heads of language models."""
    heads = set()
    for owner in model.modules():
        if isinstance(owner, PreTrainedModel):
            try:
                heads.add(id(cast(Any, owner).get_output_embeddings()))
            except (AttributeError, NotImplementedError):
                continue
    return {name for name, module in model.named_modules() if id(module) in heads}


def _tied_names(model: nn.Module) -> set[str]:
    """Names of the weights that transformers ties to another one when it loads the model."""
    return set(getattr(model, "all_tied_weights_keys", None) or ())
