"""The base of layout kinds, which apply an entry of the saved list to a model and its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from datadreamer_like.errors import DefinitionError, NewerFormat, did_you_mean

from .modules import weight_of

Entry = dict[str, Any]
"""One layout entry: JSON values only, with "kind", "format" and "modules" (module names, as a list or as keys)."""


class CodedModule(nn.Module):
    """A linear layer or an embedding whose `weight` is low-bit codes, with buffers to decode them.

    Attributes:
        exact: Names of buffers that keep their dtype when the model is cast.
        was_conv1d: Whether it replaces a transformers `Conv1D`, whose weight is [in, out].
    """

    exact: ClassVar[tuple[str, ...]] = ()
    was_conv1d = False

    def dequantized(self) -> Tensor:
        """Returns the dequantized weight, fp32 [out, in] or [rows, size]."""
        raise NotImplementedError(f"{type(self).__name__} does not define `dequantized`, which decodes its weight.")

    @classmethod
    def like(cls, linear: Any, *options: Any) -> Self:
        """An empty module with the sizes, bias and device of a linear layer; `options` follow `bias` in `__init__`."""
        (outputs, inputs), bias = weight_of(linear).shape, linear.bias
        with torch.device(linear.weight.device):
            made = cls(inputs, outputs, bias is not None, *options)
        if bias is not None:
            made.bias = nn.Parameter(bias.detach(), requires_grad=False)
        made.was_conv1d = isinstance(linear, Conv1D)
        return made.train(linear.training)

    def plain(self, dtype: torch.dtype) -> nn.Module:
        """Returns the dequantized module: an `nn.Linear`, `Conv1D` or `nn.Embedding`."""
        weight = self.dequantized().to(dtype)
        rows, size = weight.shape
        made: Any
        with torch.device("meta"):
            if hasattr(self, "num_embeddings"):
                made = nn.Embedding(rows, size, getattr(self, "padding_idx", None))
            else:
                made = Conv1D(rows, size) if self.was_conv1d else nn.Linear(size, rows, bias=False)  # type: ignore[no-untyped-call]
        made.weight = nn.Parameter(weight.T.contiguous() if self.was_conv1d else weight)
        if (bias := getattr(self, "bias", None)) is not None:
            made.bias = nn.Parameter(bias.detach().clone())
        return cast(nn.Module, made).train(self.training)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = {name: self._buffers[name] for name in self.exact}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            now = self._buffers[name]
            if buffer is not None and now is not None and now.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(now.device)
        return self


class LayoutKind:
    """How one kind of entry changes a model of the plain architecture, and its tensors on disk.

    A subclass sets `name` and overrides what it needs; the methods here do nothing. Names in `entry["modules"]` are
    always those of the model at hand.

    Attributes:
        name: Value of "kind" in an entry.
        format: The version of the entry that this code writes, and the newest that it reads.
        trainable: Whether the weights can be trained further; False if the kind replaces layers by coded modules. The
            model then counts as quantized for transformers, whose `Trainer` refuses it.
        takes_adapters: Whether adapters such as LoRA can be trained on its modules.
        compiles: Whether a model with its modules can be compiled as one graph.
        storage_only: Whether only the tensors on disk differ, not the modules. Such entries are rebuilt and packed
            after all others, so that they apply to the tensors of the other kinds.
    """

    name: str
    format: int = 1
    trainable: bool = True
    takes_adapters: bool = True
    compiles: bool = True
    storage_only: bool = False

    def rebuild(self, model: nn.Module, entry: Entry) -> None:
        """Gives the modules the shapes of the stored tensors, before the weights are loaded.

        The model is on the meta device, and so are tensors created here. They have the dtype that the user loads in,
        unless they name one (`dtype=torch.float32`).
        """

    def finish(self, model: nn.Module, entry: Entry) -> None:
        """Converts loaded tensors to what the model computes with; called for the last entry first."""

    def pack(self, model: nn.Module, state: dict[str, Tensor], entry: Entry) -> None:
        """Replaces tensors of the state dict, in place, by their stored form; may note counts in the entry."""

    def unpack(self, model: nn.Module, state: dict[str, Tensor], entry: Entry) -> None:
        """Undoes `pack` on the tensors that are there, in place: a trainer resumes with `load_state_dict`."""


_KINDS: dict[str, LayoutKind] = {}


def register(kind: LayoutKind) -> None:
    """Makes a kind known to loading and saving; two kinds cannot have the same name."""
    if type(_KINDS.get(kind.name, kind)) is not type(kind):
        raise DefinitionError(f'A layout kind named "{kind.name}" is already registered. Give this one another name.')
    _KINDS[kind.name] = kind


def kind_of(entry: Entry) -> LayoutKind:
    """Returns the kind that reads this entry; raises `NewerFormat` if this version cannot read it."""
    name, version = entry.get("kind"), entry.get("format", 1)
    kind = _KINDS.get(str(name))
    if kind is None:
        raise NewerFormat(
            f'The model\'s config.json has a layout of kind "{name}", which this version does not know '
            f"(it knows: {', '.join(sorted(_KINDS))}).{did_you_mean(str(name), _KINDS)} "
            "Upgrade datadreamer-like, or import the package that registers this kind before loading."
        )
    NewerFormat.check(f'The "{name}" layout in the model\'s config.json', version, kind.format)
    return kind


def in_order(entries: list[Entry]) -> list[Entry]:
    """The entries as they are applied: as recorded, those that only concern storage last."""
    return sorted(entries, key=lambda entry: kind_of(entry).storage_only)


def renamed(entry: Entry, new_name: Callable[[str], str | None]) -> Entry:
    """A copy of the entry with its modules renamed; those renamed to None are left out."""
    modules = entry.get("modules", [])
    names = {new: name for name in modules if (new := new_name(name)) is not None}
    is_mapping = isinstance(modules, Mapping)
    return {**entry, "modules": {new: modules[name] for new, name in names.items()} if is_mapping else list(names)}


def name_in(model: nn.Module, name: str) -> str | None:
    """The name of a saved module in this model, which may have gained or lost the base model's prefix."""
    prefix = getattr(model, "base_model_prefix", "")
    for candidate in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")):
        with suppress(AttributeError):
            model.get_submodule(candidate)
            return candidate
    return None


def version(tensor: Tensor) -> tuple[int, int]:
    """What changes when a tensor is replaced or written to, for what is computed from it and kept."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version
