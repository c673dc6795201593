"""GPTQ's layout: 4-bit weights that transformers runs packed (with gptqmodel), and vLLM.

The layout is GPTQ's, not the method (Frantar et al. 2022, arXiv:2210.17323): the codes of a student of
`quantization.GPTQ` are written as they are, other weights are rounded to the nearest.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from datadreamer_like import formats
from datadreamer_like.formats.modules import block_linears, weight_of

from .coded_folder import save_coded
from .export_format import ExportFormat, not_dense, why_not_coded, writes
from .int4 import Codes, check_group_size, chosen_group, group_codes, inputs_of, packed, unpacked
from .logits import logits_for_texts

_ZERO = 8
"""The code of 0; the first version of the layout stores one less."""


@dataclass(frozen=True)
class GPTQLayout(ExportFormat):
    """Linear layers inside the blocks of a decoder in 4 bits, symmetric, the only form that vLLM takes.

    Attributes:
        group_size: Inputs that share a scale; None for the largest of 128, 64 and 32 that fits.
    """

    group_size: int | None = None

    name = "gptq"

    def __post_init__(self) -> None:
        check_group_size(self.group_size)

    @property
    def runtime(self) -> str:  # type: ignore[override]
        """Transformers needs two packages to load it; without them the files are decoded by this one."""
        return "transformers" if _loads() else "torch, decoded here since gptqmodel and optimum are not installed"

    @property
    def tolerance(self) -> float:
        """Weights are rounded to 4 bits."""
        return 1.0

    def why_not(self, model: Any, tokenizer: Any) -> str | None:
        """Decoders of plain shapes with `nn.Linear` layers."""
        if reason := not_dense(model) or why_not_coded(model):
            return reason
        chosen = block_linears(model)
        if not type(model).__name__.endswith("ForCausalLM") or any(
            type(each) is not nn.Linear for each in chosen.values()
        ):
            other = "safetensors" if writes(model) else "onnx"
            return f'the loaders of this layout know decoders of nn.Linear layers only. Export it as "{other}".'
        shapes = [tuple(weight_of(layer).shape) for layer in chosen.values()]
        if odd := next((outputs for outputs, _ in shapes if outputs % 8), None):
            return f'a layer has {odd} outputs, and the layout packs eight of them. Export it as "compressed-tensors".'
        return chosen_group(self.group_size, inputs_of(chosen.values()))[1]

    def write(self, model: Any, tokenizer: Any, folder: Path, codes: Codes) -> None:
        """Writes the folder."""
        chosen = block_linears(model)
        size = chosen_group(self.group_size, inputs_of(chosen.values()), codes)[0]

        def code(name: str, weight: Tensor) -> dict[str, Tensor]:
            signed, scale = group_codes(codes, name, weight, size)
            outputs, inputs = weight.shape
            zeros = torch.full((inputs // size, outputs), _ZERO - 1)
            return {
                "qweight": packed(signed + _ZERO).T,
                "scales": scale.T,
                "qzeros": packed(zeros),
                "g_idx": torch.arange(inputs, dtype=torch.int32) // size,
            }

        config = {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": size,
            "sym": True,
            "desc_act": False,
            "checkpoint_format": "gptq",
        }
        save_coded(model, tokenizer, folder, set(chosen), code, config)

    def logits(self, folder: Path, tokenizer: Any, texts: Sequence[str]) -> Tensor:
        """Computed by transformers with gptqmodel's layers, or from decoded weights."""
        if _loads():
            return logits_for_texts(formats.load(folder), tokenizer, texts)
        with tempfile.TemporaryDirectory() as plain:
            return logits_for_texts(_decoded(folder, Path(plain)), tokenizer, texts)


def _loads() -> bool:
    return all(importlib.util.find_spec(module) for module in ("gptqmodel", "optimum"))


def _decoded(folder: Path, plain: Path) -> nn.Module:
    """Loads the model with its weights decoded."""
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (plain / "config.json").write_text(json.dumps(config))
    stored: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        stored |= load_file(file)
    for key in [key for key in stored if key.endswith(".qweight")]:
        name = key.removesuffix(".qweight")
        codes, groups = unpacked(stored.pop(key).T), stored.pop(f"{name}.g_idx").long()
        zeros = (unpacked(stored.pop(f"{name}.qzeros")) + 1)[groups].T
        stored[f"{name}.weight"] = ((codes - zeros) * stored.pop(f"{name}.scales").float()[groups].T).contiguous()
    save_file(stored, plain / "model.safetensors", metadata={"format": "pt"})
    return formats.load(plain)
