"""Narrower models of uniform width: fewer heads, neurons and hidden dimensions in every layer."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Literal, Self

import torch
from torch import Tensor, nn

from datadreamer_like.compression import Batches, CompressionMethod
from datadreamer_like.compression.calibration import as_list, check_measured, on_device
from datadreamer_like.compression.method import already_quantized
from datadreamer_like.distillation.teacher import eval_mode
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, check_number
from datadreamer_like.formats.modules import config_of_layers, stacks

from .plain_config import narrow_by_config, parameters_stated, with_widths
from .structure import Attention, Units, attentions, feed_forwards, record


@dataclass(frozen=True)
class Width(CompressionMethod):
    """Keeps the same number of heads, neurons and hidden dimensions in all layers: those of the largest activations.

    Muralidharan et al., "Compact Language Models via Pruning and Knowledge Distillation" (Minitron), 2024,
    arXiv:2407.14679. Importance needs forward passes only: the mean |activation| over the tokens of an example that are
    not padding, then the l2 norm over the examples. It is measured on the outputs of heads (the l2 norm of a head's
    features), on what the second layer of a feed-forward network reads, and on the outputs of the norms, summed over
    all norms, since the layers share the hidden dimensions.

    Remove at most a third of the parameters at a time, then train the model to recover, best by forward KL to its
    teacher's logits alone (`distillation.WordLevel`, `distillation.SoftTargets`), before the next round.

    By default the result must be a plain model whose widths are in its config, so that plain transformers, vLLM and
    llama.cpp load it; sizes that the config cannot state are refused before any work. BERT, RoBERTa, ELECTRA, MPNet,
    DistilBERT and GPT-2 derive the size of a head from hidden size and head count, so they can lose heads only with as
    large a share of the hidden size; Llama takes head counts that divide the hidden size; Qwen, Mistral and Phi-3 any.
    In T5 and MPNet the layers share a position bias by head, so each layer's own choice of heads is never plain.

    Attributes:
        heads: Query heads in each attention; None to keep all. With grouped queries a multiple of the group size.
        intermediate: Neurons in each feed-forward network; None to keep all.
        hidden: Size of the hidden states and embeddings; None to keep it.
        loadable: "anywhere", or "here" to allow heads and neurons that the config cannot state: such a model loads in
            transformers after `import datadreamer_like.pruning`, not in vLLM or llama.cpp.
        at_most: Largest share of the parameters that may be removed at a time.

    Example:
        >>> pruning.Width(intermediate=1024).apply(model, batches)  # doctest: +SKIP
    """

    heads: int | None = None
    intermediate: int | None = None
    hidden: int | None = None
    loadable: Literal["anywhere", "here"] = "anywhere"
    at_most: float = 1 / 3

    kind = "pruning"
    needs_calibration = True
    papers = ("2407.14679",)

    def __post_init__(self) -> None:
        for name, value in self.sizes.items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise ArgumentTypeError(f"{name} must be a whole number of features to keep, not {value!r}.")
            if value < 1:
                raise DefinitionError(f"{name}={value} must be at least 1: it is what each layer keeps.")
        if not self.sizes:
            raise DefinitionError("Width needs at least one of heads, intermediate and hidden: what each layer keeps.")
        if self.loadable not in ("anywhere", "here"):
            raise DefinitionError(f'loadable={self.loadable!r} must be "anywhere" or "here".')
        check_number(self.at_most, "at_most", 0, 1, over=True)

    @classmethod
    def example(cls) -> Self:
        """Feed-forward networks of 48 neurons."""
        return cls(intermediate=48)

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes that are asked for, by name."""
        sizes = {"heads": self.heads, "intermediate": self.intermediate, "hidden": self.hidden}
        return {name: size for name, size in sizes.items() if size is not None}

    def fits(self, model: nn.Module) -> str | None:
        """Unquantized transformers models with known attentions and feed-forward networks of one width."""
        reason = already_quantized(model) or self._why_not_these_sizes(model)
        if reason:
            return reason
        total = sum(parameter.numel() for parameter in model.parameters())
        units = self._units(model)
        stated = parameters_stated(model, with_widths(model, units, self._hidden(model)), units)
        if isinstance(stated, str):
            if self.hidden is not None:
                return f"{stated} Choose other sizes: a new hidden size needs a config that states all of them."
            if self.loadable == "anywhere":
                return f'{stated} Choose other sizes, or loadable="here" for a model that only this package loads.'
            left = total - sum((unit.groups - count) * unit.unit_parameters for unit, count in units.items())
        else:
            left = stated
        if total - left > self.at_most * total:
            return (
                f"{100 * (total - left) / total:.0f} % of its parameters would go, more than at_most="
                f"{100 * self.at_most:.0f} % at a "
                "time. Prune in several rounds and train between them, or raise at_most."
            )
        return None

    def why_only_here(self, model: nn.Module) -> str | None:
        """The sizes, where the config cannot state them."""
        units = self._units(model)
        stated = parameters_stated(model, with_widths(model, units, self._hidden(model)), units)
        return "its config cannot state its sizes" if isinstance(stated, str) else None

    def change(self, model: nn.Module, calibration: Batches | None) -> None:
        """Measures importance in one pass over the data and narrows the model in place."""
        units = self._units(model)
        scores, hidden_scores = self._measure(model, list(units), calibration)
        kept = {unit: _largest(scores[unit], count).tolist() for unit, count in units.items()}
        config = with_widths(model, units, self._hidden(model))
        if isinstance(parameters_stated(model, config, units), str):
            for unit, indices in kept.items():
                unit.remove(set(range(unit.groups)).difference(indices))
            record(model, list(units))
        else:
            narrow_by_config(model, config, kept, _largest(hidden_scores, self._hidden(model)))

    def _hidden(self, model: nn.Module) -> int:
        return self.hidden or int(config_of_layers(model).hidden_size)

    def _why_not_these_sizes(self, model: nn.Module) -> str | None:
        size = getattr(config_of_layers(model), "hidden_size", None)
        if not stacks(model) or not isinstance(size, int):
            return "it is not a transformers model with a list of layers and a hidden_size in its config."
        found = list(attentions(model))
        networks = list(feed_forwards(model))
        if self.heads is not None:
            if not found:
                return "no attention of a supported class was found in it, so heads cannot be removed."
            if len({(unit.groups, unit.group_size) for unit in found}) > 1:
                return "its attentions have different numbers of heads already, so it has no uniform width."
            shared, most = found[0].group_size // found[0].head_size, found[0].output_features // found[0].head_size
            if self.heads > most or self.heads % shared:
                allowed = f"a multiple of {shared} (query heads that share a key/value head) " if shared > 1 else ""
                return f"heads={self.heads} must be {allowed}up to the {most} that each attention has."
        if self.intermediate is not None:
            if not networks:
                return "no feed-forward network of a supported class was found in it."
            if self.intermediate > (least := min(unit.groups for unit in networks)):
                return f"intermediate={self.intermediate} is more than the {least} neurons that it has."
        if self.hidden is not None and self.hidden > size:
            return f"hidden={self.hidden} is more than its hidden size, {size}."
        return None

    def _units(self, model: nn.Module) -> dict[Units, int]:
        """All attentions and feed-forward networks, and how many units each keeps."""
        counts: dict[Units, int] = {}
        for attention in attentions(model):
            size = attention.group_size // attention.head_size
            counts[attention] = attention.groups if self.heads is None else self.heads // size
        for network in feed_forwards(model):
            counts[network] = network.groups if self.intermediate is None else self.intermediate
        return counts

    def _measure(
        self, model: nn.Module, units: list[Units], batches: Batches | None
    ) -> tuple[dict[Units, Tensor], Tensor]:
        """Importance of the units [groups] of each layer, and of the hidden dimensions [hidden]."""
        size = config_of_layers(model).hidden_size
        scores = {unit: torch.zeros(unit.groups) for unit in units}
        norms = {name: torch.zeros(size) for name, module in model.named_modules() if _is_norm(module, size)}
        decoder = f"{found[1].name}." if len(found := stacks(model)) == 2 else None
        masks: dict[bool, Tensor | None] = {}

        def add(total: Tensor, name: str, magnitudes: Tensor) -> None:
            is_second = decoder is not None and name.startswith(decoder)
            total += _mean_over_tokens(magnitudes, masks[is_second]).square().sum(0).cpu()

        def read(unit: Units, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            by_unit = inputs[0].float().reshape(*inputs[0].shape[:-1], unit.groups, unit.group_size)
            add(scores[unit], unit.name, by_unit.norm(dim=-1) if isinstance(unit, Attention) else by_unit[..., 0].abs())

        def put_out(name: str, _: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            add(norms[name], name, output.float().abs())

        with eval_mode(model), ExitStack() as hooks:
            for unit in units:
                hooks.enter_context(unit.output.register_forward_pre_hook(partial(read, unit)))
            for name in norms if self.hidden is not None else ():
                hooks.enter_context(model.get_submodule(name).register_forward_hook(partial(put_out, name)))
            for batch in as_list(batches, model, self):
                batch = on_device(batch, model)
                masks = {False: batch.get("attention_mask"), True: _decoder_mask(batch)}
                model(**batch)
        for unit, total in scores.items():
            check_measured(total, f'The activations of "{unit.name}"')
        return {unit: total.sqrt() for unit, total in scores.items()}, sum(
            (total.sqrt() for total in norms.values()), torch.zeros(size)
        )


def _is_norm(module: nn.Module, size: int) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.shape == (size,) and "Norm" in type(module).__name__


def _decoder_mask(batch: Mapping[str, Tensor]) -> Tensor | None:
    if "decoder_attention_mask" in batch:
        return batch["decoder_attention_mask"]
    return batch["labels"] != -100 if "labels" in batch and batch["labels"].dim() == 2 else None


def _mean_over_tokens(magnitudes: Tensor, mask: Tensor | None) -> Tensor:
    """Averages [batch, seq, features] over the tokens that are not padding: [batch, features]."""
    if mask is None or mask.shape != magnitudes.shape[:2]:
        return magnitudes.mean(1)
    weights = mask.to(magnitudes)
    return (magnitudes * weights[..., None]).sum(1) / weights.sum(1, keepdim=True).clamp_min(1)


def _largest(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest scores, ascending; of equal ones the first."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values
