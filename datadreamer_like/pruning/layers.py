"""Dropping whole layers."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, cast

import torch
from torch import nn

from datadreamer_like.compression import Batches, CompressionMethod
from datadreamer_like.compression.calibration import check_measured, check_tokens, on_device, tokens_mask
from datadreamer_like.distillation.teacher import eval_mode
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, EmptyDataset, MethodMisfit, check_number
from datadreamer_like.formats import rename_modules
from datadreamer_like.formats.modules import config_of_layers, stacks

_BY_LAYER = ("attention_window",)
"""Lists in configs with one value per layer whose names do not say so."""


@dataclass(frozen=True)
class Layers(CompressionMethod):
    """Keeps some of a model's layers; the saved model loads in plain transformers.

    With calibration data, the layers of lowest block influence, `1 - E cos(h_in, h_out)` over non-padding tokens, are
    removed in one step (ShortGPT, Men et al. 2024, arXiv:2403.03853). Without, the kept layers are spread evenly from
    the first to the last, as in DistilBERT. `keep` is the number of layers to keep, or their indices from 0: every k-th
    layer of n is `keep=range(0, n, k)`.
    """

    keep: int | Sequence[int]

    kind = "pruning"
    papers = ("2403.03853",)

    def __post_init__(self) -> None:
        keep: Any = self.keep
        if not isinstance(keep, int):
            if isinstance(keep, str) or not isinstance(keep, Sequence):
                raise ArgumentTypeError(f"keep must be a number of layers, or their indices, not {keep!r:.100}.")
            object.__setattr__(self, "keep", tuple(keep))
        for each in (self.keep,) if isinstance(self.keep, int) else self.keep:
            check_number(each, "keep", -math.inf, whole=True)
        indices = (self.keep - 1,) if isinstance(self.keep, int) else self.keep
        if not indices or min(indices) < 0 or len(set(indices)) != len(indices):
            raise DefinitionError(f"keep={self.keep} must be a count from 1, or different layer indices from 0.")

    @classmethod
    def example(cls) -> Self:
        """One layer."""
        return cls(keep=1)

    def fits(self, model: nn.Module) -> str | None:
        """Any transformers model with a single stack of layers whose length is in its config."""
        config = config_of_layers(model)
        if getattr(config, "is_encoder_decoder", False):
            return "it has an encoder and a decoder. Use pruning.Magnitude."
        if getattr(config, "scale_attn_by_inverse_layer_idx", False):
            return "its attention is scaled by the index of the layer, so the layers after a dropped one would change."
        found = stacks(model)
        if len(found) != 1:
            return "it has no single list of layers as long as its config's num_hidden_layers."
        last = self.keep - 1 if isinstance(self.keep, int) else max(self.keep)
        if last >= len(found[0].blocks):
            return f"keep={self.keep} asks for more than its {len(found[0].blocks)} layers."
        return None

    def change(self, model: nn.Module, calibration: Batches | None) -> None:
        """Drops layers in place and updates the config.

        Raises:
            MethodMisfit: A kept layer would be another one when the model is loaded, as its config describes layers by
                their index in other ways than a list.
        """
        ((name, layers),) = stacks(model)
        keep = self._choose(model, layers, calibration)
        config, before = config_of_layers(model), copy.deepcopy(getattr(model, "config", None))
        for attribute, value in list(vars(config).items()):
            # Attributes with one value per layer, such as layer_types.
            is_by_layer = "layer" in attribute or attribute in _BY_LAYER
            if is_by_layer and isinstance(value, list) and len(value) == len(layers):
                setattr(config, attribute, [value[index] for index in keep])
        config.num_hidden_layers = len(keep)
        reason, indices = _stated(model, before, name, keep)
        if reason:
            raise MethodMisfit(f"{self} does not fit {type(model).__name__}: {reason}")
        model.set_submodule(name, nn.ModuleList(layers[index] for index in keep))
        names: dict[str, str | None] = {f"{name}.{old}": None for old in range(len(layers))}
        for new, old in enumerate(keep):
            names[f"{name}.{old}"] = f"{name}.{new}"
            for path, attribute in indices[new]:
                setattr(layers[old].get_submodule(path), attribute, new)
        rename_modules(model, names)

    def _choose(self, model: nn.Module, layers: nn.ModuleList, calibration: Batches | None) -> list[int]:
        if not isinstance(self.keep, int):
            return sorted(self.keep)
        if calibration is None:
            return [round(index) for index in torch.linspace(0, len(layers) - 1, self.keep).tolist()]
        influence = block_influence(model, layers, calibration)
        highest_first = sorted(range(len(layers)), key=lambda index: (-influence[index], index))
        return sorted(highest_first[: self.keep])


def _stated(
    model: nn.Module, before: Any, name: str, keep: Sequence[int]
) -> tuple[str | None, list[list[tuple[str, str]]]]:
    """The reason why a model loaded with the changed config has other layers than those kept; None if it has not.

    Also, for each kept layer, the path of modules in it and the attribute that holds the layer's index. Models are
    built of both configs, without weights, since architectures use the index of a layer in many ways: as ModernBERT,
    whose first layer has no norm before its attention.
    """
    try:
        old_layers: Any = _plain(model, before).get_submodule(name)
    except Exception:  # of a class of its own, which may be built in another way
        layers: Any = model.get_submodule(name)
        return None, [
            [(path, "layer_idx") for path, module in layers[old].named_modules() if hasattr(module, "layer_idx")]
            for old in keep
        ]
    try:
        new_layers: Any = _plain(model, cast(Any, model).config).get_submodule(name)
    except Exception as error:  # a config or constructor refuses values with errors of many classes
        return f"its config refuses to have these layers alone: {error}", []
    if len(new_layers) != len(keep):
        return f"its config makes {len(new_layers)} layers, and ignores num_hidden_layers={len(keep)}.", []
    indices = []
    for new, old in enumerate(keep):
        was, becomes = _facts(old_layers[old]), _facts(new_layers[new])
        changed = {fact for fact in was.keys() | becomes.keys() if was.get(fact) != becomes.get(fact)}
        if any((was.get(fact), becomes.get(fact)) != (old, new) for fact in changed):
            return (
                f'layer {old} would become layer {new}, and {type(before).__name__} makes "{name}.{new}" otherwise '
                f'than "{name}.{old}". Pass keep=(...), with layers that have the same form in their new places.'
            ), []
        indices.append(sorted(changed))
    return None, indices


def _plain(model: nn.Module, config: Any) -> nn.Module:
    with torch.device("meta"):
        return type(model)(type(config).from_dict(config.to_dict()))


def _facts(layer: nn.Module) -> dict[tuple[str, str], Any]:
    """What is built for a layer: by path in it and attribute, the class, options and shapes of modules."""
    found: dict[tuple[str, str], Any] = {}
    for path, module in layer.named_modules():
        found[path, ""] = type(module).__name__
        found |= {(path, key): value for key, value in vars(module).items() if isinstance(value, str | float | int)}
        found |= {(path, key): list(weight.shape) for key, weight in module.named_parameters(recurse=False)}
    return found


@torch.no_grad()
def block_influence(model: nn.Module, layers: nn.ModuleList, batches: Batches) -> list[float]:
    """Measures how much each layer rotates its input, `1 - E cos(h_in, h_out)`, at positions that are not padding."""
    cosines, tokens = torch.zeros(2, len(layers), dtype=torch.float64)
    mask: torch.Tensor | None = None

    def measure(index: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        check_tokens(model, before, mask)
        if before.shape != after.shape:
            raise MethodMisfit(
                f"Layers cannot compare what the layers of {type(model).__name__} do: layer {index} makes "
                f"{list(after.shape)} of {list(before.shape)}. Name the layers to keep, as in keep=(0, 2)."
            )
        cosine = nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
        weights = torch.ones_like(cosine) if mask is None else mask.to(cosine)
        cosines[index] += float((cosine * weights).sum())
        tokens[index] += float(weights.sum())

    with eval_mode(model), ExitStack() as hooks:
        for index, layer in enumerate(layers):
            hooks.enter_context(layer.register_forward_hook(partial(measure, index), with_kwargs=True))
        for batch in batches:
            batch = on_device(batch, model)
            ids = batch.get("input_ids")
            mask = tokens_mask(model, batch.get("attention_mask", None if ids is None else torch.ones_like(ids)))
            model(**batch)
    if not tokens.any():
        raise EmptyDataset("Layers got no calibration batch. Pass some, or none at all to keep evenly spread layers.")
    check_measured(cosines, "The outputs of the layers")
    return [float(influence) for influence in 1 - cosines / tokens]
