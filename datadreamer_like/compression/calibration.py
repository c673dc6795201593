"""Calibration data of compression methods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from datadreamer_like.errors import ArgumentTypeError, DataError, EmptyDataset

Batches = Iterable[Mapping[str, torch.Tensor]]
"""Calibration data: batches as the model takes them, each a mapping of keyword to tensor."""


class Corpus(NamedTuple):
    """Texts as the model will see them, and a copy of its tokenizer that the method changes in place."""

    texts: Iterable[str]
    tokenizer: Any


def as_list(batches: Batches | None, method: object) -> list[Mapping[str, torch.Tensor]]:
    """Returns the batches as a list, for a method that reads them several times; raises `EmptyDataset` without any."""
    found = list(batches or ())
    if not found:
        raise EmptyDataset(f"{method} got no calibration batch. Pass at least one, better a hundred examples or more.")
    return found


def on_device(batch: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the batch on the device of the model's parameters; raises `ArgumentTypeError` if it is not a mapping."""
    if not isinstance(batch, Mapping):
        raise ArgumentTypeError(
            f"A calibration batch is of type {type(batch).__name__}. Pass an iterable of dicts of tensors as the model "
            "takes them, such as [tokenizer(texts, padding=True, return_tensors='pt')]."
        )
    device = next(model.parameters()).device
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def loss_on(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Returns the model's loss on a batch, with or without labels: a scalar that carries gradients.

    Without labels, the targets are a causal LM's input or a classifier's most likely class: the loss then shows which
    parts the model's current answers depend on, not which parts are useful for the task. Raises `DataError` if the
    model returns neither a loss nor logits, as a bare encoder does.
    """
    batch = on_device(batch, model)
    if "labels" not in batch and "input_ids" in batch and type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")):
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        batch["labels"] = batch["input_ids"].masked_fill(mask == 0, -100)
    outputs: Any = model(**batch)
    loss = getattr(outputs, "loss", None)
    if loss is None and getattr(outputs, "logits", None) is not None:
        logits: torch.Tensor = outputs.logits
        loss = nn.functional.cross_entropy(logits.flatten(0, -2), logits.argmax(-1).flatten())
    if not isinstance(loss, torch.Tensor):
        raise DataError(
            f"{type(model).__name__} returned neither a loss nor logits for the calibration batch "
            f"({', '.join(batch)}). Load the model with its head, and give each batch its labels."
        )
    return loss
