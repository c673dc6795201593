"""Adapters on pruned weights: what is measured is the model that will be saved, whose pruned weights are zero."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from datadreamer_like.pruning import reapply

from .adapters import is_adapted, merged


@contextmanager
def as_saved(model: Any, kept: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, a model computes as it will when its adapter is merged and its pruned weights are set to zero again.

    `kept` are the masks of the model without the adapter, by name. A model without an adapter or pruned weights is as
    it is: its weights are set to zero after each step.
    """
    if not kept or not hasattr(model, "peft_config"):
        yield
        return
    saved = merged(copy.deepcopy(model))
    reapply(saved, kept)
    saved.eval()
    before: dict[Any, Any] = {}
    inside: str | None = None
    for name, module in model.get_base_model().named_modules():
        if is_adapted(module) and (inside is None or not name.startswith(inside)):
            inside = f"{name}."
            before[module] = vars(module).get("forward")
            module.forward = _choosing(module, module.forward, saved.get_submodule(name))
    try:
        yield
    finally:
        for module, forward in before.items():
            del module.forward
            if forward is not None:
                module.forward = forward


def _choosing(module: Any, adapted: Callable[..., Any], saved: Callable[..., Any]) -> Callable[..., Any]:
    """A forward pass by the saved layer, but for a reference: a model without, or with another, adapter."""
    trained = list(module.active_adapters)

    def forward(*args: Any, **kwargs: Any) -> Any:
        is_trained = not module.disable_adapters and list(module.active_adapters) == trained
        return (saved if is_trained else adapted)(*args, **kwargs)

    return forward
