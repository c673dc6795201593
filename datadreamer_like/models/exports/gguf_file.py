"""GGUF: the file that llama.cpp runs.

Specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from datadreamer_like.errors import (
    ArgumentTypeError,
    DefinitionError,
    MethodMisfit,
    StorageError,
    check_number,
    with_article,
)

from ..llms.gguf import read_gguf_header
from ..llms.llamacpp_server import LlamaServer
from .export_format import ExportFormat, not_dense, writes
from .gguf_tokenizer import add_tokenizer, splitting_of
from .int4 import Codes
from .logits import MAX_TOKENS
from .report import GGUF_NAME

Type = Literal["F16", "Q8_0", "Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K"]
_WRITTEN = ("F16", "Q8_0", "Q4_0")
_QUANTIZER = "llama-quantize"
_BLOCK = 32
_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
# Numbers of a config that the header holds, in 32 bits; llama.cpp counts with a sign.
_MAY_BE_NONE = ("head_dim", "sliding_window")
_COUNTS = (
    "num_hidden_layers", "max_position_embeddings", "hidden_size", "intermediate_size", "num_attention_heads",
    "num_key_value_heads", "vocab_size", *_MAY_BE_NONE,
)  # fmt: skip
_LARGEST = 2**31 - 1
_TOLERANCES = {"F16": 0.02, "Q8_0": 0.3}
# Matrices whose rounding shows directly in the logits keep 8 bits, as in llama.cpp's own mixtures.
_KEPT = ("token_embd.weight", "output.weight")


@dataclass(frozen=True)
class GGUF(ExportFormat):
    """One file with the weights, the config and the tokenizer.

    Attributes:
        type: "F16", "Q8_0" (8.5 bits a weight) or "Q4_0" (4.5 bits; embedding and output head in 8.5), or one of
            "Q4_K_M", "Q5_K_M" and "Q6_K", for which llama.cpp's `llama-quantize` must be on the PATH.
    """

    type: Type = "Q8_0"

    name = "gguf"
    runtime = "llama.cpp"
    modules = ("gguf", "xllamacpp")

    def __post_init__(self) -> None:
        if self.type not in get_args(Type):
            raise DefinitionError(f'type is "{self.type}"; choose one of {", ".join(get_args(Type))}.')
        if self.type not in _WRITTEN and shutil.which(_QUANTIZER) is None:
            raise DefinitionError(
                f'type="{self.type}" is made by {_QUANTIZER}, which is not on the PATH. Install llama.cpp, or choose '
                f"one of {', '.join(_WRITTEN)}."
            )

    @property
    def tolerance(self) -> float:
        """F16 is nearly exact."""
        return _TOLERANCES.get(self.type, 1.0)

    def why_not(self, model: Any, tokenizer: Any) -> str | None:
        """Llama, Mistral, Qwen2 and Qwen3 with a byte-level BPE tokenizer."""
        config = model.config
        if reason := not_dense(model):
            return reason
        if config.model_type not in _ARCHITECTURES or not type(model).__name__.endswith("ForCausalLM"):
            known = ", ".join(_ARCHITECTURES)
            kind = with_article(type(model))
            other = "safetensors" if writes(model) else "onnx"
            return f'llama.cpp generates text, with models of types {known}. Export {kind} as "{other}".'
        rope = getattr(config, "rope_parameters", None) or {}
        if rope.get("rope_type", "default") != "default":
            return f'its rotary embedding is scaled ({rope["rope_type"]}). Choose "compressed-tensors".'
        if getattr(config, "use_sliding_window", False):
            return 'it has sliding windows, which are not written. Choose "compressed-tensors".'
        if reason := _unwritable_number(config):
            return reason
        if splitting_of(tokenizer) is None:
            return "its tokenizer is not a byte-level BPE with a splitting that llama.cpp has a name for."
        if len(tokenizer) > config.vocab_size:
            return f"its tokenizer has {len(tokenizer):,} tokens, and the model {config.vocab_size:,} embeddings."
        if self.type in ("Q8_0", "Q4_0"):
            odd = [(name, value.shape[-1]) for name, value in _matrices(model) if value.shape[-1] % _BLOCK]
            if odd:
                name, size = odd[0]
                return (
                    f'the rows of "{name}" have {size} values; {self.type} codes blocks of {_BLOCK}. Choose type="F16".'
                )
        return None

    def write(self, model: Any, tokenizer: Any, folder: Path, codes: Codes) -> None:
        """Writes the file; K-quants are made from one in F16."""
        target = folder / GGUF_NAME
        if self.type in _WRITTEN:
            _write(model, tokenizer, target, self.type)
            return
        whole = folder / "whole.gguf"
        _write(model, tokenizer, whole, "F16")
        command = [_QUANTIZER, str(whole), str(target), self.type, "1"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise StorageError(f"{_QUANTIZER} failed ({done.returncode}): {done.stderr[-500:].strip()}")
        whole.unlink()

    def logits(self, folder: Path, tokenizer: Any, texts: Sequence[str]) -> Tensor:
        """Log-probabilities of the next token, computed by llama.cpp from its own tokens of the texts."""
        path = folder / GGUF_NAME
        longest = min(read_gguf_header(path).context_length or MAX_TOKENS, tokenizer.model_max_length)
        limit = min(MAX_TOKENS, longest - 1)
        server = LlamaServer(path, MAX_TOKENS + 1, 1, torch.get_num_threads(), {})
        # The token that is written must be a whole character: others are reported in another form.
        forced = [[server.tokenize("a")[-1], 1e6]]
        rows = []
        for text in texts:
            ids, own = server.tokenize(text, special=True), tokenizer(text, verbose=False)["input_ids"]
            if ids != own:
                raise MethodMisfit(
                    f"llama.cpp splits the text {text[:60]!r} into other tokens than the model's tokenizer: "
                    f'{ids[:8]}, not {own[:8]}. Choose "compressed-tensors".'
                )
            asked = {"n_predict": 1, "n_probs": 10**7, "logit_bias": forced}
            [found] = server.next_token_probs(0, prompt=ids[:limit], **asked)
            row = {token["id"]: float(token["logprob"]) for token in found["top_logprobs"]}
            rows.append([row[index] for index in range(len(row))])
        return torch.tensor(rows)


def _unwritable_number(config: Any) -> str | None:
    """Returns which number of a config the header cannot hold; None if it holds them all."""
    try:
        for name in _COUNTS:
            check_number(getattr(config, name, None), name, 1, _LARGEST, whole=True, optional=name in _MAY_BE_NONE)
        for name, value in (("rms_norm_eps", config.rms_norm_eps), ("rope_theta", _rope_base(config))):
            check_number(value, name, 0, torch.finfo(torch.float32).max, over=True)
    except (ArgumentTypeError, DefinitionError) as error:
        return f"of its config, {error} Correct it: a GGUF file has 32 bits for each number."
    return None


def _rope_base(config: Any) -> Any:
    return (config.rope_parameters or {}).get("rope_theta", 10_000.0)


def _matrices(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, value) for name, value in model.state_dict().items() if value.dim() == 2)


def _write(model: Any, tokenizer: Any, path: Path, kind: str) -> None:
    import gguf

    config = model.config
    architecture = _ARCHITECTURES[config.model_type]
    types = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(path, architecture)
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_name(type(model).__name__)
    writer.add_file_type(int(getattr(gguf.LlamaFileType, f"MOSTLY_{kind}")))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config.num_hidden_layers)
    # llama.cpp has no windows for these: up to the window's length nothing is outside of it.
    window = getattr(config, "sliding_window", None) or config.max_position_embeddings
    writer.add_context_length(min(window, config.max_position_embeddings))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(float(_rope_base(config)))
    writer.add_vocab_size(config.vocab_size)
    add_tokenizer(writer, tokenizer, config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    for name, tensor in _tensors(model, heads, permuted=architecture == "llama"):
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if new is None:
            raise MethodMisfit(f'GGUF has no name for the tensor "{name}" of {type(model).__name__}.')
        values = tensor.detach().float().cpu().numpy()
        if values.ndim == 1:
            writer.add_tensor(new, values)
            continue
        stored = types["Q8_0" if kind == "Q4_0" and new in _KEPT else kind]
        writer.add_tensor(new, gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(model: Any, heads: int, *, permuted: bool) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors by name, a tied head left out; for `permuted`, queries and keys in llama.cpp's order.

    Its rotary embedding turns neighbouring features, and transformers' those half a head apart.
    """
    tied = getattr(model, "all_tied_weights_keys", None) or ()
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        count = {"q_proj": heads, "k_proj": model.config.num_key_value_heads}.get(name.split(".")[-2])
        if permuted and count is not None:
            size = len(tensor) // count // 2
            tensor = tensor.view(count, 2, size, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
        yield name, tensor
