"""Dropping whole layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import nn

from datadreamer_like.compression import Batches, CompressionMethod
from datadreamer_like.compression.calibration import check_measured, on_device
from datadreamer_like.distillation.teacher import eval_mode
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, EmptyDataset, check_number
from datadreamer_like.formats import rename_modules
from datadreamer_like.formats.modules import config_of_layers, stacks


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
        """Drops layers in place and updates the config."""
        ((name, layers),) = stacks(model)
        keep = self._choose(model, layers, calibration)
        config = config_of_layers(model)
        for attribute, value in list(vars(config).items()):
            # Attributes with one value per layer, such as layer_types.
            if isinstance(value, list) and len(value) == len(layers) and "layer" in attribute:
                setattr(config, attribute, [value[index] for index in keep])
        config.num_hidden_layers = len(keep)
        model.set_submodule(name, nn.ModuleList(layers[index] for index in keep))
        names: dict[str, str | None] = {f"{name}.{old}": None for old in range(len(layers))}
        for new, old in enumerate(keep):
            names[f"{name}.{old}"] = f"{name}.{new}"
            for module in layers[old].modules():
                if isinstance(getattr(module, "layer_idx", None), int):
                    module.layer_idx = new  # type: ignore[assignment]
        rename_modules(model, names)

    def _choose(self, model: nn.Module, layers: nn.ModuleList, calibration: Batches | None) -> list[int]:
        if not isinstance(self.keep, int):
            return sorted(self.keep)
        if calibration is None:
            return [round(index) for index in torch.linspace(0, len(layers) - 1, self.keep).tolist()]
        influence = block_influence(model, layers, calibration)
        highest_first = sorted(range(len(layers)), key=lambda index: (-influence[index], index))
        return sorted(highest_first[: self.keep])


@torch.no_grad()
def block_influence(model: nn.Module, layers: nn.ModuleList, batches: Batches) -> list[float]:
    """Measures how much each layer rotates its input, `1 - E cos(h_in, h_out)`, at positions that are not padding."""
    cosines, tokens = torch.zeros(len(layers), dtype=torch.float64), 0.0
    mask = torch.empty(0)

    def measure(index: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        cosine = nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
        cosines[index] += float((cosine * mask).sum())

    with eval_mode(model), ExitStack() as hooks:
        for index, layer in enumerate(layers):
            hooks.enter_context(layer.register_forward_hook(partial(measure, index), with_kwargs=True))
        for batch in batches:
            batch = on_device(batch, model)
            ids = batch.get("input_ids", batch.get("inputs_embeds"))
            assert ids is not None, "a transformers model takes input_ids or inputs_embeds"
            mask = batch.get("attention_mask", torch.ones(ids.shape[:2], device=ids.device)).float()
            tokens += float(mask.sum())
            model(**batch)
    if not tokens:
        raise EmptyDataset("Layers got no calibration batch. Pass some, or none at all to keep evenly spread layers.")
    check_measured(cosines, "The outputs of the layers")
    return [float(1 - cosine / tokens) for cosine in cosines]
