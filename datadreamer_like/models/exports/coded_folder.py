"""A transformers folder in which some linear layers are codes: the plain folder is written, then its files recoded."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from datadreamer_like.errors import MethodMisfit
from datadreamer_like.formats import layouts

from ..trained.hf_source import forget_gguf

Code = Callable[[str, Tensor], dict[str, Tensor]]
"""Returns the tensors that replace a layer's weight [out, in], by the last part of their names."""


def save_plain(model: Any, tokenizer: Any, folder: Path) -> None:
    """Writes a model and its tokenizer as plain transformers loads them: without layouts, sparse weights as zeros."""
    if layouts(model):
        model = copy.deepcopy(model)
        forget_gguf(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_coded(
    model: Any, tokenizer: Any, folder: Path, names: Collection[str], code: Code, config: dict[str, Any]
) -> None:
    """Writes a model whose layers `names` are codes, and the `quantization_config` that explains them."""
    save_plain(model, tokenizer, folder)
    missing, total = set(names), 0
    places: dict[str, str] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors: dict[str, Tensor] = {}
        for key, tensor in load_file(file).items():
            name, _, last = key.rpartition(".")
            if last == "weight" and name in missing:
                missing.remove(name)
                tensors |= {f"{name}.{part}": value.contiguous() for part, value in code(name, tensor).items()}
            else:
                tensors[key] = tensor
        save_file(tensors, file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file.name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if missing:
        raise MethodMisfit(
            f"{type(model).__name__} saves {len(missing)} of its layers under other names than they have in the model, "
            f'such as "{min(missing)}", so they cannot be coded. Export it as "safetensors".'
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=1))
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": config}, indent=2))
