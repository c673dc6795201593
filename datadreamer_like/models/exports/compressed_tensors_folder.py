"""compressed-tensors: the layout of llm-compressor, which vLLM and transformers load.

Specification: https://github.com/vllm-project/compressed-tensors
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from datadreamer_like import formats
from datadreamer_like.errors import DefinitionError
from datadreamer_like.formats.modules import block_linears
from datadreamer_like.kernels import absmax_quantize

from .coded_folder import save_coded
from .export_format import ExportFormat, not_dense, why_not_coded
from .int4 import Codes, check_group_size, chosen_group, group_codes, inputs_of, packed
from .logits import logits_for_texts

Scheme = Literal["W8A8", "W4A16", "FP8_DYNAMIC"]
_INT8: dict[str, Any] = {"num_bits": 8, "type": "int", "symmetric": True}
_FP8: dict[str, Any] = {"num_bits": 8, "type": "float", "symmetric": True}
_BY_TOKEN = {"strategy": "token", "dynamic": True}


@dataclass(frozen=True)
class CompressedTensors(ExportFormat):
    """Linear layers inside the blocks as codes; embeddings, heads and norms as they are.

    Attributes:
        scheme: "W8A8": int8 weights with a scale for each output, activations quantized for each token as they come.
            "W4A16": 4-bit weights with a scale for each group of inputs. "FP8_DYNAMIC": as W8A8, in float8 (e4m3).
        group_size: Inputs that share a scale, for W4A16; None for the largest of 128, 64 and 32 that fits.
    """

    scheme: Scheme = "W8A8"
    group_size: int | None = None

    name = "compressed-tensors"
    runtime = "transformers"
    modules = ("compressed_tensors",)

    def __post_init__(self) -> None:
        if self.scheme not in get_args(Scheme):
            raise DefinitionError(f'scheme is "{self.scheme}"; choose one of {", ".join(get_args(Scheme))}.')
        check_group_size(self.group_size)
        if self.group_size is not None and self.scheme != "W4A16":
            raise DefinitionError(f"group_size is an option of W4A16; {self.scheme} has a scale for each output.")

    @property
    def tolerance(self) -> float:
        """Activations are rounded too, or weights to 4 bits."""
        return 1.0 if self.scheme == "W4A16" else 0.3

    def why_not(self, model: Any, tokenizer: Any) -> str | None:
        """Any model of plain shapes with `nn.Linear` layers in its blocks."""
        if reason := not_dense(model) or why_not_coded(model):
            return reason
        chosen = block_linears(model)
        if not chosen or any(type(layer) is not nn.Linear for layer in chosen.values()):
            return "its blocks have no nn.Linear layers, which are the only ones that compressed-tensors codes."
        if self.scheme == "W4A16":
            return chosen_group(self.group_size, inputs_of(chosen.values()))[1]
        return None

    def write(self, model: Any, tokenizer: Any, folder: Path, codes: Codes) -> None:
        """Writes the folder."""
        chosen = block_linears(model)
        group_size = chosen_group(self.group_size, inputs_of(chosen.values()), codes)[0]

        def int4(name: str, weight: Tensor) -> dict[str, Tensor]:
            signed, scale = group_codes(codes, name, weight, group_size)
            shape = torch.tensor(weight.shape, dtype=torch.int64)
            return {"weight_packed": packed(signed + 8), "weight_scale": scale.to(weight.dtype), "weight_shape": shape}

        weights: dict[str, Any] = {**(_FP8 if self.scheme == "FP8_DYNAMIC" else _INT8), "strategy": "channel"}
        inputs: dict[str, Any] | None = {**weights, **_BY_TOKEN}
        form = "float-quantized" if self.scheme == "FP8_DYNAMIC" else "int-quantized"
        if self.scheme == "W4A16":
            weights |= {"num_bits": 4, "strategy": "group", "group_size": group_size}
            inputs, form = None, "pack-quantized"
        others = [name for name, layer in model.named_modules() if type(layer) is nn.Linear and name not in chosen]
        config = {
            "quant_method": "compressed-tensors",
            "format": form,
            "quantization_status": "compressed",
            "ignore": others,
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}},
        }
        code = {"W8A8": _int8, "FP8_DYNAMIC": _fp8}.get(self.scheme, int4)
        save_coded(model, tokenizer, folder, set(chosen), code, config)

    def logits(self, folder: Path, tokenizer: Any, texts: Sequence[str]) -> Tensor:
        """Computed by transformers with compressed-tensors' own layers."""
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bars have no switch
            return logits_for_texts(formats.load(folder), tokenizer, texts)


def _int8(_: str, weight: Tensor) -> dict[str, Tensor]:
    codes, scale = absmax_quantize(weight, bits=8, axis=-1)
    return {"weight": codes, "weight_scale": scale.to(weight.dtype)}


def _fp8(_: str, weight: Tensor) -> dict[str, Tensor]:
    limits = torch.finfo(torch.float8_e4m3fn)
    scale = weight.float().abs().amax(-1, keepdim=True).clamp(min=1e-12) / limits.max
    codes = (weight.float() / scale).clamp(limits.min, limits.max).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scale.to(weight.dtype)}
