"""The zeros of a pruned model: keeping them while its weights change, and counting those that a method lost."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from datadreamer_like.formats import CodedModule
from datadreamer_like.formats.modules import weight_of
from datadreamer_like.formats.sparse import sparse_names

from .experts import as_layers


@torch.no_grad()
def masks(model: nn.Module) -> dict[str, Tensor]:
    """Returns the mask of each pruned parameter, True for non-zero weights; compute them before training.

    Those of codes are masks of the weights that they stand for, in the form that `dequantize` gives them. `model` may
    hold the pruned one inside, as a `SentenceTransformer` does; names are those in `model`.
    """
    names, parameters = sparse_names(model), dict(model.named_parameters())
    places = ["", *(f"{place}." for place, _ in model.named_modules() if place)]
    inside = next((place for place in places if any(place + name in parameters for name in names)), "")
    found = {}
    for name in (inside + name for name in names if inside + name in parameters):
        module_name, _, tensor = name.rpartition(".")
        module, weight = model.get_submodule(module_name), parameters[name].detach()
        if isinstance(module, CodedModule) and tensor == "weight":
            weight = module.dequantized()
            weight = weight.T if module.was_conv1d else weight
        found[name] = weight != 0
    return found


@torch.no_grad()
def reapply(model: nn.Module, kept: Mapping[str, Tensor]) -> None:
    """Sets all weights outside the masks to zero, in place; call it after each optimizer step, which updates them.

    Codes, which no optimizer changes, stay as they are. Masks of single experts are also those of parts of the tensor
    into which these were put together since.
    """
    parameters = dict(model.named_parameters())
    if not kept.keys() <= parameters.keys():
        parameters = dict(as_layers(model).named_parameters()) | parameters
    for name, mask in kept.items():
        if parameters[name].is_floating_point():
            parameters[name].mul_(mask.to(parameters[name].device))


@torch.no_grad()
def refilled(before: nn.Module, after: nn.Module) -> tuple[int, int]:
    """Counts the zeros of a pruned model's layers that are other numbers once they are quantized, and all its zeros."""
    modules, lost, total = dict(after.named_modules()), 0, 0
    for name in sparse_names(before):
        module, old = (each.get(name.removesuffix(".weight")) for each in (modules, dict(before.named_modules())))
        if module is None or old is None or isinstance(old, CodedModule):
            continue
        zeros = weight_of(old) == 0
        now = module.dequantized() if isinstance(module, CodedModule) else weight_of(module)
        lost += int((zeros & (now != 0).to(zeros.device)).sum())
        total += int(zeros.sum())
    return lost, total
