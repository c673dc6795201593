"""Widths that a model's own config states, so that the narrowed model is a plain one.

Which sizes a config can state is not in a table: a model is built from the changed config, without weights, and its
shapes are compared with those of the narrowed weights.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from datadreamer_like.formats.modules import config_of_layers

from .structure import Attention, Units

_HEADS = ("num_attention_heads", "decoder_attention_heads")
_INTERMEDIATE = ("intermediate_size", "hidden_dim", "n_inner", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim")
"""Fields for one size in the configs of different families."""


def with_widths(model: nn.Module, kept: Mapping[Units, int], hidden: int) -> Any:
    """Returns a copy of the model's config that states how many units each layer keeps, as far as its fields can."""
    config: Any = copy.deepcopy(model.config)
    layers = getattr(config, "text_config", None) or config
    for unit, count in kept.items():
        if not isinstance(unit, Attention):
            _set(layers, _INTERMEDIATE, count)
            continue
        if unit.form.positions == "rotary":
            layers.head_dim = unit.head_size  # otherwise derived from the hidden size and the number of heads
        _set(layers, _HEADS, count * unit.group_size // unit.head_size)
        _set(layers, ("num_key_value_heads",), count)
    layers.hidden_size = hidden
    return config


def _set(config: Any, fields: Sequence[str], value: int) -> None:
    for field in fields:
        if hasattr(config, field):
            setattr(config, field, value)


def parameters_stated(model: nn.Module, config: Any, kept: Mapping[Units, int]) -> int | str:
    """The number of parameters of the plain model of this config, or why its shapes are not those of the kept units."""
    try:
        with torch.device("meta"):
            plain: nn.Module = type(model)(type(config).from_dict(config.to_dict()))
    except Exception as error:  # a config or constructor refuses sizes with errors of many classes
        return f"its config refuses these sizes: {error}."
    shapes = {name: tuple(tensor.shape) for name, tensor in plain.state_dict().items()}
    cuts = _cuts(model, {unit: range(count) for unit, count in kept.items()})
    sizes = config_of_layers(model).hidden_size, getattr(config, "text_config", config).hidden_size
    for name, tensor in model.state_dict().items():
        wanted = [len(cuts.get((name, dim), range(size))) for dim, size in enumerate(tensor.shape)]
        found = shapes.pop(name, None)
        if found is None or any(
            new != size and ((name, dim) in cuts or (size, new) != sizes)
            for dim, (size, new) in enumerate(zip(wanted, found, strict=True))
        ):
            return (
                f"its config cannot state these sizes: {type(config).__name__} makes {name} "
                f"{list(found) if found else 'disappear'}, and what stays of it is {wanted}."
            )
    return sum(parameter.numel() for parameter in plain.parameters())


def narrow_by_config(model: Any, config: Any, kept: Mapping[Units, Sequence[int]], hidden: Tensor) -> None:
    """Makes the model, in place, the plain one of this config with the weights of the kept units and hidden sizes."""
    cuts, state = _cuts(model, kept), model.state_dict()
    with torch.random.fork_rng(devices=[]):
        plain = type(model)(config)
    for name, new in plain.state_dict().items():
        for dim, size in enumerate(new.shape):
            if state[name].shape[dim] != size:
                index = torch.as_tensor(cuts.get((name, dim), hidden), device=state[name].device)
                state[name] = state[name].index_select(dim, index)
    device = next(model.parameters()).device
    wants_gradient = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, module in plain.named_children():
        setattr(model, name, module)
    kept_attributes = {"training", "generation_config"}
    sizes = {name: value for name, value in vars(plain).items() if not name.startswith("_")}
    vars(model).update({name: value for name, value in sizes.items() if name not in kept_attributes})
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in wants_gradient)
    model.to(device).train(model.training)


def _cuts(model: nn.Module, kept: Mapping[Units, Sequence[int]]) -> dict[tuple[str, int], Tensor]:
    """The indices that stay of parameters of attentions and feed-forward networks, by name and dimension."""
    cuts = {}
    for unit, indices in kept.items():
        for name, side, index in unit.kept_features(indices):
            module = model.get_submodule(name)
            cuts[f"{name}.weight", int((side == "in") != isinstance(module, Conv1D))] = index
            if side == "out" and module.bias is not None:
                cuts[f"{name}.bias", 0] = index
    return cuts
