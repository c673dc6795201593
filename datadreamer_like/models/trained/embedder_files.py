"""What the files of embedders have of their own: modules after the transformer, and configs that name another head."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, cast

from .hf_source import hf_source, loading
from .model_facts import task_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_OWN = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json")
_OF_MODULE = ("config.json", "model.safetensors", "pytorch_model.bin")


def config_of(source: str) -> PretrainedConfig:
    """Loads the transformers config of a folder, a GGUF file or an id on the Hub; raises what `loading` does.

    That of an embedder may name the masked-LM head that it was trained with, which its files lack: it is left out.
    """
    from transformers import AutoConfig

    from datadreamer_like import formats  # noqa: F401  (registers its own architectures)

    with loading(found := hf_source(source)):
        config = cast("PretrainedConfig", AutoConfig.from_pretrained(found.name, **found.options))
        is_folder = not Path(source).is_file()
        if task_of(config) == "fill-mask" and is_folder and _file(source, "modules.json") is not None:
            config.architectures = None
    return config


def head_left_out(config: PretrainedConfig) -> dict[str, PretrainedConfig]:
    """Returns the argument of `formats.load` by which it leaves out the head that `config_of` has left out."""
    return {} if config.architectures else {"config": copy.deepcopy(config)}


def copy_modules(source: str, folder: Path) -> list[str]:
    """Copies the other modules of an embedder, a folder or an id on the Hub, to a folder with its changed transformer.

    Returns the files with weights, such as "2_Dense/model.safetensors". Nothing is copied if `source` is no embedder,
    such as a GGUF file.
    """
    listed = None if Path(source).is_file() else _file(source, "modules.json")
    modules = [] if listed is None else json.loads(listed.read_text(encoding="utf-8"))
    if not modules or modules[0]["path"]:  # the transformer of most is in the folder itself
        return []
    inner = [f"{module['path']}/{name}" for module in modules[1:] for name in _OF_MODULE if module["path"]]
    files = {name: found for name in (*_OWN, *inner) if (found := _file(source, name)) is not None}
    for name, found in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found, folder / name)
    return [name for name in files if not name.endswith(".json")]


def _file(source: str, name: str) -> Path | None:
    from transformers.utils.hub import cached_file

    found = cached_file(
        source,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return None if found is None else Path(found)
