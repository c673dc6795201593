"""The base of layout kinds, which apply an entry of the saved list to a model and its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from datadreamer_like.errors import DefinitionError, NewerFormat, did_you_mean

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
        raise NotImplementedError

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
        format: The newest version of the entry that this code reads and the one it writes.
        modules: Classes of modules that the kind puts in the place of linear layers and embeddings; empty if it keeps
            those that there are.
        trainable: Whether the weights of its modules can go on being trained. A model with an entry that is not
            trainable counts as quantized for transformers: its `Trainer` refuses it.
        takes_adapters: Whether adapters such as LoRA can be trained on its modules.
        storage_only: Whether only the tensors on disk differ, not the modules. Such entries are rebuilt and packed
            after all others, so that they apply to the tensors of the other kinds.
    """

    name: str
    format: int = 1
    modules: tuple[type[CodedModule], ...] = ()
    trainable: bool = True
    takes_adapters: bool = True
    storage_only: bool = False

    def rebuild(self, model: nn.Module, entry: Entry) -> None:
        """Gives the modules the shape that the stored tensors have.

        Runs before the weights are loaded: the model is on the meta device, and tensors made here are too. They are of
        the dtype that the user loads in; one that names its dtype (`dtype=torch.float32`) keeps it.
        """

    def finish(self, model: nn.Module, entry: Entry) -> None:
        """Turns what was loaded into what the model computes with, after the weights are loaded; last entry first."""

    def pack(self, model: nn.Module, state: dict[str, torch.Tensor], entry: Entry) -> None:
        """Replaces tensors of the state dict, in place, by their stored form; may note counts in the entry."""

    def unpack(self, model: nn.Module, state: dict[str, torch.Tensor], entry: Entry) -> None:
        """Undoes `pack` on the tensors that are there, in place: a trainer resumes with `load_state_dict`."""

    def kept(self, model: nn.Module, entry: Entry) -> dict[str, Tensor]:
        """Returns the zeros that training must keep: for each parameter with some, bool, True where it is not zero."""
        return {}

    def zeros(self, module: CodedModule) -> int:
        """Returns how many weights of one of the kind's own modules are zero."""
        return int((module.dequantized() == 0).sum())


_KINDS: dict[str, LayoutKind] = {}


def register(kind: LayoutKind) -> None:
    """Makes a kind known to loading and saving.

    Raises:
        DefinitionError: Another kind has this name.
    """
    if type(_KINDS.get(kind.name, kind)) is not type(kind):
        raise DefinitionError(f'A layout kind named "{kind.name}" is already registered. Give this one another name.')
    _KINDS[kind.name] = kind


def kind_of(entry: Entry) -> LayoutKind:
    """Returns the kind that reads this entry.

    Raises:
        NewerFormat: The entry was written by a newer version, or its kind is not known.
    """
    name, version = entry.get("kind"), entry.get("format", 1)
    kind = _KINDS.get(str(name))
    if kind is None:
        raise NewerFormat(
            f'The model\'s config.json has a layout of kind "{name}", which this version does not know '
            f"(it knows: {', '.join(sorted(_KINDS))}).{did_you_mean(str(name), _KINDS)} "
            "Upgrade datadreamer-like, or import the package that registers this kind before loading."
        )
    if version > kind.format:
        raise NewerFormat(
            f'The model\'s config.json has a "{name}" layout of format {version}; this version reads up to '
            f"{kind.format}. Upgrade datadreamer-like to load it."
        )
    return kind


def kind_of_module(module: nn.Module) -> LayoutKind | None:
    """Returns the kind that a module belongs to; None for modules of the plain architecture."""
    return next((kind for kind in _KINDS.values() if isinstance(module, kind.modules)), None)


def in_order(entries: list[Entry]) -> list[Entry]:
    """The entries as they are applied: as recorded, those that only concern storage last."""
    return sorted(entries, key=lambda entry: kind_of(entry).storage_only)


def renamed(entry: Entry, new_name: Callable[[str], str | None]) -> Entry:
    """A copy of the entry with its modules renamed; those renamed to None are left out."""
    modules = entry.get("modules", [])
    names = {name: new_name(name) for name in modules}
    kept: Any
    if isinstance(modules, Mapping):
        kept = {new: modules[name] for name, new in names.items() if new is not None}
    else:
        kept = [new for new in names.values() if new is not None]
    return {**entry, "modules": kept}


def name_in(model: nn.Module, name: str) -> str | None:
    """The name of a saved module in this model, which may have gained or lost the base model's prefix."""
    prefix = getattr(model, "base_model_prefix", "")
    for candidate in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")):
        try:
            model.get_submodule(candidate)
        except AttributeError:
            continue
        return candidate
    return None
