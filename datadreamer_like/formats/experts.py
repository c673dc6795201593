"""Mixtures of experts whose layers are single: transformers holds those of all experts of a block in two tensors.

    {"kind": "experts", "format": 1, "modules": ["model.layers.0.mlp.experts"]}

Methods that change linear layers one by one take the tensors apart first. Experts that are plain again afterwards, such
as pruned ones, are put together, so that the model saves as it did before; those with codes stay apart, and the entry
says so. The layers of expert 3 are then `experts.3.up`, which holds gate and up projection where there are both, and
`experts.3.down`. (These names are none of those that transformers renames in checkpoints.)
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from datadreamer_like.errors import StorageError

from .layout import Entry, LayoutKind, register
from .modules import matches

_SIDES = ("up", "down")


class _Names(NamedTuple):
    """The tensors of an experts module: those of weights [experts, ...], and of biases [experts, out] or None."""

    up: str
    down: str
    up_bias: str | None
    down_bias: str | None


class Expert(nn.Module):
    """The two linear layers of an expert."""

    def __init__(self, up: nn.Module, down: nn.Module) -> None:
        super().__init__()
        self.up, self.down = up, down


class SplitExperts(nn.ModuleList):
    """Experts with linear layers of their own: computes what the `fused` module did, of which it keeps the activation.

    The rows that reach a layer have an attribute `token_rows`, int64 [rows]: which of all tokens they are.
    """

    def __init__(self, experts: list[Expert], fused: nn.Module) -> None:
        super().__init__(experts)
        self.__dict__["fused"] = fused  # no child: it has no tensors, and its name would be in the state dict

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Returns [tokens, hidden] for hidden states of that shape and the experts of each token [tokens, k]."""
        fused: Any = self.fused
        activation = fused._apply_gate if fused.has_gate else fused.act_fn
        result = torch.zeros_like(hidden_states)
        for number in torch.unique(top_k_index).tolist():
            if number >= len(self):  # the number for "no expert"
                continue
            expert = cast(Expert, self[number])
            rows, places = torch.where(top_k_index == number)
            inner = activation(expert.up(_of_tokens(hidden_states[rows], rows)))
            found = expert.down(_of_tokens(inner, rows)) * top_k_weights[rows, places, None]
            result.index_add_(0, rows, found.to(result.dtype))
        return result


def _of_tokens(x: Tensor, rows: Tensor) -> Tensor:
    x.token_rows = rows  # type: ignore[attr-defined]
    return x


def split_experts(
    model: nn.Module, entries: list[Entry], exclude: Sequence[str] = (), *, share: bool = False
) -> list[str]:
    """Gives experts layers of their own, in place, and returns the names of their modules, of which it adds no entry.

    Those that a pattern in `exclude` names stay. `entries` are the model's layouts, in which tensors that are stored
    sparse get their new names. With `share` the layers' weights are views of the tensors.
    """
    found = {
        name: names
        for name, module in model.named_modules()
        if (names := _names(module)) and not matches(name, exclude)
    }
    for name, names in found.items():
        made = _split(model.get_submodule(name), names, share)
        model.set_submodule(name, made)
        for modules in _sparse(entries):
            tensors = modules.pop(name, {})
            sides = [side for side in _SIDES if getattr(names, side) in tensors]
            modules |= {f"{name}.{number}.{side}": {"weight": None} for number in range(len(made)) for side in sides}
    return list(found)


def fuse_experts(model: nn.Module, entries: list[Entry]) -> None:
    """Puts experts together again whose layers are all plain, in place, and takes them out of the model's layouts."""
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, SplitExperts) and all(type(layer) is nn.Linear for layer in _layers(module))
    }
    for name, module in found.items():
        model.set_submodule(name, _fused(module))
        for modules in _sparse(entries):
            for inner in [each for each in modules if each.startswith(f"{name}.")]:
                del modules[inner]
                tensor = _weights(module.fused)[_SIDES.index(inner.rpartition(".")[2])]
                modules.setdefault(name, {})[tensor] = None
    for entry in entries:
        if entry["kind"] == SingleExperts.name:
            entry["modules"] = [name for name in entry["modules"] if name not in found]
    entries[:] = [entry for entry in entries if entry["kind"] != SingleExperts.name or entry["modules"]]


