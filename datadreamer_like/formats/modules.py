"""Finding the parts of a model: linear layers, attentions, feed-forward networks, blocks, embeddings, output heads.

What differs between architectures is in tables here, keyed by class or config name. Names are those of
`named_modules()`; a shared module is found once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from typing import Any, Literal, NamedTuple, cast

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class AttentionForm:
    """How one family of attention modules names its projections; paths are relative to the module.

    Attributes:
        query: Path of the query projection; if `fused`, of the one that returns query, key and value.
        output: Path of the projection back to the hidden size.
        core: Path of the part that computes heads; empty if that is the module itself, output projection included.
        head_size: Attribute of the core: features of one head.
        head_count: Attribute of the core: number of heads; empty if it has none.
        width: Attribute of the core: features of all heads; empty if it has none.
        fused: How one projection returns query, key and value: "blocks" for all queries, all keys, all values; "heads"
            for query, key and value of each head; empty if there are three projections.
        groups: Attribute of the core of a fused projection: number of key/value heads; empty if as many as queries.
        from_config: Field of the core's config that its forward pass reads the head count from; empty if none.
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
    fused: Literal["", "blocks", "heads"] = ""
    groups: str = ""
    from_config: str = ""
    positions: str = ""

    def split(self, core: nn.Module, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Splits the output [..., features] of a fused projection: query, key and value [..., heads * head_size]."""
        size = int(getattr(core, self.head_size))
        if self.fused == "heads":
            by_head = features.reshape(*features.shape[:-1], -1, 3, size)
            query, key, value = (part.flatten(-2) for part in by_head.unbind(-2))
            return query, key, value
        keys = int(getattr(core, self.groups)) * size if self.groups else features.shape[-1] // 3
        first = features.shape[-1] - 2 * keys
        return features[..., :first], features[..., first : first + keys], features[..., first + keys :]


@dataclass(frozen=True)
class FeedForwardForm:
    """How one family names the layers of a feed-forward network; paths are relative to the module.

    Attributes:
        inputs: Paths of the projections to the intermediate size: one, or two with a gate.
        output: Path of the projection back to the hidden size.
        halves: Projections that each of `inputs` returns side by side: 2 where gate and other are fused.
    """

    inputs: tuple[str, ...]
    output: str
    halves: int = 1


_BERT = AttentionForm(
    "self.query", "self.key", "self.value", "output.dense",
    core="self", head_size="attention_head_size", head_count="num_attention_heads", width="all_head_size",
)  # fmt: skip
_LLAMA = AttentionForm("q_proj", "k_proj", "v_proj", "o_proj", positions="rotary")
_GPT2 = AttentionForm(
    "c_attn", "c_attn", "c_attn", "c_proj", head_count="num_heads", width="split_size", fused="blocks"
)
_BART = AttentionForm("q_proj", "k_proj", "v_proj", "out_proj")
_T5 = AttentionForm(
    "q", "k", "v", "o", head_size="key_value_proj_dim", head_count="n_heads", width="inner_dim", positions="bias"
)

ATTENTIONS: dict[str, AttentionForm] = {
    **dict.fromkeys(["BertAttention", "RobertaAttention", "XLMRobertaAttention", "CamembertAttention"], _BERT),
    **dict.fromkeys(["ElectraAttention", "ErnieAttention", "Data2VecTextAttention"], _BERT),
    "DistilBertSelfAttention": AttentionForm(
        "q_lin", "k_lin", "v_lin", "out_lin", head_size="attention_head_size", head_count="n_heads", width="dim"
    ),
    **dict.fromkeys(["LlamaAttention", "MistralAttention", "Qwen2Attention", "Qwen3Attention"], _LLAMA),
    **dict.fromkeys(["SmolLM3Attention", "GemmaAttention", "GraniteAttention"], _LLAMA),
    "GPT2Attention": _GPT2,
    "GPTNeoXAttention": AttentionForm(
        "query_key_value",
        "query_key_value",
        "query_key_value",
        "dense",
        head_size="head_size",
        fused="heads",
        positions="rotary",
    ),
    "Phi3Attention": AttentionForm(
        "qkv_proj",
        "qkv_proj",
        "qkv_proj",
        "o_proj",
        fused="blocks",
        groups="num_key_value_heads",
        from_config="num_attention_heads",
        positions="rotary",
    ),
    **dict.fromkeys(["BartAttention", "MBartAttention", "PegasusAttention", "MarianAttention"], _BART),
    "MPNetAttention": AttentionForm(
        "attn.q",
        "attn.k",
        "attn.v",
        "attn.o",
        core="attn",
        head_size="attention_head_size",
        head_count="num_attention_heads",
        width="all_head_size",
        positions="bias",
    ),
    **dict.fromkeys(["T5Attention", "MT5Attention"], _T5),
}
"""The supported attentions, by class name."""

_BERT_FEED_FORWARD = FeedForwardForm(("intermediate.dense",), "output.dense")
_GATED = FeedForwardForm(("gate_proj", "up_proj"), "down_proj")
_FULLY_CONNECTED = FeedForwardForm(("fc1",), "fc2")

FEED_FORWARDS: dict[str, FeedForwardForm] = {
    **dict.fromkeys(["BertLayer", "RobertaLayer", "XLMRobertaLayer", "CamembertLayer"], _BERT_FEED_FORWARD),
    **dict.fromkeys(["ElectraLayer", "ErnieLayer", "Data2VecTextLayer", "MPNetLayer"], _BERT_FEED_FORWARD),
    "FFN": FeedForwardForm(("lin1",), "lin2"),
    **dict.fromkeys(["LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP", "SmolLM3MLP", "GemmaMLP", "GraniteMLP"], _GATED),
    "Phi3MLP": FeedForwardForm(("gate_up_proj",), "down_proj", halves=2),
    "GPT2MLP": FeedForwardForm(("c_fc",), "c_proj"),
    "GPTNeoXMLP": FeedForwardForm(("dense_h_to_4h",), "dense_4h_to_h"),
    **dict.fromkeys(["T5DenseActDense", "MT5DenseActDense"], FeedForwardForm(("wi",), "wo")),
    **dict.fromkeys(["T5DenseGatedActDense", "MT5DenseGatedActDense"], FeedForwardForm(("wi_0", "wi_1"), "wo")),
    **dict.fromkeys(["BartEncoderLayer", "BartDecoderLayer", "MBartEncoderLayer"], _FULLY_CONNECTED),
    **dict.fromkeys(["MBartDecoderLayer", "PegasusEncoderLayer", "PegasusDecoderLayer"], _FULLY_CONNECTED),
    **dict.fromkeys(["MarianEncoderLayer", "MarianDecoderLayer"], _FULLY_CONNECTED),
}
"""The supported feed-forward networks, by the class of the module that they are in."""


_READ_ELSEWHERE = {"MambaMixer": ("dt_proj",), "FalconMambaMixer": ("dt_proj",), "JambaMambaMixer": ("dt_proj",)}
"""Linear layers whose weights the module that they are in reads itself, by its class."""


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
        if isinstance(module, nn.ModuleList)
        and len(module) in counts
        and len({type(block) for block in module}) == 1
        and not isinstance(module[0], nn.ModuleList)  # which runs nothing itself
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


def feed_forwards(model: nn.Module) -> Iterator[tuple[str, FeedForwardForm]]:
    """Finds the feed-forward networks of a known form whose layers are plain, in the order of the layers, by name."""
    for name, module in model.named_modules():
        if form := FEED_FORWARDS.get(type(module).__name__):
            parts = dict(module.named_modules())
            if all(is_linear(parts.get(path)) for path in (*form.inputs, form.output)):
                yield name, form


def linears(model: nn.Module, exclude: Sequence[str] = ()) -> dict[str, nn.Module]:
    """Finds the plain linear layers, those of heads included.

    Each is an `nn.Linear` or transformers' `Conv1D` with floating-point weights, not matched by a pattern in `exclude`.
    Layers whose weights are read by other code than their own `forward` are left out, as in `nn.MultiheadAttention`
    and Mamba; so are quantized ones.
    """
    found = dict(model.named_modules())
    elsewhere = {
        f"{name}.{path}".removeprefix(".")
        for name, module in found.items()
        for path in _READ_ELSEWHERE.get(type(module).__name__, ())
    }
    return {
        name: module
        for name, module in found.items()
        if is_linear(module) and name not in elsewhere and not matches(name, exclude)
    }


def block_linears(model: nn.Module, exclude: Sequence[str] = ()) -> dict[str, nn.Module]:
    """Finds the `linears` inside the model's blocks."""
    blocks = tuple(f"{stack.name}." for stack in stacks(model))
    return {name: layer for name, layer in linears(model, exclude).items() if name.startswith(blocks)}


def inner_linears(model: nn.Module, exclude: Sequence[str] = ()) -> dict[str, nn.Module]:
    """Finds the `linears` inside the model's blocks; in a model without blocks, all but those of output heads."""
    if stacks(model):
        return block_linears(model, exclude)
    heads = output_heads(model)
    return {name: layer for name, layer in linears(model, exclude).items() if name not in heads}


def stacked_experts(model: nn.Module, exclude: Sequence[str] = ()) -> dict[str, Tensor]:
    """Finds the tensors inside the blocks that hold the weights of several layers, such as experts, by name.

    Those in modules that a pattern in `exclude` matches are left out.
    """
    blocks = tuple(f"{stack.name}." for stack in stacks(model))
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {
        f"{name}.{last}": tensor
        for name, module in model.named_modules()
        if name.startswith(blocks) and not isinstance(module, convolutions) and not matches(name, exclude)
        for last, tensor in module.named_parameters(recurse=False)
        if tensor.dim() == 3
    }


def is_linear(module: nn.Module | None) -> bool:
    """Whether a module is an `nn.Linear` or `Conv1D`, none of their subclasses, with floating-point weights."""
    return type(module) in (nn.Linear, Conv1D) and cast(Tensor, cast(Any, module).weight).is_floating_point()


def weight_of(linear: nn.Module) -> Tensor:
    """The weight of a linear layer as [out, in]; a view, so that changes reach the layer."""
    weight = cast(Tensor, linear.weight)
    return weight.T if isinstance(linear, Conv1D) else weight


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a module, or one that it is in, is named by one of the patterns, as in "classifier" or "*.attention"."""
    exact, wild = _sorted(tuple(patterns))
    if exact:
        parts = name.split(".")
        if not exact.isdisjoint(".".join(parts[:end]) for end in range(1, len(parts) + 1)):
            return True
    return any(fnmatch(name, pattern) or fnmatch(name, f"{pattern}.*") for pattern in wild)


@lru_cache
def _sorted(patterns: tuple[str, ...]) -> tuple[frozenset[str], tuple[str, ...]]:
    """The patterns that are plain names, of which there can be thousands, and the others."""
    wild = tuple(pattern for pattern in patterns if any(sign in pattern for sign in "*?["))
    return frozenset(patterns) - frozenset(wild), wild


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
