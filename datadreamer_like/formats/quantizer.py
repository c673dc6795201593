"""The layouts of a model, saved and loaded as one quantizer: transformers rebuilds modules for quantized models only.

A model that is only pruned stays an ordinary model: it trains, casts and saves as before.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from datadreamer_like.errors import MethodMisfit, NewerFormat, StorageError

from .experts import fuse_experts
from .layout import CodedModule, Entry, in_order, kind_of, name_in, renamed
from .modules import replace_modules, stacks

METHOD = "datadreamer_like"
_FORMAT = 1
# Options of `from_pretrained` that say which files to take, and how.
_HOW_FETCHED = frozenset({"revision", "trust_remote_code", "token", "cache_dir", "local_files_only"})
_PLAIN_MODULE = "_datadreamer_layouts"
_PART = re.compile(r"(^|\.)(weight|bias)_\w+$")
"""Keys of what decodes a weight, such as "weight_scale"."""


@register_quantization_config(METHOD)
class LayoutConfig(QuantizationConfigMixin):
    """The `quantization_config` of config.json: a model's layout entries in the order in which they were applied."""

    def __init__(self, layouts: list[Entry], format: int = _FORMAT, quant_method: str = METHOD) -> None:
        NewerFormat.check("The list of layouts in the model's config.json", format, _FORMAT)
        if not isinstance(layouts, list) or not all(
            isinstance(entry, Mapping) and isinstance(entry.get("modules"), list | Mapping) for entry in layouts
        ):
            raise StorageError(
                "The list of layouts in the model's config.json is damaged: each must be an object that names modules. "
                "Make the model again, or restore the file."
            )
        self.quant_method = quant_method  # type: ignore[assignment]
        self.format = _FORMAT
        self.layouts = layouts


@register_quantizer(METHOD)
class LayoutQuantizer(HfQuantizer):
    """Applies every layout entry around the loading of weights, and packs tensors when they are saved."""

    quantization_config: LayoutConfig

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuses entries that this version cannot read, before any work."""
        for entry in self.quantization_config.layouts:
            kind_of(entry)

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        for entry in in_order(self.quantization_config.layouts):
            entry.update(renamed(entry, partial(name_in, model)))
            kind_of(entry).rebuild(model, entry)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        for entry in reversed(in_order(self.quantization_config.layouts)):
            kind_of(entry).finish(model, entry)
        attach(model, self)
        return model

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[dict[str, torch.Tensor] | None, dict[str, str]]:
        """Returns the tensors to save, packed by every kind."""
        if getattr(model, "_hf_peft_config_loaded", False):
            return None, {}
        return packed_state(model), {}

    def is_serializable(self) -> bool:
        """Every layout can be saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether adapters can be trained on every layout."""
        return all(kind_of(entry).takes_adapters for entry in self.quantization_config.layouts)

    @property
    def is_qat_trainable(self) -> bool:
        """Whether every layout leaves the weights trainable: what `transformers.Trainer` asks without an adapter."""
        return all(kind_of(entry).trainable for entry in self.quantization_config.layouts)

    @property
    def is_compileable(self) -> bool:
        """Whether every layout can be compiled: transformers does so by itself for a static cache on a GPU."""
        return all(kind_of(entry).compiles for entry in self.quantization_config.layouts)


def packed_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the tensors of a model as they are written to disk."""
    state = dict(model.state_dict())
    for entry in in_order(layouts(model)):
        kind_of(entry).pack(model, state, entry)
    return state


def attach(model: nn.Module, quantizer: LayoutQuantizer) -> None:
    """Sets the quantizer that saves the model, and whether the model counts as quantized."""
    model.hf_quantizer = quantizer  # type: ignore[assignment]
    # A pruned model must not count as quantized: transformers would refuse `.half()`, and `Trainer` to train it.
    model.is_quantized = not quantizer.is_qat_trainable  # type: ignore[assignment]
    if quantizer.is_qat_trainable:
        for module in model.modules():
            if hasattr(getattr(module, "config", None), "_is_quantized"):
                del cast(Any, module).config._is_quantized
    if not hasattr(model, "_unpacks_on_load"):
        model.register_load_state_dict_pre_hook(_unpack_on_load)  # type: ignore[no-untyped-call]
        model._unpacks_on_load = True  # type: ignore[assignment]


