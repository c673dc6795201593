"""Taking mixtures of experts apart for methods that change linear layers one by one; see `formats.put_together`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain
from typing import Any, TypeVar, cast

from torch import nn

from datadreamer_like.formats import add_layout, layouts
from datadreamer_like.formats.experts import SingleExperts, has_experts, split_experts

ModelT = TypeVar("ModelT", bound=nn.Module)


def as_layers(model: ModelT) -> ModelT:
    """Returns the model, or if single tensors hold its experts a copy whose experts have layers, which share them."""
    if not has_experts(model):
        return model
    # Tensors that the memo has are not copied.
    same = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    view = copy.deepcopy(model, cast("dict[int, Any]", same))
    split_experts(view, layouts(view), share=True)
    return view


def take_apart(model: nn.Module, exclude: Sequence[str] = ()) -> None:
    """Gives experts layers of their own, in place, but for those that a pattern in `exclude` names."""
    if names := split_experts(model, layouts(model), exclude):
        add_layout(model, {"kind": SingleExperts.name, "modules": names})
