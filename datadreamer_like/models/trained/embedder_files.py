"""What a sentence-transformers model has besides its transformer: pooling, normalisation and the modules after them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

_OWN = ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json")
_OF_MODULE = ("config.json", "model.safetensors", "pytorch_model.bin")


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