def _unpack_on_load(model: nn.Module, state: dict[str, torch.Tensor], prefix: str, *_: Any) -> None:
    own = {name.removeprefix(prefix): state.pop(name) for name in list(state) if name.startswith(prefix)}
    for entry in reversed(in_order(layouts(model))):
        kind_of(entry).unpack(model, own, entry)
    state.update({prefix + name: tensor for name, tensor in own.items()})


def layouts(model: nn.Module) -> list[Entry]:
    """The layout entries of a model, in the order in which they were applied; empty for an unchanged one."""
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    if isinstance(config, LayoutConfig):
        return config.layouts
    return cast("list[Entry]", getattr(model, _PLAIN_MODULE, []))


def add_layout(model: nn.Module, entry: Entry) -> None:
    """Records a method's changes to a model for `save_pretrained` and `from_pretrained`.

    Earlier entries are kept: heads may be removed, then weights made sparse, then the rest quantized. For a plain
    `nn.Module` the entry is only kept in memory. `entry` has JSON values with "kind" and "modules"; "format" is filled
    in. Raises `MethodMisfit` if the model is quantized by another library.
    """
    entry = {"kind": entry["kind"], "format": kind_of(entry).format, **entry}
    config = getattr(model, "config", None)
    if not isinstance(config, transformers.PretrainedConfig):
        setattr(model, _PLAIN_MODULE, [*layouts(model), entry])
        return
    if reason := foreign(model):
        raise MethodMisfit(reason)
    if not isinstance(getattr(config, "quantization_config", None), LayoutConfig):
        config.quantization_config = LayoutConfig([])
    config.quantization_config.layouts = [*layouts(model), entry]
    attach(model, LayoutQuantizer(config.quantization_config))


def foreign(model: nn.Module) -> str | None:
    """Returns the reason why a model cannot have layouts, because another library quantized it; None otherwise."""
    saved = getattr(getattr(model, "config", None), "quantization_config", None)
    if saved is None or isinstance(saved, LayoutConfig):
        return None
    method = saved.get("quant_method") if isinstance(saved, Mapping) else getattr(saved, "quant_method", None)
    method = getattr(method, "value", method)
    plain = (module for module in model.modules() if not isinstance(module, CodedModule))
    if method == "gguf" and all(p.is_floating_point() for m in plain for p in m.parameters(recurse=False)):
        return None  # read out of a GGUF file into plain weights; config and loader only remember where they came from
    return (
        f"{type(model).__name__} is already quantized ({method}), and its config has room for one method only. "
        "Start from the unquantized model."
    )


def rename_modules(model: nn.Module, names: Mapping[str, str | None]) -> None:
    """Renames or removes modules in the layouts of a changed model: layer 5 may have become layer 3.

    `names` has the new name of each module that moved, by old name, or None if it was removed. Modules inside follow.
    """

    def new_name(name: str) -> str | None:
        for old, new in names.items():
            if name == old or name.startswith(f"{old}."):
                return None if new is None else new + name[len(old) :]
        return name

    entries = layouts(model)
    entries[:] = [renamed(entry, new_name) for entry in entries]


def load(folder: str | os.PathLike[str], **options: Any) -> nn.Module:
    """Loads a model from a folder or the Hub, in the class that was saved; `options` go to `from_pretrained`.

    A `config` among them is taken instead of the saved one.

    Raises:
        StorageError: The files lack weights of the model's head, which would be random, or hold codes that its config
            does not describe, which would be taken for weights.
    """
    fetched = {name: value for name, value in options.items() if name in _HOW_FETCHED}
    config = options.get("config") or transformers.AutoConfig.from_pretrained(folder, **fetched)
    architecture = (config.architectures or ["AutoModel"])[0]
    # Those in `formats.classifiers` are known to the auto class.
    model_class = getattr(transformers, architecture, transformers.AutoModelForSequenceClassification)
    model, found = model_class.from_pretrained(folder, output_loading_info=True, **options)
    unread = sorted(name for name in found["unexpected_keys"] if _PART.search(name))
    if unread:
        raise StorageError(
            f"The files of {folder} hold {unread[0]}, a part of quantized or sparse weights that config.json does not "
            "describe: one of the files was changed or replaced. Make the model again, or restore its files."
        )
    if wrong := _other_blocks(model, found["missing_keys"], found["unexpected_keys"]):
        raise StorageError(f"{folder}: {wrong} Make the model again, or restore its files.")
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    lacking = sorted(name for name in found["missing_keys"] if not name.startswith(prefix))
    if lacking and hasattr(model, prefix[:-1]):
        raise StorageError(
            f"The files of {folder} lack {len(lacking):,} of the weights of {model_class.__name__}, such as "
            f"{lacking[0]}. Make the model again, or restore its files."
        )
    return cast(nn.Module, model)


