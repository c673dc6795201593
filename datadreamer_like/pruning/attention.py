"""Removes heads from an attention by narrowing its projections, from whose width forward passes infer the head count.

The table of module names by architecture is in `formats.modules`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from datadreamer_like.formats import modules
from datadreamer_like.formats.modules import AttentionForm
from datadreamer_like.formats.widths import apply_change, keep_inputs, keep_outputs


class Attention:
    """One attention of a model and its removable groups of heads.

    A group is one head, or with grouped queries a key/value head and the query heads that share it.

    Args:
        model: The model that contains it.
        name: Name of the attention module.
        form: Names of its parts.

    Attributes:
        groups: Number of remaining groups.
        head_size: Features of one head.
        group_size: Query features of one group; they are adjacent in the input of the output projection.
    """

    def __init__(self, model: nn.Module, name: str, form: AttentionForm) -> None:
        self.model, self.name, self.form = model, name, form
        self.head_size = int(getattr(self._part(form.core), form.head_size))
        blocks = 3 if form.fused else 1
        self.groups = _out_features(self._part(form.key)) // blocks // self.head_size
        self.group_size = _out_features(self._part(form.query)) // blocks // self.groups
        self._changes: dict[str, dict[str, Any]] = {}

    @property
    def output(self) -> nn.Module:
        """The projection back to the hidden size; its input is the heads' output [..., groups * group_size]."""
        return self._part(self.form.output)

    @property
    def changes(self) -> dict[str, dict[str, Any]]:
        """Layout entries of the modules that `remove` has changed, by name."""
        return self._changes

    def remove(self, groups: Iterable[int]) -> None:
        """Removes groups of heads in place; without any group the attention returns its output bias."""
        gone = set(groups)
        kept = [group for group in range(self.groups) if group not in gone]
        if kept:
            self._narrow(kept)
        else:
            self._empty()
        self.groups = len(kept)

    def _narrow(self, kept: list[int]) -> None:
        form, features = self.form, len(kept) * self.group_size
        queries, keys = _positions(kept, self.group_size), _positions(kept, self.head_size)
        if form.fused:
            width = self.groups * self.group_size
            keep_outputs(self._part(form.query), torch.cat([queries + block * width for block in range(3)]))
        else:
            keep_outputs(self._part(form.query), queries)
            keep_outputs(self._part(form.key), keys)
            keep_outputs(self._part(form.value), keys)
        keep_inputs(self.output, queries)
        counts = {
            attribute: features // self.head_size if what == "heads" else features
            for attribute, what in form.counts.items()
        }
        for attribute, value in counts.items():
            setattr(self._part(form.core), attribute, value)
        projections = dict.fromkeys((form.query, form.key, form.value))
        self._changes = {self._full(path): {"out": _out_features(self._part(path))} for path in projections}
        self._changes[self._full(form.output)] = {"in": features}
        if counts:
            self._changes[self._full(form.core)] = {"set": counts}

    def _empty(self) -> None:
        form, output = self.form, self.output
        bias = getattr(output, "bias", None)
        constant = {"size": output.nf if isinstance(output, Conv1D) else output.out_features, "bias": bias is not None}
        if form.core:
            self._changes = {
                self._full(form.core): {"headless": {}},
                self._full(form.output): {"constant": constant},
            }
        else:
            self._changes = {self.name: {"headless": {"output": form.output, "constant": constant}}}
        for name, change in self._changes.items():
            apply_change(self.model, name, change)
        if bias is not None:
            self.output.bias = bias

    def _full(self, path: str) -> str:
        return f"{self.name}.{path}" if path else self.name

    def _part(self, path: str) -> nn.Module:
        return self.model.get_submodule(self._full(path))


def attentions(model: nn.Module) -> Iterator[Attention]:
    """Finds the attentions whose heads can be removed, in the order of the layers."""
    for name, form in modules.attentions(model):
        if not form.fixed:
            yield Attention(model, name, form)


def _out_features(module: nn.Module) -> int:
    return module.nf if isinstance(module, Conv1D) else cast(int, module.out_features)


def _positions(blocks: list[int], size: int) -> torch.Tensor:
    """Feature indices [len(blocks) * size] of these blocks of features."""
    return (torch.tensor(blocks)[:, None] * size + torch.arange(size)).flatten()
