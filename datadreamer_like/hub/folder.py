"""The files of a saved model to publish, without those of one machine or training run."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from datadreamer_like.errors import HubError

from .metadata import is_local

LEFT_OUT = ("README.md", ".*", "*/.*", "__pycache__/*", "*/__pycache__/*", "*.lock")
TRAINING_STATE = ("checkpoint-*/*", "runs/*", "global_step*/*", "trainer_state.json", "training_args.bin")
OPTIMIZER_STATE = ("optimizer.*", "scheduler.*", "scaler.pt", "rng_state*.pth")
WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.onnx", "*.index.json")
ADAPTER = "adapter_config.json"
# Keys in which transformers and peft record where a model was loaded from, possibly a local folder.
ORIGIN_KEYS = {
    "config.json": ("_name_or_path",),
    "tokenizer_config.json": ("name_or_path", "_name_or_path"),
    ADAPTER: ("base_model_name_or_path",),
}


def published_files(folder: Path, *, base_model: str | None, ignore: Sequence[str] = ()) -> dict[str, Path | bytes]:
    """Collects a saved model's files by path in the repository, or their bytes if a local path in them was replaced.

    `base_model` is the Hub id of an adapter's base model, if known; `ignore` are further patterns to leave out.
    """
    if not folder.is_dir():
        raise HubError(f'"{folder}" is not a folder. Publish the folder that the model was saved to.')
    left_out = (*LEFT_OUT, *TRAINING_STATE, *OPTIMIZER_STATE, *ignore)
    files: dict[str, Path | bytes] = {}
    for file in sorted(folder.rglob("*")):
        path = file.relative_to(folder).as_posix()
        if file.is_file() and not any(fnmatch(path, pattern) for pattern in left_out):
            files[path] = _public(file, base_model)
    if not any(is_weights(path) for path in files):
        raise HubError(f'"{folder}" holds no weights ({", ".join(WEIGHTS[:4])}). Save or export the model there first.')
    return files


def is_weights(path: str) -> bool:
    """Returns whether a path is a weights file; a publication deletes those of an earlier one."""
    return "/" not in path and any(fnmatch(path, pattern) for pattern in WEIGHTS)


def library_of(files: Collection[str]) -> str | None:
    """Returns the Hub's name of the library that loads such files; None if there is none."""
    if ADAPTER in files:
        return "peft"
    if is_graph(files):
        return "onnx"
    if "modules.json" in files:
        return "sentence-transformers"
    return "transformers" if "config.json" in files else None


def is_graph(files: Collection[str]) -> bool:
    """Returns whether such files are a graph of ONNX Runtime, without weights for other libraries."""
    weights = [path for path in files if is_weights(path)]
    return bool(weights) and all(path.endswith(".onnx") for path in weights)


def _public(file: Path, base_model: str | None) -> Path | bytes:
    content = None
    if file.name in ORIGIN_KEYS:
        with suppress(ValueError):
            content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        return file
    local = [key for key in ORIGIN_KEYS[file.name] if is_local(str(content.get(key) or "-"))]
    if not local:
        return file
    if file.name == ADAPTER and base_model is None:
        raise HubError(
            "The base model of this adapter is a local folder, so others could not load it. "
            "Publish the base model first and train from its id, or publish the merged model."
        )
    for key in local:
        if base_model is not None and file.name != "tokenizer_config.json":
            content[key] = base_model
        else:
            del content[key]
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
