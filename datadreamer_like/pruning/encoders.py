"""The parts of an encoder that coarse-to-fine pruning removes: putting gates on them, and cutting them out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from datadreamer_like.compression.method import why_shared
from datadreamer_like.formats import add_layout, layouts
from datadreamer_like.formats.modules import (
    ATTENTIONS,
    FEED_FORWARDS,
    AttentionForm,
    FeedForwardForm,
    block_linears,
    config_of_layers,
    output_heads,
    stacks,
    weight_of,
)
from datadreamer_like.formats.widths import apply_change, keep_features

from .gates import GatedNorm, GatedOutput, Gates
from .layers import Layers
from .structure import Attention, FeedForward


@dataclass(frozen=True)
class BlockForm:
    """How a family whose norms follow its residual sums names the parts of a block; paths are relative to it."""

    attention: str
    attention_norm: str
    feed_forward: str
    norm: str


_BERT = BlockForm("attention", "attention.output.LayerNorm", "", "output.LayerNorm")
_BLOCKS = {
    **dict.fromkeys(["BertLayer", "RobertaLayer", "XLMRobertaLayer", "CamembertLayer"], _BERT),
    "TransformerBlock": BlockForm("attention", "sa_layer_norm", "ffn", "output_layer_norm"),
}
_KNOWN = "BERT, RoBERTa, XLM-RoBERTa, CamemBERT and DistilBERT"
_HEADS = ("pooler.dense", "pre_classifier", "classifier.dense", "classifier.out_proj", "classifier")
"""Paths of heads' layers; the first that a model has reads the encoder."""


class BlockParts(NamedTuple):
    """The names of a block's parts in the model."""

    attention: str
    form: AttentionForm
    attention_norm: str
    feed_forward: str
    feed_forward_form: FeedForwardForm
    norm: str

    @property
    def attention_output(self) -> str:
        """Name of the projection of the heads' outputs."""
        return f"{self.attention}.{self.form.output}"

    @property
    def inputs(self) -> str:
        """Name of the projection to the neurons."""
        return f"{self.feed_forward}.{self.feed_forward_form.inputs[0]}"

    @property
    def output(self) -> str:
        """Name of the projection of the neurons back."""
        return f"{self.feed_forward}.{self.feed_forward_form.output}"


