"""Layers whose sizes are not those that the config says, because heads, neurons or other parts were removed.

    {"kind": "widths", "format": 1, "modules": {
        "bert.encoder.layer.0.attention.self": {"set": {"num_attention_heads": 6, "all_head_size": 192}},
        "bert.encoder.layer.0.attention.self.query": {"out": 192},
        "bert.encoder.layer.0.attention.output.dense": {"in": 192},
        "bert.encoder.layer.1.attention.self": {"headless": {}},
        "bert.encoder.layer.1.attention.output.dense": {"constant": {"size": 384, "bias": true}}}}

`out` and `in` are the features of a linear layer (or GPT-2's `Conv1D`), `set` are attributes of the module, `config`
fields of its own copy of the config, `bias_heads` the heads whose part of a shared position bias it keeps; `headless`
and `constant` replace what no head is left to feed, `identity` the norm of a layer that is gone. transformers' configs
cannot say any of this: they hold one number of heads for all layers, and most encoders derive its size from it.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from .layout import Entry, LayoutKind, register

_FEATURES = {
    (nn.Embedding, "out"): ("embedding_dim", 1),
    (nn.LayerNorm, "out"): ("normalized_shape", 0),
    (nn.Linear, "in"): ("in_features", 1),
    (nn.Linear, "out"): ("out_features", 0),
    (Conv1D, "in"): ("nx", 0),
    (Conv1D, "out"): ("nf", 1),
}
"""Attribute with the number of features, and dimension of the weight."""


class Constant(nn.Module):
    """A linear layer without inputs: it returns its bias [size] for any input, or zeros without one."""

    def __init__(self, size: int, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.size, self.bias = size, None if bias is None else nn.Parameter(bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns the bias as [..., size] for an input of [..., anything]."""
        shape = (*hidden.shape[:-1], self.size)
        return hidden.new_zeros(shape) if self.bias is None else self.bias.to(hidden.dtype).expand(shape)


class Headless(nn.Module):
    """Replaces an attention without heads; keeps its cache index and the rest of an `output` projection inside it."""

    def __init__(
        self, layer: int | None, output: str | None, projection: Constant | None, returns_bias: bool = False
    ) -> None:
        super().__init__()
        self.layer_idx, self.output_name, self.returns_bias = layer, output, returns_bias
        if output is not None:
            self.add_module(output, projection)

    def forward(
        self, hidden_states: torch.Tensor, *args: Any, past_key_values: Any = None, **kwargs: Any
    ) -> tuple[torch.Tensor | None, ...]:
        """Returns [batch, seq, 0], or its projection [batch, seq, hidden], and no attention weights.

        In T5 the position bias that it was given is between them.
        """
        nothing = hidden_states[..., :0]
        past = getattr(past_key_values, "self_attention_cache", past_key_values)
        if past is not None and self.layer_idx is not None and kwargs.get("key_value_states") is None:
            # Caches derive the sequence length from one layer's keys, which may be this layer's.
            one_key = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            past.update(one_key, one_key, self.layer_idx)
        result = nothing if self.output_name is None else self.get_submodule(self.output_name)(nothing)
        return (result, kwargs.get("position_bias"), None) if self.returns_bias else (result, None)


class Widths(LayoutKind):
    """Linear layers with fewer features, and attentions without heads."""

    name = "widths"

    def rebuild(self, model: nn.Module, entry: Entry) -> None:
        """Narrows the modules on the meta device."""
        for name, change in entry["modules"].items():
            apply_change(model, name, change)


