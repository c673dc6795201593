"""Facts about a model that follow from its config and modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from datadreamer_like.errors import MethodMisfit

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

Task = Literal[
    "text-classification", "token-classification", "text-generation", "text2text-generation", "fill-mask",
    "feature-extraction",
]  # fmt: skip


def task_of(config: PretrainedConfig) -> Task:
    """Returns a model's task, from its config."""
    architecture = (getattr(config, "architectures", None) or [""])[0]
    if architecture.endswith("ForSequenceClassification"):
        return "text-classification"
    if architecture.endswith("ForTokenClassification"):
        return "token-classification"
    if getattr(config, "is_encoder_decoder", False):
        return "text2text-generation"
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return "text-generation"
    if architecture.endswith("ForMaskedLM"):
        return "fill-mask"
    return "feature-extraction"


def instead_of_predict(task: Task, path: str) -> str:
    """Returns what to do with a model that is not a classifier."""
    if task in ("text-generation", "text2text-generation"):
        return f"Run it with HFTransformers({path!r})."
    embeds = f" SentenceTransformersEmbedder({path!r}) embeds texts with it." if task == "feature-extraction" else ""
    return f"Train it as one first.{embeds}"


def is_compressed(config: PretrainedConfig) -> bool:
    """Whether a saved config says that the model was pruned or quantized by this package."""
    saved = getattr(config, "quantization_config", None) or {}
    return isinstance(saved, dict) and saved.get("quant_method") == "datadreamer_like"


def uncompressed(config: PretrainedConfig) -> PretrainedConfig:
    """Returns the config of a model that bitsandbytes is to quantize; raises `MethodMisfit` if it is compressed."""
    if is_compressed(config):
        raise MethodMisfit(
            f"The {config.model_type} model was pruned or quantized by this package, and its config has room for one "
            "method only: it takes no qlora or quantization_config. Quantize it with stages.Quantize(name, model, "
            "quantization.NF4()) if it is not yet, and train an adapter on the result with peft_config alone."
        )
    return config


def imports_of(config: PretrainedConfig) -> list[str]:
    """Returns the modules to import before transformers can load a model: none, or those of this package."""
    return (
        ["datadreamer_like.formats"]
        if is_compressed(config) or str(config.model_type).startswith("datadreamer_")
        else []
    )


def head_options(config: PretrainedConfig) -> dict[str, Any]:
    """Returns the arguments of `from_pretrained` that give a base model the head of this one: labels and padding."""
    if not task_of(config).endswith("-classification"):
        return {}
    options: dict[str, Any] = {"id2label": dict(config.id2label or {})}
    if getattr(config, "problem_type", None) is not None:
        options["problem_type"] = config.problem_type
    if not is_bidirectional(config) and getattr(config, "pad_token_id", None) is not None:
        options["pad_token_id"] = config.pad_token_id
    return options


def is_bidirectional(config: PretrainedConfig) -> bool:
    """Whether a model is an encoder; transformers loads it as a "causal" model that sees its target tokens."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False):
        return False
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and task_of(config) != "text-generation"


def dtype_name(dtype: str | torch.dtype | None) -> str | None:
    """Returns the name of a data type, such as "bfloat16"; None for that of a model's files."""
    return None if dtype is None else str(dtype).removeprefix("torch.")


def model_max_length(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns a model's maximum number of tokens: the limit of its tokenizer or positions, or 512 if unknown."""
    from datadreamer_like.distillation.tokens import max_tokens

    return max_tokens(config, tokenizer) or 512


def count_parameters(model: nn.Module) -> int:
    """Counts a model's weights, shared ones once; quantized layers count their dequantized weights."""
    if (stated := getattr(model, "stated_parameters", None)) is not None:
        return int(stated)  # a graph of another runtime, which has no modules
    seen: set[int] = set()
    total = 0
    for module in model.modules():
        parameters = dict(module.named_parameters(recurse=False))
        tensors = {**dict(module.named_buffers(recurse=False)), **parameters}
        fresh = {name for name, tensor in tensors.items() if id(tensor) not in seen}
        seen.update(id(tensor) for tensor in tensors.values())
        stated = _stated_size(module)
        if stated is not None:
            # Packed codes are fewer than weights (two per byte), or are buffers.
            total += stated if "weight" in fresh or ("weight" not in tensors and fresh) else 0
            total += tensors["bias"].numel() if "bias" in fresh else 0
            fresh -= {"weight", "bias"}
        total += sum(parameter.numel() for name, parameter in parameters.items() if name in fresh)
    return total


def _stated_size(module: nn.Module) -> int | None:
    """The number of weights according to the sizes of a linear layer or embedding, for any storage format."""
    for rows, columns in (("out_features", "in_features"), ("num_embeddings", "embedding_dim")):
        sizes = getattr(module, rows, None), getattr(module, columns, None)
        if isinstance(sizes[0], int) and isinstance(sizes[1], int):
            return sizes[0] * sizes[1]
    return None
