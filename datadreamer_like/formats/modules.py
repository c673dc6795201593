"""Finding the parts of a model: linear layers, attentions, blocks, token embeddings and output heads.

What differs between architectures is in tables here, keyed by class or config name. Names are those of
`named_modules()`; a shared module is found once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, NamedTuple, cast

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class AttentionForm:
    """How one family of attention modules names its projections; paths are relative to the module.

    Attributes:
        query: Path of the query projection; if `fused`, of the one that returns query, key and value side by side.
        output: Path of the projection back to the hidden size.
        core: Path of the part that computes heads; empty if that is the module itself, output projection included.
        head_size: Attribute of the core: features of one head.
        head_count: Attribute of the core: number of heads; empty if it has none.
        width: Attribute of the core: features of all heads; empty if it has none.
        fused: Whether query, key and value are one projection.
        fixed: Why heads cannot be removed; empty if they can.
        positions: What scores depend on in addition to queries and keys, "rotary" or "bias"; empty if on nothing.
    """

    query: str
    key: str
    value: str
    output: str
    core: str = ""
    head_size: str = "head_dim"
    head_count: str = ""
    width: str = ""
    fused: bool = False
    fixed: str = ""
    positions: str = ""


_BERT = AttentionForm(
    "self.query", "self.key", "self.value", "output.dense",
    core="self", head_size="attention_head_size", head_count="num_attention_heads", width="all_head_size",
)  # fmt: skip
_LLAMA = AttentionForm("q_proj", "k_proj", "v_proj", "o_proj", positions="rotary")
_GPT2 = AttentionForm("c_attn", "c_attn", "c_attn", "c_proj", head_count="num_heads", width="split_size", fused=True)
_FIXED = "its layers share one position bias with a column a head"

ATTENTIONS: dict[str, AttentionForm] = {
    **dict.fromkeys(["BertAttention", "RobertaAttention", "XLMRobertaAttention", "CamembertAttention"], _BERT),
    **dict.fromkeys(["ElectraAttention", "ErnieAttention", "Data2VecTextAttention"], _BERT),
    "DistilBertSelfAttention": AttentionForm(
        "q_lin", "k_lin", "v_lin", "out_lin", head_size="attention_head_size", head_count="n_heads", width="dim"
    ),
    **dict.fromkeys(["LlamaAttention", "MistralAttention", "Qwen2Attention", "Qwen3Attention"], _LLAMA),
    **dict.fromkeys(["SmolLM3Attention", "GemmaAttention", "GraniteAttention"], _LLAMA),
    "GPT2Attention": _GPT2,
    "MPNetAttention": AttentionForm(
        "attn.q",
        "attn.k",
        "attn.v",
        "attn.o",
        core="attn",
        head_size="attention_head_size",
        fixed=_FIXED,
        positions="bias",
    ),
    "T5Attention": AttentionForm("q", "k", "v", "o", head_size="key_value_proj_dim", fixed=_FIXED, positions="bias"),
}
"""The supported attentions, by class name."""


class Stack(NamedTuple):
    """A list of blocks of one class that a model runs one after the other, with its name in the model."""

    name: str
    blocks: nn.ModuleList


def config_of_layers(model: nn.Module) -> Any:
    """Returns the config that describes a model's layers: that of the encoder in a classifier on an encoder."""
    config = getattr(model, "config", None)
    return getattr(config, "text_config", None) or config


def stacks(model: nn.Module) -> list[Stack]:
    """Finds the lists of blocks: one in an encoder or decoder, two in an encoder-decoder."""
    config = config_of_layers(model)
    # Every config has the first one, maybe as an alias.
    names = ("num_hidden_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")
    counts = {getattr(config, name, None) for name in names}
    found = [
        Stack(name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) in counts and len({type(block) for block in module}) == 1
    ]
    # A list inside a block, of experts for instance, may be as long.
    outer = [one for one in found if not any(one.name.startswith(f"{other.name}.") for other in found)]
    expected = 2 if getattr(config, "is_encoder_decoder", False) else 1
    return outer if len(outer) == expected else []


def attentions(model: nn.Module) -> Iterator[tuple[str, AttentionForm]]:
    """Finds the attentions of a known form whose projections are plain, in the order of the layers, by name."""
    for name, module in model.named_modules():
        if form := ATTENTIONS.get(type(module).__name__):
            parts = dict(module.named_modules())
            if all(is_linear(parts.get(path)) for path in (form.query, form.key, form.value, form.output)):
                yield name, form


def linears(model: nn.Module, exclude: Sequence[str] = ()) -> dict[str, nn.Module]:
    """Finds the plain linear layers, those of heads included.

    Each is an `nn.Linear` or transformers' `Conv1D` with floating-point weights, not matched by a pattern in `exclude`.
    Layers whose weights are read by other code than their own `forward`, as in `nn.MultiheadAttention`, are of other
    classes and left out; so are quantized ones.
    """
    return {name: module for name, module in model.named_modules() if is_linear(module) and not matches(name, exclude)}


def block_linears(model: nn.Module, exclude: Sequence[str] = ()) -> dict[str, nn.Module]:
    """Finds the `linears` inside the model's blocks."""
    blocks = tuple(f"{stack.name}." for stack in stacks(model))
    return {name: layer for name, layer in linears(model, exclude).items() if name.startswith(blocks)}


def is_linear(module: nn.Module | None) -> bool:
    """Whether a module is an `nn.Linear` or `Conv1D`, none of their subclasses, with floating-point weights."""
    return type(module) in (nn.Linear, Conv1D) and cast(Tensor, cast(Any, module).weight).is_floating_point()


def weight_of(linear: nn.Module) -> Tensor:
    """The weight of a linear layer as [out, in]; a view, so that changes reach the layer."""
    weight = cast(Tensor, linear.weight)
    return weight.T if isinstance(linear, Conv1D) else weight


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a module, or one that it is in, is named by one of the patterns, as in "classifier" or "*.attention"."""
    return any(fnmatch(name, pattern) or fnmatch(name, f"{pattern}.*") for pattern in patterns)


def token_embeddings(model: nn.Module) -> dict[str, nn.Embedding]:
    """Finds the embeddings of tokens, by name; in a model outside transformers every plain `nn.Embedding` is one."""
    owners = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    weights = {
        id(embedding.weight)
        for embedding in (_call_getter(owner, "get_input_embeddings") for owner in owners)
        if hasattr(embedding, "weight")
    }
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Embedding
        and module.max_norm is None
        and module.weight.is_floating_point()
        and (not owners or id(module.weight) in weights)
    }


def output_heads(model: nn.Module) -> dict[str, nn.Module]:
    """Finds the output heads of language models, hidden size to vocabulary, by name."""
    heads = {id(_call_getter(owner, "get_output_embeddings")) for owner in model.modules()} - {id(None)}
    return {name: module for name, module in model.named_modules() if id(module) in heads}


def replace_modules(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Replaces modules, under all their names."""
    replaced = {id(model.get_submodule(name)): module for name, module in modules.items()}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if id(module) in replaced:
            model.set_submodule(name, replaced[id(module)])
    for layer in model.modules():
        if isinstance(layer, nn.TransformerEncoderLayer):
            # Disables PyTorch's fused path, which reads the linear layers' weights directly and requires floats.
            layer.activation_relu_or_gelu = 0


def _call_getter(owner: nn.Module, getter: str) -> Any:
    if not isinstance(owner, PreTrainedModel):
        return None
    with suppress(AttributeError, NotImplementedError):
        return getattr(owner, getter)()
    return None