class Encoder:
    """An encoder with a head for classes, and where its parts are."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.config: Any = config_of_layers(model)
        (self.stack,) = stacks(model)

    @property
    def embeddings(self) -> str:
        """Name of the module with the embeddings' tables and norm."""
        table: str = next(name for name, _ in self.model.named_modules() if name.endswith("word_embeddings"))
        return table.rpartition(".")[0]

    @property
    def blocks(self) -> list[BlockParts]:
        """The parts of each block."""
        found = []
        for index, block in enumerate(self.stack.blocks):
            paths = _BLOCKS[type(block).__name__]
            names = [f"{self.stack.name}.{index}.{path}".removesuffix(".") for path in vars(paths).values()]
            attention, attention_norm, feed_forward, norm = names
            form = ATTENTIONS[type(self._module(attention)).__name__]
            other_form = FEED_FORWARDS[type(self._module(feed_forward)).__name__]
            found.append(BlockParts(attention, form, attention_norm, feed_forward, other_form, norm))
        return found

    @property
    def heads(self) -> list[str]:
        """Names of the layers of the model's head; the first one reads the hidden states."""
        modules = dict(self.model.named_modules())
        names = (next((name for name in modules if name == path or name.endswith(f".{path}")), "") for path in _HEADS)
        return [name for name in names if isinstance(modules.get(name), nn.Linear)]

    def gates(self) -> Gates:
        """Returns new gates of the encoder's sizes."""
        heads, neurons, size = [], [], 0
        for block in self.blocks:
            core = self._module(f"{block.attention}.{block.form.core}".removesuffix("."))
            size = int(getattr(core, block.form.head_size))
            heads.append(len(self._weight(f"{block.attention}.{block.form.query}")) // size)
            neurons.append(len(self._weight(block.inputs)))
        return Gates(self.config.hidden_size, size, heads, neurons).to(self._weight(block.inputs).device)

    def put(self, gates: Gates) -> None:
        """Puts gates on the parts, in place; the gates become a part of the model."""
        self.model.add_module("coarse_to_fine", gates)
        gates.draw()
        self._replace_norm(f"{self.embeddings}.LayerNorm", gates, None)
        for index, block in enumerate(self.blocks):
            for is_attention, output, norm in _sublayers(block):
                for tensor in ("weight", "bias"):
                    gated = GatedOutput(gates, index, is_attention)
                    parametrize.register_parametrization(self._module(output), tensor, gated)
                self._replace_norm(norm, gates, index, is_attention)

    @torch.no_grad()
    def fold(self, gates: Gates) -> None:
        """Takes the gates off; the weights become their products with them."""
        for block in self.blocks:
            for _, output, norm in _sublayers(block):
                for tensor in ("weight", "bias"):
                    parametrize.remove_parametrizations(self._module(output), tensor)
                self.model.set_submodule(norm, cast(GatedNorm, self._module(norm)).plain())
        norm = f"{self.embeddings}.LayerNorm"
        self.model.set_submodule(norm, cast(GatedNorm, self._module(norm)).plain())
        for table in self._tables():
            table.weight.mul_(gates.z.hidden.to(table.weight.dtype))
        del self.model.coarse_to_fine

    @torch.no_grad()
    def cut(self, gates: Gates) -> None:
        """Cuts out of the folded model what has a gate of 0, and records the sizes for saving."""
        hidden = gates.z.hidden.nonzero().squeeze(1)
        self._cut_hidden(hidden)
        left = [index for index in range(len(self.stack.blocks)) if any(part[index] for part in gates.open_layers)]
        if len(left) < len(self.stack.blocks):
            Layers(keep=tuple(left)).change(self.model, None)
            (self.stack,) = stacks(self.model)
        changes: dict[str, dict[str, Any]] = {}
        for index, block in zip(left, self.blocks, strict=True):
            attention_is_open, feed_forward_is_open = (part[index] for part in gates.open_layers)
            changes |= self._cut_attention(block, _closed(gates.z.heads[index]) if attention_is_open else None)
            changes |= self._cut_feed_forward(block, _closed(gates.z.neurons[index]) if feed_forward_is_open else None)
        for name in self.heads:
            changes[name] = self._sizes(name)
        add_layout(self.model, {"kind": "widths", "modules": changes})

    def _cut_hidden(self, hidden: Tensor) -> None:
        for table in self._tables():
            keep_features(table, "out", hidden)
        keep_features(self._module(f"{self.embeddings}.LayerNorm"), "out", hidden)
        for block in self.blocks:
            readers = {f"{block.attention}.{path}" for path in (block.form.query, block.form.key, block.form.value)}
            for name in (*sorted(readers), block.inputs):
                keep_features(self._module(name), "in", hidden)
            for name in (block.attention_output, block.attention_norm, block.output, block.norm):
                keep_features(self._module(name), "out", hidden)
        keep_features(self._module(self.heads[0]), "in", hidden)
        size, heads = len(hidden), self.config.num_attention_heads
        self.config.hidden_size = size
        # The models are made only if one divides the other; the sizes of their heads are in the layout.
        self.config.num_attention_heads = max(count for count in range(1, heads + 1) if size % count == 0)

    def _cut_attention(self, block: BlockParts, dropped: list[int] | None) -> dict[str, dict[str, Any]]:
        """Removes heads; None for the whole layer with its norm."""
        attention, changes = Attention(self.model, block.attention, block.form), dict[str, dict[str, Any]]()
        if dropped is None:
            attention.output.bias = None  # type: ignore[assignment]
            changes = self._apply(block.attention_norm, {"identity": {}})
        every = range(attention.groups)
        attention.remove(every if dropped is None else dropped)
        changes |= attention.changes
        if attention.groups:
            form, core_name = block.form, f"{block.attention}.{block.form.core}".removesuffix(".")
            core = self._module(core_name)
            for attribute in (form.head_size, "scaling"):
                changes[core_name]["set"][attribute] = getattr(core, attribute)
            for path in (form.query, form.key, form.value, form.output):
                changes[f"{block.attention}.{path}"] = self._sizes(f"{block.attention}.{path}")
        return changes

    def _cut_feed_forward(self, block: BlockParts, dropped: list[int] | None) -> dict[str, dict[str, Any]]:
        """Removes neurons; None for the whole layer with its norm."""
        feed_forward = FeedForward(self.model, block.feed_forward, block.feed_forward_form)
        if dropped is not None and len(dropped) < feed_forward.groups:
            feed_forward.remove(set(dropped))
            return {name: self._sizes(name) for name in (block.inputs, block.output)}
        output: Any = feed_forward.output
        size, bias = len(weight_of(output)), output.bias
        changes = self._apply(block.inputs, {"constant": {"size": 0, "bias": False}})
        changes |= self._apply(block.output, {"constant": {"size": size, "bias": dropped is not None}})
        if dropped is None:
            return changes | self._apply(block.norm, {"identity": {}})
        cast(Any, self._module(block.output)).bias = bias
        return changes

    def _apply(self, name: str, change: dict[str, Any]) -> dict[str, dict[str, Any]]:
        apply_change(self.model, name, change)
        return {name: change}

    def _sizes(self, name: str) -> dict[str, Any]:
        outputs, inputs = self._weight(name).shape
        return {"in": inputs, "out": outputs}

    def _replace_norm(self, name: str, gates: Gates, layer: int | None, is_attention: bool = False) -> None:
        norm = cast(nn.LayerNorm, self._module(name))
        self.model.set_submodule(name, GatedNorm(norm, gates, layer, is_attention).train(norm.training))

    def _tables(self) -> Iterator[nn.Embedding]:
        return (each for each in self._module(self.embeddings).children() if isinstance(each, nn.Embedding))

    def _module(self, name: str) -> nn.Module:
        return self.model.get_submodule(name)

    def _weight(self, name: str) -> Tensor:
        return weight_of(self._module(name))


def _sublayers(block: BlockParts) -> tuple[tuple[bool, str, str], tuple[bool, str, str]]:
    """Whether it is the attention, its output projection and its norm, of both layers of a block."""
    return (True, block.attention_output, block.attention_norm), (False, block.output, block.norm)


def _closed(z: Tensor) -> list[int]:
    """Indices of the gates that are 0."""
    return (z == 0).nonzero().squeeze(1).tolist()


def why_no_encoder(model: nn.Module) -> str | None:
    """The reason why a model is not one whose parts can be gated; None if it is."""
    found, config = stacks(model), config_of_layers(model)
    kinds = {type(block).__name__ for stack in found for block in stack.blocks}
    if len(found) != 1 or not kinds <= set(_BLOCKS) or getattr(config, "is_decoder", False):
        return f"it is none of the encoders whose layers this method knows: {_KNOWN}."
    if any(entry["kind"] == "widths" for entry in layouts(model)):
        return "its layers were narrowed before. Start from the model as it was, and remove all at once."
    if reason := why_shared(model, block_linears(model)):
        return reason
    encoder = Encoder(model)
    parts = (f"{encoder.embeddings}.", f"{encoder.stack.name}.", *(f"{name}." for name in encoder.heads))
    others = [name for name, _ in model.named_parameters() if not name.startswith(parts)]
    if getattr(config, "num_labels", 2) < 2 or getattr(config, "problem_type", None) == "regression":
        return "it answers with numbers, and what teaches it compares probabilities of classes."
    if output_heads(model) or others or not [name for name in encoder.heads if not name.endswith("pooler.dense")]:
        return "its head is not one for classes of texts or tokens. Load it as such a classifier."
    return None