def _layers(experts: SplitExperts) -> Iterator[nn.Module]:
    return (getattr(expert, side) for expert in experts for side in _SIDES)


def _weights(module: Any) -> tuple[str, str]:
    """The names of the tensors with the weights, in the order of `_SIDES`."""
    return "gate_up_proj" if module.has_gate else "up_proj", "down_proj"


def _sparse(entries: list[Entry]) -> Iterator[dict[str, Any]]:
    """The modules with tensors that are stored sparse, of each entry that has some."""
    return (entry["modules"] for entry in entries if entry["kind"] == "sparse")


def has_experts(model: nn.Module) -> bool:
    """Whether `split_experts` finds experts."""
    return any(_names(module) for module in model.modules())


def _names(module: Any) -> _Names | None:
    """The tensors of a module that transformers' `use_experts_implementation` describes; None for others."""
    if not all(hasattr(module, flag) for flag in ("has_gate", "has_bias", "is_transposed", "is_concatenated")):
        return None
    if isinstance(module, SplitExperts) or getattr(module, "has_post_expert_norm", False):
        return None
    up, down = _weights(module)
    names = _Names(up, down, *((f"{up}_bias", f"{down}_bias") if module.has_bias else (None, None)))
    tensors = dict(module.named_parameters())
    wanted = {name: 3 if name in names[:2] else 2 for name in names if name is not None}
    fits = {name: tensor.dim() for name, tensor in tensors.items()} == wanted and not list(module.buffers())
    return names if fits and all(tensor.is_floating_point() for tensor in tensors.values()) else None


def _split(module: Any, names: _Names, share: bool) -> SplitExperts:
    def layer(weights: nn.Parameter, biases: nn.Parameter | None, number: int) -> nn.Module:
        weight = weights.detach()[number]
        weight = weight.T if module.is_transposed else weight
        made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        made.weight = _parameter(weight, weights, share)
        if biases is not None:
            made.bias = _parameter(biases.detach()[number], biases, share)
        return made.train(module.training)

    tensors: list[Any] = [None if name is None else getattr(module, name) for name in names]
    up, down, up_bias, down_bias = tensors
    experts = [Expert(layer(up, up_bias, number), layer(down, down_bias, number)) for number in range(len(up))]
    bare = copy.copy(module)
    bare._parameters = dict.fromkeys(module._parameters)
    return SplitExperts(experts, bare).train(module.training)


def _parameter(part: Tensor, whole: nn.Parameter, share: bool) -> nn.Parameter:
    return nn.Parameter(part if share else part.clone(memory_format=torch.contiguous_format), whole.requires_grad)


def _fused(experts: SplitExperts) -> nn.Module:
    module: Any = copy.copy(experts.fused)
    module._parameters = {}
    for side, name in zip(_SIDES, _weights(module), strict=True):
        layers: list[Any] = [getattr(expert, side) for expert in experts]
        weights = torch.stack([layer.weight.detach() for layer in layers])
        learns = layers[0].weight.requires_grad
        weights = weights.transpose(1, 2).contiguous() if module.is_transposed else weights
        module.register_parameter(name, nn.Parameter(weights, learns))
        if module.has_bias:
            biases = torch.stack([layer.bias.detach() for layer in layers])
            module.register_parameter(f"{name}_bias", nn.Parameter(biases, layers[0].bias.requires_grad))
    return cast(nn.Module, module.train(experts.training))


class SingleExperts(LayoutKind):
    """Experts with layers of their own."""

    name = "experts"
    compiles = False  # which experts run depends on the tokens

    def rebuild(self, model: nn.Module, entry: Entry) -> None:
        """Gives the experts layers, on the meta device."""
        for name in entry["modules"]:
            module = model.get_submodule(name)
            names = _names(module)
            if names is None:
                raise StorageError(
                    f'config.json says that "{name}" holds experts whose layers were quantized one by one, and in this '
                    f"version of transformers {type(module).__name__} is no such module. Load the model with the "
                    "version that saved it (transformers_version in config.json)."
                )
            model.set_submodule(name, _split(module, names, share=False))


register(SingleExperts())
