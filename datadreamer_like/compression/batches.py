"""The check of calibration batches, before a model sees them: what it would answer with an error of its own."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from datadreamer_like.distillation.losses import IGNORED_LABEL
from datadreamer_like.errors import ArgumentTypeError, DataError, EmptyDataset
from datadreamer_like.formats.modules import config_of_layers

_IDS = ("input_ids", "decoder_input_ids")
_MASKS = {"attention_mask": "input_ids", "decoder_attention_mask": "decoder_input_ids"}
_EXAMPLE = "[tokenizer(texts, padding=True, return_tensors='pt')]"


def check_batch(batch: object, model: nn.Module) -> None:
    """Checks that a batch is one that the model takes.

    Raises:
        ArgumentTypeError: It is not a mapping, or has other values than tensors.
        EmptyDataset: It has no tokens.
        DataError: Inputs are missing or of the wrong shape, longer than the model's positions, or hold tokens or labels
            that the model does not know.
    """
    if not isinstance(batch, Mapping):
        raise ArgumentTypeError(
            f"A calibration batch is of type {type(batch).__name__}. Pass an iterable of dicts of tensors as the model "
            f"takes them, such as {_EXAMPLE}."
        )
    for name, value in batch.items():
        if not isinstance(value, Tensor | bool | int | float):
            raise ArgumentTypeError(
                f'"{name}" of a calibration batch is of type {type(value).__name__}, not a tensor. Let the tokenizer '
                f"make tensors: {_EXAMPLE}."
            )
    _check_names(batch, model)
    for name in _IDS:
        if name in batch:
            _check_ids(name, batch[name], model)
    for name, of in _MASKS.items():
        if name in batch and of in batch and batch[name].dim() == 2 and batch[name].shape != batch[of].shape:
            raise DataError(
                f"The {name} of a calibration batch is {list(batch[name].shape)}, and its {of} {list(batch[of].shape)}."
                f" Take both from one call of the tokenizer, as in {_EXAMPLE}."
            )
    if isinstance(labels := batch.get("labels"), Tensor):
        _check_labels(labels, batch, model)


def _check_names(batch: Mapping[str, Any], model: nn.Module) -> None:
    if isinstance(model, PreTrainedModel):
        if not {model.main_input_name, "inputs_embeds"} & set(batch):
            raise DataError(
                f"A calibration batch has {', '.join(map(str, batch)) or 'nothing'}, and {type(model).__name__} takes "
                f"{model.main_input_name}. Pass batches as it takes them, such as {_EXAMPLE}."
            )
        return
    taken = inspect.signature(model.forward).parameters
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken.values())
    if unknown := [name for name in batch if name not in taken and not takes_any]:
        raise DataError(
            f'A calibration batch has "{unknown[0]}", which {type(model).__name__} does not take; it takes '
            f"{', '.join(taken)}."
        )


def _check_ids(name: str, ids: Tensor, model: nn.Module) -> None:
    if ids.dim() != 2 or ids.dtype not in (torch.int64, torch.int32):
        raise DataError(
            f"The {name} of a calibration batch are {ids.dtype} {list(ids.shape)}; they must be token ids, int64 "
            f"[batch, seq], as {_EXAMPLE} gives them."
        )
    if not ids.numel():
        raise EmptyDataset(f"The {name} of a calibration batch are {list(ids.shape)}: it has no tokens. Leave it out.")
    if (most := longest_sequence(model)) is not None and ids.shape[1] > most:
        raise DataError(
            f"A calibration batch has sequences of {ids.shape[1]} tokens, and {type(model).__name__} takes {most}. "
            f"Cut them: tokenizer(texts, truncation=True, max_length={most}, padding=True, return_tensors='pt')."
        )
    known = getattr(_embeddings(model), "num_embeddings", None)
    lowest, highest = (int(value) for value in torch.aminmax(ids))
    if known is not None and not 0 <= lowest <= highest < known:
        raise DataError(
            f"The {name} of a calibration batch hold {lowest if lowest < 0 else highest}, and {type(model).__name__} "
            f"has tokens 0 to {known - 1}. Use the tokenizer of this model."
        )


def _check_labels(labels: Tensor, batch: Mapping[str, Any], model: nn.Module) -> None:
    ids = batch.get("input_ids")
    if isinstance(ids, Tensor) and (not labels.dim() or len(labels) != len(ids)):
        raise DataError(
            f"The labels of a calibration batch are {list(labels.shape)}, and its input_ids {list(ids.shape)}. Give "
            "each row its label."
        )
    config: Any = getattr(model, "config", None)
    is_class = type(model).__name__.endswith("Classification") and getattr(config, "num_labels", 1) > 1
    if is_class and not labels.is_floating_point() and config.problem_type in (None, "single_label_classification"):
        wrong = labels[(labels != IGNORED_LABEL) & ((labels < 0) | (labels >= config.num_labels))]
        if wrong.numel():
            raise DataError(
                f"The labels of a calibration batch hold {int(wrong[0])}, and {type(model).__name__} has classes 0 to "
                f"{config.num_labels - 1}. Number them as the model's config.label2id does."
            )


def longest_sequence(model: nn.Module) -> int | None:
    """The longest sequence that a model takes; None if its config does not say."""
    most = getattr(config_of_layers(model), "max_position_embeddings", None)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            most = module.num_embeddings - module.padding_idx - 1  # RoBERTa's positions begin behind its padding's
    return most if most is None or most > 0 else None  # XLNet's -1 is no limit


def _embeddings(model: nn.Module) -> nn.Module | None:
    return model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None
