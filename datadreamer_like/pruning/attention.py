"""Where the heads of a model are, and how to take some out.

The architectures are data: one `Form` says for a family how its attention names its parts. Their forward passes count
heads by the width of their projections, so narrowing those is enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from datadreamer_like.formats.widths import apply_change, keep_inputs, keep_outputs


@dataclass(frozen=True)
class Form:
    """How one family of attention modules names its parts; paths are relative to the module.

    Attributes:
        query: Path of the query projection; if `fused`, of the one that gives query, key and value side by side.
        key: Path of the key projection.
        value: Path of the value projection.
        output: Path of the projection back to the hidden size.
        core: Path of the part that computes heads; empty if that is the module itself, output projection included.
        head_size: Attribute of the core: features of one head.
        counts: Attributes of the core that follow the number of heads left, and how: "heads" or "features".
        fused: Whether query, key and value are one projection.
    """

    query: str
    key: str
    value: str
    output: str
    core: str = ""
    head_size: str = "head_dim"
    counts: dict[str, str] = field(default_factory=dict)
    fused: bool = False


_BERT = Form(
    "self.query",
    "self.key",
    "self.value",
    "output.dense",
    core="self",
    head_size="attention_head_size",
    counts={"num_attention_heads": "heads", "all_head_size": "features"},
)
_LLAMA = Form("q_proj", "k_proj", "v_proj", "o_proj")
_DISTILBERT = Form(
    "q_lin",
    "k_lin",
    "v_lin",
    "out_lin",
    head_size="attention_head_size",
    counts={"n_heads": "heads", "dim": "features"},
)
_GPT2 = Form(
    "c_attn", "c_attn", "c_attn", "c_proj", counts={"num_heads": "heads", "split_size": "features"}, fused=True
)

FORMS: dict[str, Form] = {
    "BertAttention": _BERT,
    "RobertaAttention": _BERT,
    "XLMRobertaAttention": _BERT,
    "CamembertAttention": _BERT,
    "ElectraAttention": _BERT,
    "ErnieAttention": _BERT,
    "Data2VecTextAttention": _BERT,
    "DistilBertSelfAttention": _DISTILBERT,
    "LlamaAttention": _LLAMA,
    "MistralAttention": _LLAMA,
    "Qwen2Attention": _LLAMA,
    "Qwen3Attention": _LLAMA,
    "SmolLM3Attention": _LLAMA,
    "GemmaAttention": _LLAMA,
    "GraniteAttention": _LLAMA,
    "GPT2Attention": _GPT2,
}


class Attention:
    """One attention of a model and its removable groups of heads.

    A group is one head, or with grouped queries a key/value head and the query heads that share it.

    Args:
        model: The model that it is in.
        name: Name of the attention module.
        form: How it names its parts.

    Attributes:
        groups: Groups that are left.
        head_size: Features of one head.
        group_size: Query features of one group; they lie side by side in the input of the output projection.
    """

    def __init__(self, model: nn.Module, name: str, form: Form) -> None:
        self.model, self.name, self.form = model, name, form
        self.head_size = int(getattr(self._part(form.core), form.head_size))
        blocks = 3 if form.fused else 1
        self.groups = _out_features(self._part(form.key)) // blocks // self.head_size
        self.group_size = _out_features(self._part(form.query)) // blocks // self.groups
        self._changes: dict[str, dict[str, Any]] = {}

    @property
    def output(self) -> nn.Module:
        """The projection back to the hidden size; its input [..., groups * group_size] is what the heads computed."""
        return self._part(self.form.output)

    @property
    def changes(self) -> dict[str, dict[str, Any]]:
        """What a layout entry says of the modules that `remove` has changed, by name; empty if none was."""
        return self._changes

    def remove(self, groups: Iterable[int]) -> None:
        """Takes groups of heads out, in place; with the last one the attention gives its output bias alone."""
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
    for name, module in model.named_modules():
        form = FORMS.get(type(module).__name__)
        if form is not None and _is_plain(module, form):
            yield Attention(model, name, form)


def _is_plain(module: nn.Module, form: Form) -> bool:
    try:
        parts = [module.get_submodule(path) for path in (form.query, form.key, form.value, form.output)]
    except AttributeError:
        return False
    return all(type(part) in (nn.Linear, Conv1D) for part in parts)


def _out_features(module: nn.Module) -> int:
    return module.nf if isinstance(module, Conv1D) else cast(int, module.out_features)


def _positions(blocks: list[int], size: int) -> torch.Tensor:
    """Features [len(blocks) * size] of these blocks of features."""
    return (torch.tensor(blocks)[:, None] * size + torch.arange(size)).flatten()