def apply_change(model: nn.Module, name: str, change: dict[str, Any]) -> None:
    """Changes one module as an entry says, keeping its first features; on the meta device that is its shape alone."""
    module = model.get_submodule(name)
    for side in ("in", "out"):
        if side in change:
            _resize(module, side, change[side])
    for attribute, value in change.get("set", {}).items():
        setattr(module, attribute, value)
    if "config" in change:
        set_in_config(module, change["config"])
    if "bias_heads" in change:
        select_bias(module, change["bias_heads"])
    if "constant" in change:
        model.set_submodule(name, _constant(change["constant"]))
    if "identity" in change:
        model.set_submodule(name, nn.Identity())
    if "headless" in change:
        about = change["headless"]
        projection = _constant(about["constant"]) if "output" in about else None
        returns_bias = hasattr(module, "has_relative_attention_bias")
        layer = getattr(module, "layer_idx", None)
        model.set_submodule(name, Headless(layer, about.get("output"), projection, returns_bias))


def set_in_config(module: Any, fields: dict[str, int]) -> None:
    """Gives a module that reads sizes from the model's config a copy of it, with these fields changed."""
    module.config = copy.copy(module.config)
    for field, value in fields.items():
        setattr(module.config, field, value)


def select_bias(module: nn.Module, heads: list[int]) -> list[RemovableHandle]:
    """Lets an attention use these heads of the position bias [batch, heads, query, key] that all layers share."""
    if not hasattr(module, "has_relative_attention_bias"):
        return [module.register_forward_pre_hook(partial(_select_positional, heads), with_kwargs=True)]
    return [  # T5 returns the bias too, for the layers that follow
        module.register_forward_pre_hook(partial(_select_named, heads), with_kwargs=True),
        module.register_forward_hook(_return_whole, with_kwargs=True),
    ]


def _select_positional(heads: list[int], _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    hidden, mask, bias, *others = args
    return (hidden, mask, None if bias is None else bias[:, heads], *others), kwargs


def _select_named(heads: list[int], module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if kwargs.get("key_value_states") is not None:
        return args, {**kwargs, "position_bias": None}  # cross-attention makes zeros for as many heads as it has
    bias = kwargs.get("position_bias")
    if bias is None and module.has_relative_attention_bias:
        cache, queries = kwargs.get("past_key_values"), args[0].shape[1]
        past = 0 if cache is None else cache.get_seq_length(module.layer_idx)
        bias = module.compute_bias(queries, past + queries, device=args[0].device, past_seen_tokens=past)
    selected = None if bias is None else bias[:, heads]
    return args, {"whole_position_bias": bias, **kwargs, "position_bias": selected}


def _return_whole(_: nn.Module, __: Any, kwargs: dict[str, Any], output: tuple[Any, ...]) -> tuple[Any, ...]:
    return (output[0], kwargs.get("whole_position_bias"), *output[2:])


def _constant(about: dict[str, Any]) -> Constant:
    return Constant(about["size"], torch.zeros(about["size"]) if about["bias"] else None)


def _resize(module: nn.Module, side: Literal["in", "out"], size: int) -> None:
    """Gives a layer this number of features; it may be more than before, where the config states a narrower model."""
    _, dim = _FEATURES[type(module), side]
    weight = cast(torch.Tensor, module.weight)
    features = torch.arange(size, device=weight.device)
    keep_features(module, side, features % weight.shape[dim] if size > weight.shape[dim] else slice(size))


def keep_features(module: nn.Module, side: Literal["in", "out"], index: torch.Tensor | slice) -> None:
    """Keeps only these input or output features of a linear layer or `Conv1D`, of a table or a norm, in place."""
    attribute, dim = _FEATURES[type(module), side]
    _keep(module, "weight", (slice(None),) * dim + (index,))
    size = cast(torch.Tensor, module.weight).shape[dim]
    setattr(module, attribute, (size,) if isinstance(module, nn.LayerNorm) else size)
    if side == "out" and getattr(module, "bias", None) is not None:
        _keep(module, "bias", (index,))


def _keep(module: nn.Module, name: str, index: tuple[torch.Tensor | slice, ...]) -> None:
    old = cast(nn.Parameter, getattr(module, name))
    setattr(module, name, nn.Parameter(old.detach()[index].clone().contiguous(), requires_grad=old.requires_grad))


register(Widths())
