"""Refuses options that neither a class nor the library that it passes them on to has."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Set
from inspect import signature
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from datadreamer_like.errors import DefinitionError, did_you_mean

if TYPE_CHECKING:
    from .trained.hf_source import HFSource

# Arguments of `from_pretrained`, so that the usual ones are known before transformers is imported.
_FROM_PRETRAINED = frozenset({
    "adapter_kwargs", "allow_all_kernels", "attn_implementation", "cache_dir", "code_revision", "config", "device_map",
    "disable_mmap", "distributed_config", "dtype", "experts_implementation", "force_download", "from_flax", "from_tf",
    "fusion_config", "generation_config", "gguf_file", "ignore_mismatched_sizes", "kernel_config", "key_mapping",
    "local_files_only", "low_cpu_mem_usage", "max_memory", "mirror", "offload_buffers", "offload_folder",
    "offload_state_dict", "proxies", "quantization_config", "revision", "subfolder", "token", "tp_plan", "tp_size",
    "tqdm_class", "trust_remote_code", "use_kernels", "use_safetensors", "variant", "weights_only",
})  # fmt: skip

# Names that transformers had before, or that would change what it returns.
_INSTEAD = {
    "torch_dtype": "Give dtype instead.",
    "use_auth_token": "Give token instead.",
    "load_in_8bit": "Give quantization_config=BitsAndBytesConfig(load_in_8bit=True) instead.",
    "load_in_4bit": "Give quantization_config=BitsAndBytesConfig(load_in_4bit=True) instead.",
    "use_flash_attention_2": 'Give attn_implementation="flash_attention_2" instead.',
    "output_loading_info": "Leave it out.",
    "state_dict": "Save the weights in a folder, and give that as the model.",
}


def refuse_unknown(
    kind: type,
    given: Iterable[str],
    taken: Collection[str],
    taker: str,
    instead: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Refuses options of `kind(**given)` that it would pass on to `taker`, which takes those called `taken`.

    `instead` has a sentence of help for names that are not options here.

    Raises:
        DefinitionError: An option is unknown; the message suggests the closest name of both.
    """
    for name in sorted(given):
        if name in instead:
            raise DefinitionError(f'{kind.__name__} has no option "{name}". {instead[name]}')
        if name not in taken:
            hint = did_you_mean(name, {*option_names(kind), *taken})
            raise DefinitionError(f'{kind.__name__} has no option "{name}", nor has {taker}.{hint}')


def options_of_run(options: type) -> dict[str, str]:
    """Returns help for `refuse_unknown` on the names of a typed dictionary: they are options of `run`."""
    return dict.fromkeys(options.__annotations__, "It is an option of run.")


def refuse_unknown_loading(
    kind: type,
    given: Set[str],
    source: HFSource,
    fetched: Mapping[str, Any],
    further: Collection[str] = (),
    instead: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Refuses options that transformers' `from_pretrained` does not take for a model, before its weights are loaded.

    It takes its own arguments and the names of the model's config, which is read if there are others. A model with
    code of its own may take any. Of a GGUF file, and of a model on the Hub that is not in the cache here, only names
    like one of the arguments are refused; `loading` refuses the others.

    Args:
        kind: The class whose options these are.
        given: Their names.
        source: The model.
        fetched: Arguments of `from_pretrained` that say how the model's files are fetched.
        further: Names that `kind` takes in addition.
        instead: Sentences of help for further names that are not options.

    Raises:
        DefinitionError: An option is unknown.
    """
    taken = {*_FROM_PRETRAINED, *further}
    instead = {**_INSTEAD, **instead}
    if given - taken - instead.keys():
        from transformers import PretrainedConfig, PreTrainedModel

        config = _config(source, fetched)
        taken |= {*signature(PreTrainedModel.from_pretrained).parameters}
        taken |= {name for name in given if hasattr(PretrainedConfig() if config is None else config, name)}
        if config is None:
            known = {*option_names(kind), *taken}
            taken |= {name for name in given - instead.keys() if not did_you_mean(name, known)}
        elif fetched.get("trust_remote_code") and getattr(config, "auto_map", None):
            taken |= given
        else:
            taken |= {*config.to_dict()}
    refuse_unknown(kind, given, taken, f"from_pretrained for {source.name}", instead)


def option_names(kind: type) -> set[str]:
    """Returns the names of the arguments of a class, with those that it passes on to its base classes."""
    calls = [vars(base)["__init__"] for base in kind.__mro__[:-1] if "__init__" in vars(base)]
    found = (each for call in calls for each in signature(call).parameters.values())
    return {each.name for each in found if each.kind is each.POSITIONAL_OR_KEYWORD or each.kind is each.KEYWORD_ONLY}


def _config(source: HFSource, fetched: Mapping[str, Any]) -> Any:
    """Returns the config of a model in a folder here or in the Hub's cache; None for others.

    That of a GGUF file takes seconds to read.
    """
    from huggingface_hub import try_to_load_from_cache
    from transformers import AutoConfig

    # Registers the models and formats of this package with transformers.
    import datadreamer_like.formats  # noqa: F401

    from .quiet import quiet

    path = source.folder
    if path is None:
        found = try_to_load_from_cache(source.name, "config.json", fetched.get("cache_dir"), source.revision)
        path = Path(found).parent if isinstance(found, str) else None
    if path is None or source.gguf_file is not None:
        return None
    try:
        with quiet():
            return AutoConfig.from_pretrained(path, trust_remote_code=fetched.get("trust_remote_code"))
    except Exception:  # a model that cannot be loaded is reported when it is loaded
        return None
