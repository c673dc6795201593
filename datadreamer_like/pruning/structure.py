"""Heads and neurons of a model as units that structured pruning removes: masking one and removing it are the same.

A unit's features are adjacent in the input of its layer's output projection, so a factor on that input masks it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from datadreamer_like.formats import add_layout, modules
from datadreamer_like.formats.modules import AttentionForm, FeedForwardForm, weight_of
from datadreamer_like.formats.widths import apply_change, keep_features, select_bias, set_in_config

Kept = tuple[str, Literal["in", "out"], Tensor]
"""Name of a linear layer in the model, the side that is narrowed, and the indices of the features that stay."""


class Units(ABC):
    """The removable units of one attention or feed-forward network.

    Attributes:
        groups: Number of remaining units.
        group_size: Features of one unit in the input of the output projection.
        changes: Layout entries of the modules that `remove` has changed, by name.
        at_least: Units that must stay.
    """

    at_least: int
    groups: int
    group_size: int
    output_path: str

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model, self.name = model, name
        self.changes: dict[str, dict[str, Any]] = {}

    @property
    def output(self) -> nn.Module:
        """The projection back to the hidden size; its input is [..., groups * group_size]."""
        return self._part(self.output_path)

    @property
    def unit_parameters(self) -> int:
        """Number of weights of one unit, without biases."""
        sides = self.kept_features([0])
        weights = {name: weight_of(self.model.get_submodule(name)) for name, _, _ in sides}
        return sum(len(index) * weights[name].shape[side == "out"] for name, side, index in sides)

    @abstractmethod
    def kept_features(self, kept: Sequence[int]) -> list[Kept]:
        """The features that stay in each linear layer if only these units are kept."""

    def remove(self, groups: Collection[int]) -> None:
        """Removes units in place."""
        kept = [group for group in range(self.groups) if group not in groups]
        self._narrow(kept)
        self.groups = len(kept)

    def _narrow(self, kept: list[int]) -> None:
        self.changes = {}
        for name, side, index in self.kept_features(kept):
            keep_features(self.model.get_submodule(name), side, index)
            self.changes[name] = {side: len(index)}

    def _full(self, path: str) -> str:
        return f"{self.name}.{path}" if path else self.name

    def _part(self, path: str) -> nn.Module:
        return self.model.get_submodule(self._full(path))


class Attention(Units):
    """One attention of a model; a unit is one head, or a key/value head and the query heads that share it.

    Attributes:
        head_size: Features of one head.
    """

    def __init__(self, model: nn.Module, name: str, form: AttentionForm) -> None:
        super().__init__(model, name)
        self.form, self.output_path = form, form.output
        core: Any = self._part(form.core)
        self.head_size = int(getattr(core, form.head_size))
        features = self.output_features
        keys = len(weight_of(self._part(form.key)))
        if form.fused:
            keys = getattr(core, form.groups) * self.head_size if form.groups else keys // 3
        self.groups = keys // self.head_size
        self.group_size = features // self.groups
        self._bias_heads = list(range(self.groups))
        self._bias: list[RemovableHandle] = []
        # T5's first attention computes the position bias of all.
        self.at_least = int(bool(getattr(core, "has_relative_attention_bias", False)))

    @property
    def output_features(self) -> int:
        """Features of all query heads."""
        return int(weight_of(self.output).shape[1])

    def kept_features(self, kept: Sequence[int]) -> list[Kept]:
        """The features of queries, keys, values and the output projection."""
        form = self.form
        queries, keys = _positions(kept, self.group_size), _positions(kept, self.head_size)
        if form.fused == "heads":
            rows = {form.query: _positions(kept, 3 * self.head_size)}
        elif form.fused:
            first, second = self.groups * self.group_size, self.groups * self.head_size
            rows = {form.query: torch.cat([queries, first + keys, first + second + keys])}
        else:
            rows = {form.query: queries, form.key: keys, form.value: keys}
        sides: list[Kept] = [(self._full(path), "out", index) for path, index in rows.items()]
        return [*sides, (self._full(form.output), "in", queries)]

    def remove(self, groups: Collection[int]) -> None:
        """Removes units in place; without any unit the attention returns its output bias."""
        if len(set(groups)) < self.groups:
            super().remove(groups)
        else:
            self._empty()
            self.groups = 0

    def _narrow(self, kept: list[int]) -> None:
        super()._narrow(kept)
        form, core = self.form, self._part(self.form.core)
        heads = len(kept) * self.group_size // self.head_size
        counts = {form.head_count: heads, form.width: len(kept) * self.group_size, form.groups: len(kept)}
        counts = {attribute: value for attribute, value in counts.items() if attribute}
        change: dict[str, Any] = {}
        if counts:
            for attribute, value in counts.items():
                setattr(core, attribute, value)
            change["set"] = counts
        if form.from_config:
            change["config"] = {form.from_config: heads}
            set_in_config(core, change["config"])
        if form.positions == "bias":
            self._bias_heads = [self._bias_heads[group] for group in kept]
            for handle in self._bias:
                handle.remove()
            self._bias = select_bias(core, self._bias_heads)
            change["bias_heads"] = self._bias_heads
        if change:
            self.changes[self._full(form.core)] = change

    def _empty(self) -> None:
        form, bias = self.form, cast("nn.Parameter | None", self.output.bias)
        constant = {"size": len(weight_of(self.output)), "bias": bias is not None}
        inside = form.output.removeprefix(f"{form.core}.") if form.core else form.output
        if inside == form.output and form.core:
            self.changes = {self._full(form.core): {"headless": {}}, self._full(form.output): {"constant": constant}}
        else:
            self.changes = {self._full(form.core): {"headless": {"output": inside, "constant": constant}}}
        for name, change in self.changes.items():
            apply_change(self.model, name, change)
        if bias is not None:
            self.output.bias = bias


class FeedForward(Units):
    """One feed-forward network; a unit is a neuron of its intermediate size."""

    at_least = 1
    group_size = 1

    def __init__(self, model: nn.Module, name: str, form: FeedForwardForm) -> None:
        super().__init__(model, name)
        self.form, self.output_path = form, form.output
        self.groups = int(weight_of(self.output).shape[1])

    def kept_features(self, kept: Sequence[int]) -> list[Kept]:
        """The features of the projections to the intermediate size and back."""
        neurons = torch.as_tensor(kept)
        rows = torch.cat([neurons + half * self.groups for half in range(self.form.halves)])
        sides: list[Kept] = [(self._full(path), "out", rows) for path in self.form.inputs]
        return [*sides, (self._full(self.form.output), "in", neurons)]


def attentions(model: nn.Module) -> Iterator[Attention]:
    """Finds the attentions whose heads can be removed, in the order of the layers."""
    return (Attention(model, name, form) for name, form in modules.attentions(model))


def feed_forwards(model: nn.Module) -> Iterator[FeedForward]:
    """Finds the feed-forward networks whose neurons can be removed, in the order of the layers."""
    return (FeedForward(model, name, form) for name, form in modules.feed_forwards(model))


def record(model: nn.Module, units: Sequence[Units]) -> None:
    """Adds the layout entry of all that `remove` has changed."""
    changes = {name: change for unit in units for name, change in unit.changes.items()}
    if changes:
        add_layout(model, {"kind": "widths", "modules": changes})


def masked(units: Sequence[Units], masks: Sequence[Tensor]) -> ExitStack:
    """A context in which the model runs as if units were removed; [groups] each, 0 for removed and 1 for kept.

    The masks may be changed in place inside. Units of an attention without heads have an empty mask.
    """
    hooks = ExitStack()
    for unit, mask in zip(units, masks, strict=True):
        if unit.groups:
            hooks.enter_context(unit.output.register_forward_pre_hook(partial(_mask, mask, unit.group_size)))
    return hooks


def _mask(mask: Tensor, size: int, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0] * mask.to(inputs[0]).repeat_interleave(size), *inputs[1:])


def _positions(blocks: Sequence[int], size: int) -> Tensor:
    """Feature indices [len(blocks) * size] of these blocks of features."""
    return (torch.as_tensor(blocks)[:, None] * size + torch.arange(size)).flatten()