def _other_blocks(model: nn.Module, missing: Iterable[str], unread: Iterable[str]) -> str | None:
    """The reason why a model has other blocks than the files that it was loaded from; None if it has theirs."""
    for stack in stacks(model):
        count, start = len(stack.blocks), f"{stack.name}."
        lacking = sorted(name for name in missing if name.startswith(start))
        beyond = sorted(
            name
            for name in unread
            if name.startswith(start)
            and (index := name[len(start) :].partition(".")[0]).isdigit()
            and int(index) >= count
        )
        says = f"config.json states {count} layers (num_hidden_layers, or its name in this architecture), and"
        if beyond:
            return f"{says} the files hold more, such as {beyond[0]}, which would be left out."
        if lacking:
            return (
                f"{says} the files lack {len(lacking):,} of their weights, such as {lacking[0]}, which would be random."
            )
    return None


def has_codes(model: nn.Module) -> bool:
    """Whether some weights of the model are stored as codes of few bits."""
    return any(isinstance(module, CodedModule) for module in model.modules())


def count_zeros(model: nn.Module) -> int:
    """Counts zero weights, including those of quantized layers; shared ones once."""
    coded = {id(module.weight): module for module in model.modules() if isinstance(module, CodedModule)}
    zeros = sum(int((module.dequantized() == 0).sum()) for module in coded.values())
    return zeros + sum(int((tensor == 0).sum()) for tensor in model.parameters() if id(tensor) not in coded)


def stored_bytes(model: nn.Module) -> int:
    """Returns the bytes of the model's tensors as they are written to disk: packed, shared ones once."""
    state = packed_state(model).values()
    tensors = {tensor.data_ptr() if tensor.numel() else id(tensor): tensor for tensor in state}
    return sum(tensor.nbytes for tensor in tensors.values())


def untrainable(model: nn.Module, adapters: bool = False) -> str | None:
    """The reason why the weights of a model, or adapters on them, cannot be trained; None if they can."""
    kinds = {kind.name: kind for kind in map(kind_of, layouts(model))}
    frozen = [name for name, kind in kinds.items() if not (kind.takes_adapters if adapters else kind.trainable)]
    if not frozen:
        return None
    what = "no adapter can be trained on them" if adapters else "they cannot be trained"
    return f"the weights of this {type(model).__name__} are quantized ({', '.join(frozen)}), so {what}."


def put_together(model: nn.Module) -> None:
    """Gives experts whose layers are all plain single tensors again, in place, also in models that are inside."""
    for part in list(model.modules()):
        if isinstance(part, transformers.PreTrainedModel) or _PLAIN_MODULE in vars(part):
            fuse_experts(part, layouts(part))


def dequantize(model: nn.Module) -> None:
    """Replaces quantized layers by dequantized ones in place; adapters on them can be merged afterwards."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    weights: dict[int, nn.Parameter] = {}
    plain: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, CodedModule):
            plain[name] = made = module.plain(dtype)
            made.weight = weights.setdefault(id(module.weight), made.weight)  # type: ignore[arg-type]
    replace_modules(model, plain)
    entries = layouts(model)
    entries[:] = [entry for entry in entries if kind_of(entry).trainable]
    put_together(model)
    for module in model.modules():
        if isinstance(quantizer := vars(module).get("hf_quantizer"), LayoutQuantizer):
            attach(module, quantizer)
